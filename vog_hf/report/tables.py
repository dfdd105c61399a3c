"""Tables of the report as texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.evaluation import HardTail
from vog_hf.report.data_columns import other_columns
from vog_hf.scores.formatting import ABSENT, number, shortened
from vog_hf.scores.pictures import RowViews
from vog_hf.scores.pictures.worst_units import worst_units
from vog_hf.scores.ranking import class_names, has_classes, most_extreme, row_values
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.unit_columns import unit_kind
from vog_hf.scores.vog_scores import VoGScores

EXCERPT = 90  # characters of a text
CLASSES = ("label", "prediction")


@dataclass(frozen=True)
class TextTable:
    """A table; the first ``text_columns`` columns are words, the others numbers."""

    caption: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    text_columns: int


@dataclass(frozen=True)
class RowsTable(TextTable):
    """A table of rows, in the order of ``rows``; the columns named in ``others`` are shown on demand."""

    rows: Sequence[int]
    others: Sequence[str]


def measures_table(tail: HardTail) -> TextTable | None:
    """The numbers behind the verdict on the tails; None without a measure of difficulty."""
    names = {"misclassified": ("share misclassified", "0.5"), "loss": ("mean percentile of the loss", "0")}
    lines = []
    for name, measure in tail.measures.items():
        if measure is not None:
            title, chance = names.get(name, (name, ABSENT))
            interval = " to ".join(number(value) for value in measure.association_interval)
            values = [number(value) for value in (measure.low, measure.middle, measure.high, measure.association)]
            lines.append([title, *values, interval, chance])
    headings = ["measure", "lowest 20 %", "middle 60 %", "highest 20 %", "association", "99 % interval", "chance"]
    return TextTable(f"Difficulty by {tail.column}", headings, lines, 1) if lines else None


def detection_table(detection: pd.DataFrame) -> TextTable:
    """Table of how well columns find given rows, from `vog_hf.evaluation.detection_table` with its own k."""
    precision, recall = (str(name) for name in detection if "_at_" in str(name))
    names = detection[["column", "direction"]].to_numpy().tolist()
    numbers = detection[["auroc", "average_precision", precision, recall]].to_numpy().tolist()
    lines = [[*words, *map(number, values)] for words, values in zip(names, numbers, strict=True)]
    first = precision.rpartition("_")[2]
    headings = ["column", "direction", "AUROC", "average precision", f"precision at {first}", f"recall at {first}"]
    return TextTable("Rows known to be mislabeled, by column", headings, lines, 2)


def classes_table(scores: VoGScores, classes: pd.DataFrame, name: str = "VoG") -> TextTable:
    """The table of classes, from `vog_hf.evaluation.class_table` of VoG, or of what is named."""
    headings = {
        "rows": "rows",
        "vog_mean": f"mean {name.lower()}",
        "vog_std": f"std of {name.lower()}",
        "error": "last prediction wrong",
        "confidence": "mean confidence",
    }
    shown = {column: heading for column, heading in headings.items() if column in classes}
    names = ["no label" if known is None else str(known) for known in class_names(scores, classes["class"])]
    cells = [[number(value) for value in classes[column].tolist()] for column in shown]
    lines = [list(line) for line in zip(names, *cells, strict=True)]
    return TextTable("Rows by given class", ["class", *shown.values()], lines, 1)


def units_table(split: ScoredSplit, count: int) -> TextTable | None:
    """The units with the highest loss, whatever their rows; None for rows whose units have none.

    Args:
        split: Scores with their rows; without rows, words are named by their places.
        count: Number of units.
    """
    kind, worst = unit_kind(split.scores), worst_units(RowViews(split, cache_size=0), count)
    if kind is None or worst is None:
        return None
    lines = [[number(cell) for cell in line] for line in zip(*worst.values(), strict=True)]
    return TextTable(f"Worst {kind.plural}", list(worst), lines, len(worst) - 1)


def rows_table(split: ScoredSplit, column: str, limit: int, *, has_texts: bool) -> RowsTable:
    """The rows at both ends of the ranking, half of ``limit`` from each; or all of them if there are no more.

    Args:
        split: Scores with their rows; without rows, the table has only scores.
        column: Column that they are ranked by.
        limit: Maximum number of rows, at least 1.
        has_texts: Whether rows are texts, which the table then shows.
    """
    scores = split.scores
    n_rows = len(scores)
    first, last = -(-limit // 2), limit // 2
    highest, lowest = most_extreme(scores, column, n_rows if n_rows <= limit else first)
    rows = highest if n_rows <= limit else np.concatenate([highest, lowest[:last][::-1]])
    caption = (
        f"All {n_rows:,} rows, highest {column} first."
        if n_rows <= limit
        else f"The {first:,} rows with the highest and the {last:,} with the lowest {column}: "
        f"{len(rows):,} of {n_rows:,} rows."
    )
    words = _words(split if has_texts else split.without_rows(), rows)
    others = {name: values for name, values in other_columns(split, rows).items() if name not in words}
    words |= others
    names = [name for name in scores.column_names if name not in words]
    cells = [[number(value) for value in row_values(scores, name, rows)] for name in names]
    lines = [list(line) for line in zip(*words.values(), *cells, strict=True)]
    return RowsTable(caption, [*words, *names], lines, len(words), rows.tolist(), list(others))


def _words(split: ScoredSplit, rows: npt.NDArray[np.int64]) -> dict[str, list[str]]:
    """The columns that are not scores: the row's number and id, its text, label and prediction."""
    scores = split.scores
    words = {"row": [str(row) for row in rows]}
    if scores.ids is not None:
        words["id"] = [str(scores.ids[row]) for row in rows]
    if split.rows is not None:
        views = RowViews(split, cache_size=0)
        texts = (views.view(row).text for row in rows)
        words["text"] = [ABSENT if text is None else shortened(text, EXCERPT) for text in texts]
    for name in CLASSES:
        if name in scores.column_names and is_class(scores, name):
            words[name] = [number(value) for value in row_values(scores, name, rows)]
    for name in scores.text_column_names:
        words[name] = [ABSENT if value is None else str(value) for value in row_values(scores, name, rows)]
    return words


def is_class(scores: VoGScores, name: str) -> bool:
    """Return whether a column holds classes by number."""
    return has_classes(scores) and bool(np.issubdtype(scores.column(name).dtype, np.integer))
