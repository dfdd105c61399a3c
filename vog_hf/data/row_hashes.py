"""Hashes of the values in Arrow arrays: 64 bits each, equal for equal values in whatever form they are stored."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

Hashes = npt.NDArray[np.uint64]

NULL = np.uint64(0x9E3779B97F4A7C15)
TEXTS_AT_A_TIME = 100_000
FILES_AT_A_TIME = 4_096
READ_BYTES = 2**20
READERS = 16  # threads; they wait for the disk most of the time
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DAY = 86_400  # seconds


class ValueHashes:
    """Hashes of values: numbers by value, texts and bytes by content, times by their moment, images by their file.

    An undecoded image, sound or video (a structure of bytes and path) is its bytes: those in Arrow, else those of the
    file at its path. So a folder of files and the same rows after ``save_to_disk`` are equal. Where there is no such
    file on this machine, or it may not be read, the last part of the path counts, and `unread` or `withheld` has it.

    Bytes in Arrow are hashed with XXH3 without a copy: 16 GB/s for images of 10 kB and 4 GB/s for those of 1 kB, on one
    core; so the disk is the limit, as it is for files, which 16 threads read.

    Args:
        may_read: Whether the file at a path may be read; default: every file.

    Attributes:
        unread: Paths without a file on this machine.
        withheld: Paths of files that may not be read.
    """

    def __init__(self, may_read: Callable[[str], bool] | None = None) -> None:
        self.unread: list[str] = []
        self.withheld: list[str] = []
        self._may_read = may_read

    def of(self, array: pa.Array) -> Hashes:
        """One hash per value, ``[values]``; independent of chunks, slices, and of the width of numbers and offsets."""
        if isinstance(array, pa.ExtensionArray):
            return self.of(array.storage)
        hashes = self._of_valid(array)
        if array.null_count and not pa.types.is_null(array.type):
            hashes = np.where(pc.is_null(array).to_numpy(zero_copy_only=False), NULL, hashes)
        return hashes

    def _of_valid(self, array: pa.Array) -> Hashes:
        """Hashes of the values that are not null; what comes for a null is undefined."""
        kind = array.type
        if pa.types.is_dictionary(kind):  # decoded, few long values may become more bytes than an array can hold
            numbers = pc.fill_null(array.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
            hashes = np.append(self.of(array.dictionary), NULL)[numbers]
        elif pa.types.is_struct(kind):
            hashes = self._structs(array)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            hashes = self._lists(array)
        elif is_binary(kind):
            hashes = self._payloads(array)
        elif pa.types.is_floating(kind):
            hashes = mix(_numbers(array, pa.float64()).view(np.uint64))
        elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            hashes = mix(_numbers(array, pa.uint64() if pa.types.is_uint64(kind) else pa.int64()).view(np.uint64))
        elif pa.types.is_null(kind):
            hashes = np.full(len(array), mix(np.zeros(1, np.uint64))[0])
        elif is_time(kind):
            hashes = self._times(array)
        else:  # strings, and decimals by their text
            hashes = _texts(array.cast(pa.large_string()))
        return hashes

    def _payloads(self, array: pa.Array) -> Hashes:
        digest = xxhash.xxh3_64_intdigest
        return np.fromiter(map(digest, _bytes_of_each(array)), dtype=np.uint64, count=len(array))

    def _files(self, paths: pa.Array) -> Hashes:
        """The content of the files with these paths; of a file that cannot be read its name."""
        hashes = self._names(paths)
        named = np.flatnonzero(pc.greater(pc.binary_length(paths), 0).fill_null(False).to_numpy(zero_copy_only=False))
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(named), FILES_AT_A_TIME):
                part = named[start : start + FILES_AT_A_TIME]
                places = zip(part, paths.take(pa.array(part)).to_pylist(), strict=True)
                read = {place: path for place, path in places if self._may_be_read(path)}
                for (place, path), content in zip(read.items(), pool.map(_content, read.values()), strict=True):
                    if content is None:
                        self.unread.append(path)
                    else:
                        hashes[place] = content
        return hashes

    def _may_be_read(self, path: str) -> bool:
        if self._may_read is None or self._may_read(path):
            return True
        self.withheld.append(path)
        return False

    def _names(self, paths: pa.Array) -> Hashes:
        return self.of(pc.fill_null(pc.replace_substring_regex(paths, ".*/", ""), "")).copy()

    def _times(self, array: pa.Array) -> Hashes:
        """The moment (a date: its midnight; without a zone: in UTC), whatever the unit."""
        kind = array.type
        values = _numbers(array.view(pa.int32() if kind.bit_width == 32 else pa.int64()), pa.int64())
        if pa.types.is_date32(kind):
            seconds, rest = values * DAY, np.zeros_like(values)
        else:
            per_second = PER_SECOND["ms" if pa.types.is_date64(kind) else kind.unit]
            seconds, rest = np.divmod(values, per_second)
            rest *= 10**9 // per_second
        return mix(mix(seconds.view(np.uint64)) + rest.view(np.uint64))

    def _structs(self, array: pa.StructArray) -> Hashes:
        fields = {array.type.field(i).name: array.field(i) for i in range(array.type.num_fields)}
        if set(fields) == {"bytes", "path"}:
            hashes, is_path = self.of(fields["bytes"]), pc.is_null(fields["bytes"])
            if fields["bytes"].null_count:
                hashes = hashes.copy()
                named = fields["path"].cast(pa.string()).filter(is_path)
                hashes[is_path.to_numpy(zero_copy_only=False)] = self._files(named)
            return hashes
        hashes = np.zeros(len(array), dtype=np.uint64)
        for name, values in fields.items():
            hashes = mix(hashes ^ mix(self.of(values) ^ text_hash(name)))
        return hashes

    def _lists(self, array: pa.Array) -> Hashes:
        if pa.types.is_fixed_size_list(array.type):
            width = array.type.list_size
            start = np.arange(len(array)) * width
            stop = start + width
            child = self.of(array.values[array.offset * width : (array.offset + len(array)) * width])
        else:
            offsets = array.offsets.to_numpy()
            child = self.of(array.values[offsets[0] : offsets[-1]]) if len(array) else _no_hashes()
            start, stop = offsets[:-1] - offsets[0] if len(array) else offsets[:-1], offsets[1:] - offsets[:1]
        lengths = (stop - start).astype(np.int64)
        place = (
            np.arange(len(child)) - np.repeat(start, lengths) if len(child) == lengths.sum() else np.arange(len(child))
        )
        placed = mix(child + mix(place.astype(np.uint64)))
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(placed, dtype=np.uint64)])
        return mix((running[stop] - running[start]) ^ mix(lengths.astype(np.uint64)))


class FirstValueHashes(ValueHashes):
    """Hashes as version 1 made them: bytes by their length, files by name, times by their text.

    Scores written with it are compared with it. Every other kind of value has the same hash in both versions.
    """

    def _payloads(self, array: pa.Array) -> Hashes:
        lengths = pc.binary_length(array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array)
        return mix(_numbers(lengths, pa.uint64()).view(np.uint64))

    def _files(self, paths: pa.Array) -> Hashes:
        return self._names(paths)

    def _times(self, array: pa.Array) -> Hashes:
        text = array.cast(pa.large_string())
        if pa.types.is_timestamp(array.type) or pa.types.is_time(array.type):
            text = pc.replace_substring_regex(text, r"(\.\d*?)0+(Z?)$", r"\1\2")
            text = pc.replace_substring_regex(text, r"\.(Z?)$", r"\1")
        return _texts(text)


def has_kind(kind: pa.DataType, *tests: object) -> bool:
    """True if a type, or one inside it, passes one of the tests, e.g. `is_binary`."""
    if isinstance(kind, pa.BaseExtensionType):
        return has_kind(kind.storage_type, *tests)
    if pa.types.is_dictionary(kind):
        return has_kind(kind.value_type, *tests)
    return any(test(kind) for test in tests) or any(  # type: ignore[operator]
        has_kind(kind.field(i).type, *tests) for i in range(kind.num_fields)
    )


def is_binary(kind: pa.DataType) -> bool:
    """True if values of a type are bytes."""
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def is_time(kind: pa.DataType) -> bool:
    """True if values of a type count days, seconds or parts of seconds."""
    return bool(pa.types.is_temporal(kind)) and not pa.types.is_interval(kind)


def mix(values: Hashes) -> Hashes:
    """The finalizer of splitmix64 (Steele, Lea & Flood 2014): every bit of the input reaches every bit of the hash."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def text_hash(text: str) -> np.uint64:
    """The hash of a name."""
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def _numbers(array: pa.Array, kind: pa.DataType) -> npt.NDArray[np.generic]:
    """Values of one width, 0 for null."""
    filled = pc.fill_null(array.cast(kind), pa.scalar(0).cast(kind)).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(filled)


