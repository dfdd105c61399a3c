"""A split as parquet files of bounded size, one on the disk at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from datasets.features.features import require_storage_embed
from datasets.table import embed_table_storage

SHARD_BYTES = 500 * 2**20  # of Arrow data, as `datasets` takes it
SAMPLED_ROWS = 64  # from which the size of a dataset is estimated


@dataclass(frozen=True)
class Shard:
    """A parquet file.

    Attributes:
        name: In the repository.
        path: On this machine.
        n_bytes: Bytes of its rows in memory, including files that they reference.
        file_bytes: Bytes of the file.
    """

    name: str
    path: Path
    n_bytes: int
    file_bytes: int


def count_shards(dataset: Dataset) -> int:
    """The number of files for a split, estimated from the files of some of its rows."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, SAMPLED_ROWS).astype(int))
    stored = dataset.with_format("arrow")
    sampled_bytes = sum(embed_table_storage(stored[[int(row)]]).nbytes for row in rows)
    return max(1, min(len(dataset), -int(-len(dataset) * sampled_bytes / len(rows) // SHARD_BYTES)))


def write_shards(dataset: Dataset, name_of: Callable[[int], str], n_shards: int, folder: Path) -> Iterator[Shard]:
    """Write the files of a split one after the other; the caller deletes each after use.

    The bytes of pictures and sounds are put into the files, and of their paths the last part alone is kept. The same
    rows give the same bytes, so that what arrived of a broken upload is not sent again.

    Args:
        dataset: As stored.
        name_of: The name in the repository of each file, by its number.
        n_shards: As `count_shards` gives it.
        folder: For the files.
    """
    needs_embedding = any(require_storage_embed(feature) for feature in dataset.features.values())
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(n_shards):
        shard = dataset.shard(n_shards, index, contiguous=True)
        cache = folder / "embedded.arrow"
        if needs_embedding:
            shard = shard.with_format("arrow").map(
                embed_table_storage,
                batched=True,
                batch_size=max(1, min(100, len(shard) // 10)),  # 10 % of a file in memory, and never 2 GiB
                cache_file_name=str(cache),
                load_from_cache_file=False,
            )
            shard = shard.with_format(None)
        path = folder / f"shard-{index:05d}.parquet"
        n_bytes = shard.to_parquet(path)
        cache.unlink(missing_ok=True)
        yield Shard(name_of(index), path, n_bytes, path.stat().st_size)
