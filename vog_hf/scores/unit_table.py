"""The units of rows as a file of the scores: one line per row, a list for each column."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vog_hf.errors import OutputFolderError
from vog_hf.metric.row_units import RowUnits
from vog_hf.runtime.files import write_atomically

UNITS_NAME, PIXELS_NAME = "units.parquet", "pixels.parquet"


def lists_of(sizes: npt.NDArray[Any], values: pa.Array) -> pa.Array:
    """Values cut into lists of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    if offsets[-1] > np.iinfo(np.int32).max:
        return pa.LargeListArray.from_arrays(pa.array(offsets), values)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def parts_of_lists(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Length of each list of a column, 0 for a missing one, and all values; the inverse of `lists_of`."""
    whole = column.combine_chunks()
    whole = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    return whole.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), whole.flatten()


def unit_lists(units: RowUnits) -> pa.Table:
    """One line per row, a list for each column."""
    return pa.table({name: lists_of(units.sizes, pa.array(values)) for name, values in units.columns.items()})


def units_of_lists(lists: Mapping[str, pa.ChunkedArray]) -> RowUnits:
    """The units of columns of lists, which are equally long in each row; a missing list has none.

    Raises:
        ValueError: They are not.
    """
    sizes, columns = None, {}
    for name, column in lists.items():
        found, values = parts_of_lists(column)
        if sizes is not None and not np.array_equal(sizes, found):
            raise ValueError(f"the lists of {name!r} have other lengths than those before")
        sizes, columns[name] = found, values.to_numpy(zero_copy_only=False)
    if sizes is None:
        raise ValueError("there are no lists")
    return RowUnits(sizes.astype(np.int32), columns)


def save_units(path: Path, units: RowUnits) -> None:
    """Write the units of all rows."""
    write_atomically(path, partial(pq.write_table, unit_lists(units), write_page_checksum=True))


def read_units(path: Path, n_rows: int) -> RowUnits:
    """Read the units that `save_units` or a `UnitWriter` wrote.

    Raises:
        OutputFolderError: The file is damaged, or of another number of rows.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        units = units_of_lists({name: table[name] for name in table.column_names})
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise OutputFolderError(f"the units of rows in {path} are damaged ({error}); restore the file") from error
    if len(units) != n_rows:
        raise OutputFolderError(
            f"{path} has the units of {len(units):,} rows, and the scores have {n_rows:,} rows; restore the file"
        )
    return units


class UnitWriter:
    """Writes the units of rows, block after block, rows ascending; only what every block has is kept.

    Args:
        folder: Folder of the scores.
        name: Name of the file.
    """

    def __init__(self, folder: Path, name: str = UNITS_NAME) -> None:
        self.names: list[str] = []
        self._path = folder / f".{name}"
        self._name = name
        self._writer: Any = None
        self._has_blocks = self._lacks_some = False

    def add(self, units: RowUnits | None) -> None:
        """Write the units of a block; None: it has none."""
        names = [] if units is None else [*units.columns]
        self._lacks_some |= self._has_blocks and names != self.names
        if not self._has_blocks:
            self.names, self._has_blocks = names, True
        if units is None or self._lacks_some:
            return
        table = unit_lists(units)
        if self._writer is None:
            self._path.unlink(missing_ok=True)  # of a killed run, or a link that leads elsewhere
            self._writer = pq.ParquetWriter(self._path, table.schema, write_page_checksum=True)
        self._writer.write_table(table)

    def finish(self) -> bool:
        """Give the file its name; False where units were dropped, because not every block has them."""
        if self._writer is not None:
            self._writer.close()
            if not self._lacks_some:
                self._path.replace(self._path.with_name(self._name))
        if self._lacks_some:
            self.discard()
        return not self._lacks_some

    def discard(self) -> None:
        """Delete what was written."""
        if self._writer is not None:
            self._writer.close()
        self._path.unlink(missing_ok=True)
        self.names = []
