"""The strength of a ranking as a guide to the hard rows of a run: none, weak, moderate or strong."""

from bisect import bisect_right
from typing import Literal

from vog_hf.evaluation.bootstrap import CHANCE, TAIL_PARTS, Tail, TailMeasure

Strength = Literal["none", "weak", "moderate", "strong"]

STRENGTHS: tuple[Strength, ...] = ("none", "weak", "moderate", "strong")
# Where weak, moderate and strong begin. Hard and other rows whose scores are two normal distributions d standard
# deviations apart have AUROC = Phi(d / sqrt 2); d = 0.1 is half of what Cohen (1988) calls a small effect, 0.5 is his
# medium and 0.8 his large one (the conversion: Rice & Harris 2005, doi:10.1007/s10979-005-6832-7). For the loss, whose
# statistic is a rank correlation, 0.3 and 0.5 are Cohen's medium and large correlations.
ASSOCIATION = {"misclassified": (0.53, 0.64, 0.71), "loss": (0.05, 0.30, 0.50)}
# The same effects as a reviewer meets them who starts at the hard end: odds of an error there against the middle 60 %,
# for rare errors; and points of the loss percentile, for normal scores of these correlations.
EXCESS = {"misclassified": (1.15, 2.0, 3.0), "loss": (2.0, 12.0, 20.0)}


def guide_strength(measure: TailMeasure, tail: Tail) -> Strength:
    """The strength of the ranking as a guide, by one measure of difficulty and the hard tail.

    The level is that of the association: AUROC for errors from 0.53 weak, from 0.64 moderate, from 0.71 strong; rank
    correlation with the loss from 0.05, 0.30 and 0.50. The excess of the hard tail over the middle has levels, too:
    odds of an error from 1.15, 2 and 3 times those of the middle; loss percentile from 2, 12 and 20 points above it.
    Where that level is two or more below the association's, whoever starts at the hard end meets less than the
    association promises, and the strength is one level lower. Where both tails are hard, the association says nothing
    about it, and the level is that of the smaller excess. An unclear tail is "none".
    """
    if tail == "unclear":
        return "none"
    excess = min(_level(_excess(measure, end), EXCESS[measure.measure]) for end in ends(tail))
    if tail == "both":
        return STRENGTHS[excess]
    chance = CHANCE[measure.measure]
    association = _level(chance + abs(measure.association - chance), ASSOCIATION[measure.measure])
    return STRENGTHS[association - 1 if excess < association - 1 else association]


def ends(tail: Tail) -> tuple[str, ...]:
    """The hard ends of a verdict, ``"low"`` and ``"high"``."""
    return {"low": ("low",), "high": ("high",), "both": ("low", "high"), "unclear": ()}[tail]


def _excess(measure: TailMeasure, end: str) -> float:
    """The excess of a tail over the middle: odds of an error, or points of the loss percentile."""
    value = measure.low if end == "low" else measure.high
    if measure.measure == "loss":
        return value - measure.middle
    tail_rows = measure.rows / TAIL_PARTS
    return _odds(value, tail_rows) / _odds(measure.middle, measure.rows - 2 * tail_rows)


def _odds(share: float, rows: float) -> float:
    """Odds of a share of rows; half a row on both sides keeps them finite (Haldane 1956)."""
    return (share * rows + 0.5) / ((1 - share) * rows + 0.5)


def _level(value: float, thresholds: tuple[float, ...]) -> int:
    return bisect_right(thresholds, value)
