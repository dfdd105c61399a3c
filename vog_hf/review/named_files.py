"""Files of this machine that rows of a data set from the Hub name in the place of a picture or a sound.

Whoever makes a data set may write any path into it. What `datasets` itself has fetched lies in its caches, and there is
nothing in them that is nobody else's business but what came from the Hub.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

ARCHIVES = (
    "zip://",
    "tar://",
    "gzip://",
    "bz2://",
    "xz://",
    "zstd://",
    "lz4://",
)  # what reads nothing but the next part


def is_cached(path: str) -> bool:
    """Whether a path lies in a cache of datasets or huggingface_hub, or in an archive there.

    Another URL does not, nor does a path that begins in the working folder.

    Example:
        >>> is_cached("/etc/passwd"), is_cached("file:///etc/passwd"), is_cached("zip://a.png::/tmp/b.zip")
        (False, False, False)
    """
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE)
    *within, file = path.split("::")  # as fsspec has it: each part lies in the next one
    try:
        found = Path(file).resolve()  # where links lead to
        is_known = Path(file).is_absolute() and any(found.is_relative_to(Path(cache).resolve()) for cache in caches)
    except (OSError, ValueError, RuntimeError):  # what cannot be a path, or links that go in a circle
        return False
    return is_known and all(part.startswith(ARCHIVES) for part in within)


class NamedFiles:
    """The files that rows name in columns that may be shown as pictures; those of sounds are read by `Sounds`.

    Args:
        dataset: From the Hub; one that has no table names no files.
    """

    def __init__(self, dataset: Any) -> None:
        from datasets import Dataset, Image

        self._rows = None
        if isinstance(dataset, Dataset):
            # Sounds and videos, which have a `decode` as pictures have, are not shown as pictures.
            shown = [n for n, f in dataset.features.items() if isinstance(f, Image) or not hasattr(f, "decode")]
            names = [name for name in shown if _names_files(dataset.data.schema.field(name).type)]
            if names:
                self._rows = dataset.select_columns(names).with_format("arrow")

    def are_cached(self, row: int) -> bool:
        """Whether all files that a row names, because it has not their bytes, are in a cache."""
        return self._rows is None or all(map(is_cached, _paths(self._rows[[row]].to_pylist())))


def _names_files(kind: pa.DataType) -> bool:
    """Whether values of a type have a path in the place of bytes, at whatever depth."""
    if isinstance(kind, pa.BaseExtensionType):
        return _names_files(kind.storage_type)
    names = {kind.field(i).name for i in range(kind.num_fields)}
    return {"bytes", "path"} <= names or any(_names_files(kind.field(i).type) for i in range(kind.num_fields))


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if value.get("path") and not value.get("bytes"):
            yield str(value["path"])
        for part in value.values():
            yield from _paths(part)
    elif isinstance(value, list):
        for part in value:
            yield from _paths(part)
