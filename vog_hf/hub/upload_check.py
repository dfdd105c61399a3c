"""What was pushed is loaded again, from the commit it became, and compared with what was meant."""

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
from vog_hf.hub.card_metadata import Declaration
from vog_hf.hub.retries import described, is_transient, with_retries
from vog_hf.hub.scored_splits import PushedSplit

WHOLE = 2 * 2**30  # bytes of a configuration up to which all of it is loaded
BATCH = 256
FIRST_BATCHES = 4  # of each pushed split, where the configuration is larger


def require_equal(
    api: HfApi, repo_id: str, sha: str, splits: Sequence[PushedSplit], declaration: Declaration, *, cache_dir: Path
) -> None:
    """Load what was pushed and compare columns, rows and values with what was meant.

    Up to 2 GiB the whole configuration is loaded as a user loads it, with every split, and every value is compared; of
    a larger one the first 1,024 rows of each split that was pushed are read as a stream.

    Args:
        api: The client.
        repo_id: Of the data set.
        sha: The commit.
        splits: What was pushed.
        declaration: What the card says of the configuration.
        cache_dir: Where `datasets` may keep what it makes.

    Raises:
        HubError: Anything differs, or it does not load.
    """
    sizes = {name: split.num_bytes for name, split in declaration.splits.items()}
    is_whole = sum(sizes.values()) <= WHOLE
    features = declaration.features
    options: dict[str, Any] = {
        "name": declaration.config,
        "revision": sha,
        "token": api.token,
        "streaming": not is_whole,
        "cache_dir": str(cache_dir),
    }
    loaded = with_retries(_load, repo_id, options)
    faults = [f"the split {name!r} is missing" for name in sizes if name not in loaded]
    for split in splits if not faults else []:
        found = loaded[split.name]
        wrong = [n for n, f in features.items() if found.features is None or found.features.get(n) != f]
        if wrong:
            faults.append(f"the column {wrong[0]!r} of {split.name!r} is {(found.features or {}).get(wrong[0])}")
        else:
            faults += _differences(split, found, is_whole=is_whole)
    if faults:
        raise HubError(
            f"{repo_id} at {sha} was pushed, and what loads from there is not what was meant: {'; '.join(faults)}; "
            "push again, and tell the maintainers of vog_hf"
        )


def _load(repo_id: str, options: Mapping[str, object]) -> Any:
    """The data set, as a user loads it."""
    try:
        return load_dataset(repo_id, **options)
    except (DatasetsError, ValueError) as error:
        if is_transient(error):
            raise ConnectionError(f"{repo_id} cannot be read ({described(error)})") from error
        raise HubError(
            f"{repo_id} at {options['revision']} was pushed, and does not load ({described(error)}); look at it on the "
            "Hub, and tell the maintainers of vog_hf"
        ) from error


def _differences(split: PushedSplit, loaded: Any, *, is_whole: bool) -> list[str]:
    """What is wrong with a loaded split, in at most one line."""
    meant = split.table.with_format("arrow")
    names = split.table.column_names
    if is_whole and len(loaded) != len(meant):
        return [f"the split {split.name!r} has {len(loaded):,} rows, not {len(meant):,}"]
    read = loaded.select_columns(names).with_format("arrow")
    batches = read.iter(batch_size=BATCH)
    start = 0
    for batch in batches if is_whole else islice(batches, FIRST_BATCHES):
        table = batch if isinstance(batch, pa.Table) else pa.table(batch)
        expected = embed_table_storage(meant[start : start + len(table)])
        for name in names:
            if not _is_same(expected.column(name), table.column(name)):
                return [f"values of the column {name!r} of {split.name!r} differ in the rows from {start:,} on"]
        start += len(table)
    return []


def _is_same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns hold the same; NaN, which is never equal for Arrow, counts as equal to NaN."""
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
