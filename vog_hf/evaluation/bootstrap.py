"""Tails of a column with bootstrap intervals: difficulty in the lowest 20 %, the middle 60 % and the highest 20 %.

Each statistic is a function of how often every row counts: once each gives the estimate, counts of rows drawn with
replacement a resample. Everything is sorted beforehand, so a resample costs a few cumulated sums and no sorting.

The intervals are simultaneous: all of them together hold with 99 % confidence, so that a verdict that looks at six or
seven of them is not six or seven times as likely to see something in noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Tail = Literal["high", "low", "both", "unclear"]
Interval = tuple[float, float]
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

CONFIDENCE = 0.99  # of all intervals together; pure noise is then called unclear in at least 95 of 100 runs
TAIL_PARTS = 5  # number of equal parts; each tail is one part, rounded up
CHANCE = {"misclassified": 0.5, "loss": 0.0}  # the association of each measure where there is none
RANGES = {"misclassified": (0.0, 1.0, 1.0), "loss": (-1.0, 1.0, 100.0)}  # of the association; of an excess, +/-
LOSS_FOR_ERRORS = "loss for errors"
DRAWN_AT_ONCE = 8192  # rows of a resample: few enough to stay in the cache


@dataclass(frozen=True)
class TailMeasure:
    """A measure of difficulty in the tails of a column, with simultaneous 99 % bootstrap intervals.

    Attributes:
        measure: ``"misclassified"``, in shares 0..1 of rows, or ``"loss"``, in percentiles 0..100 of the rows by loss.
        rows: Number of rows.
        association: Of high values of the column with difficulty: AUROC for misclassified rows (0..1, chance 0.5), or
            Spearman correlation with the loss (-1..1, chance 0).
        association_interval: Its interval.
        low: Mean of the measure over the rows with the lowest 20 % of the column; higher = harder.
        middle: The same over the middle 60 %.
        high: The same over the highest 20 %.
        low_excess: ``low - middle``.
        low_interval: Its interval.
        high_excess: ``high - middle``.
        high_interval: Its interval.
        verdict: Which tail is the hard one by this measure.
    """

    measure: str
    rows: int
    association: float
    association_interval: Interval
    low: float
    middle: float
    high: float
    low_excess: float
    low_interval: Interval
    high_excess: float
    high_interval: Interval
    verdict: Tail


class TiedOrder:
    """Rows in the order of a column, equal values in groups.

    Its results are overwritten by the next call: a thousand resamples would spend their time on fresh memory otherwise.

    Args:
        values: ``[rows]``, finite.

    Attributes:
        start: ``[rows]``, by row: how many rows have a lower value.
        end: ``[rows]``, by row: how many have at most its value.
    """

    def __init__(self, values: Array) -> None:
        self._rows = np.argsort(values, kind="stable")
        ranked = values[self._rows]
        self.start = np.searchsorted(ranked, values, "left")
        self.end = np.searchsorted(ranked, values, "right")
        self._sums, self._ranks, self._spare = np.zeros(len(values) + 1), np.empty(len(values)), np.empty(len(values))

    def cumulated(self, weights: Array) -> Array:
        """``[rows + 1]``, in this order: 0, then the sum of the weights up to and with each row."""
        weights.take(self._rows, out=self._spare, mode="clip")  # with "raise", numpy would buffer the result
        np.cumsum(self._spare, out=self._sums[1:])
        return self._sums

    def centered_ranks(self, cumulated: Array) -> Array:
        """``[rows]``, by row: the average rank of its group of ties, less the mean of all ranks."""
        cumulated.take(self.start, out=self._ranks, mode="clip")
        self._ranks += cumulated.take(self.end, out=self._spare, mode="clip")
        self._ranks -= cumulated[-1]
        self._ranks *= 0.5
        return self._ranks


@dataclass(frozen=True)
class RankedRows:
    """The data to resample: rows sorted by the column, with the usable measures."""

    by_column: TiedOrder
    is_error: Array | None
    by_loss: TiedOrder | None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.by_column.start)

    def statistics(self, weights: Array) -> dict[str, list[float]]:
        """Association, low, middle and high of each measure, where each row counts ``weights`` times, ``[rows]``.

        With both measures, also the AUROC of the loss for errors.
        """
        cumulated, found = self.by_column.cumulated(weights), {}
        ranks = self.by_column.centered_ranks(cumulated)
        if self.is_error is not None:
            parts = self._part_means(weights, cumulated, self.is_error)
            found["misclassified"] = [_area(ranks, weights, self.is_error), *parts]
        if self.by_loss is not None:
            loss_ranks = self.by_loss.centered_ranks(self.by_loss.cumulated(weights))
            if self.is_error is not None:
                found[LOSS_FOR_ERRORS] = [_area(loss_ranks, weights, self.is_error)]
            parts = self._part_means(weights, cumulated, loss_ranks)
            percentiles = [100 * (rank / float(cumulated[-1]) + 0.5) for rank in parts]
            found["loss"] = [_correlation(ranks, loss_ranks, weights), *percentiles]
        return found

    def _part_means(self, weights: Array, cumulated: Array, measure: Array) -> list[float]:
        """Mean of a measure over the low, the middle and the high part; ties at a cut share the places."""
        n_rows = round(cumulated[-1])
        count = -(-n_rows // TAIL_PARTS)
        totals = [0.0]
        for places in (count, n_rows - count):
            cut = np.searchsorted(cumulated, places, "left") - 1  # the row that holds the last of these places
            start, end = self.by_column.start[cut], self.by_column.end[cut]
            share = float((places - cumulated[start]) / (cumulated[end] - cumulated[start]))
            below, tied = (_sum(weights[part], measure[part]) for part in (slice(start), slice(start, end)))
            totals.append(below + share * tied)
        totals.append(_sum(weights, measure))
        return [
            part / size for part, size in zip(np.diff(totals).tolist(), (count, n_rows - 2 * count, count), strict=True)
        ]


def resampled(
    rows: RankedRows, n_resamples: int, seed: int
) -> tuple[dict[str, list[float]], list[dict[str, list[float]]]]:
    """The statistics of the rows as they are, and those of each resample."""
    rng, weights, resamples = np.random.default_rng(seed), np.ones(rows.n_rows), []
    estimate = rows.statistics(weights)
    for _ in range(n_resamples):
        weights[:] = 0
        for drawn in range(0, rows.n_rows, DRAWN_AT_ONCE):
            size = min(DRAWN_AT_ONCE, rows.n_rows - drawn)
            np.add.at(weights, rng.integers(0, rows.n_rows, size), 1.0)
        resamples.append(rows.statistics(weights))
    return estimate, resamples


def tail_measures(
    rows: RankedRows, n_resamples: int, seed: int
) -> tuple[dict[str, TailMeasure], tuple[float, Interval] | None]:
    """The measures that the rows allow, and by how much the loss orders errors better than the column does.

    Returns:
        The measures by name. AUROC of the loss for errors less that of the column in its better direction, with its
        interval; None without both measures.
    """
    estimate, resamples = resampled(rows, n_resamples, seed)
    drawn = {name: np.array([values, *(of[name] for of in resamples)]) for name, values in estimate.items()}
    names = [name for name in CHANCE if name in drawn]
    compared = [_association_and_excesses(drawn[name]) for name in names]
    if LOSS_FOR_ERRORS in drawn:
        area = drawn["misclassified"][:, :1]
        compared.append(drawn[LOSS_FOR_ERRORS] - np.maximum(area, 1 - area))
    statistics = np.concatenate(compared, axis=1)  # [1 + resamples, statistics], the estimate first
    intervals = simultaneous_intervals(statistics[0], statistics[1:])
    measures = {
        name: _tail_measure(name, rows.n_rows, estimate[name], intervals[3 * place : 3 * place + 3])
        for place, name in enumerate(names)
    }
    if LOSS_FOR_ERRORS not in drawn:
        return measures, None
    start, end = intervals[-1].tolist()
    return measures, (float(statistics[0, -1]), (start, end))


def simultaneous_intervals(estimate: Array, resamples: Array) -> Array:
    """``[statistics, 2]`` intervals that hold together: estimates plus and minus one multiple of their standard errors.

    The multiple is the quantile, over the resamples, of the largest deviation of any statistic in its standard errors
    ("sup-t", Montiel Olea & Plagborg-Moller 2019, doi:10.1002/jae.2656, algorithm 2). Statistics that go together, as
    AUROC and the tails do, so cost less than Bonferroni's correction takes from each.

    Args:
        estimate: ``[statistics]``.
        resamples: ``[resamples, statistics]``.
    """
    error = resamples.std(axis=0)
    deviation = np.abs(resamples - estimate) / np.where(error > 0, error, 1.0)
    half = np.quantile(deviation.max(axis=1), CONFIDENCE) * error
    return np.stack([estimate - half, estimate + half], axis=1)


def _association_and_excesses(measure: Array) -> Array:
    """``[draws, 3]`` association, low and high excess of ``[draws, 4]`` association, low, middle and high."""
    association, low, middle, high = measure.T
    return np.stack([association, low - middle, high - middle], axis=1)


def _tail_measure(measure: str, n_rows: int, estimate: list[float], intervals: Array) -> TailMeasure:
    """The record of a measure from its estimate ``[4]`` and the intervals of association, low and high excess."""
    association, low, middle, high = estimate
    lowest, highest, span = RANGES[measure]
    within = np.clip(intervals, [[lowest], [-span], [-span]], [[highest], [span], [span]]).tolist()
    association_interval, low_interval, high_interval = ((start, end) for start, end in within)
    return TailMeasure(
        measure=measure,
        rows=n_rows,
        association=association,
        association_interval=association_interval,
        low=low,
        middle=middle,
        high=high,
        low_excess=low - middle,
        low_interval=low_interval,
        high_excess=high - middle,
        high_interval=high_interval,
        verdict=verdict(association_interval, CHANCE[measure], low_interval, high_interval),
    )


def verdict(association: Interval, chance: float, low: Interval, high: Interval) -> Tail:
    """The tail that is the hard one.

    Args:
        association: Interval of the association of high values with difficulty.
        chance: What the association is where there is none.
        low: Interval of how far the low tail lies above the middle.
        high: The same of the high tail.

    Example:
        >>> verdict((0.55, 0.61), 0.5, (-0.1, 0.02), (0.1, 0.2))
        'high'
        >>> verdict((0.55, 0.61), 0.5, (0.1, 0.2), (-0.1, 0.02))
        'unclear'
    """
    low_is_hard, high_is_hard = low[0] > 0, high[0] > 0
    if low_is_hard and high_is_hard:
        return "both"
    if association[0] > chance:
        return "unclear" if low_is_hard or high[1] < 0 else "high"
    if association[1] < chance:
        return "unclear" if high_is_hard or low[1] < 0 else "low"
    if low_is_hard or high_is_hard:
        return "low" if low_is_hard else "high"
    return "unclear"


def _area(ranks: Array, weights: Array, is_error: Array) -> float:
    """AUROC from centered ranks; 0.5 (chance) where there is no error or nothing else."""
    n_wrong = _sum(weights, is_error)
    pairs = n_wrong * (weights.sum() - n_wrong)
    return float(0.5 + _sum(weights, is_error, ranks) / pairs) if pairs else 0.5


def _correlation(a: Array, b: Array, weights: Array) -> float:
    """Spearman correlation from centered ranks; 0 (chance) where one of them ranks nothing."""
    scale = math.sqrt(_sum(weights, a, a) * _sum(weights, b, b))
    return _sum(weights, a, b) / scale if scale else 0.0


def _sum(*factors: Array) -> float:
    """Sum of products, without arrays in between; BLAS would start threads for so little, and round as they come."""
    return float(np.einsum(",".join("i" * len(factors)), *factors))