def _texts(texts: pa.Array) -> Hashes:
    hashes = _no_hashes(len(texts))
    for start in range(0, len(texts), TEXTS_AT_A_TIME):  # as Python objects they take several times their memory
        part = pc.fill_null(texts.slice(start, TEXTS_AT_A_TIME), "").to_numpy(zero_copy_only=False)
        hashes[start : start + len(part)] = pd.util.hash_array(np.asarray(part, dtype=object), categorize=False)
    return hashes


def _bytes_of_each(array: pa.Array) -> Iterator[memoryview]:
    """The bytes of each value, not copied."""
    kind = array.type
    if pa.types.is_fixed_size_binary(kind):
        buffer, width = array.buffers()[1], kind.byte_width
        stops = [width * (array.offset + i) for i in range(len(array) + 1)]
    else:
        array = array.cast(pa.large_binary()) if pa.types.is_binary_view(kind) else array
        dtype = np.dtype(np.int64 if pa.types.is_large_binary(array.type) else np.int32)
        _, offsets, buffer = array.buffers()
        count = len(array) + 1 if len(array) else 0  # no offsets need be there for no values
        stops = np.frombuffer(offsets or b"", dtype, count, array.offset * dtype.itemsize if count else 0).tolist()
    data = memoryview(buffer or b"").cast("B")
    return (data[start:stop] for start, stop in pairwise(stops))


def _content(path: str) -> int | None:
    """The hash of a file's bytes; None where it is not a regular file that can be read (a pipe would not end)."""
    digest = xxhash.xxh3_64()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (an address is not a Path)
            return None
        with Path(path).open("rb", buffering=0) as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return None
    return digest.intdigest()


def _no_hashes(count: int = 0) -> Hashes:
    return np.zeros(count, dtype=np.uint64)
