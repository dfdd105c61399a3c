"""Weights: writing them during training, finding them and loading them. May import `gradients` and the rooms below it.

`schedule` plans the steps, and `writer` stores the tensors that training changes, one safetensors file per snapshot.
`source` finds snapshots, ours or those of others (`hub_revisions`, `peft_adapters`, `conversion` for other names), and
`snapshot_set` holds them. `loaded_weights` loads them into a model temporarily. `whole_tensors` names and digests the
tensors of a model, sharded or not, and `unsharded_copy` builds a full model from a sharded one.
"""

from vog_hf.snapshots.hub_revisions import from_hub
from vog_hf.snapshots.loaded_weights import SnapshotLoader, temporary_weights
from vog_hf.snapshots.schedule import plan_snapshots
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
from vog_hf.snapshots.writer import SnapshotWriter, require_store, require_trainable

__all__ = [
    "INDEX_NAME",
    "FullTensor",
    "Snapshot",
    "SnapshotLoader",
    "SnapshotSet",
    "SnapshotSource",
    "SnapshotWriter",
    "aliases",
    "from_hub",
    "full_tensors",
    "in_order",
    "is_sharded",
    "model_tensors",
    "open_folder",
    "open_snapshots",
    "plan_snapshots",
    "read_index",
    "require_store",
    "require_trainable",
    "require_whole",
    "temporary_weights",
    "tensor_digest",
]
