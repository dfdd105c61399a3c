"""Streams: an iterable dataset read once, block by block, each process its share of the examples."""

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor
from torch.utils.data import IterableDataset

from vog_hf.data.rows import AnyDataset
from vog_hf.errors import DataError

UNKNOWN_LENGTH = 2**62  # rows of a stream until its end is seen
ID_TYPES = {str: pa.string(), int: pa.int64()}


def table_format(name: str) -> str:
    """Text of the error for a dataset in a format that gives tables."""
    return (
        f"rows are expected as mappings, and this dataset's format gives tables ({name}); pass "
        "dataset.with_format(None) or dataset.with_format('torch')"
    )


def is_stream(dataset: AnyDataset) -> bool:
    """True if this is an iterable dataset (of torch, or a streaming one of `datasets`), without rows by number."""
    if isinstance(dataset, IterableDataset):
        return True
    from datasets import IterableDataset as HuggingFaceStream

    return isinstance(dataset, HuggingFaceStream)


class StreamRows:
    """A stream seen as rows by number, a few at a time: those of the block that was asked for last.

    The number of a row is its place in the stream, so the stream must give the same rows in the same order every time
    it is iterated.

    Args:
        stream: Iterable more than once.
        id_column: Key of each row that names it, next to its number.

    Raises:
        DataError: The stream is empty, or rows have no ``id_column``.
    """

    def __init__(self, stream: AnyDataset, *, id_column: str | None = None) -> None:
        self.stream = stream
        self.id_column = id_column
        self._id_kind: type = str  # of row 0, which every process reads
        self.features = getattr(stream, "features", None)
        self._rows: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._iterator: Iterator[Any] | None = None
        self._next = 0  # number of the row that the iterator gives next
        self.head(1)

    def __getitem__(self, row: int) -> Any:
        return self._rows[row] if row in self._rows else self._pinned[row]

    def __len__(self) -> int:
        return len(self._rows)

    def head(self, n_rows: int) -> int:
        """Hold the first rows, read again; how many there are of them."""
        self._rows = dict(enumerate(islice(_numbered(iter(self.stream), 0), n_rows)))
        self._iterator, self._next = None, 0
        if not self._rows:
            raise DataError("the stream is empty: there is no row to score; check the split or the filter that made it")
        if self.id_column is not None:
            self._id_kind = type(self._id(0))
            self.ids()
        return len(self._rows)

    def reread(self, rows: Sequence[int]) -> list[Any]:
        """Some of the rows that are held, from a new iteration."""
        wanted = set(rows)
        return [row for i, row in enumerate(islice(_numbered(iter(self.stream), 0), max(wanted) + 1)) if i in wanted]

    def hold_again(self, rows: Sequence[int]) -> None:
        """Hold rows that were held before, read from the beginning of the stream."""
        if not self._rows.keys() >= set(rows):
            self._rows = dict(zip(sorted(rows), self.reread(rows), strict=True))

    def pin(self, row: int) -> None:
        """Keep a row that is held for good."""
        self._pinned = {row: self._rows[row]}

    def hold(self, rows: range) -> range:
        """Hold these rows, which must lie behind the ones before; how much of them the stream still had."""
        if self._iterator is None:
            self._iterator, self._next = self._from(rows.start), rows.start
        part = islice(self._iterator, rows.start - self._next, rows.stop - self._next, rows.step)
        self._rows = {}
        for number, row in zip(rows, part, strict=False):
            self._rows[number] = row
        # islice reads no further than the last row that it gives
        self._next = max(self._rows, default=rows.start) + 1
        return rows[: len(self._rows)]

    @property
    def has_begun(self) -> bool:
        """True if `hold` was called before."""
        return self._iterator is not None

    def ids(self) -> pa.Table:
        """Number and id of the rows that are held.

        Raises:
            DataError: An id is missing, neither a text nor a whole number, or of another kind than that of row 0.
        """
        ids = [self._id(number) for number in self._rows]
        return pa.table({"row": list(self._rows), "id": pa.array(ids, self.id_type)})

    @property
    def id_type(self) -> pa.DataType:
        """Type of the ids: those of one stream are all texts or all whole numbers."""
        return ID_TYPES[self._id_kind]

    def _from(self, start: int) -> Iterator[Any]:
        if start and hasattr(self.stream, "skip"):
            return _numbered(iter(self.stream.skip(start)), start)
        return islice(_numbered(iter(self.stream), 0), start, None)

    def _id(self, number: int) -> str | int:
        row = self._rows[number]
        if not hasattr(row, "keys") or self.id_column not in row:
            keys = sorted(row) if hasattr(row, "keys") else f"of type {type(row).__name__}"
            raise DataError(
                f"id_column {self.id_column!r} is not a key of the stream's rows ({keys}); name one of them"
            )
        value = _plain(row[self.id_column])
        if value is None:
            raise DataError(
                f"an id must be a text or a whole number of 64 bits, got {row[self.id_column]!r:.80} in "
                f"{self.id_column!r} of row {number}; give every row one, e.g. with the stream's map, and score again"
            )
        if number and type(value) is not self._id_kind:
            kinds = {str: "texts", int: "whole numbers"}
            raise DataError(
                f"the ids of a stream must be of one kind, {kinds[self._id_kind]} as in row 0, got {value!r:.80} in "
                f"{self.id_column!r} of row {number}; make them alike, e.g. str(...), and score again: the blocks "
                "that are finished are kept"
            )
        return value


def _numbered(iterator: Iterator[Any], start: int) -> Iterator[Any]:
    """The rows of a stream; raises DataError, naming the row, where one cannot be read: the stream ends there."""
    for number in count(start):
        try:
            row = next(iterator)
        except StopIteration:
            return
        except (ConnectionError, TimeoutError):  # not the fault of a row: the scoring can be resumed
            raise
        except Exception as error:
            raise DataError(
                f"row {number} of the stream cannot be read: {type(error).__name__}: {error}. A stream ends "
                "at a row that raises, even with on_error='skip': leave the row out with the stream's filter, "
                "let its transform return the row without an input, or load a map-style dataset"
            ) from error
        if isinstance(row, pa.Table) or type(row).__name__ == "DataFrame":
            raise DataError(table_format(type(row).__name__))
        yield row


def _plain(value: object) -> str | int | None:
    """An id as Python and Arrow have it, from numpy and torch as well; None where it is none."""
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):
        return str.__str__(value) if value.isascii() or _is_unicode(value) else None
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return int(value)
    return None


def _is_unicode(text: str) -> bool:
    """True if no half of a surrogate pair is in it, which no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
