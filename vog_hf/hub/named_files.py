"""Files that rows name and do not hold: they are published with the rows only where they are the user's own."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo
from datasets.config import DATASET_INFO_FILENAME, DATASET_STATE_JSON_FILENAME
from datasets.features.features import require_storage_embed

from vog_hf.errors import DataError

BATCH = 1_000  # rows
SAVED = "save_to_disk"


def require_own_files(dataset: Dataset | Mapping[str, Dataset]) -> None:
    """Raise DataError where rows name files that somebody else has chosen.

    A picture or sound without bytes is the path of a file, and whoever publishes or saves the rows puts the file's
    content in. Where the column was made so here (`cast_column`, `from_dict`, a folder of pictures), that is meant.
    Where the data set was read with such a column, from the Hub, parquet, Arrow or `save_to_disk`, somebody else may
    have written the path, of any file or address that this machine can reach.

    Args:
        dataset: One split, or several by name.
    """
    for rows in dataset.values() if isinstance(dataset, Mapping) else [dataset]:
        readers = _readers(rows)
        if not readers:
            continue
        by_folder = all(reader.endswith("folder") for reader in readers)  # which made the paths itself
        for name in rows.features:
            paths = (path for path in _named(rows, name) if not by_folder or ".." in re.split(r"[/\\]", path))
            path = next(paths, None)
            if path is not None:
                msg = (
                    f"a row of the column {name!r} names {path!r} and does not hold it, and the data set was read so: "
                    "whoever wrote it may have named any file of this machine, which would be published; drop such "
                    "rows or the column, or push the scores alone (scores_only=True, show_rows=False); where you know "
                    "the files, put them in: dataset.with_format('arrow').map(datasets.table.embed_table_storage, "
                    "batched=True)"
                )
                raise DataError(msg)


def columns_of_named_files(dataset: Dataset) -> list[str]:
    """The columns of a split in which a row names a file that it does not hold."""
    return [name for name in dataset.features if next(_named(dataset, name), None) is not None]


def _readers(rows: Dataset) -> set[str]:
    """What has read the rows from files where they had columns of pictures or the like already.

    Beside the Arrow file of what it reads `datasets` notes which features that had; what is made of it lies there, too.
    """
    found = set()
    for folder in {Path(file["filename"]).parent for file in rows.cache_files}:
        if (folder / DATASET_INFO_FILENAME).is_file():
            info = DatasetInfo.from_directory(str(folder))
            reader = SAVED if (folder / DATASET_STATE_JSON_FILENAME).is_file() else str(info.builder_name)
            if reader != "generator" and any(map(require_storage_embed, (info.features or {}).values())):
                found.add(reader)
    return found


def _named(rows: Dataset, name: str) -> Iterator[str]:
    """The path of every file that a column names and does not hold."""
    feature = rows.features[name]
    if require_storage_embed(feature):
        stored: Any = rows.select_columns([name]).with_format("arrow")
        for batch in stored.iter(batch_size=BATCH):
            for chunk in batch.column(name).chunks:  # one by one: put together, all bytes would be copied
                yield from _paths(chunk, feature)


def _paths(array: pa.Array, feature: Any) -> Iterator[str]:
    """The paths without bytes in a column, or in a part of one."""
    if isinstance(feature, Mapping):
        for name, part in feature.items():
            yield from _paths(pc.struct_field(array, name), part)
    elif isinstance(feature, (list, tuple)):
        yield from _paths(array.flatten(), feature[0])
    elif hasattr(feature, "feature"):  # a list of them
        yield from _paths(array.flatten(), feature.feature)
    elif require_storage_embed(feature):
        paths = pc.struct_field(array, "path")
        yield from paths.filter(pc.and_(pc.is_null(pc.struct_field(array, "bytes")), pc.is_valid(paths))).to_pylist()
