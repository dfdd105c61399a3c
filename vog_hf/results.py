"""From finished blocks to a folder of scores: labels, normalised columns, the manifest, the coverage proof."""

import logging
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from vog_hf.accumulate import RowResults, Windows
from vog_hf.batches import Batch, BatchReader
from vog_hf.blocks import Assembler, BlockFolder, gathered_blocks
from vog_hf.config import VoGConfig
from vog_hf.engine import ScoringPlan, to_numpy_labels
from vog_hf.gradients import model_device_and_dtype
from vog_hf.metric import class_normalize, percentile
from vog_hf.processes import from_main, run_together
from vog_hf.rows import RowIdentity
from vog_hf.scores import FORMAT, VoGScores, save_table, write_manifest
from vog_hf.session import Session

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

logger = logging.getLogger(__name__)

COLUMN_ORDER = ("label", "prediction", "vog")  # then the other targets, then the companions


def finish_folder(
    session: Session,
    folder: BlockFolder,
    plan: ScoringPlan,
    identity: RowIdentity,
    manifest: dict[str, Any],
    *,
    temporary: "TemporaryDirectory[str] | None",
) -> VoGScores:
    """Gather the blocks of all processes, prove coverage, write the folder; every process then reads it.

    Raises:
        CoverageError: A row was not scored exactly once; no scores are written.
    """
    processes = session.processes
    processes.wait_for_everyone()
    names = [snapshot["name"] for snapshot in manifest["snapshots"]]
    assembler = Assembler(folder.folder, identity.n_rows, len(names))
    for block in gathered_blocks(folder, processes):
        from_main(processes, "assembling the scores", partial(assembler.add, block))

    def write() -> None:
        assembler.finish()
        columns = normalized_columns(assembler.columns, session.config, has_classes=plan.has_classes)
        if "vog_early" in columns:
            width = Windows(len(names)).width
            manifest["windows"] = {"early": names[:width], "late": names[-width:], "all": names}
        _report_zeros(columns, session.config)
        save_table(folder.folder, columns, identity.row_hash, folder.ids())
        write_manifest(folder.folder, manifest)
        folder.remove_blocks()

    from_main(processes, "writing the scores", write)
    scores = run_together(processes, "loading the scores", lambda: VoGScores.load(folder.folder))
    return scores.own(temporary) if temporary else scores


def _report_zeros(columns: dict[str, npt.NDArray[Any]], config: VoGConfig) -> None:
    """Say which score is 0 in every row: no ranking at all."""
    for name in config.column_names:
        if not columns[name].any():
            logger.warning(
                "VoG: %s is 0 for every row: the gradient was the same at every snapshot. Either the snapshots hold "
                "the same weights, or the model does not use them (it keeps what it derived from earlier ones), or its "
                "gradient does not depend on what was trained; the ranking means nothing",
                name,
            )


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


def with_label(plan: ScoringPlan, results: RowResults, batch: Batch) -> RowResults:
    """Results with the given label as a column, -1 where a row has none."""
    label = to_numpy_labels(batch.labels, len(batch))
    if label is None and plan.has_classes:
        label = np.full(len(batch), -1, dtype=np.int32)
    if label is None:
        return results
    if plan.has_classes:
        label = np.maximum(label, np.int32(-1))
    return RowResults({"label": label, **results.columns}, results.trajectories, results.heat_maps)


def normalized_columns(
    columns: dict[str, npt.NDArray[Any]], config: VoGConfig, *, has_classes: bool
) -> dict[str, npt.NDArray[Any]]:
    """The columns in reading order, with each target's normalised score and percentile behind it.

    Normalised within the given label's class, that of the last prediction where a row has no label; over the whole
    data set where rows have no single class.
    """
    classes = np.zeros(len(next(iter(columns.values()))), dtype=np.int64)
    if has_classes:
        given, predicted = columns["label"].astype(np.int64), columns["prediction"].astype(np.int64)
        classes = np.where(given < 0, predicted, given)
    suffix = "class_normalized" if has_classes else "normalized"
    found: dict[str, npt.NDArray[Any]] = {}
    for name in sorted(columns, key=lambda name: (_place(name), name)):
        found[name] = columns[name]
        if name in config.column_names:
            normalized = class_normalize(torch.from_numpy(columns[name]), torch.from_numpy(classes))
            found[f"{name}_{suffix}"] = normalized.numpy()
            found[f"{name}_percentile"] = percentile(normalized).numpy()
    return found


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


def _place(name: str) -> int:
    if name in COLUMN_ORDER:
        return COLUMN_ORDER.index(name)
    return len(COLUMN_ORDER) + (0 if name.startswith("vog") else 1)
