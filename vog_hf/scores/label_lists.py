"""The column of a dataset that holds the labels of units: the tags of the words of a text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from vog_hf.metric.row_units import NO_UNIT, RowUnits
from vog_hf.metric.unit_kinds import LABEL
from vog_hf.scores.unit_table import parts_of_lists

LISTS = (pa.ListType, pa.LargeListType)


@dataclass(frozen=True)
class LabelLists:
    """A column of labels, one list per row, with the number of labels of each row and the names of the classes."""

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
    for name in dataset.column_names:
        lists = _fitting(dataset, name, units)
        if lists is not None and (found is None or lists.counts.sum() > found.counts.sum()):
            found = lists
    return found


def _fitting(dataset: Dataset, name: str, units: RowUnits) -> LabelLists | None:
    """A column of lists, if its first labels in each row are those of the units."""
    kind = dataset.features.arrow_schema.field(name).type
    if not isinstance(kind, LISTS) or not pa.types.is_integer(kind.value_type):
        return None
    sizes, values = parts_of_lists(dataset.select_columns([name]).with_format("arrow")[:].column(name))
    labels = values.fill_null(NO_UNIT).to_numpy(zero_copy_only=False)
    is_label = labels != NO_UNIT
    counts = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[is_label], minlength=len(sizes))
    if (counts < units.sizes).any():
        return None
    names = getattr(getattr(dataset.features[name], "feature", None), "names", None)
    lists = LabelLists(name, counts, tuple(names or ()))
    return lists if np.array_equal(labels[is_label][lists.is_unit(units)], units.column(units.named(LABEL))) else None
