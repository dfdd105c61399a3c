"""The page to read first: the verdict in one line, three numbers, a legend, and the commands that come next."""

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vog_hf.evaluation import stability_in_words
from vog_hf.scores.descriptions import column_meanings, heat_subject
from vog_hf.scores.findings import Findings, headline
from vog_hf.scores.formatting import signed
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking.media import Page, Table
from vog_hf.tracking.row_tables import TAIL_OF_END

N_NUMBERS = 3
MEANINGS = {
    "image": "The row's image.",
    "sound": "The row's sound.",
    "text": "The row's text.",
    "choices": "The row's choices: the text of each, whether it is given or predicted, and its scores.",
    "heat_map": "Where in the row the gradient changed most between snapshots: brighter is more.",
    "label": "The given label.",
    "prediction": "The prediction at the last snapshot.",
    "id": "The row's id in the stream.",
    "file": "Name of the file that the image or sound was read from.",
    "row": "Number of the row in the dataset, from 0.",
}
ROW_TABLES = ("review_first", *TAIL_OF_END)
COLORED_WORDS = "The row's text: the stronger a word's color, the more its gradient changed between snapshots."


@dataclass(frozen=True)
class About:
    """The first panel of a split.

    Attributes:
        headline: How good a guide the ranking is in this run.
        start: The ranking to review first, with its reason.
        numbers: Up to three numbers with what they are.
        legend: Columns of the tables of rows with their meanings.
        commands: What to do next, with the command for it.
        evidence: Sentences behind the verdict.
        tables: Captions of the tables, by name.
    """

    headline: str
    start: str
    numbers: Sequence[tuple[str, str]]
    legend: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]
    evidence: Sequence[str]
    tables: Sequence[tuple[str, str]]

    def with_download(self, command: str | None, scores: VoGScores) -> "About":
        """Return the panel with the command that downloads the scores, if there is one, and what follows it."""
        if command is None:
            return self
        both = f"{command}\n{review_command('scores', scores)}"
        return replace(self, commands=[*self.commands, ("Or on another machine, with the scores from this run", both)])

    def without_columns(self, names: Collection[str]) -> "About":
        """Return the panel without the legend of columns that a tracker cannot show."""
        return replace(self, legend=[(name, meaning) for name, meaning in self.legend if name not in names])


def about_split(findings: Findings, tables: Mapping[str, Table], first: npt.NDArray[np.int64]) -> About:
    """Compose the panel.

    Args:
        findings: Evaluation of the split.
        tables: Tables that are logged, by name, among them ``review_first``, ``highest`` and ``lowest``.
        first: Numbers of the rows of ``review_first``.
    """
    scores, stability = findings.scores, findings.stability
    columns = {name: cells for table in ROW_TABLES for name, cells in tables[table].columns.items()}
    return About(
        headline=headline(scores, findings.tail),
        start=f"{findings.recommended} The first rows are in the table review_first.",
        numbers=_numbers(findings, first),
        legend=_legend(scores, columns),
        commands=[("Review rows in your browser", review_command(_folder(scores), scores))],
        evidence=[findings.tail.evidence, *([] if stability is None else [stability_in_words(stability)])],
        tables=[(name, table.caption) for name, table in tables.items() if table.caption],
    )


def review_command(folder: str, scores: VoGScores) -> str:
    """The command that opens the review of scores in a folder; the dataset is named unless the manifest names it."""
    dataset = "" if (scores.facts.data.get("source") or {}).get("name") else " --dataset YOUR_DATASET"
    return f"vog-hf review {folder}{dataset}"


def _folder(scores: VoGScores) -> str:
    """The folder of the scores as a word of a command; a placeholder outside of the working directory.

    The panel may be public, so that it does not name other folders of this machine.
    """
    folder = None if scores.folder is None else scores.folder.resolve()
    if folder is None or not folder.is_relative_to(Path.cwd()):
        return "SCORES_FOLDER"
    return shlex.quote(os.path.relpath(folder))


def _numbers(findings: Findings, first: npt.NDArray[np.int64]) -> list[tuple[str, str]]:
    scores = findings.scores
    n_snapshots = len(scores.facts.snapshots)
    numbers = [(f"{len(scores):,}", f"rows, scored from {n_snapshots} snapshots" if n_snapshots else "rows")]
    if findings.no_errors is None:
        numbers.append((f"{findings.is_error.mean():.1%}", "of all labeled rows are predicted as another class"))
        label, prediction = (scores.column(name)[first] for name in ("label", "prediction"))
        if (label >= 0).any():
            wrong = (prediction != label)[label >= 0].mean()
            numbers.append((f"{wrong:.1%}", f"of the first {len(first):,} to review are predicted as another class"))
    correlations: Any = {} if findings.correlations is None else findings.correlations[findings.raw]
    for other, name in (("loss", "the mean loss"), ("gradient_magnitude", "the mean |gradient|")):
        if other in correlations and other != findings.raw:
            numbers.append((signed(float(correlations[other])), f"rank correlation of {findings.title} with {name}"))
    return numbers[:N_NUMBERS]


def _legend(scores: VoGScores, columns: Mapping[str, Sequence[object]]) -> list[tuple[str, str]]:
    meanings = {m.column: f"{m.what}. Higher: {m.higher}." for m in column_meanings(scores)} | MEANINGS
    if scores.pixels is not None:
        meanings["heat_map"] = f"{heat_subject(scores)}: brighter is more."
    if any(isinstance(cell, Page) for cell in columns.get("heat_map", ())):
        meanings["heat_map"] = COLORED_WORDS
    return [(name, meanings[name]) for name in columns if name in meanings]
