"""The texts of the choices of a row (multiple choice), by what the dataset's columns hold and how they are called."""

import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, List

from vog_hf.scores.manifest import Manifest
from vog_hf.scores.pictures.decoding import MAX_TEXT
from vog_hf.scores.pictures.row_columns import is_text

LISTS = ("choices", "options", "endings", "answers")  # columns of published datasets, one list of texts per row
NUMBERED = ("ending", "choice", "option", "answer", "sol", "op")  # begin the names of columns with a choice each
NUMBER = re.compile(r"(.+?)_?(\d+|[A-Za-z])")
FEWEST = 2


class ChoiceTexts:
    """Reads the texts of the choices of one row at a time.

    Args:
        dataset: Rows; None or other rows than a `datasets.Dataset` have no texts of choices.
        facts: Manifest of their scores, which may name the columns that the model's input was made of.
    """

    def __init__(self, dataset: object, facts: Manifest | None = None) -> None:
        self._names: tuple[str, ...] = ()
        self._field: str | None = None
        self._cells: Any = None
        if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
            return
        self._names, self._field = choice_columns(dataset, facts)
        if self._names:
            self._cells = dataset.with_format("arrow").select_columns(list(self._names))

    def of_row(self, row: int, n_choices: int) -> list[str] | None:
        """The text of each choice; None where the row does not have as many texts as choices."""
        if self._cells is None:
            return None
        cells = [self._cells[row].column(name)[0].as_py() for name in self._names]
        texts = cells if len(cells) > 1 else cells[0]
        if self._field is not None and isinstance(texts, Mapping):
            texts = texts.get(self._field)
        if not isinstance(texts, list) or len(texts) != n_choices or not all(isinstance(text, str) for text in texts):
            return None
        return [text[:MAX_TEXT] for text in texts]


def choice_columns(dataset: Dataset, facts: Manifest | None = None) -> tuple[tuple[str, ...], str | None]:
    """The column of lists of choices, or the column of each choice; and the field of a struct that holds the list.

    The input columns that the manifest names come first, without those that all choices share.

    Args:
        dataset: Rows, of which types alone are read.
        facts: Manifest of their scores.

    Example:
        >>> choice_columns(Dataset.from_dict({"sent1": ["a"], "sent2": ["b"], "ending0": ["c"], "ending1": ["d"]}))
        (('ending0', 'ending1'), None)
        >>> choice_columns(
        ...     Dataset.from_dict({"question": ["a"], "choices": [{"label": ["A", "B"], "text": ["c", "d"]}]})
        ... )
        (('choices',), 'text')
    """
    inputs = (Manifest() if facts is None else facts).transform.get("input_columns") or ()
    named = [name for name in inputs if name in dataset.features]
    features = {name: dataset.features[name] for name in named or dataset.features}
    for name in [*(name for name in LISTS if name in features), *named[-1:]]:
        feature = features[name]
        if isinstance(feature, List) and is_text(feature):
            return (name,), None
        if isinstance(feature, Mapping) and is_text(feature.get("text")):
            return (name,), "text"
    return _numbered([name for name, feature in features.items() if is_text(feature) and not isinstance(feature, List)])


def _numbered(names: list[str]) -> tuple[tuple[str, ...], str | None]:
    """Columns that one of the usual words and a number or a letter name: ``ending0``, ``ending1``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        found = NUMBER.fullmatch(name)
        if found is not None and found[1].lower().rstrip("_") in NUMBERED:
            groups.setdefault(found[1].lower(), []).append(name)
    usual = sorted(groups, key=lambda word: NUMBERED.index(word.rstrip("_")))
    several = [sorted(groups[word], key=_place) for word in usual if len(groups[word]) >= FEWEST]
    return (tuple(several[0]), None) if several else ((), None)


def _place(name: str) -> tuple[int, str]:
    """The place of a choice by the number or letter at the end of its name: 2 before 10."""
    found = NUMBER.fullmatch(name)
    end = name if found is None else found[2]
    return (int(end), "") if end.isdigit() else (0, end.lower())
