"""Transforms from rows with a chosen and a rejected text to the inputs of reward models and of language models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from vog_hf.cli.columns import refuse_label
from vog_hf.cli.model_inputs import Loader, Row, Rows
from vog_hf.cli.text_heads import Completions, Conversations
from vog_hf.data.column_kinds import columns_of_kind
from vog_hf.errors import ConfigError, DataError
from vog_hf.gradients.preferences import CHOSEN as CHOSEN_IDS
from vog_hf.gradients.preferences import REJECTED as REJECTED_IDS
from vog_hf.gradients.preferences import PreferenceOptimization, RewardModeling

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from vog_hf.data.column_kinds import Kind

PAIR, PROMPT = ("chosen", "rejected"), "prompt"  # columns as TRL's trainers have them
TOOLS, TEMPLATE_OPTIONS = "tools", "chat_template_kwargs"  # columns that a chat template gets
PROMPT_IDS = "prompt_ids"


@dataclass(frozen=True)
class Preferences(Conversations):
    """Rows of a chosen and a rejected text or conversation, with a prompt before both or not.

    Attributes:
        constants: Columns of numbers that the margin of a row is compared with, if the dataset has them.
    """

    needs_label_column: ClassVar[bool] = False
    constant_columns: ClassVar[tuple[str, ...]] = ()
    constants: tuple[str, ...] = ()

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        refuse_label(label, "a preference", "swap chosen and rejected where the other text is the better one")
        named = inputs or tuple(name for name in (PROMPT, *PAIR) if name in dataset.column_names)
        others = [name for name in named if name not in (PROMPT, *PAIR)]
        if others:
            raise ConfigError(
                f"a preference takes the columns {PROMPT}, {PAIR[0]} and {PAIR[1]}, and --input-column names "
                f"{', '.join(others)}; rename the columns, or name only that of a text"
            )
        columns = tuple(name for name in (PROMPT, *PAIR) if name in named)
        _require_one_kind(dataset, columns)
        _require_numbers(dataset, cls.constant_columns)
        return columns, None

    @classmethod
    @override
    def most_inputs(cls, kind: "Kind") -> int | None:
        return None

    @classmethod
    @override
    def own_options(
        cls, dataset: "Dataset", label: str | None, model: "nn.Module", load_tokenizer: Loader
    ) -> dict[str, Any]:
        has_all = set(cls.constant_columns) <= set(dataset.column_names)
        return {"constants": cls.constant_columns if has_all else ()}

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        made: list[dict[str, Any]] = []
        for at in range(len(rows[PAIR[0]])):
            row = {name: rows[name][at] for name in self.inputs}
            made.append(self._encoded(row, _template_options(rows, at)))
        return {name: [row[name] for row in made] for name in made[0]} | {name: rows[name] for name in self.constants}

    @override
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """All chosen texts, then all rejected ones, as TRL's collators put them, padded on the right."""
        texts = [(row.get(PROMPT_IDS, []), row[name]) for name in (CHOSEN_IDS, REJECTED_IDS) for row in rows]
        ids = [prompt + answer for prompt, answer in texts]
        batch = {
            "input_ids": self._padded(ids, self.processor.pad_token_id or 0),
            "attention_mask": self._padded([[1] * len(text) for text in ids]),
        }
        if PROMPT_IDS in rows[0]:
            batch["completion_mask"] = self._padded([[0] * len(prompt) + [1] * len(text) for prompt, text in texts])
        return batch | {name: torch.tensor([float(row[name]) for row in rows]) for name in self.constants}

    def _padded(self, lists: Sequence[list[int]], value: int = 0) -> Tensor:
        """Lists of uneven length as one tensor, each cut off at the maximum length."""
        tensors = [torch.tensor(numbers[: self.max_length]) for numbers in lists]
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    def _encoded(self, row: Row, options: Mapping[str, object]) -> dict[str, list[int]]:
        """Tokens of the chosen and the rejected text of a row, and of its prompt if that is apart."""
        raise NotImplementedError


class RewardPairs(Preferences):
    """Pairs for a reward model, as TRL's RewardTrainer prepares them: the prompt is a part of both texts."""

    task: ClassVar[str | None] = RewardModeling.name
    constant_columns: ClassVar[tuple[str, ...]] = ("margin",)

    @override
    def described(self) -> dict[str, Any]:
        return {**super().described(), "margin_column": next(iter(self.constants), None)}

    @override
    def _encoded(self, row: Row, options: Mapping[str, object]) -> dict[str, list[int]]:
        texts = [row[PROMPT] + row[name] if PROMPT in row else row[name] for name in PAIR]
        tokens = [self._tokens(text, **options) for text in texts]
        longest = max(map(len, tokens))
        if self.max_length is not None and longest > self.max_length:
            raise DataError(
                f"a text of the pair has {longest:,} tokens, more than the limit of {self.max_length:,} (--max-length, "
                "or that of the model); TRL's RewardTrainer leaves such pairs out: pass on_error='skip'",
                argument="on_error='skip'",
            )
        return dict(zip((CHOSEN_IDS, REJECTED_IDS), tokens, strict=True))


