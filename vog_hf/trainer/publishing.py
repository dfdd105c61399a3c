"""Publishing a training's scores: the lines that are printed, and the active trackers. Errors are only logged."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from transformers import TrainingArguments

from vog_hf.data.rows import AnyDataset
from vog_hf.gradients.model_mode import preserved_rng
from vog_hf.report import write_report
from vog_hf.runtime.processes import current_processes, from_main
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking import active_runs, log_scores, reopened
from vog_hf.tracking.log import TRACKERS
from vog_hf.trainer.announcements import announce, summary_lines, tracker_line
from vog_hf.trainer.collected_training import CollectedTraining
from vog_hf.trainer.splits import only_or_all, without_streams
from vog_hf.trainer.training_run import TrainingRun

logger = logging.getLogger(__name__)

Run: TypeAlias = TrainingRun | CollectedTraining


def log_current(run: Run, step: int, top_k: int) -> None:
    """Log the live ranking of the snapshots taken so far to the active trackers; all processes must call this."""
    processes = current_processes()
    try:
        with preserved_rng():
            if not from_main(processes, "looking for a tracker", active_runs):
                return
            scores = run.current_scores(top_k)
            if scores:
                log = partial(log_scores, only_or_all(scores), only_or_all(run.datasets), step=step, top_k=top_k)
                for to in active_runs():
                    log(to=to, artifact=False)
    except Exception:
        logger.exception("VoG: logging the ranking of step %d failed; training and scoring continue", step)


def summarize(scores: Mapping[str, VoGScores], run: Run, args: TrainingArguments) -> None:
    """Print how far to trust the ranking, where to start, and the next command."""
    try:
        with preserved_rng():
            for line in summary_lines(scores, run.datasets):
                announce(line, args)
    except Exception:
        logger.exception("VoG: the summary failed; the scores are complete, in callback.scores and in %s", run.folder)


def log_finished(
    scores: dict[str, VoGScores],
    run: Run,
    trackers: Mapping[str, Any],
    args: TrainingArguments,
    *,
    step: int,
    top_k: int,
) -> None:
    """Log finished scores to the trackers that were active when training began, and to those that are active now.

    Each gets the whole report, too.
    """
    rows = only_or_all(without_streams(run.datasets))
    log = partial(log_scores, only_or_all(scores), rows, step=step, top_k=top_k)
    active = {**trackers, **active_runs()}
    wanted = {to: None for to in TRACKERS if to in (args.report_to or ())}  # log_scores says how to start a run
    with _report(scores, rows, is_wanted=bool(active)) as report:
        for to, tracker in (active or wanted).items():
            try:
                with preserved_rng(), reopened(to, tracker) as opened:
                    if log(to=to, run=opened, report=report):
                        announce(tracker_line(to, opened), args)
            except Exception:
                logger.exception(
                    "VoG: logging failed; the scores are complete, in callback.scores and in %s", run.folder
                )


@contextmanager
def _report(scores: dict[str, VoGScores], rows: AnyDataset, *, is_wanted: bool) -> Iterator[Path | None]:
    """Path of the report in a temporary folder; None if it is not wanted, or cannot be written, which is logged."""
    with ExitStack() as stack:
        path = None
        try:
            if is_wanted:
                folder = TemporaryDirectory(prefix="vog-report-", ignore_cleanup_errors=True)
                with preserved_rng():
                    path = write_report(only_or_all(scores), rows, Path(stack.enter_context(folder)) / "report.html")
        except Exception:
            logger.exception("VoG: the report is not logged; write_report(callback.scores, dataset, path) writes it")
        yield path
