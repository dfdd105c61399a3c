"""Rows that changed most while the model was trained."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from vog_hf.evaluation import total_change
from vog_hf.scores import VoGScores


@dataclass(frozen=True)
class Changed:
    """Rows, most changed first, with the words for what changed."""

    title: str
    note: str
    rows: npt.NDArray[np.int64]


def most_changed(scores: VoGScores, count: int) -> Changed | None:
    """The rows whose confidence moved most, else those that moved most in the ranking; None with neither.

    The way of the confidence is the sum of its absolute steps from snapshot to snapshot: a row that is learned and kept
    goes at most 1, one that is learned and lost again more.
    """
    if "confidence" in scores.trajectory_names and scores.trajectory("confidence").shape[1] > 1:
        way = total_change(scores.trajectory("confidence"))
        return Changed(
            "Most changed rows",
            "By the way that the confidence went: the sum of its absolute steps from snapshot to snapshot. A row that "
            "is learned and kept goes at most 1, one that is learned, lost and learned again goes further.",
            _largest(way, count),
        )
    if {"vog_early", "vog_late"} <= set(scores.column_names):
        ranks = [rankdata(scores.column(name), nan_policy="omit") for name in ("vog_early", "vog_late")]
        return Changed(
            "Most changed rows",
            "By the number of places between the row's rank by early and by late VoG.",
            _largest(np.abs(ranks[1] - ranks[0]), count),
        )
    return None


def _largest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Numbers of the rows with the largest finite values that are not 0, ties in row order."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[np.nan_to_num(values[order]) > 0]
