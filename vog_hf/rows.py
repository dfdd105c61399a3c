"""Row identity: digests and hashes that tell whether two data sets hold the same rows in the same order."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vog_hf.errors import RowMismatchError

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLED_PAYLOADS = 64
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class RowIdentity:
    """What tells the rows of a data set apart from others: taken from the Arrow table, whatever its transform.

    Attributes:
        n_rows: Number of rows.
        columns: Digest of every column in row order. Of binary columns (images, audio) the byte lengths of all rows
            and the bytes of 64 of them.
        row_hash: 64-bit hash per row over all columns; None where there is no table.
    """

    n_rows: int
    columns: dict[str, str]
    row_hash: Hashes | None

    def verify(self, other: "RowIdentity") -> list[str]:
        """The columns on which ``other`` (a data set at hand) agrees with these rows (those that were scored).

        Raises:
            RowMismatchError: Another number of rows, or a shared column that differs.
        """
        if other.n_rows != self.n_rows:
            msg = f"the scores cover {self.n_rows:,} rows and the data set has {other.n_rows:,}; pass what was scored"
            raise RowMismatchError(msg)
        shared = [name for name in self.columns if name in other.columns]
        differing = [name for name in shared if self.columns[name] != other.columns[name]]
        if differing:
            msg = (
                f"column {differing[0]!r} of the data set is not the one that was scored: the rows were shuffled, "
                "filtered, edited or come from another split; pass the data set that was scored, in its order"
            )
            raise RowMismatchError(msg)
        return shared


def identify_rows(dataset: "Dataset | Any") -> RowIdentity:
    """The identity of a data set's rows; of a torch data set (no Arrow table) only their number."""
    if not has_table(dataset):
        return RowIdentity(len(dataset), {}, None)
    table, indices, n_rows = dataset.data, _indices(dataset), len(dataset)
    combined = np.zeros(n_rows, dtype=np.uint64)
    columns = {}
    for name in dataset.column_names:
        column = table.column(name)
        hashes = _hash_chunks(column)
        hashes = hashes[:n_rows] if indices is None else hashes[indices]
        combined = _mix(combined ^ _mix(hashes ^ _text_hash(name)))
        digest = hashlib.sha256(np.ascontiguousarray(hashes).tobytes())
        if _has_binary(column.type) and n_rows:
            sampled = np.unique(np.linspace(0, n_rows - 1, SAMPLED_PAYLOADS).astype(int))
            stored = sampled if indices is None else indices[sampled]
            for value in column.take(pa.array(stored)).to_pylist():
                digest.update(_payload(value))
        columns[name] = digest.hexdigest()
    return RowIdentity(n_rows, columns, combined)


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
            indices = _indices(dataset)
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
    indices = _indices(dataset)
    return lengths if indices is None else lengths[indices]


def _end_to_end(lists: pa.Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = np.array(pc.list_flatten(lists).to_numpy(zero_copy_only=False))
    return values, np.cumsum(lengths, dtype=np.int64)[:-1]


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)


def _indices(dataset: Any) -> npt.NDArray[np.int64] | None:
    """Which stored rows a selected or shuffled data set shows; None = all, in order."""
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy()


def _hash_chunks(column: pa.ChunkedArray) -> Hashes:
    parts = [_hash_array(chunk) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _hash_array(array: pa.Array) -> Hashes:
    """One 64-bit hash per value, equal for equal values whatever the chunks; binary values by their length."""
    if isinstance(array, pa.ExtensionArray):
        return _hash_array(array.storage)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _hash_array(array.dictionary_decode())
    if pa.types.is_struct(kind):
        hashes = _hash_struct(array)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        hashes = _hash_lists(array)
    elif _is_binary(kind):
        lengths = pc.binary_length(array.cast(pa.large_binary()) if pa.types.is_binary_view(kind) else array)
        hashes = _mix(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.uint64))
    elif pa.types.is_floating(kind):
        values = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
        hashes = _mix(np.ascontiguousarray(values).view(np.uint64))
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        target = pa.uint64() if pa.types.is_uint64(kind) else pa.int64()
        values = pc.fill_null(array.cast(target), 0).to_numpy(zero_copy_only=False)
        hashes = _mix(np.ascontiguousarray(values).view(np.uint64))
    elif pa.types.is_null(kind):
        return np.full(len(array), _mix(np.zeros(1, np.uint64))[0], dtype=np.uint64)
    else:  # strings, and dates, times and decimals by their text
        text = pc.fill_null(_text(array), "").to_numpy(zero_copy_only=False)
        hashes = pd.util.hash_array(np.asarray(text, dtype=object), categorize=False)
    if array.null_count:
        is_null = pc.is_null(array).to_numpy(zero_copy_only=False)
        hashes = np.where(is_null, np.uint64(0x9E3779B97F4A7C15), hashes)
    return hashes


def _text(array: pa.Array) -> pa.Array:
    """Values as text; times without trailing zeros, because Parquet stores seconds as milliseconds."""
    text = array.cast(pa.large_string())
    if pa.types.is_timestamp(array.type) or pa.types.is_time(array.type):
        text = pc.replace_substring_regex(text, r"(\.\d*?)0+(Z?)$", r"\1\2")
        text = pc.replace_substring_regex(text, r"\.(Z?)$", r"\1")
    return text


def _hash_struct(array: pa.StructArray) -> Hashes:
    fields = {array.type.field(i).name: array.field(i) for i in range(array.type.num_fields)}
    if set(fields) == {"bytes", "path"}:  # an undecoded Image or Audio: the path is only where the bytes came from
        name = pc.fill_null(pc.replace_substring_regex(fields["path"].cast(pa.string()), ".*/", ""), "")
        has_bytes = pc.is_valid(fields["bytes"]).to_numpy(zero_copy_only=False)
        return np.where(has_bytes, _hash_array(fields["bytes"]), _hash_array(name))
    hashes = np.zeros(len(array), dtype=np.uint64)
    for name, values in fields.items():
        hashes = _mix(hashes ^ _mix(_hash_array(values) ^ _text_hash(name)))
    return hashes


def _hash_lists(array: pa.Array) -> Hashes:
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        start = np.arange(len(array)) * width
        stop = start + width
        child = _hash_array(array.values[array.offset * width : (array.offset + len(array)) * width])
    else:
        offsets = array.offsets.to_numpy()
        child = _hash_array(array.values[offsets[0] : offsets[-1]]) if len(array) else np.zeros(0, np.uint64)
        start, stop = offsets[:-1] - offsets[0] if len(array) else offsets[:-1], offsets[1:] - offsets[:1]
    lengths = (stop - start).astype(np.int64)
    place = np.arange(len(child)) - np.repeat(start, lengths) if len(child) == lengths.sum() else np.arange(len(child))
    placed = _mix(child + _mix(place.astype(np.uint64)))
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(placed, dtype=np.uint64)])
    return _mix((running[stop] - running[start]) ^ _mix(lengths.astype(np.uint64)))


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every bit of the input reaches every bit of the hash."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _text_hash(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def _has_binary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_binary(kind.storage_type)
    return _is_binary(kind) or any(_has_binary(kind.field(i).type) for i in range(kind.num_fields))


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _payload(value: Any) -> bytes:
    """The bytes of a value that go into a digest; of an image or a sound not its path."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        return value["bytes"] if value["bytes"] is not None else PurePosixPath(value["path"] or "").name.encode()
    return repr(value).encode()
