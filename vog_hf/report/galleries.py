"""Galleries: the rows at both ends of a ranking, of each class too, and those that changed most."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from vog_hf.evaluation import total_change
from vog_hf.report.cards import Card, CardMaker
from vog_hf.scores.ranking import class_names
from vog_hf.scores.vog_scores import VoGScores


@dataclass(frozen=True)
class Gallery:
    """Rows that are shown for one reason.

    Attributes:
        tone: Name of its color: ``start``, ``high``, ``low`` or ``changed``.
        ident: Beginning of the ids of its cards.
    """

    title: str
    note: str
    tone: str
    ident: str
    cards: Sequence[Card]

    def place(self, row: int) -> str:
        """Id of a row's card."""
        return f"{self.ident}-{row}"


def places(galleries: Iterable[Gallery]) -> dict[int, str]:
    """Id of the first card of each row that is in a gallery."""
    found: dict[int, str] = {}
    for gallery in galleries:
        for card in gallery.cards:
            found.setdefault(card.row, gallery.place(card.row))
    return found


def class_galleries(
    scores: VoGScores, make: CardMaker, column: str, classes: pd.DataFrame, ident: str, *, per_class: int, limit: int
) -> list[tuple[str, list[Gallery]]]:
    """The highest and lowest rows of each class with their class's name; of the ``limit`` classes with most errors.

    Args:
        scores: Scores with a label.
        make: Maker of the cards.
        column: Column to rank by.
        classes: Table from `vog_hf.evaluation.class_table`.
        ident: Beginning of the ids of all cards.
        per_class: Number of rows in each of a class's two galleries.
        limit: Maximum number of classes: those with the highest error, else with the most rows.
    """
    known = classes[classes["class"] >= 0]
    by = "error" if "error" in known else "rows"
    chosen = known.sort_values(by, ascending=False, kind="stable").head(limit).sort_values("class")["class"]
    label, values = scores.column("label"), scores.column(column).astype(np.float64)
    of_classes = []
    for number_of_class, name in zip(chosen, class_names(scores, chosen), strict=True):
        rows = np.flatnonzero((label == number_of_class) & np.isfinite(values))
        order = rows[np.argsort(values[rows], kind="stable")]
        count = min(per_class, max(1, len(rows) // 2))  # each row is at one end only
        highest = rows[np.argsort(-values[rows], kind="stable")][:count]
        lowest = [row for row in order[:count] if row not in set(highest.tolist())]
        galleries = [
            Gallery("Highest", "", "high", f"{ident}-c{number_of_class}-high", make.cards(highest)),
            Gallery("Lowest", "", "low", f"{ident}-c{number_of_class}-low", make.cards(lowest)),
        ]
        of_classes.append((str(name), [gallery for gallery in galleries if gallery.cards]))
    return of_classes


@dataclass(frozen=True)
class MostChangedRows:
    """Rows, most changed first, with title and explanation."""

    title: str
    note: str
    rows: npt.NDArray[np.int64]


def most_changed(scores: VoGScores, count: int) -> MostChangedRows | None:
    """The rows with the largest total change in confidence, else in the ranking; None with neither.

    The total change is the sum of absolute differences between snapshots: a row learned once and kept changes by at
    most 1, one that is learned and forgotten by more.
    """
    if "confidence" in scores.trajectory_names and scores.trajectory("confidence").shape[1] > 1:
        change = total_change(scores.trajectory("confidence"))
        return MostChangedRows(
            "Most changed rows",
            "Ordered by total change in confidence (sum of absolute differences between snapshots). A row learned once "
            "and kept changes by at most 1; one that is learned, forgotten and learned again changes by more.",
            _largest(change, count),
        )
    if {"vog_early", "vog_late"} <= set(scores.column_names):
        ranks = [rankdata(scores.column(name), nan_policy="omit") for name in ("vog_early", "vog_late")]
        return MostChangedRows(
            "Most changed rows",
            "Ordered by the difference between the row's ranks by early and by late VoG.",
            _largest(np.abs(ranks[1] - ranks[0]), count),
        )
    return None


def _largest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Row numbers with the largest finite values that are not 0, ties in row order."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[np.nan_to_num(values[order]) > 0]
