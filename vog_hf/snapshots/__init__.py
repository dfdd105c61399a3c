"""Snapshots: the weights that change as safetensors files, found again and lent to a model.

`tensors` names and digests what a model holds, and `gathering` makes it whole where it is sharded; `writer` stores it;
`source` finds what was stored, here or by others, and `hub` fetches it; `adapters` knows what PEFT stores; `records` is
what was found; `lending` puts it into a model for a while.
"""

from vog_hf.snapshots.hub_revisions import from_hub
from vog_hf.snapshots.loaded_weights import LentWeights, lend_weights
from vog_hf.snapshots.snapshot_set import INDEX_NAME, Snapshot, SnapshotSet, read_index
from vog_hf.snapshots.source import SnapshotSource, in_order, open_folder, open_snapshots
from vog_hf.snapshots.whole_tensors import (
    FullTensor,
    aliases,
    full_tensors,
    is_sharded,
    model_tensors,
    require_whole,
    tensor_digest,
)
from vog_hf.snapshots.writer import SnapshotWriter

__all__ = [
    "INDEX_NAME",
    "FullTensor",
    "LentWeights",
    "Snapshot",
    "SnapshotSet",
    "SnapshotSource",
    "SnapshotWriter",
    "aliases",
    "from_hub",
    "full_tensors",
    "in_order",
    "is_sharded",
    "lend_weights",
    "model_tensors",
    "open_folder",
    "open_snapshots",
    "read_index",
    "require_whole",
    "tensor_digest",
]
