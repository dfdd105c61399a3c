"""The work of `vog-hf score`: open, score and save."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import transformers.utils.logging
from datasets import Dataset
from torch import nn

from vog_hf.cli.model_inputs import Preparation
from vog_hf.cli.models import Architecture, find_snapshots, load_weights, model_folder, read_architecture
from vog_hf.cli.preparing import InputColumns, choose_columns, prepare, prepared
from vog_hf.cli.sources import (
    Source,
    note_source,
    open_dataset,
    quieten,
    require_new,
    saved,
)
from vog_hf.config import VoGConfig
from vog_hf.data.column_kinds import CORRUPTED
from vog_hf.data.referenced_files import require_own_files
from vog_hf.errors import ConfigError, SnapshotError
from vog_hf.gradients.tasks import TASKS
from vog_hf.metric.unit_kinds import unit_column
from vog_hf.metric.vocabulary import COMPANIONS, CSG, LEARNING_PATTERN, PREDICTION_PROBABILITY
from vog_hf.runtime.processes import current_processes, from_main, run_together
from vog_hf.scores.dataset_columns import add_vog_columns, check_column_names, core_column_names
from vog_hf.scores.findings import Findings, headline
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.storage import write_manifest
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import from_hub


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Model, snapshots and dataset as named on the command line."""

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
        """Revision of model and processor: as given, else that of the last snapshot."""
        return self.revision or next(reversed(self.snapshot_revisions), None)


@dataclass(frozen=True)
class Sources:
    """Snapshots, rows and model as they are found, before the model is loaded.

    Attributes:
        snapshots: Snapshots for `VoGScorer.score`.
        rows: Rows as stored.
        architecture: Class and configuration of the model.
        columns: Columns that the model takes.
    """

    snapshots: str | Sequence[str | Path]
    rows: Dataset
    architecture: Architecture
    columns: InputColumns


@dataclass(frozen=True)
class ScoringInputs:
    """Opened model, rows and snapshots.

    Attributes:
        model: Model on the device of this process.
        rows: Rows as stored.
        preparation: Transform from rows to inputs.
        snapshots: Snapshots for `VoGScorer.score`.
    """

    model: nn.Module
    rows: Dataset
    preparation: Preparation
    snapshots: str | Sequence[str | Path]


