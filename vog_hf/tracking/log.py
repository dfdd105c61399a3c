"""log_scores: log scores and their tables, charts and images to a run."""

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import pandas as pd

from vog_hf.data.rows import AnyDataset
from vog_hf.errors import ConfigError, as_path, require_type, whole_number
from vog_hf.scores.scored_rows import pair_with_rows, require_scores
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking.about_page import about_page
from vog_hf.tracking.contents import MAX_TABLE_ROWS, contents

logger = logging.getLogger(__name__)

STEP = "train/global_step"  # the axis that transformers' callbacks use for every metric
TRACKERS = {"wandb": "vog_hf.tracking.wandb_backend", "trackio": "vog_hf.tracking.trackio_backend"}


class Backend(Protocol):
    """The functions of a module that translates for one tracker."""

    HOW_TO_START: str  # completes "no run is active: ..."
    SHOWS_LAST_FIRST: bool  # whether what is logged last is shown first

    def active_run(self) -> Any:
        """The run that is active in this process; None without one, or if the library is not loaded."""

    def translated(self, values: Mapping[str, object]) -> dict[str, Any]:
        """Records as the tracker's own objects."""

    def hidden_columns(self, values: Mapping[str, object]) -> Collection[str]:
        """Names of the columns of tables among these records that the tracker cannot show."""

    def page(self, html: str) -> Any:
        """A whole HTML document as the tracker's own object, unchanged."""

    def summarize(self, run: object, summary: Mapping[str, str]) -> None:
        """Write values to the summary by which runs are compared."""

    def download_command(self, run: object, split: str) -> str | None:
        """The command that downloads what `log_artifact` stores to the folder ``scores``; None if it stores nothing."""

    def log_artifact(self, run: object, split: str, scores: VoGScores, tables: Mapping[str, pd.DataFrame]) -> None:
        """Store the scores themselves with the run, and the tables that are not shown, if the tracker can."""

    def reopened(self, run: object) -> AbstractContextManager[Any]:
        """Make a run that was active before active again for as long."""


