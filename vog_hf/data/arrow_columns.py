"""Columns of a dataset's Arrow table, read without a Python object per row."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def has_table(dataset: Any) -> bool:
    """Whether this is a `datasets.Dataset`, with columns that can be read without decoding."""
    return isinstance(getattr(getattr(dataset, "data", None), "table", None), pa.Table)


def integer_column(dataset: Any, names: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """The first of these columns that holds whole numbers, in row order, -1 where it is null; None without one."""
    if not has_table(dataset):
        return None
    for name in names:
        if name in dataset.column_names and pa.types.is_integer(dataset.data.column(name).type):
            values = pc.fill_null(dataset.data.column(name).cast(pa.int64()), -1).to_numpy()
            indices = stored_rows(dataset)
            return np.array(values if indices is None else values[indices])  # a copy: Arrow memory is read-only
    return None


def list_column(
    dataset: Any, names: Sequence[str], parts: Sequence[Sequence[int]]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]] | None:
    """The first of these columns that holds lists of numbers, in some rows after the other; None without one.

    Of each part the lists end to end, and where each but the last one stops: what `numpy.split` takes.
    """
    if not has_table(dataset):
        return None
    for name in names:
        if name in dataset.column_names and _is_list_of_numbers(dataset.data.column(name).type):
            stored = dataset.select_columns([name]).with_format("arrow")
            return (_end_to_end(stored[rows].column(name).combine_chunks()) for rows in parts)
    return None


def list_lengths(dataset: Any, name: str) -> npt.NDArray[np.int64] | None:
    """How long each row's list is in a column, without reading what is in it; None where there is no such column."""
    if not has_table(dataset) or name not in dataset.column_names:
        return None
    column = dataset.data.column(name)
    if not _is_list_of_numbers(column.type):
        return None
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    indices = stored_rows(dataset)
    return lengths if indices is None else lengths[indices]


def _end_to_end(lists: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = np.array(pc.list_flatten(lists).to_numpy(zero_copy_only=False))
    return values, np.cumsum(lengths, dtype=np.int64)[:-1]


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)


def stored_rows(dataset: Any) -> npt.NDArray[np.int64] | None:
    """Which stored rows a selected or shuffled data set shows; None = all, in order."""
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy()
