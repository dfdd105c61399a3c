"""Files that rows name and do not hold: which of them may be read, shown and published.

A picture or sound without bytes is a path, and whoever wrote the rows chose it: any file or address that this machine
can reach. Every output asks here, and so does the identity of rows; in doubt a file is neither read nor published.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, concatenate_datasets
from datasets.config import DATASET_INFO_FILENAME, DATASET_STATE_JSON_FILENAME
from datasets.features.features import require_storage_embed
from datasets.table import InMemoryTable, MemoryMappedTable

from vog_hf.data.arrow_columns import stored_rows
from vog_hf.data.rows import AnyDataset
from vog_hf.errors import DataError

BATCH = 1_000  # rows
MANY_SUMS = 100_000
MAX_FILE = 512 * 2**20  # bytes of a named file that are read to show it
# Archives that fsspec reads without reading anything but the next part of the chain.
ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://", "lz4://")
ADDRESS = re.compile(r"(https|hf)://(?!.*::)")  # reads no file of this machine
HUB_COMMIT = re.compile("[0-9a-f]{40}")  # the folder in which `datasets` keeps what it has read from the Hub
HOW_TO_ALLOW = (
    "where you know the files, put them in: dataset.with_format('arrow').map(datasets.table.embed_table_storage, "
    "batched=True)"
)


class HiddenFileError(DataError):
    """A file that rows of somebody else name, and that is not shown."""

    def __init__(self, path: str) -> None:
        super().__init__(f"rows of somebody else name the file {path!r}, which is not shown; {HOW_TO_ALLOW}")


class Origin(IntEnum):
    """Who wrote the paths in a column."""

    FOREIGN = 0  # somebody else, or nobody can tell
    FOLDER = 1  # `datasets`, from a folder of files
    OWN = 2  # this program


def origin(dataset: Dataset, column: str) -> Origin:
    """Who wrote the paths in a column: of several sources the least trusted.

    A column that was read from the Hub, or from a table in which it was pictures or sounds already, is somebody
    else's. What `from_dict` and the like made here, and plain local text that was cast here, is this program's own.
    `datasets` does not note whether a table of text was local: it is somebody else's if it may have been downloaded.
    """
    table = dataset.data
    blocks = [block for line in getattr(table, "blocks", [[table]]) for block in line if column in block.column_names]
    return min((_origin_of(block, dataset, joined=block is not table) for block in blocks), default=Origin.FOREIGN)


def is_cached(path: str) -> bool:
    """True if a path lies in a cache of datasets or huggingface_hub, or in an archive there.

    Another URL does not, nor does a path that begins in the working folder.

    Example:
        >>> is_cached("/etc/passwd"), is_cached("file:///etc/passwd"), is_cached("zip://a.png::/tmp/b.zip")
        (False, False, False)
    """
    *within, file = path.split("::")  # as fsspec has it: each part lies in the next one
    return _cached_file(file) is not None and all(part.startswith(ARCHIVES) for part in within)


class NamedFiles:
    """The files that the rows of a dataset name, of which only those that may be shown are opened.

    Args:
        dataset: One split; without a table its rows are what this program makes of them.
        is_from_hub: Whether the rows are known to be from the Hub, whatever the dataset says.
    """

    def __init__(self, dataset: AnyDataset, *, is_from_hub: bool = False) -> None:
        self._origins: dict[str, Origin] = {}
        self._rows, self._default = None, Origin.FOREIGN if is_from_hub else Origin.OWN
        if isinstance(dataset, Dataset):
            names = [name for name in dataset.features if _names_files(dataset.data.schema.field(name).type)]
            self._origins = dict.fromkeys(names, Origin.FOREIGN) if is_from_hub else _origins(dataset, names)
            if names:
                self._rows = dataset.select_columns(names).with_format("arrow")

    def require_shown(self, row: int) -> None:
        """Raise HiddenFileError where a row names a file, in whatever column, that may not be shown."""
        if self._rows is None or all(origin is Origin.OWN for origin in self._origins.values()):
            return
        stored = self._rows[[row]]
        for name in stored.column_names:
            for path in _paths(stored.column(name)):
                if not self.may_show(path, name):
                    raise HiddenFileError(path)

    def may_show(self, path: str, column: str) -> bool:
        """True if a file that a column names may be shown."""
        found = self._origins.get(column, self._default)
        return found is Origin.OWN or (found is Origin.FOLDER and _stays_inside(path)) or is_cached(path)

    def open(self, path: str, column: str) -> IO[bytes]:
        """A file that a column names, opened.

        Raises:
            HiddenFileError: It may not be shown.
            OSError: It cannot be read, or is not a regular file.
        """
        if not self.may_show(path, column):
            raise HiddenFileError(path)
        if "://" in path:
            from datasets.download.streaming_download_manager import xopen

            return xopen(path, "rb")
        if self._origins.get(column, self._default) is not Origin.FOREIGN:
            return _regular(path, follow=True)
        return _regular(str(_cached_file(path) or path), follow=False)  # the path without links, checked just now


def require_own_files(dataset: Dataset | Mapping[str, Dataset], *, copied_to: Path | None = None) -> None:
    """Raise DataError where rows name files that somebody else has chosen, which would be published with them.

    Args:
        dataset: One split, or several by name.
        copied_to: Where the rows and their files are saved on this machine; addresses stay addresses there.
    """
    for rows in dataset.values() if isinstance(dataset, Mapping) else [dataset]:
        for name, found in _origins(rows, columns_of_named_files(rows)).items():
            paths = (path for path in _named(rows, name) if found is Origin.FOREIGN or not _stays_inside(path))
            if copied_to is not None:
                paths = (path for path in paths if not ADDRESS.match(path))
            path = None if found is Origin.OWN else next(paths, None)
            if path is not None:
                raise DataError(
                    f"a row of the column {name!r} names {path!r} and does not hold it, and the dataset was read so: "
                    f"whoever wrote it may have named any file of this machine, which would be {_reach(copied_to)}; "
                    f"{HOW_TO_ALLOW}"
                )


def _reach(copied_to: Path | None) -> str:
    """Say what would happen to a file that somebody else has named, and what to do instead."""
    if copied_to is not None:
        return f"copied into {copied_to.name}; drop such rows or the column, or save the scores alone"
    return "published; drop such rows or the column, or push the scores alone (scores_only=True, show_rows=False)"


def columns_of_named_files(dataset: Dataset) -> list[str]:
    """The columns of a split in which a row names a file that it does not hold."""
    return [name for name in dataset.features if next(_named(dataset, name), None) is not None]


def with_more_columns(dataset: Dataset, added: Dataset) -> Dataset:
    """The dataset with the columns of another one behind its own; who wrote its paths can still be seen.

    `concatenate_datasets` drops where a dataset was read from, and copies a selection. Here a selection (shuffled,
    filtered) stays one, and no row is copied, unless it shows a row more than once.
    """
    rows = stored_rows(dataset)
    if rows is not None and len(np.unique(rows)) == len(rows):
        fingerprint = dataset._fingerprint  # noqa: SLF001 (without one, all of the table is read to make it)
        everything = Dataset(dataset.data, info=dataset.info, split=dataset.split, fingerprint=fingerprint)
        place = np.full(len(everything), -1)
        place[rows] = np.arange(len(rows))
        at_their_place = Dataset(added.data.table.take(pa.array(place, mask=place < 0)))
        return with_more_columns(everything, at_their_place).select(rows)
    joined = concatenate_datasets([dataset, added], axis=1, split=dataset.split)
    info = dataset.info.copy()
    info.features = joined.features
    is_made_here = isinstance(dataset.data, InMemoryTable) and isinstance(added.data, InMemoryTable)
    table = InMemoryTable(joined.data.table) if is_made_here else joined.data
    return Dataset(table, info=info, split=joined.split, fingerprint=joined._fingerprint)  # noqa: SLF001 (as above)


def _origins(dataset: Dataset, names: list[str]) -> dict[str, Origin]:
    return {name: origin(dataset, name) for name in names}


def _origin_of(block: object, dataset: Dataset, *, joined: bool) -> Origin:
    """Who wrote the paths in a part of a table: `datasets` notes next to a file what has read it, and in the info."""
    if isinstance(block, MemoryMappedTable):
        return _origin_of_folder(str(Path(block.path).parent))
    reader = dataset.info.builder_name
    if reader is None:  # what was joined may have been read from anywhere: then the info no longer says so
        return Origin.FOREIGN if joined else Origin.OWN
    if reader == "generator":
        return Origin.OWN
    return Origin.FOLDER if reader.endswith("folder") else Origin.FOREIGN


def _origin_of_folder(folder: str) -> Origin:
    """Who wrote the paths in the Arrow files of a folder."""
    if not Path(folder, DATASET_INFO_FILENAME).is_file():
        return Origin.FOREIGN
    info = DatasetInfo.from_directory(folder)
    reader = str(info.builder_name)
    is_saved = Path(folder, DATASET_STATE_JSON_FILENAME).is_file()
    if reader.endswith("folder") and not is_saved:
        return Origin.FOLDER
    if HUB_COMMIT.fullmatch(Path(folder).name):
        return Origin.FOREIGN
    if reader == "generator" and not is_saved:
        return Origin.OWN
    had_files = any(map(require_storage_embed, (info.features or {}).values()))
    return Origin.FOREIGN if had_files or _may_be_downloaded(info, Path(folder)) else Origin.OWN


def _may_be_downloaded(info: DatasetInfo, folder: Path) -> bool:
    """True if downloaded files in one cache add up to the bytes that were read to make the table of a folder.

    A table made of local and downloaded files at once is not recognized.
    """
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    if info.download_checksums:  # `load_dataset` seldom notes them
        return any("://" in source for source in info.download_checksums)
    if not info.download_size:  # nothing was read from files
        return False
    downloads = {Path(config.DOWNLOADED_DATASETS_PATH), *(above / "downloads" for above in folder.parents[3:4])}
    from_urls = ([record.with_suffix("") for record in place.glob("*.json")] for place in downloads)
    from_hub = (commit.glob("**/*") for commit in Path(HF_HUB_CACHE).glob("datasets--*/snapshots/*"))
    sizes = ([file.stat().st_size for file in files if file.is_file()] for files in chain(from_urls, from_hub))
    return any(_may_add_up(of_one_cache, info.download_size) for of_one_cache in sizes)


def _may_add_up(sizes: Sequence[int], total: int) -> bool:
    """True if some of the sizes add up to the total; also if too many sums would have to be tried.

    Example:
        >>> _may_add_up([70, 20, 30], 100), _may_add_up([70, 20, 40], 100)
        (True, False)
    """
    sums = {0}
    for size in sizes:
        sums |= {size + before for before in sums if size + before <= total}
        if total in sums or len(sums) > MANY_SUMS:
            return True
    return False


def _stays_inside(path: str) -> bool:
    return ".." not in re.split(r"[/\\]", path) and "::" not in path


def _cached_file(file: str) -> Path | None:
    """Target of a path, if it lies in a cache."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE)
    try:
        found = Path(file).resolve()  # where links lead to
        is_inside = any(found.is_relative_to(Path(cache).resolve()) for cache in caches)
        return found if Path(file).is_absolute() and is_inside else None
    except (OSError, ValueError, RuntimeError):  # what cannot be a path, or links that go in a circle
        return None


