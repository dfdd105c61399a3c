"""Columns of a dataset's Arrow table, read without a Python object per row."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from vog_hf.data.rows import AnyDataset

SHORT_LIST, SHORT_TEXT = 2, 8  # below: a language model has no next token to predict, a tokenizer may make no token
LONG = np.iinfo(np.int64).max


def has_table(dataset: AnyDataset) -> TypeGuard[Dataset]:
    """True if this is a `datasets.Dataset`, with columns that can be read without decoding."""
    return isinstance(getattr(getattr(dataset, "data", None), "table", None), pa.Table)


def integer_column(dataset: AnyDataset, names: Sequence[str]) -> npt.NDArray[np.int64] | None:
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
    dataset: AnyDataset, names: Sequence[str], parts: Sequence[Sequence[int]]
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


def list_lengths(dataset: AnyDataset, name: str) -> npt.NDArray[np.int64] | None:
    """Lengths of each row's list in a column, without reading its values; None where there is no such column."""
    if not has_table(dataset) or name not in dataset.column_names:
        return None
    column = dataset.data.column(name)
    if not _is_list_of_numbers(column.type):
        return None
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    indices = stored_rows(dataset)
    return lengths if indices is None else lengths[indices]


def doubtful_rows(dataset: AnyDataset, masks: Sequence[str], limit: int) -> Iterator[tuple[str, list[int]]]:
    """For each column, the row numbers of its poorest values: null, empty, not finite, short, or a missing file.

    Values of a transform or a collator are not looked at, so such a row may still be a good one.

    Args:
        dataset: A `datasets.Dataset`; any other one has no such rows.
        masks: Names of columns in which only elements other than 0 count.
        limit: Maximum number of rows of each column, the poorest first.
    """
    if not has_table(dataset):
        return
    for name in dataset.column_names:
        listing = functools.cache(_files_in)
        column = dataset.data.column(name)
        parts = [_sizes(chunk, is_mask=name in masks, listing=listing) for chunk in column.chunks]
        indices = stored_rows(dataset)
        sizes = np.concatenate(parts) if indices is None else np.concatenate(parts)[indices]
        rows = np.flatnonzero(sizes < (SHORT_TEXT if _is_text(column.type) else SHORT_LIST))
        if len(rows):
            yield name, rows[np.argsort(sizes[rows], kind="stable")][:limit].tolist()


def _sizes(values: pa.Array, *, is_mask: bool, listing: object) -> npt.NDArray[np.int64]:
    """Size of each value: -1 where it is null, 0 where it cannot be used."""
    kind = values.type
    if _is_list_of_numbers(kind) or (_is_list(kind) and pa.types.is_boolean(kind.value_type)):
        sizes = _usable_lengths(values, is_mask=is_mask)
    elif _is_list(kind):
        sizes = _numpy(pc.list_value_length(values))
    elif _is_text(kind):
        sizes = _numpy(pc.utf8_length(pc.utf8_trim_whitespace(values)))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        sizes = np.where(_numpy(pc.binary_length(values)) > 0, LONG, 0)
    elif pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(at).name for at in range(kind.num_fields)}:
        sizes = _file_sizes(pc.struct_field(values, "bytes"), pc.struct_field(values, "path"), listing)
    elif pa.types.is_floating(kind):
        sizes = np.where(np.isfinite(values.to_numpy(zero_copy_only=False)), LONG, 0)
    else:
        sizes = np.full(len(values), LONG)
    return np.where(values.is_null().to_numpy(zero_copy_only=False), -1, sizes)


def _usable_lengths(lists: pa.Array, *, is_mask: bool) -> npt.NDArray[np.int64]:
    """Lengths of lists of numbers: 0 where one is not finite, of a mask the number of elements that count."""
    lengths, values = _numpy(pc.list_value_length(lists)), pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    if not is_mask and not pa.types.is_floating(lists.type.value_type):
        return lengths
    good = np.concatenate([[0], np.cumsum(values != 0 if is_mask else np.isfinite(values), dtype=np.int64)])
    stops = np.cumsum(lengths)
    usable = good[stops] - good[stops - lengths]
    return usable if is_mask else np.where(usable == lengths, lengths, 0)


def _file_sizes(held: pa.Array, paths: pa.Array, listing: Any) -> npt.NDArray[np.int64]:
    """Sizes of images or sounds, held in the table or in a file that it names: 0 for nothing, or a missing file."""
    here = _numpy(pc.binary_length(held)) > 0
    named = pc.filter(paths, pa.array(~here & held.is_null().to_numpy(zero_copy_only=False)))
    folders = pc.unique(pc.replace_substring_regex(named.drop_null(), r"[^/\\]*$", "")).to_pylist()
    found = pc.is_in(named, pa.array([file for folder in folders for file in listing(folder)], named.type))
    usable = pc.or_(found, pc.fill_null(pc.match_substring(named, "://"), False))
    here[np.flatnonzero(~here & held.is_null().to_numpy(zero_copy_only=False))] = usable.to_numpy(zero_copy_only=False)
    return np.where(here, LONG, 0)


def _files_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return [folder + entry.name for entry in entries]
    except OSError:
        return []


def _numpy(lengths: pa.Array) -> npt.NDArray[np.int64]:
    """Lengths, 0 of nulls."""
    return np.asarray(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _end_to_end(lists: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = np.array(pc.list_flatten(lists).to_numpy(zero_copy_only=False))
    return values, np.cumsum(lengths, dtype=np.int64)[:-1]


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    return _is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def stored_rows(dataset: Dataset) -> npt.NDArray[np.int64] | None:
    """Numbers of the stored rows that a selected or shuffled dataset shows; None = all, in order."""
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64)  # of uint64
