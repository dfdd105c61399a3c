"""Row identity: digests and hashes that tell whether two datasets hold the same rows in the same order."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vog_hf.data.arrow_columns import has_table, stored_rows
from vog_hf.data.referenced_files import NamedFiles
from vog_hf.data.row_hashes import FirstValueHashes, Hashes, ValueHashes, has_kind, is_binary, is_time, mix, text_hash
from vog_hf.errors import ConfigError, RowMismatchError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SAMPLED_PAYLOADS = 64  # of a binary column, in a digest of version 1
SECOND = "2:"  # begins the digest of a column that version 1 digested another way
BY_NAME = "2:names:"  # begins that of a column in which names stand for files that earlier versions may have read
ROWS_AT_A_TIME = 1_024

T = TypeVar("T")


@dataclass(frozen=True)
class RowIdentity:
    """Identity of the rows of a dataset: taken from the Arrow table, whatever its transform.

    Attributes:
        n_rows: Number of rows.
        columns: Digest of every column in row order, over all bytes of images and sounds (see `ValueHashes`).
        row_hash: 64-bit hash per row over all columns; None where there is no table.
    """

    n_rows: int
    columns: dict[str, str]
    row_hash: Hashes | None

    @classmethod
    def of_fingerprint(cls, fingerprint: Mapping[str, Any]) -> "RowIdentity":
        """The rows that a folder of scores or moments was begun for, without a hash of each."""
        return cls(fingerprint.get("rows", 0), fingerprint.get("data", {}), None)

    @staticmethod
    def is_fingerprint(fingerprint: object) -> bool:
        """True if `of_fingerprint` can read this: rows are a number, and data a digest per column."""
        if not isinstance(fingerprint, Mapping):
            return False
        rows, data = fingerprint.get("rows", 0), fingerprint.get("data", {})
        return type(rows) is int and isinstance(data, Mapping) and all(isinstance(one, str) for one in data.values())

    def verify(self, other: "RowIdentity") -> list[str]:
        """The columns on which ``other`` (a dataset at hand) agrees with these rows (those that were scored).

        A column's digest of version 1 says nothing about one of version 2 (see ``like`` of `identify_rows`), and one
        of names of files nothing about one of their content.

        Raises:
            RowMismatchError: Another number of rows, or a shared column that differs.
        """
        if other.n_rows != self.n_rows:
            raise RowMismatchError(
                f"the scores cover {self.n_rows:,} rows and the dataset has {other.n_rows:,}; pass what was scored"
            )
        differing = self.differing(other)
        if differing:
            raise RowMismatchError(
                f"column {differing[0]!r} of the dataset is not the one that was scored: the rows were shuffled, "
                "filtered, edited or come from another split; pass the dataset that was scored, in its order"
            )
        return self._comparable(other)

    def differing(self, other: "RowIdentity") -> list[str]:
        """The columns that both have and that are not equal, as far as their digests can be compared."""
        return [name for name in self._comparable(other) if self.columns[name] != other.columns[name]]

    def _comparable(self, other: "RowIdentity") -> list[str]:
        """The columns that both have, in digests of which one says something about the other."""
        shared = [name for name in self.columns if name in other.columns]
        return [name for name in shared if _can_be_compared(self.columns[name], other.columns[name])]


def identify_rows(dataset: "Dataset | Any", *, like: RowIdentity | None = None) -> RowIdentity:
    """The identity of a dataset's rows; of a torch dataset (no Arrow table) only their number.

    All bytes of the rows are read, those of files that they name among them; see `ValueHashes` for the cost. Of files
    that somebody else has named, only those are read that may be shown (see `NamedFiles`); the others are their names.

    Args:
        dataset: The rows.
        like: The identity that this one is to be compared with: columns are digested by the version that it has.
    """
    if not has_table(dataset):
        return RowIdentity(len(dataset), {}, None)
    rows, n_rows = stored_rows(dataset), len(dataset)
    combined = np.zeros(n_rows, dtype=np.uint64)
    columns = {}
    files, withheld, unread = NamedFiles(dataset), [], []
    for name in dataset.column_names:
        column = dataset.data.column(name)
        is_first = like is not None and is_first_version(like.columns.get(name, SECOND))
        values = FirstValueHashes() if is_first else ValueHashes(partial(files.may_show, column=name))
        hashes = _hash_column(column, rows, values)
        withheld += values.withheld
        unread += values.unread
        combined = mix(combined ^ mix(hashes ^ text_hash(name)))
        digest = hashlib.sha256(np.ascontiguousarray(hashes).tobytes())
        changed = has_kind(column.type, is_binary, is_time)
        if is_first and n_rows:
            _add_samples(digest, column, n_rows, rows)
        version = BY_NAME if any(map(os.path.isabs, values.withheld)) else SECOND
        columns[name] = ("" if is_first or not changed else version) + digest.hexdigest()
    _warn_of_names(unread, "are not on this machine")
    _warn_of_names(withheld, "were named by somebody else and are not read")
    return RowIdentity(n_rows, columns, combined)


def _warn_of_names(paths: Sequence[str], reason: str) -> None:
    """Warn that the names of files stand for their content."""
    if paths:
        logger.warning(
            "%d files that rows name %s (%s); these rows are compared by the names of the files",
            len(paths),
            reason,
            paths[0],
        )


def is_first_version(digest: str) -> bool:
    """True if version 1 digests a column so."""
    return not digest.startswith(SECOND)


def _can_be_compared(scored: str, found: str) -> bool:
    """True if the digest of a scored column says something about one of a column at hand."""
    is_by_name = scored.startswith(BY_NAME), found.startswith(BY_NAME)
    return is_by_name[0] == is_by_name[1] and (is_first_version(found) or not is_first_version(scored))


def _add_samples(digest: Any, column: pa.ChunkedArray, n_rows: int, rows: npt.NDArray[np.int64] | None) -> None:
    """Put some of the payloads of a binary column into a digest of version 1, which hashes their lengths."""
    if has_kind(column.type, is_binary):
        for row in np.unique(np.linspace(0, n_rows - 1, SAMPLED_PAYLOADS).astype(int)):
            digest.update(_payload(column[int(row if rows is None else rows[row])].as_py()))


def _hash_column(column: pa.ChunkedArray, rows: npt.NDArray[np.int64] | None, hashes: ValueHashes) -> Hashes:
    """The hash of a column's value in each of these rows (None: all), chunk by chunk; no other row is read."""
    none = np.zeros(0, dtype=np.uint64)
    if rows is None:
        return np.concatenate([none, *map(hashes.of, column.chunks)])
    stored, place = np.unique(rows, return_inverse=True)
    return np.concatenate([none, *map(hashes.of, _chosen(column, stored))])[place]