class AnswerPairs(Preferences):
    """Pairs of answers for a language model, as TRL's DPOTrainer prepares them.

    Without a column for it, the prompt is what both texts begin with. The margin is that over a reference model where
    the dataset has its log-probabilities.
    """

    task: ClassVar[str | None] = PreferenceOptimization.name
    constant_columns: ClassVar[tuple[str, ...]] = ("ref_chosen_logps", "ref_rejected_logps")

    @classmethod
    @override
    def pad(cls, tokenizer: "PreTrainedTokenizerBase", config: object) -> None:
        Completions.pad(tokenizer, config)

    @override
    def described(self) -> dict[str, Any]:
        return {**super().described(), "reference": list(self.constants) or "none: the margin is the model's alone"}

    @override
    def _encoded(self, row: Row, options: Mapping[str, object]) -> dict[str, list[int]]:
        parts = tuple(row[name] for name in self.inputs)
        prompt, chosen, rejected = parts if PROMPT in row else split_prompt(*parts)
        of_prompt = self._prompt_tokens(prompt, **options)
        texts = [self._tokens(prompt + answer, **options) for answer in (chosen, rejected)]
        n_prompt = min(_n_shared(of_prompt, text) for text in texts)  # tokens may merge where an answer begins
        of_answers = (text[n_prompt:] for text in texts)
        return {PROMPT_IDS: of_prompt[:n_prompt], **dict(zip((CHOSEN_IDS, REJECTED_IDS), of_answers, strict=True))}


def texts_of_pairs(dataset: "Dataset") -> list[str]:
    """Columns of a preference in a dataset, of the two, those that hold neither classes nor numbers."""
    texts = columns_of_kind(dataset, "text")
    lists = [name for name, feature in dataset.features.items() if not hasattr(feature, "dtype")]
    return [name for name in PAIR if name in (*texts, *lists)]


def split_prompt(chosen: Sequence[object], rejected: Sequence[object]) -> tuple[Any, Any, Any]:
    """Divide two texts or conversations into what both begin with and the rest of each, as TRL's ``extract_prompt``.

    A space before the first difference belongs to the answers. Where neither differs, the prompt is all but the last
    letter or message.

    Example:
        >>> split_prompt("the sky is blue", "the sky is green")
        ('the sky is', ' blue', ' green')
    """
    n_shared, shortest = _n_shared(chosen, rejected), min(len(chosen), len(rejected))
    if n_shared == shortest:
        n_shared = max(shortest - 1, 0)
    elif chosen[max(n_shared - 1, 0) : n_shared] == " ":
        n_shared -= 1
    return chosen[:n_shared], chosen[n_shared:], rejected[n_shared:]


def _n_shared(first: Sequence[object], second: Sequence[object]) -> int:
    """Number of values that two sequences share at the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))


def _template_options(rows: Rows, at: int) -> dict[str, Any]:
    """What the chat template gets with a row: its tools and options, from the columns that TRL reads."""
    tools = rows[TOOLS][at] if TOOLS in rows else None
    tools = json.loads(tools) if isinstance(tools, str) else tools
    options = (rows[TEMPLATE_OPTIONS][at] or {}) if TEMPLATE_OPTIONS in rows else {}
    return {**({} if tools is None else {"tools": tools}), **options}


def _require_one_kind(dataset: "Dataset", columns: Sequence[str]) -> None:
    """Raise ConfigError where columns are not all of texts, or all of conversations; looks at the first row."""
    row = dataset.select_columns(list(columns))[0]
    kinds = {name: _kind(value) for name, value in row.items()}
    if len(set(kinds.values())) == 1 and "neither" not in kinds.values():
        return
    found = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    without = {kind for name, kind in kinds.items() if name != PROMPT}
    drop = (
        f"; leave out {PROMPT} if the conversations hold it: --input-column {' --input-column '.join(PAIR)}; for a "
        "model that was trained on other columns, name those"
    )
    raise ConfigError(
        f"{' and '.join(columns)} must be all texts or all conversations (lists of messages with role and content), "
        f"got {found}{drop if without == {'conversation'} else ''}"
    )


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, list) and value else None
    return "conversation" if isinstance(first, Mapping) and {"role", "content"} <= first.keys() else "neither"


def _require_numbers(dataset: "Dataset", columns: Sequence[str]) -> None:
    """Raise ConfigError where columns hold no numbers, or only some of them are there."""
    there = [name for name in columns if name in dataset.column_names]
    if there and len(there) < len(columns):
        raise ConfigError(
            f"the dataset has {there[0]} and not {next(name for name in columns if name not in there)}; a margin over "
            "a reference needs both, so add the other or remove it"
        )
    for name in there:
        dtype = str(getattr(dataset.features[name], "dtype", "list"))
        if not dtype.startswith(("float", "int", "uint", "decimal")):
            raise ConfigError(f"column {name!r} must hold a number per row, got {dtype}; rename or remove it")