def log_scores(
    scores: VoGScores | Mapping[str, VoGScores],
    dataset: AnyDataset,
    *,
    to: str = "wandb",
    step: int | None = None,
    top_k: int = 50,
    run: object = None,
    artifact: bool = True,
    report: str | Path | None = None,
) -> bool:
    """Log scores to the active run of a tracker; call it on the main process.

    Logged are, under ``vog/``: ``about``, which says how good a guide VoG is in this run, what to review first, what
    the columns mean and which command comes next; the rows to review first in ``review_first``, and the tables
    ``highest`` and ``lowest`` (ranked by the class-normalized score), also per class: image or text, heat map of VoG,
    label, prediction and its probability, mean probability of the label, mean loss, the score and the row; ``classes``
    and ``error_by_decile``; charts of these, of the stability of the ranking and of early against late VoG; the data
    map and a histogram; if the dataset has a column ``is_corrupted``, ``detection``: how well each column finds these
    rows; where rows have units (the words of a text, the classes of a mask), ``worst_tokens``, ``worst_classes`` and so
    on: those with the highest loss; with ``collect="training"``, ``loss_spikes``: the worst rows of steps whose loss
    stood out; scalars;
    ``headline``, ``hard_tail`` and ``review_first`` in the run's summary. W&B also keeps every column in
    ``scores.parquet``, with ``manifest.json`` and ``ranking_stability.csv``, as a version of the artifact
    ``vog-scores-<run id>``.

    Args:
        scores: Scores of ``dataset``, or of each split of a `DatasetDict`, logged as ``vog/<split>/...``.
        dataset: Dataset that was scored, for its images or texts; None = tables without them.
        to: ``"wandb"`` or ``"trackio"``.
        step: ``train/global_step`` of the Trainer, on whose axis everything is put; with a tracker of Accelerate, its
            own step. None = no step is logged.
        top_k: Rows in each of the two tables, 1..10,000; each is a picture to upload.
        run: A run, or what ``accelerator.get_tracker(to)`` returns; default: the run that is active.
        artifact: Whether the scores themselves are also stored; False while a training run continues.
        report: Path of the report of these scores (see `write_report`), logged as ``vog/report``; the callback passes
            one. None = no report is logged.

    Returns:
        Whether there was a run. Without one nothing is logged but a warning that says how to get one.

    Raises:
        ConfigError: Another tracker, one that is not installed, a run of another tracker than ``to``, ``top_k`` out of
            range, a report that cannot be read, or splits that do not fit those of the dataset.
        RowMismatchError: The rows of the dataset are not the ones that were scored.

    Example:
        >>> import numpy as np
        >>> log_scores(VoGScores({"vog": np.array([0.2, 0.1])}, {}), None)  # no run is active: a warning
        False
    """
    require_scores(scores)
    top_k = whole_number("top_k", top_k, 1, MAX_TABLE_ROWS)  # the rows that a W&B table can hold
    step = None if step is None else whole_number("step", step)
    backend = _backend(to)
    report_html = None if report is None else _read_report(report)
    log_values, own_run = _target(to, run, step)
    if own_run is None:
        if run is None:
            logger.warning("the VoG scores are not logged, because no run is active: %s", backend.HOW_TO_START)
        return False
    splits = pair_with_rows(scores, dataset)
    logged: dict[str, Any] = {}
    all_contents = [(split, contents(split, top_k)) for split in splits]
    for split, of_split in all_contents:
        prefix = f"vog/{split.name}/" if split.name else "vog/"
        download = backend.download_command(own_run, split.name) if artifact else None
        about = of_split.about.with_download(download, split.scores)
        about = about.without_columns(backend.hidden_columns(of_split.values))
        values = {"about": backend.page(about_page(about)), **backend.translated(of_split.values)}
        logged |= {prefix + name: value for name, value in values.items()}
        backend.summarize(own_run, {prefix + name: value for name, value in of_split.summary.items()})
    if report_html is not None:
        logged["vog/report"] = backend.page(report_html)
    log_values(dict(reversed(logged.items())) if backend.SHOWS_LAST_FIRST else logged)
    if artifact:
        for split, of_split in all_contents:
            backend.log_artifact(own_run, split.name, split.scores, of_split.tables)
    return True


def active_runs() -> dict[str, Any]:
    """The runs that are active in this process, by tracker."""
    runs = {name: _backend(name).active_run() for name in TRACKERS}
    return {name: run for name, run in runs.items() if run is not None}


def reopened(to: str, run: object) -> AbstractContextManager[Any]:
    """A run that was active before, active again for as long: Trainer finishes those of Trackio."""
    return _backend(to).reopened(run)


def _backend(to: str) -> Backend:
    require_type("to", to, str, "pass 'wandb' or 'trackio'")
    if to not in TRACKERS:
        names = " or ".join(map(repr, TRACKERS))
        raise ConfigError(f"log_scores can log to {names}, got to={to!r}; elsewhere, use scores.to_pandas()")
    return cast("Backend", import_module(TRACKERS[to]))


def _read_report(report: str | Path) -> str:
    path = as_path("report", report)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        advice = "pass the path that write_report returned"
        raise ConfigError(f"report {path} cannot be read ({error}); {advice}", argument="report=") from error


def _target(to: str, run: Any, step: int | None) -> tuple[Callable[[dict[str, Any]], object], Any]:
    """The function that logs values, and its run; None without a run in this process."""
    run = _backend(to).active_run() if run is None else run
    if hasattr(run, "store_init_configuration"):  # a tracker of Accelerate, with its user's own step counter
        name = getattr(run, "name", to)  # a dummy tracker does not have a name
        if name != to:
            raise ConfigError(f"to={to!r} and the given tracker is {name!r}; pass accelerator.get_tracker({to!r})")
        return lambda values: run.log(values, step=step), getattr(run, "tracker", None)
    library = type(run).__module__.partition(".")[0]
    if library in TRACKERS and library != to:
        raise ConfigError(f"to={to!r} and the given run belongs to {library}; pass to={library!r}")
    # never run.log(step=...): that is W&B's own counter, which the Trainer's later records would fall behind
    return lambda values: run.log(values if step is None else {**values, STEP: step}), run
