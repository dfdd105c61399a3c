"""The manifest of a run, how scores were computed; and its fingerprint, what they depend on."""

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from vog_hf.config import VoGConfig, target_digest
from vog_hf.data.batch_digests import batch_digest, joined_digest
from vog_hf.data.batch_reader import TRANSFORM_CHECK_ROWS, BatchReader
from vog_hf.data.row_identity import RowIdentity
from vog_hf.gradients.model_mode import model_device_and_dtype, preserved_rng
from vog_hf.metric.unit_kinds import UnitKind
from vog_hf.scores.manifest import CHECKPOINT
from vog_hf.scores.storage import FORMAT
from vog_hf.scoring.block_folder import BlockPlan
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.snapshots import Snapshot, SnapshotSet
from vog_hf.snapshots.peft_adapters import WEIGHTS_NAME

MODEL_FILES = ("model.safetensors", WEIGHTS_NAME)  # a snapshot with such a file is the folder that holds it


def make_fingerprint(config: VoGConfig, reader: BatchReader, identity: RowIdentity, snapshots: Any) -> dict[str, Any]:
    """Collect what the scores depend on: configuration, rows (stored and as they are collated), snapshots."""
    with preserved_rng():
        n_rows = min(len(reader.dataset), TRANSFORM_CHECK_ROWS)
        first = [0 if batch is None else batch_digest(batch) for batch in reader.read_singly(range(n_rows))]
    return {
        "format": FORMAT,
        "config": config.to_dict(),
        "targets": [target_digest(target) for target in config.targets if callable(target)],
        "rows": identity.n_rows,
        "data": identity.columns,
        "first batch": joined_digest(first),
        "snapshots": snapshots,
    }


def make_manifest(
    model: nn.Module,
    plan: ScoringPlan,
    reader: BatchReader,
    identity: RowIdentity,
    *,
    n_processes: int,
    snapshots: SnapshotSet | None = None,
) -> dict[str, Any]:
    """Record how the scores were computed, but for the snapshots; JSON-ready.

    Args:
        model: The model that is scored.
        plan: How it is scored.
        reader: Reader over all rows.
        identity: Identity of the rows.
        n_processes: Number of processes.
        snapshots: Snapshots in files; None while the training takes them.
    """
    model_config = getattr(model, "config", None)
    names = class_names(reader, model_config)
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("vog-hf", "torch", "transformers", "datasets", "accelerate")},
        "n_rows": identity.n_rows,
        "config": plan.config.to_dict(),
        "task": plan.task.name if plan.task else None,
        "class_names": names if plan.has_classes else None,
        **_units(plan.unit, names if plan.task and plan.task.unit else None),  # tokens of a vocabulary have no names
        "normalized_over": "class" if plan.has_classes else "dataset",
        "model": {
            "class": type(model).__qualname__,
            "name": _model_name(model_config),
            "pretrained": _is_pretrained(model_config, snapshots),
        },
        "input": {
            "name": plan.leaf.name,
            "embedding": plan.leaf.embedding is not None,
            "element_shape": list(plan.element_shape),
            "channels_averaged": plan.channel_axis is not None,
        },
        "computed": {
            "device": model_device_and_dtype(model)[0].type,
            "folding": str(plan.folding),
            "torch_compile": plan.module is not model,
        },
        "data": {"columns": identity.columns},
        "batch_size": plan.batch_size,
        "n_processes": n_processes,
    }


def replay_entries(
    blocks: BlockPlan, rows_digest: str, snapshots: SnapshotSet, digests: Iterable[str], thinned: str | None
) -> dict[str, Any]:
    """Entries of a manifest of scores from stored snapshots, each with its digest."""
    taken = zip(snapshots.snapshots, digests, strict=True)
    return {
        "collect": "replay",
        "batch_size": blocks.batch_size,  # an interrupted run keeps its own
        "rows_digest": rows_digest,
        "snapshots": [snapshot.manifest_entry(digest) for snapshot, digest in taken],
        **({} if thinned is None else {"thinned": thinned}),
    }


def _units(kind: UnitKind | None, names: list[str] | None) -> dict[str, Any]:
    if kind is None:
        return {}
    return {"units": {"of": kind.plural, "class_names": names if kind.labels_are_classes else None}}


def _model_name(model_config: object) -> str | None:
    """The model's id on the Hub; of a local folder just its last part, because manifests are published."""
    name = str(getattr(model_config, "name_or_path", None) or "")
    return (Path(name).name if Path(name).is_dir() or Path(name).is_absolute() else name) or None


def _is_pretrained(model_config: object, snapshots: SnapshotSet | None) -> bool:
    """True if the model was loaded from weights other than those of its own training; False if that is not known.

    Weights of its own training are a snapshot, or lie in the folder of a run or in a repository that holds one.
    """
    name = str(getattr(model_config, "name_or_path", None) or "")
    taken = snapshots.snapshots if snapshots else ()
    repository = f"models--{name.replace('/', '--')}"  # its folder in the cache of `huggingface_hub`, of links to blobs
    if not name or any(repository in file.absolute().parts for snapshot in taken for file in snapshot.files):
        return False
    folder = Path(name).resolve()
    run = folder.parent if CHECKPOINT.fullmatch(folder.name) else folder
    return not folder.is_dir() or all({folder, run}.isdisjoint(_folders(snapshot)) for snapshot in taken)


def _folders(snapshot: Snapshot) -> set[Path]:
    """A snapshot that is a folder, and the run that holds it directly or among its own snapshots; also behind links."""
    folders = set()
    for file in (snapshot.files[0], snapshot.files[0].resolve()):
        holder = file.parent.resolve()
        if len(snapshot.files) > 1 or file.name in MODEL_FILES:
            folders.add(holder)
            holder = holder.parent
        of_callback, of_accelerate = holder.parts[-2:] == ("_vog", "snapshots"), holder.name == "checkpoints"
        folders.add(holder.parents[1] if of_callback else holder.parent if of_accelerate else holder)
    return folders


def class_names(reader: BatchReader, model_config: object) -> list[str] | None:
    """Names of the classes: of the dataset's ClassLabel, else of the model's ``id2label`` where somebody set it."""
    features = getattr(reader.dataset, "features", None) or {}
    for name in (reader.label_column, *reader.label_names):
        feature = features.get(name) if name else None
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            return [str(value) for value in names]
    id2label = getattr(model_config, "id2label", None) or {}
    names = [str(id2label[key]) for key in sorted(id2label)]
    return None if not names or names == [f"LABEL_{i}" for i in range(len(names))] else names
