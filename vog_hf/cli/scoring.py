"""The work of `vog-hf score`: what a person names is opened, scored and saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers.utils.logging
from datasets import Dataset
from torch import nn

from vog_hf.cli.model_inputs import Preparation, find_snapshots, load_model, model_folder, prepare, prepared
from vog_hf.cli.sources import (
    Source,
    note_source,
    open_dataset,
    quieten,
    require_new,
    saved,
)
from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, SnapshotError
from vog_hf.evaluation import RANKING_COLUMNS, hard_tail
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.runtime.processes import current_processes, from_main, run_together
from vog_hf.scores.dataset_columns import add_vog_columns, check_column_names, core_column_names
from vog_hf.scores.storage import write_manifest
from vog_hf.scores.vog_scores import COMPANIONS, VoGScores
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import from_hub


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to score, as the command line names it."""

    model: str
    revision: str | None
    snapshots: Sequence[str]
    snapshot_revisions: Sequence[str]
    source: Source
    processor: str | None
    input_columns: Sequence[str]
    label_column: str | None
    max_length: int | None

    @property
    def model_revision(self) -> str | None:
        """Of the model and its processor: the one that was named, else that of the last snapshot."""
        return self.revision or next(reversed(self.snapshot_revisions), None)


@dataclass(frozen=True)
class Opened:
    """What there is to score.

    Attributes:
        model: On the device of this process.
        rows: As they are stored.
        preparation: What makes inputs of them.
        snapshots: As `VoGScorer.score` takes them.
    """

    model: nn.Module
    rows: Dataset
    preparation: Preparation
    snapshots: str | Sequence[str | Path]

    @property
    def label_column(self) -> str | None:
        """For `VoGConfig`: None where the scorer finds the label by itself."""
        return None if self.preparation.label in LABEL_NAMES else self.preparation.label


def score_all(
    wanted: Wanted,
    *,
    output: Path,
    save_dataset: Path | None,
    columns: str,
    prefix: str = "",
    choices: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Score, on every process; what was found on the main one, None on the others.

    Args:
        wanted: What to score.
        output: Folder of the scores.
        save_dataset: Where to write the data set with its scores, if anywhere.
        columns: Which of them.
        prefix: Put before their names.
        choices: Of `VoGConfig`.
        options: Of `VoGScorer`.

    Raises:
        VoGError: What cannot be opened, scored or written, and why.
    """
    processes = current_processes()
    require_new(save_dataset, "--save-dataset")
    progress = bool(options["progress"])
    opened = run_together(processes, "opening model and data", open_all, wanted, progress=progress)
    config = configuration(opened, choices)
    if save_dataset is not None:
        require_free_names(opened, config, columns, prefix)
    rows_per_step = 1 if opened.preparation.takes_single_rows else None
    scores = VoGScorer(opened.model, config=config, training_batch_size=rows_per_step, **options).score(
        prepared(opened.rows, opened.preparation),
        opened.snapshots,
        collate_fn=opened.preparation.collate,
        output_dir=output,
    )
    from_main(processes, f"writing {output}", note, scores, output, wanted, opened)
    from_main(processes, f"writing {save_dataset}", save_scored, opened.rows, scores, save_dataset, columns, prefix)
    return findings(scores, output, wanted.source, save_dataset) if processes.is_main_process else None


def open_all(wanted: Wanted, *, progress: bool) -> Opened:
    """Model, rows and snapshots; each of them as late as the others can be wrong without it.

    Raises:
        VoGError: What cannot be opened, and why.
    """
    quieten(progress=progress)
    if not progress:
        transformers.utils.logging.disable_progress_bar()
    snapshots = _snapshots(wanted)
    rows = open_dataset(wanted.source)
    name = model_folder(wanted.model)
    revision = wanted.model_revision
    model = load_model(name, revision=revision)
    preparation = prepare(
        model,
        rows,
        processor=wanted.processor or name,
        revision=None if wanted.processor else revision,
        input_columns=wanted.input_columns,
        label_column=wanted.label_column,
        max_length=wanted.max_length,
    )
    return Opened(model.to(current_processes().device), rows, preparation, snapshots)


def configuration(opened: Opened, choices: Mapping[str, Any]) -> VoGConfig:
    """The configuration that options name.

    Raises:
        ConfigError: A choice that cannot be carried out.
    """
    if opened.preparation.label is None and choices["label"] == "given":
        raise ConfigError(
            f"the data set has no label (columns {', '.join(opened.rows.column_names)}); name it with --label-column, "
            "or use --label predicted, which differentiates the class that the last snapshot predicts"
        )
    return VoGConfig(**choices, label_column=opened.label_column)


def note(scores: VoGScores, folder: Path, wanted: Wanted, opened: Opened) -> None:
    """Add to the manifest what only the command line knows, and note beside it where the data set is."""
    manifest = scores.manifest
    numbered = None if opened.preparation.numbers is None else opened.preparation.class_names
    scores.manifest = {
        **manifest,
        "model": {**manifest["model"], "revision": wanted.model_revision},
        **({} if numbered is None else {"class_names": numbered}),
        "transform": opened.preparation.described(),
        "data": {**manifest["data"], "source": wanted.source.public()},
    }
    if scores.manifest != manifest:
        write_manifest(folder, scores.manifest)
    note_source(folder, wanted.source)


def save_scored(rows: Dataset, scores: VoGScores, path: Path | None, columns: str, prefix: str) -> None:
    """Write the data set with its scores as a parquet file or a folder, whole or not at all; nothing without a path."""
    if path is not None:
        with saved(add_vog_columns(rows, scores, columns, prefix=prefix), path):
            pass


def findings(scores: VoGScores, output: Path, source: Source, saved: Path | None) -> dict[str, Any]:
    """What was scored, where it is, and which tail of the ranking is the hard one."""
    ranked = any(name in scores.column_names for name in RANKING_COLUMNS) and "loss" in scores.column_names
    tail = hard_tail(scores) if ranked else None
    return {
        "n_rows": len(scores),
        "n_snapshots": len(scores.manifest["snapshots"]),
        "dataset": str(source),
        "output": str(output),
        "saved": None if saved is None else str(saved),
        "hard_tail": None if tail is None else {"in_words": str(tail).partition(":")[0], **tail.to_dict()},
    }


def _snapshots(wanted: Wanted) -> str | Sequence[str | Path]:
    if wanted.snapshot_revisions:
        return from_hub(wanted.model, wanted.snapshot_revisions)
    if wanted.snapshots:
        return find_snapshots(wanted.snapshots)
    if not Path(wanted.model).expanduser().is_dir():
        raise SnapshotError(
            f"{wanted.model} is no folder with snapshots in it; name them: folders or files after MODEL, or "
            "--snapshot-revision for each revision of a model on the Hub"
        )
    return str(Path(wanted.model).expanduser())


def require_free_names(opened: Opened, config: VoGConfig, columns: str, prefix: str) -> None:
    """Raise ConfigError where the data set has a column of a name that its scores will have."""
    names = core_column_names(config.column_names, has_classes=True)
    if columns == "all":
        names += ["prediction", "vog_early", "vog_late", *COMPANIONS]
    check_column_names(opened.rows, [prefix + name for name in names])