def score_all(
    request: ScoreRequest,
    *,
    output: Path,
    save_dataset: Path | None,
    columns: str,
    prefix: str = "",
    choices: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Score on every process; returns the findings on the main process, None on the others.

    Args:
        request: Model, snapshots and dataset.
        output: Folder for the scores.
        save_dataset: Path for the dataset with its scores; None: not written.
        columns: Scores to add: ``"core"`` or ``"all"``.
        prefix: Prefix of their names.
        choices: Arguments of `VoGConfig`.
        options: Arguments of `VoGScorer`.

    Raises:
        VoGError: Something cannot be opened, scored or written.
    """
    processes = current_processes()
    require_new(save_dataset, "--save-dataset")
    progress, skips_rows = bool(options["progress"]), options["on_error"] == "skip"
    sources = run_together(processes, "opening model and data", find_all, request, progress=progress)
    config = configuration(sources, choices)
    if save_dataset is not None:
        require_free_names(sources.rows, config, columns, prefix, task=sources.columns.head.task)
        require_own_files(sources.rows, copied_to=save_dataset)
    inputs = run_together(processes, "opening the model", load_all, request, sources, skips_rows=skips_rows)
    config = replace(config, label_column=inputs.preparation.label_column)
    rows_per_step = 1 if inputs.preparation.takes_single_rows else None
    scores = VoGScorer(
        inputs.model,
        config=config,
        training_batch_size=rows_per_step,
        processing_class=inputs.preparation.processor,
        **options,
    ).score(
        prepared(inputs.rows, inputs.preparation),
        inputs.snapshots,
        collate_fn=inputs.preparation.collate,
        output_dir=output,
    )
    from_main(processes, f"writing {output}", note, scores, output, request, inputs)
    from_main(processes, f"writing {save_dataset}", save_scored, inputs.rows, scores, save_dataset, columns, prefix)
    if not processes.is_main_process:
        return None
    return findings(scores, output, request.source, inputs.rows, save_dataset)


def find_all(request: ScoreRequest, *, progress: bool) -> Sources:
    """Find snapshots, rows, model and columns, the cheapest first, so that faults show early.

    Raises:
        VoGError: Something does not exist, or does not fit the model.
    """
    quieten(progress=progress)
    if not progress:
        transformers.utils.logging.disable_progress_bar()
    snapshots = _snapshots(request)
    rows = open_dataset(request.source)
    architecture = read_architecture(model_folder(request.model), revision=request.model_revision)
    columns = choose_columns(architecture, rows, request.input_columns, request.label_column)
    if request.max_length is not None and columns.kind != "text":
        raise ConfigError(f"--max-length applies to text, and this model takes {columns.kind}; leave it out")
    return Sources(snapshots, rows, architecture, columns)


def load_all(request: ScoreRequest, sources: Sources, *, skips_rows: bool) -> ScoringInputs:
    """Load the model and make the transform of the rows.

    Raises:
        VoGError: Something cannot be loaded, or a row has no input.
    """
    model = load_weights(sources.architecture)
    preparation = prepare(
        model,
        sources.rows,
        sources.columns,
        processor=request.processor or sources.architecture.name,
        revision=None if request.processor else request.model_revision,
        max_length=request.max_length,
        skips_rows=skips_rows,
    )
    return ScoringInputs(model.to(current_processes().device), sources.rows, preparation, sources.snapshots)


def configuration(sources: Sources, choices: Mapping[str, Any]) -> VoGConfig:
    """The configuration for the given options.

    Raises:
        ConfigError: Options that cannot be combined, or that the task of the model does not have.
    """
    head = sources.columns.head
    if head.needs_label_column and sources.columns.label is None and choices["label"] == "given":
        raise ConfigError(
            f"the dataset has no label (columns {', '.join(sources.rows.column_names)}); name it with --label-column, "
            "or use --label predicted, which differentiates the class that the last snapshot predicts"
        )
    VoGConfig(**choices, task=head.task)  # raises; what is recorded stays what it is where the task is found later
    return VoGConfig(**choices)


def note(scores: VoGScores, folder: Path, request: ScoreRequest, inputs: ScoringInputs) -> None:
    """Add facts known only to the command line to the manifest, and record the location of the dataset next to it."""
    manifest = scores.manifest
    numbered = None if inputs.preparation.numbers is None else inputs.preparation.class_names
    scores.manifest = {
        **manifest,
        "model": {**manifest["model"], "revision": request.model_revision},
        **({} if numbered is None else {"class_names": numbered}),
        "transform": inputs.preparation.described(),
        "data": {**manifest["data"], "source": request.source.public()},
    }
    if scores.manifest != manifest:
        write_manifest(folder, scores.manifest)
    note_source(folder, request.source)


def save_scored(rows: Dataset, scores: VoGScores, path: Path | None, columns: str, prefix: str) -> None:
    """Write the dataset with its scores to a parquet file or a folder, whole or not at all; None: do nothing."""
    if path is not None:
        with saved(add_vog_columns(rows, scores, columns, prefix=prefix), path):
            pass


def findings(scores: VoGScores, output: Path, source: Source, rows: Dataset, saved: Path | None) -> dict[str, Any]:
    """Summary of a scoring: rows, paths, the verdict on the ranking, and the ranking to review first."""
    found = Findings(ScoredSplit("", scores, rows if CORRUPTED in rows.column_names else None))
    ranked, start = found.has_verdict, found.recommended
    return {
        "n_rows": len(scores),
        "n_skipped": scores.facts.n_skipped,
        "skipped": list(scores.facts.skipped_rows),
        "n_snapshots": len(scores.facts.snapshots),
        "dataset": str(source),
        "output": str(output),
        "saved": None if saved is None else str(saved),
        "headline": headline(scores, found.tail) if ranked else None,
        "hard_tail": found.tail.to_dict() if ranked else None,
        "review_first": {"sentence": str(start), **asdict(start)} if found.has_start else None,
        "next": f"vog-hf review {shlex.quote(str(output))}",
    }


def _snapshots(request: ScoreRequest) -> str | Sequence[str | Path]:
    if request.snapshot_revisions:
        return from_hub(request.model, request.snapshot_revisions)
    if request.snapshots:
        return find_snapshots(request.snapshots)
    if not Path(request.model).expanduser().is_dir():
        raise SnapshotError(
            f"{request.model} is not a folder with snapshots; pass folders or files after MODEL, or "
            "--snapshot-revision for each revision of a model on the Hub"
        )
    return str(Path(request.model).expanduser())


def require_free_names(rows: Dataset, config: VoGConfig, columns: str, prefix: str, *, task: str | None = None) -> None:
    """Raise ConfigError if the dataset already has a column with the name of a score."""
    unit = None if task is None else TASKS[task].unit
    has_classes = task is None or TASKS[task].has_classes
    names = core_column_names(config.column_names, has_classes=has_classes, unit=unit)
    if columns == "all":
        names += ["prediction", PREDICTION_PROBABILITY, "vog_early", "vog_late", *COMPANIONS, LEARNING_PATTERN]
        names = [name for name in names if name != CSG or config.loss_target is not None]
        names += [] if unit is None else [unit_column(name, unit.name) for name in unit.meanings]
    check_column_names(rows, [prefix + name for name in dict.fromkeys(names)])
