"""The yield of a review: wrong rows found so far, and how many the rows that are not reviewed yet may hold."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression

from vog_hf.errors import ConfigError, real_number, whole_number
from vog_hf.evaluation.reviewed_queue import LEAST_REVIEWED, LEAST_ROWS, ReviewedQueue
from vog_hf.evaluation.validation import binary_or_unknown, one_array, real_numbers, require_binary
from vog_hf.evaluation.yield_forecast import (
    Forecast,
    is_rising,
    last_rows,
    next_forecast,
    steady_forecast,
)

Basis = Literal["from random rows", "extrapolated from the ranking", "every row is reviewed", "unclear"]
Worth = Literal["yes", "likely", "unlikely", "no", "unclear"]
Flags = npt.NDArray[np.bool_]

GROUPS = 10  # of reviewed rows that shares are given for, each of at least 10 rows
WORTH = {
    "yes": "is worth it",
    "likely": "is likely worth it",
    "unlikely": "is likely not worth it",
    "no": "is not worth it",
}


@dataclass(frozen=True)
class PlaceShare:
    """Share of wrong rows among the reviewed rows at some places of the ranking.

    Attributes:
        first: First place, 1 = top of the queue.
        last: Last place.
        reviewed: Number of rows that are known to be right or wrong.
        wrong: Number of wrong ones.
        share: ``wrong / reviewed``, 0..1.
        low: Lower limit of the exact 95 % interval of the share (Clopper and Pearson).
        high: Its upper limit.
        fitted: Share after isotonic regression over all groups, so that it does not rise with the place.
    """

    first: int
    last: int
    reviewed: int
    wrong: int
    share: float
    low: float
    high: float
    fitted: float


@dataclass(frozen=True)
class ReviewYield:
    """Wrong rows found by a review of a queue, and forecasts for the rows that are not reviewed.

    Attributes:
        rows: Number of rows of the queue.
        reviewed: Rows that are known to be right or wrong.
        wrong: Wrong ones.
        unsure: Rows with a decision that says neither; they are left out of all estimates.
        depth: Places from the top of which at least 90 % are decided; the last one has a decision.
        random: Reviewed rows further down that were drawn at random.
        shares: Share of wrong rows by place, over the first ``depth`` places.
        next: Forecast for the next rows after them; None if unclear.
        rest: Forecast for all rows without a decision; None if unclear.
        total: Reviewed and remaining wrong rows together; None if unclear.
        basis: Basis of ``rest`` and ``total``. From random rows they are unbiased, but no less than the forecast
            for the next rows. Extrapolated from the ranking, the lower limit counts only the next rows, and the upper
            limit holds if the share of wrong rows does not rise further down.
        unclear: Reason why ``next`` is None; empty otherwise.
        worth: Verdict on continuing: ``"yes"`` or ``"no"`` where the whole interval of the next rows is on one side of
            the threshold, ``"likely"`` or ``"unlikely"`` by their expected number, or ``"unclear"``.
        worth_at: Threshold: share of wrong rows in the next rows, 0..1.
    """

    rows: int
    reviewed: int
    wrong: int
    unsure: int
    depth: int
    random: int
    shares: tuple[PlaceShare, ...]
    next: Forecast | None
    rest: Forecast | None
    total: Forecast | None
    basis: Basis
    unclear: str
    worth: Worth
    worth_at: float

    def __str__(self) -> str:
        unsure = f" ({self.unsure:,} unsure left out)" if self.unsure else ""
        found = f"{self.reviewed:,} reviewed, {self.wrong:,} wrong{unsure}"
        if self.next is None:
            return f"{found}; unclear how many the next rows hold, because {self.unclear}"
        return f"{found}; the next {self.next.rows:,} hold {self.next}"

    def sentences(self) -> list[str]:
        """The yield in words: found and next rows, the total and its basis, and whether to continue."""
        return [f"{self}.", self._total_in_words(), *self._worth_in_words()]

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return asdict(self) | {"summary": " ".join(self.sentences())}

    def _total_in_words(self) -> str:
        if self.total is None:
            return f"The total is unclear; it takes at least {LEAST_REVIEWED} random rows."
        words = f"In total {self.total} of {self.total.rows:,} rows are wrong"
        if self.basis == "from random rows":
            return f"{words}, from {self.random:,} random rows."
        if self.basis == "every row is reviewed":
            return f"{words}: every row is reviewed."
        if self.total.high is None:
            upper = "no upper limit, because the share of wrong rows rises with the place"
        else:
            upper = f"at most {self.total.high:,} if the share of wrong rows does not rise further down"
        return f"{words}, extrapolated from the ranking ({upper})."

    def _worth_in_words(self) -> list[str]:
        if self.worth == "unclear" or self.basis == "every row is reviewed":
            return []
        return [f"Continuing {WORTH[self.worth]} (threshold: {100 * self.worth_at:g} % of the next rows wrong)."]


def review_yield(
    wrong: npt.ArrayLike,
    *,
    unsure: npt.ArrayLike | None = None,
    random: npt.ArrayLike | None = None,
    next_rows: int = 100,
    worth_at: float = 0.05,
) -> ReviewYield:
    """Estimate the yield of a review from its decisions over a ranked queue.

    The next rows are forecast from the reviewed rows at the top of the ranking (see `yield_forecast`); the total from
    random rows, where at least 20 are reviewed, else as limits from the ranking. Nothing is estimated for a queue of
    fewer than 50 rows, from fewer than 20 reviewed rows, or from rows that are all right or all wrong.

    Args:
        wrong: ``[rows]`` in the order of the queue: 1 = wrong, 0 = right, NaN = not known.
        unsure: ``[rows]``, true for rows with a decision that says neither. Default: none.
        random: ``[rows]``, true for rows that were shown because they were drawn at random from the queue. Default:
            none.
        next_rows: Number of rows to forecast.
        worth_at: Share of wrong rows in the next rows at which continuing is worth it, 0..1.

    Raises:
        ConfigError: Other values, lengths that differ, or a row that is both known and unsure.

    Example:
        >>> decisions = np.full(5_000, np.nan)
        >>> decisions[:120] = np.arange(120) % 3 == 0
        >>> print(review_yield(decisions))
        120 reviewed, 40 wrong; the next 100 hold about 32 [14, 49]
    """
    next_rows, worth_at = whole_number("next_rows", next_rows, 1), real_number("worth_at", worth_at, 0, 1)
    values = real_numbers("wrong", one_array("wrong", wrong))
    known = binary_or_unknown("wrong", values, values.size)
    queue = ReviewedQueue(known, _flags("unsure", unsure, len(known)), _flags("random", random, len(known)))
    if (~np.isnan(known) & queue.unsure).any():
        row = int(np.flatnonzero(~np.isnan(known) & queue.unsure)[0])
        raise ConfigError(f"unsure rows are neither right nor wrong, got {known[row]:g} at place {row + 1}; pass NaN")
    return _with_worth(_with_total(_with_next(queue, next_rows), queue), queue, worth_at)


def _flags(name: str, values: npt.ArrayLike | None, n_rows: int) -> Flags:
    if values is None:
        return np.zeros(n_rows, dtype=bool)
    numbers = real_numbers(name, one_array(name, values))
    if numbers.shape != (n_rows,):
        raise ConfigError(f"{name} must have one value for each of {n_rows:,} rows, got shape {numbers.shape}")
    return require_binary(name, numbers) if n_rows else np.zeros(0, dtype=bool)


def _with_next(queue: ReviewedQueue, next_rows: int) -> ReviewYield:
    """The yield with its counts and the forecast for the next rows."""
    unclear, forecast = queue.why_unclear(), None
    if not unclear:
        places = queue.places[queue.at_top].astype(float)
        following = queue.following[:next_rows].astype(float)
        forecast = next_forecast(queue.top, places, following, len(queue.known))
    return ReviewYield(
        rows=len(queue.known),
        reviewed=int(queue.is_known.sum()),
        wrong=int(np.nansum(queue.known)),
        unsure=int(queue.unsure.sum()),
        depth=queue.depth,
        random=int(queue.random.sum()),
        shares=_shares(queue),
        next=forecast,
        rest=None,
        total=None,
        basis="unclear",
        unclear=unclear,
        worth="unclear",
        worth_at=0.0,
    )


def _with_total(found: ReviewYield, queue: ReviewedQueue) -> ReviewYield:
    """The yield with a forecast for all rows that have no decision."""
    n_open, n_following = int(queue.is_open.sum()), len(queue.following)
    basis: Basis
    if found.rows and not n_open:
        rest, basis = Forecast(0, 0.0, 0, 0), "every row is reviewed"
    elif not n_following and len(queue.top) >= LEAST_REVIEWED:
        rest, basis = Forecast(0, 0.0, 0, 0), "extrapolated from the ranking"
    elif found.random >= LEAST_REVIEWED and found.rows >= LEAST_ROWS:
        rest, basis = steady_forecast(queue.known[queue.random], n_following), "from random rows"
        rest = rest if found.next is None else rest.at_least(found.next)
    elif found.next is not None:
        places = queue.places[queue.at_top].astype(float)
        rises = is_rising(queue.top, places, found.rows)
        high = None if rises else steady_forecast(last_rows(queue.top), n_following).high
        rest, basis = Forecast(n_following, None, found.next.low, high), "extrapolated from the ranking"
    else:
        return found
    rest = _with_skipped(rest, queue, n_open - n_following)
    return replace(found, rest=rest, total=rest.plus(found.wrong, found.reviewed), basis=basis)


def _with_skipped(rest: Forecast, queue: ReviewedQueue, n_skipped: int) -> Forecast:
    """The forecast with the rows that were skipped in the reviewed part: any number of them may be wrong."""
    if not n_skipped:
        return rest
    expected = rest.expected
    if expected is not None:  # where all of that part are skipped or unsure, they are like the rest
        expected += n_skipped * (float(queue.top.mean()) if len(queue.top) else expected / rest.rows)
    return Forecast(rest.rows + n_skipped, expected, rest.low, None if rest.high is None else rest.high + n_skipped)


def _with_worth(found: ReviewYield, queue: ReviewedQueue, worth_at: float) -> ReviewYield:
    """The yield with the verdict on continuing."""
    worth: Worth = "unclear"
    if found.basis == "every row is reviewed":
        worth = "no"
    elif found.next is not None and found.next.expected is not None and found.next.high is not None:
        enough = worth_at * found.next.rows
        if found.next.low >= enough:
            worth = "yes"
        elif found.next.high < enough:
            worth = "no"
        else:
            worth = "likely" if found.next.expected >= enough else "unlikely"
    elif queue.has_basis and queue.top.all():
        worth = "likely"
    elif queue.has_basis and queue.most_if_steady(100) < 100 * worth_at:
        worth = "unlikely"
    return replace(found, worth=worth, worth_at=worth_at)


def _shares(queue: ReviewedQueue) -> tuple[PlaceShare, ...]:
    """Shares of wrong rows by place in groups of about equal size."""
    n_groups = min(GROUPS, len(queue.top) // 10)
    if not n_groups:
        return ()
    groups = np.array_split(np.flatnonzero(queue.at_top), n_groups)
    wrong = np.array([queue.known[group].sum() for group in groups])
    sizes = np.array([len(group) for group in groups])
    isotonic = IsotonicRegression(increasing=False)
    fitted = isotonic.fit_transform(np.arange(n_groups), wrong / sizes, sample_weight=sizes)
    intervals = [binomtest(int(w), int(n)).proportion_ci() for w, n in zip(wrong, sizes, strict=True)]
    return tuple(
        PlaceShare(
            first=int(group[0]) + 1,
            last=int(group[-1]) + 1,
            reviewed=int(size),
            wrong=int(count),
            share=float(count / size),
            low=float(interval.low),
            high=float(interval.high),
            fitted=float(fit),
        )
        for group, size, count, interval, fit in zip(groups, sizes, wrong, intervals, fitted, strict=True)
    )
