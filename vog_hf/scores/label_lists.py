"""The column of a dataset that holds the labels of units: the tags of words, the categories of objects."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from vog_hf.metric.row_units import NO_UNIT, RowUnits
from vog_hf.metric.unit_kinds import LABEL, OBJECT
from vog_hf.scores.unit_table import lists_of, parts_of_lists

LISTS = (pa.ListType, pa.LargeListType)


@dataclass(frozen=True)
class LabelLists:
    """A column of labels, one list per row, with the number of labels of each row and the names of the classes.

    A list inside a column has the names of both, ``objects.category``.
    """

    column: str
    counts: npt.NDArray[np.int64]
    names: tuple[str, ...] = ()

    def is_unit(self, units: RowUnits) -> npt.NDArray[np.bool_]:
        """Of each label, row after row: whether there is a unit for it, as the first ones of a row have."""
        number = np.arange(self.counts.sum()) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        return number < np.repeat(units.sizes, self.counts)


def label_lists(dataset: Dataset, units: RowUnits) -> LabelLists | None:
    """Find the column of labels that the units were labeled by.

    In each row the labels of the units are the first labels of the list, without -100; behind them are those of words
    that were cut off. Of several such columns it is the one with most labels: that of the words, before tokenization.
    The labels of objects are all of the list, which may be inside a column (``objects.category``), but in rows without
    units, which were skipped.

    Args:
        dataset: Rows that were scored.
        units: Units of all rows, with their labels.

    Returns:
        None where no column is so.

    Example:
        >>> units = RowUnits(np.array([2, 1]), {"label_token": np.array([3, 0, 1])})
        >>> label_lists(Dataset.from_dict({"ner_tags": [[3, 0, 5], [1]]}), units)
        LabelLists(column='ner_tags', counts=array([3, 1]), names=())
    """
    if units.named(LABEL) not in units.columns:
        return None
    found: LabelLists | None = None
    for name, feature, column in _lists(dataset, units.unit):
        lists = _fitting(name, feature, column, units)
        if lists is not None and (found is None or lists.counts.sum() > found.counts.sum()):
            found = lists
    return found


def _lists(dataset: Dataset, unit: str) -> Iterator[tuple[str, Any, pa.ChunkedArray]]:
    """Columns of lists with the features of their entries; of objects, also lists inside a column like ``objects``."""
    for name, feature in dataset.features.items():
        inside = getattr(feature, "feature", feature)
        is_nested = unit == OBJECT.name and isinstance(inside, Mapping)
        if not is_nested and not _holds_numbers(dataset.features.arrow_schema.field(name).type):
            continue
        column = dataset.select_columns([name]).with_format("arrow")[:].column(name)
        if not is_nested:
            yield name, inside, column
            continue
        for field in inside:
            of_field = _field(column, field, is_list=inside is not feature)
            if _holds_numbers(of_field.type):
                yield f"{name}.{field}", getattr(inside[field], "feature", inside[field]), of_field


def _holds_numbers(kind: pa.DataType) -> bool:
    """Tell whether a column holds lists of whole numbers."""
    return isinstance(kind, LISTS) and pa.types.is_integer(kind.value_type)


def _field(column: pa.ChunkedArray, name: str, *, is_list: bool) -> pa.ChunkedArray:
    """A field of structs: of structs of lists, or (``is_list``) of lists of structs."""
    if not is_list:
        return pc.struct_field(column, name)
    sizes, values = parts_of_lists(column)
    return pa.chunked_array([lists_of(sizes, pc.struct_field(values, name))])


def _fitting(name: str, feature: Any, column: pa.ChunkedArray, units: RowUnits) -> LabelLists | None:
    """A column of lists, if its labels in each row are those of the units; behind those of tokens may be others."""
    sizes, values = parts_of_lists(column)
    labels = values.fill_null(NO_UNIT).to_numpy(zero_copy_only=False)
    is_label = labels != NO_UNIT
    counts = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[is_label], minlength=len(sizes))
    has_others = units.sizes > 0 if units.unit == OBJECT.name else counts < units.sizes
    if (counts != units.sizes)[has_others].any():
        return None
    lists = LabelLists(name, counts, tuple(getattr(feature, "names", None) or ()))
    return lists if np.array_equal(labels[is_label][lists.is_unit(units)], units.column(units.named(LABEL))) else None
