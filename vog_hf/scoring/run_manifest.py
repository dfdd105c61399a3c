"""The manifest of a run: how scores were computed."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vog_hf.data.batch_reader import BatchReader
from vog_hf.data.row_identity import RowIdentity
from vog_hf.gradients.model_mode import model_device_and_dtype
from vog_hf.scores.storage import FORMAT
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.session import Session


def make_manifest(session: Session, plan: ScoringPlan, reader: BatchReader, identity: RowIdentity) -> dict[str, Any]:
    """How the scores were computed, but for the snapshots; JSON-ready."""
    model_config = getattr(session.model, "config", None)
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("vog-hf", "torch", "transformers", "datasets", "accelerate")},
        "n_rows": identity.n_rows,
        "config": session.config.to_dict(),
        "task": plan.task.name if plan.task else None,
        "class_names": class_names(reader, model_config) if plan.has_classes else None,
        "normalized_over": "class" if plan.has_classes else "data set",
        "model": {"class": type(session.model).__qualname__, "name": _model_name(model_config)},
        "input": {
            "name": plan.leaf.name,
            "embedding": plan.leaf.embedding is not None,
            "element_shape": list(plan.element_shape),
            "channels_averaged": plan.channel_axis is not None,
        },
        "computed": {
            "device": model_device_and_dtype(session.model)[0].type,
            "folding": str(plan.folding),
            "torch_compile": plan.module is not session.model,
        },
        "data": {"columns": identity.columns},
        "batch_size": plan.batch_size,
        "n_processes": session.processes.num_processes,
    }


def _model_name(model_config: Any) -> str | None:
    """The model's id on the Hub; of a local folder just its last part, because manifests are published."""
    name = str(getattr(model_config, "name_or_path", None) or "")
    return (Path(name).name if Path(name).is_dir() or Path(name).is_absolute() else name) or None


def class_names(reader: BatchReader, model_config: Any) -> list[str] | None:
    """Names of the classes: of the data set's ClassLabel, else of the model's ``id2label`` where somebody set it."""
    features = getattr(reader.dataset, "features", None) or {}
    for name in (reader.label_column, *reader.label_names):
        names = getattr(features.get(name), "names", None) if name else None
        if names:
            return [str(value) for value in names]
    id2label = getattr(model_config, "id2label", None) or {}
    names = [str(id2label[key]) for key in sorted(id2label)]
    return None if not names or names == [f"LABEL_{i}" for i in range(len(names))] else names