def _chosen(column: pa.ChunkedArray, rows: npt.NDArray[np.int64]) -> Iterator[pa.Array]:
    """Some rows of a column, which ascend, in arrays that are copied a few rows at a time or not at all."""
    start = 0
    for chunk in column.chunks:
        first, last = np.searchsorted(rows, [start, start + len(chunk)])
        numbers = rows[first:last] - start
        start += len(chunk)
        if len(numbers) == len(chunk):
            yield chunk
        else:
            values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
            for i in range(0, len(numbers), ROWS_AT_A_TIME):
                yield values.take(pa.array(numbers[i : i + ROWS_AT_A_TIME]))


def by_split_name(splits: Mapping[Any, T]) -> dict[str, T]:
    """Splits, or what belongs to them, under their names as plain text.

    Keys may be `datasets.Split` or members of an enumeration, which equal their text and cannot be sorted or saved.

    Raises:
        ConfigError: Two keys have one name.

    Example:
        >>> from datasets import Split
        >>> by_split_name({Split.TRAIN: 1, "test": 2})
        {'train': 1, 'test': 2}
    """
    named = {str(key.value if isinstance(key, Enum) else key): value for key, value in splits.items()}
    if len(named) < len(splits):
        raise ConfigError(f"splits must have different names, got {list(splits)}; rename one")
    return named


def _payload(value: object) -> bytes:
    """The bytes of a value that go into a digest; of an image or a sound not its path."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        return value["bytes"] if value["bytes"] is not None else PurePosixPath(value["path"] or "").name.encode()
    return repr(value).encode()
