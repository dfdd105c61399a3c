"""Labels of a dataset: read from its columns, from rows before they are collated, and from collated batches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vog_hf.data.arrow_columns import has_table, integer_column, list_column
from vog_hf.data.rows import AnyDataset
from vog_hf.errors import DataError
from vog_hf.gradients.detection import object_labels
from vog_hf.gradients.task import IGNORED_TOKEN

LABELS_AT_A_TIME = 1024  # rows of a column of lists


class LabelReader:
    """Reads the labels of a dataset's rows.

    Args:
        dataset: Dataset with the rows.
        names: Keys under which a batch holds its labels.
        column: Column (or batch key) of the labels, over ``names``.
    """

    def __init__(self, dataset: AnyDataset, names: Sequence[str], column: str | None) -> None:
        self._dataset = dataset
        self.names = tuple(names)
        self.column = column
        self._nullable = self._nullable_columns()

    def whole_column(self, rows: Sequence[int], seen: Tensor) -> npt.NDArray[np.int64] | None:
        """Read the label of every row without decoding any; None where the dataset does not have such a column.

        The labels ``seen`` in the batch of ``rows`` must be the column's, else a transform makes them.
        """
        column = integer_column(self._dataset, [self.column] if self.column else self.names)
        if column is None or not np.array_equal(column[np.asarray(rows)], seen.numpy()):
            return None
        return column

    def stored(self, rows: Sequence[int], seen: Tensor | None) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Read all labels that need no decoding, some rows at a time: ``[rows]``, or ``[rows, longest]``.

        Nothing where the labels ``seen`` in the batch of ``rows`` are not those of a column. Lists are filled up with
        -100, as collators do.
        """
        if seen is not None and seen.dim() == 1:
            everything = self.whole_column(rows, seen)
            if everything is not None:
                yield range(len(everything)), torch.from_numpy(everything)
        elif seen is not None and seen.dim() == 2:
            yield from self._stored_lists(rows, seen)

    def text_fault(self, row: Mapping[str, object]) -> str | None:
        """Explain a label column of text, which is a fault unless the collator makes numbers of it."""
        for name in (self.column,) if self.column else self.names:
            value = row.get(name)
            if isinstance(value, str):
                return (
                    f"label column {name!r} holds text ({value!r}), expected class numbers; encode it with "
                    f"dataset.class_encode_column({name!r}) and train on the same numbers"
                )
        return None

    def values(self, rows: Sequence[Mapping[str, object]]) -> list[Any] | None:
        """Values of the label column, if the rows have it."""
        if self.column and self.column in rows[0]:
            missing = self.missing(self.column, rows)
            return [missing if row[self.column] is None else row[self.column] for row in rows]
        return None

    def missing(self, name: str, rows: Sequence[Mapping[str, object]]) -> float:
        """Replacement of a label that is None: -1 (no class), NaN among floats (a regression cannot do without)."""
        floats = self._dtype(name).startswith("float") or any(isinstance(row.get(name), float) for row in rows)
        return math.nan if floats else -1

    def with_nulls(self, rows: list[Any]) -> list[Any]:
        """Rows with the missing labels that a format turned into NaN as None again."""
        return [self._with_nulls(row) for row in rows] if self._nullable else rows

    def _with_nulls(self, row: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: float(row[name]) for name in self._nullable}
        return {**row, **{name: None if math.isnan(value) else int(value) for name, value in values.items()}}

    def _stored_lists(self, rows: Sequence[int], seen: Tensor) -> Iterator[tuple[Sequence[int], Tensor]]:
        names = [self.column] if self.column else self.names
        n_rows = len(self._dataset)
        parts = [range(start, min(start + LABELS_AT_A_TIME, n_rows)) for start in range(0, n_rows, LABELS_AT_A_TIME)]
        lists = list_column(self._dataset, names, [rows, *parts])
        if lists is None:
            return
        stored = np.split(*next(lists))
        if len(stored) == len(seen) and all(map(_same_labels, stored, seen.numpy())):
            for part, (values, stops) in zip(parts, lists, strict=True):
                yield part, _padded(values, stops)

    def _nullable_columns(self) -> list[str]:
        """Label columns of whole numbers and nulls, which the formats "torch" and "numpy" turn into floats and NaN."""
        if not has_table(self._dataset) or self._dataset.format["type"] in (None, "custom"):
            return []
        names = [name for name in self._dataset.column_names if name in (self.column, *self.names)]
        return [name for name in names if "int" in self._dtype(name) and self._dataset.data.column(name).null_count]

    def _dtype(self, column: str) -> str:
        """Dtype of a column of single values, "" where it is not one or is not known."""
        features = getattr(self._dataset, "features", None)
        return str(getattr(features.get(column), "dtype", "")) if isinstance(features, Mapping) else ""


def label_tensor(labels: object, text: str | None) -> Tensor | None:
    """Labels as a tensor; ``text`` says what is wrong with a label column of which the collator made no numbers."""
    if labels is None and text:
        raise DataError(text)
    if labels is None or isinstance(labels, Tensor):
        return labels
    if isinstance(labels, (list, tuple)) and all(isinstance(label, Mapping) for label in labels):
        return object_labels(labels)
    try:
        return torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError) as error:
        msg = f"labels must be numbers, got {labels!r:.80}; encode them, e.g. dataset.class_encode_column('label')"
        raise DataError(text or msg) from error


def _padded(values: npt.NDArray[np.generic], stops: npt.NDArray[np.int64]) -> Tensor:
    """Lists that lie end to end, each up to the next of ``stops``, as rows ``[lists, longest]``."""
    lengths = np.diff(stops, prepend=0, append=len(values))
    filled = np.full((len(lengths), lengths.max()), IGNORED_TOKEN, dtype=values.dtype)
    filled[np.arange(lengths.max()) < lengths[:, None]] = values
    return torch.from_numpy(filled)


def _same_labels(stored: npt.NDArray[np.generic], collated: npt.NDArray[np.generic]) -> bool:
    """True if a row's labels are the ones that are stored, but for padding and tokens that are left out.

    Padding-free collators also leave out the label of the first token, which nothing predicts.
    """
    counted = collated[collated != IGNORED_TOKEN]
    without_first = stored[1:] if len(collated) and collated[0] == IGNORED_TOKEN else stored
    return any(np.array_equal(labels[labels != IGNORED_TOKEN], counted) for labels in (stored, without_first))
