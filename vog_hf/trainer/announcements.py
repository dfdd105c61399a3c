"""Announcements: the lines that a training prints about its scores, at the start and at the end."""

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from vog_hf.data.column_kinds import CORRUPTED
from vog_hf.data.streams import is_stream
from vog_hf.data.tokenizer_json import tokenizer_json
from vog_hf.runtime.progress import write_line
from vog_hf.scores.findings import Findings, headline
from vog_hf.scores.pictures.row_content import holds_only_tokens
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.trainer.scoring_cost import share_in_words

logger = logging.getLogger(__name__)


def announce(line: str, args: TrainingArguments) -> None:
    """Log a line at INFO, or print it to stderr where logging would swallow it; call on the main process.

    ``log_level="error"`` (or higher) in the training arguments silences it.
    """
    if logger.isEnabledFor(logging.INFO):
        logger.info("VoG: %s", line)
    elif args.get_process_log_level() <= logging.WARNING:
        write_line(f"VoG: {line}")


def plan_line(steps: Sequence[int], estimates: Mapping[str, str], folder: Path, *, share: float | None = None) -> str:
    """State before training what is scored, from which snapshots, at what cost, and where it is kept.

    Args:
        steps: Steps after which a snapshot is taken.
        estimates: Estimate of each split (see `VoGScorer.estimate`); a single dataset is named ``""``.
        folder: Folder of snapshots and scores.
        share: Time of scoring as a share of the training's; None: unknown.
    """
    cost = "" if share is None else f"; scoring takes {share_in_words(share)}"
    parts = "; ".join(f"{name}: {text}" if name else text for name, text in estimates.items())
    return f"{parts}; snapshots after steps {', '.join(map(str, steps))}{cost}; all in {folder}"


def tokens_lines(datasets: Mapping[str, Any], processing_class: object) -> Iterator[str]:
    """State before training how rows are shown that hold nothing but token ids; nothing for other rows.

    Args:
        datasets: Rows of each split; those of a single dataset are named ``""``.
        processing_class: Tokenizer or processor of the trainer.
    """
    for name, rows in datasets.items():
        if not is_stream(rows) and holds_only_tokens(rows):
            prefix = f"{name}: " if name else ""
            if tokenizer_json(processing_class) is not None:
                kind = type(processing_class).__name__
                yield f"{prefix}the rows hold no text, so it is decoded from their input_ids with the {kind}"
            else:
                yield (
                    f"{prefix}the rows hold no text and the Trainer has no tokenizer that decodes them, so they are "
                    "shown by number; pass VoGCallback(dataset) with rows that keep their text, or "
                    "Trainer(processing_class=tokenizer)"
                )


def summary_lines(scores: Mapping[str, VoGScores], datasets: Mapping[str, Any]) -> Iterator[str]:
    """State after training how far to trust the ranking, where to start, and the command to review the rows.

    Args:
        scores: Scores of each split; those of a single dataset are named ``""``.
        datasets: Rows of each split.
    """
    for name, of_split in scores.items():
        prefix = f"{name}: " if name else ""
        skipped = of_split.facts.n_skipped
        rows = f"{len(of_split) - skipped:,} of {len(of_split):,}" if skipped else f"{len(of_split):,}"
        yield f"{prefix}scored {rows} rows from {len(of_split.facts.snapshots)} snapshots"
        is_known = CORRUPTED in (getattr(datasets[name], "column_names", None) or ())
        found = Findings(ScoredSplit("", of_split, datasets[name] if is_known else None))
        if found.has_verdict:
            yield f"{prefix}{headline(of_split, found.tail)}"
        if found.has_start:
            yield f"{prefix}{found.recommended}"
        folder = shlex.quote(str(of_split.folder))
        yield f"{prefix}the scores are in {folder}; next: vog-hf review {folder} --dataset YOUR_DATASET"


def tracker_line(to: str, run: Any) -> str:
    """State where the tables and charts were logged.

    Args:
        to: Name of the tracker.
        run: Its run.
    """
    address = None if getattr(run, "offline", False) else getattr(run, "url", None)
    where = address or getattr(run, "dir", None) or getattr(run, "name", None)
    return f"tables and charts are under vog/ in the {to} run" + (f" ({where})" if where else "")
