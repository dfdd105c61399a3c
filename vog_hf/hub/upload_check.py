"""Check of an upload: reload a pushed dataset from its commit and verify columns, rows and values."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import load_dataset
from datasets.exceptions import DatasetsError
from datasets.table import embed_table_storage
from huggingface_hub import HfApi

from vog_hf.errors import HubError
from vog_hf.hub.card_metadata import CardMetadata
from vog_hf.hub.retries import described, is_transient, with_retries
from vog_hf.hub.scored_splits import PushedSplit

WHOLE = 2 * 2**30  # bytes of a configuration up to which all of it is loaded
BATCH = 256
FIRST_BATCHES = 4  # of each pushed split, where the configuration is larger


def require_equal(
    api: HfApi, repo_id: str, sha: str, splits: Sequence[PushedSplit], metadata: CardMetadata, *, cache_dir: Path
) -> None:
    """Reload a pushed dataset from its commit and verify columns, rows and values.

    Up to 2 GiB the whole configuration is loaded as a user loads it, with every split, and every value is compared;
    from a larger one the first 1,024 rows of each pushed split are streamed.

    Args:
        api: Client of the Hub.
        repo_id: Name of the dataset.
        sha: Hash of the commit.
        splits: Splits that were pushed.
        metadata: Metadata of the configuration.
        cache_dir: Cache folder for `datasets`.

    Raises:
        HubError: Anything differs, or it does not load.
    """
    sizes = {name: split.num_bytes for name, split in metadata.splits.items()}
    is_whole = sum(sizes.values()) <= WHOLE
    features = metadata.features
    options: dict[str, Any] = {
        "name": metadata.config,
        "revision": sha,
        "token": api.token,
        "streaming": not is_whole,
        "cache_dir": str(cache_dir),
    }
    loaded = with_retries(_load, repo_id, options)
    faults = [f"the split {name!r} is missing" for name in sizes if name not in loaded]
    for split in splits if not faults else []:
        reloaded = loaded[split.name]
        wrong = [n for n, f in features.items() if reloaded.features is None or reloaded.features.get(n) != f]
        if wrong:
            faults.append(f"the column {wrong[0]!r} of {split.name!r} is {(reloaded.features or {}).get(wrong[0])}")
        else:
            faults += _differences(split, reloaded, is_whole=is_whole)
    if faults:
        raise HubError(
            f"{repo_id} at {sha} was pushed, but the reloaded dataset differs from the local one: {'; '.join(faults)}; "
            "push again, and report it to the maintainers of vog_hf"
        )


def _load(repo_id: str, options: Mapping[str, object]) -> Any:
    """Load the dataset as a user does."""
    try:
        return load_dataset(repo_id, **options)
    except (DatasetsError, ValueError) as error:
        if is_transient(error):
            raise ConnectionError(f"{repo_id} cannot be read ({described(error)})") from error
        raise HubError(
            f"{repo_id} at {options['revision']} was pushed, but does not load ({described(error)}); check it on the "
            "Hub, and report it to the maintainers of vog_hf"
        ) from error


def _differences(split: PushedSplit, loaded: Any, *, is_whole: bool) -> list[str]:
    """The first difference between a loaded split and the local one, as a list of at most one line."""
    local = split.table.with_format("arrow")
    names = split.table.column_names
    if is_whole and len(loaded) != len(local):
        return [f"the split {split.name!r} has {len(loaded):,} rows, not {len(local):,}"]
    read = loaded.select_columns(names).with_format("arrow")
    batches = read.iter(batch_size=BATCH)
    start = 0
    for batch in batches if is_whole else islice(batches, FIRST_BATCHES):
        table = batch if isinstance(batch, pa.Table) else pa.table(batch)
        expected = embed_table_storage(local[start : start + len(table)])
        for name in names:
            if not _is_same(expected.column(name), table.column(name)):
                return [f"values of the column {name!r} of {split.name!r} differ from row {start:,} on"]
        start += len(table)
    return []


def _is_same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Return whether two columns are equal; NaN, which Arrow never counts as equal, is equal to NaN."""
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