def _regular(path: str, *, follow: bool) -> IO[bytes]:
    """A regular file, opened: not a device or a pipe, which may have no end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
        os.close(handle)
        raise OSError(f"{path!r} is not a regular file of at most {MAX_FILE // 2**20} MiB")
    return os.fdopen(handle, "rb")


def _names_files(kind: pa.DataType) -> bool:
    """True if values of a type have a path instead of bytes, at whatever depth."""
    if isinstance(kind, pa.BaseExtensionType):
        return _names_files(kind.storage_type)
    names = {kind.field(i).name for i in range(kind.num_fields)}
    return {"bytes", "path"} <= names or any(_names_files(kind.field(i).type) for i in range(kind.num_fields))


def _named(rows: Dataset, name: str) -> Iterator[str]:
    """The path of every file that a column of pictures or the like names and does not hold."""
    if require_storage_embed(rows.features[name]):
        stored: Any = rows.select_columns([name]).with_format("arrow")
        for batch in stored.iter(batch_size=BATCH):
            yield from _paths(batch.column(name))


def _paths(column: pa.ChunkedArray) -> Iterator[str]:
    """The paths without bytes in a column."""
    for chunk in column.chunks:  # one by one: put together, all bytes would be copied
        yield from _paths_in(chunk)


def _paths_in(array: pa.Array) -> Iterator[str]:
    """The paths without bytes in an array, at whatever depth."""
    if isinstance(array, pa.ExtensionArray):
        yield from _paths_in(array.storage)
    elif pa.types.is_struct(array.type):
        names = {array.type.field(i).name for i in range(array.type.num_fields)}
        if {"bytes", "path"} <= names:
            paths, held = pc.struct_field(array, "path"), pc.struct_field(array, "bytes")
            if pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type):
                yield from paths.filter(pc.and_(pc.is_null(held), pc.is_valid(paths))).to_pylist()
        for name in names - {"bytes", "path"}:
            yield from _paths_in(pc.struct_field(array, name))
    elif hasattr(array, "flatten") and array.type.num_fields:
        yield from _paths_in(array.flatten())
