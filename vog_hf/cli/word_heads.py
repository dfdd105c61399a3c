"""Transforms from rows to the inputs and labels of heads with tags of words, and with several choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from typing_extensions import override

from vog_hf.cli.columns import find_label
from vog_hf.cli.head_inputs import HeadPreparation, require_places
from vog_hf.cli.model_inputs import Loader, Row, Rows
from vog_hf.data.classes import class_numbers
from vog_hf.errors import ConfigError, DataError, LabelError
from vog_hf.gradients.class_tasks import MultipleChoice
from vog_hf.gradients.task import IGNORED_TOKEN
from vog_hf.gradients.token_tasks import TokenClassification

if TYPE_CHECKING:
    from torch import nn

    from vog_hf.data.column_kinds import Kind

WORDS, TAGS = ("tokens", "words"), ("ner_tags", "tags", "labels", "pos_tags")  # columns of published datasets
CONTEXT = ("sent1", "sent2")  # of SWAG, where each choice continues the second one
CHOICES = ("choices", "options", "endings")


class TaggedWords(HeadPreparation):
    """Words with a tag each; the first part of a word has its tag, as in transformers' `run_ner.py`."""

    task: ClassVar[str | None] = TokenClassification.name

    @classmethod
    @override
    def find_columns(
        cls, dataset: Dataset, kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        lists = {name: feature.feature for name, feature in dataset.features.items() if isinstance(feature, List)}
        numbers = [name for name, item in lists.items() if _is_number(item)]
        label = label or next((name for name in TAGS if name in lists), None) or next(iter(numbers), None)
        words = [name for name, item in lists.items() if _is_text(item) and name != label]
        inputs = inputs or tuple(_usual(WORDS, words))
        if len(inputs) != 1 or inputs[0] not in lists or label not in lists:
            raise ConfigError(
                "token classification needs a column with lists of words and one with as many tags, and the dataset "
                f"has {', '.join(dataset.column_names)}; name them with --input-column and --label-column"
            )
        return inputs, label

    @classmethod
    @override
    def own_options(
        cls, dataset: Dataset, label: str | None, model: "nn.Module", load_tokenizer: Loader
    ) -> dict[str, Any]:
        return {"numbers": tag_numbers(dataset, str(label), model.config)}

    @override
    def check(self, dataset: Dataset) -> None:
        require_places(self.processor, "tags of words")
        columns = dataset.select_columns([*self.inputs, str(self.label)]).with_format("arrow")[:]
        words, tags = (pc.list_value_length(columns.column(name)) for name in (self.inputs[0], str(self.label)))
        row = pc.index(pc.not_equal(words, tags), True).as_py()
        if row >= 0:
            raise DataError(
                f"row {row:,} has {words[row].as_py()} words in column {self.inputs[0]!r} and {tags[row].as_py()} tags "
                f"in column {self.label!r}; give each word one tag, or leave the row out"
            )

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        encoded = self._texts(rows, is_split_into_words=True)
        tags = self._labels([tag for of_row in rows[str(self.label)] for tag in of_row or ()])
        labels, first = [], 0
        for at, of_row in enumerate(rows[str(self.label)]):
            of_words = tags[first : first + len(of_row or ())]
            labels.append(_at_first_parts(encoded.word_ids(at), of_words))
            first += len(of_words)
        return {**encoded, "labels": labels}

    @override
    def _labels(self, values: list[Any]) -> list[Any]:
        numbers = super()._labels(values)
        return [IGNORED_TOKEN if number is None or number < 0 else number for number in numbers]


def _at_first_parts(word_of_token: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """A label for each token: the tag of the word that begins there, else -100."""
    before = [None, *word_of_token]
    return [
        IGNORED_TOKEN if word is None or word == last else tags[word]
        for word, last in zip(word_of_token, before, strict=False)
    ]


def tag_numbers(dataset: Dataset, column: str, config: Any) -> dict[Any, int] | None:
    """The number that a model has for each tag, as `class_numbers` has it for classes of rows.

    Raises:
        LabelError: A row with a tag that the model does not have.
    """
    lists = dataset.select_columns([column]).with_format("arrow")[:].column(column)
    feature: Any = dataset.features[column]
    return numbers_in_lists(lists, Features({column: feature.feature}), column, config)


def numbers_in_lists(values: pa.ChunkedArray, item: Features, column: str, config: Any) -> dict[Any, int] | None:
    """As `tag_numbers`, of lists of one feature."""
    lists = values.combine_chunks()
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    schema = item.arrow_schema
    flat = Dataset(pa.table([pc.list_flatten(lists)], schema=schema))
    try:
        return class_numbers(flat, column, config)
    except LabelError as error:
        row = pc.list_parent_indices(lists)[error.position].as_py()
        raise LabelError(str(error).replace(f"row {error.position:,}:", f"row {row:,}:", 1), row) from error


@dataclass(frozen=True)
class Choices(HeadPreparation):
    """A text with several that may follow it, of which the label is the right one's number.

    Choices are one column of lists, or a column each. With SWAG's columns, a choice continues ``sent2``.
    """

    task: ClassVar[str | None] = MultipleChoice.name

    @classmethod
    @override
    def find_columns(
        cls, dataset: Dataset, kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        names = dataset.column_names
        if not inputs and set(CONTEXT) <= set(names):
            endings = [name for name in names if name.startswith("ending")]
            inputs = (*CONTEXT, *sorted(endings, key=lambda name: (len(name), name)))  # 10 after 9
        lists = [name for name in CHOICES if name in names]
        if not inputs and "question" in names and lists:
            inputs = ("question", lists[0])
        if len(inputs) < 2 or (len(inputs) == 2 and not isinstance(dataset.features[inputs[1]], List)):
            raise ConfigError(
                "multiple choice needs a column with the text and one for each choice (or one with lists of choices), "
                f"and the dataset has {', '.join(names)}; name them with --input-column, once for each"
            )
        return inputs, label or find_label(dataset)

    @classmethod
    @override
    def most_inputs(cls, kind: "Kind") -> int | None:
        return None

    @override
    def check(self, dataset: Dataset) -> None:
        name = self.inputs[-1]
        if not isinstance(dataset.features[name], List):
            return
        sizes = pc.list_value_length(dataset.select_columns([name]).with_format("arrow")[:].column(name))
        row = pc.index(pc.not_equal(sizes, sizes[0]), True).as_py()
        if row >= 0:
            raise DataError(
                f"row {row:,} has {sizes[row].as_py()} choices in column {name!r}, and row 0 has {sizes[0].as_py()}; "
                "score rows with other numbers of choices as a dataset of their own"
            )

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        made: dict[str, Any] = {"input_ids": [], "attention_mask": [], "token_type_ids": []}
        for values in zip(*(rows[name] for name in self.inputs), strict=True):
            encoded = self._encoded(*values)
            for name, of_rows in made.items():
                of_rows.append(encoded.get(name))
        made = {name: of_rows for name, of_rows in made.items() if of_rows[0] is not None}
        return made if self.label is None else {**made, "labels": [_number(label) for label in rows[self.label]]}

    @override
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        names = [name for name in rows[0] if name != "labels"]
        texts = [{name: row[name][k] for name in names} for row in rows for k in range(len(row["input_ids"]))]
        batch = {name: value.unflatten(0, (len(rows), -1)) for name, value in self._pad(texts).items()}
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else batch

    def _encoded(self, first: str, *others: Any) -> Mapping[str, Any]:
        """The texts of a row's choices."""
        start = ""
        if self.inputs[:2] == CONTEXT:
            start, others = f"{others[0]} ", others[1:]
        choices = others[0] if isinstance(others[0], list) else others
        cut = {"truncation": self.max_length is not None, "max_length": self.max_length}
        encoded: Mapping[str, Any] = self.processor([first] * len(choices), [start + text for text in choices], **cut)
        return encoded


def _number(label: object) -> int:
    """Number of the right choice: as it is, or of its letter; -100 where there is none."""
    if isinstance(label, str) and len(label) == 1 and "A" <= label <= "Z":
        return ord(label) - ord("A")
    if isinstance(label, str):
        raise DataError(f"the right choice is its number from 0, or its letter from A, got {label!r}; convert it")
    return IGNORED_TOKEN if label is None else int(label)  # type: ignore[call-overload]


def _usual(names: Sequence[str], candidates: Sequence[str]) -> list[str]:
    """The only candidate, else the first of the usual names that is one."""
    return list(candidates) if len(candidates) == 1 else [name for name in names if name in candidates][:1]


def _is_text(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _is_number(feature: object) -> bool:
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(("int", "uint")))
