"""Forecasts of the wrong rows among rows that are not reviewed, with 95 % prediction intervals.

Two assumptions bound the next rows of a ranking. *Steady*: they are as often wrong as the last reviewed ones. *Trend*:
the share changes as a logistic curve in the normal quantile of the place, which is exact where scores of wrong and of
right rows are normal with equal variance. The interval covers both, with the uncertainty of the share and the chance
of the rows themselves.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import betabinom, norm
from sklearn.linear_model import LogisticRegression

Array = npt.NDArray[np.float64]

TAIL = 0.025  # on either side of the intervals
# Rows at the end of the reviewed part: at least this number, or this share of them. Simulated reviews chose both
# (benchmarks/review_yield.py): with fewer rows the intervals are wider, with more they miss a share that falls quickly.
STEADY_ROWS, STEADY_SHARE = 80, 0.25
TREND_ROWS, TREND_SHARE = 150, 0.4
RIDGE = 3.0  # inverse strength of the penalty on the slope of standardized places; without it, few wrong rows give any
DRAWS = 1000
MOST_ROWS = 100_000  # that a forecast is computed for; more are scaled, which overstates their chance
RISING = 1.64  # standard errors of a slope: 1 in 20 steady shares are taken for a rising one


@dataclass(frozen=True)
class Forecast:
    """Number of wrong rows among some rows, with a 95 % prediction interval.

    Attributes:
        rows: Number of rows.
        expected: Expected number of wrong rows; None where only limits are known.
        low: Lower limit.
        high: Upper limit; None where there is none.
    """

    rows: int
    expected: float | None
    low: int
    high: int | None

    def __str__(self) -> str:
        if self.expected is None:
            return f"at least {self.low:,}"
        interval = "" if self.low == self.high else f" [{self.low:,}, {self.high:,}]"
        return f"{'about ' if interval else ''}{self.expected:,.0f}{interval}"

    def at_least(self, part: "Forecast") -> "Forecast":
        """The forecast with no fewer wrong rows than are forecast for a part of its rows."""
        low = max(self.low, part.low)
        high = None if self.high is None else max(self.high, part.low)
        expected = self.expected
        if expected is not None and part.expected is not None:
            expected = max(expected, part.expected if high is None else min(part.expected, high))
        return Forecast(self.rows, expected, low, high)

    def plus(self, wrong: int, rows: int) -> "Forecast":
        """The forecast for these rows together with reviewed ones.

        Args:
            wrong: Wrong rows among the reviewed ones.
            rows: Number of the reviewed ones.
        """
        expected = None if self.expected is None else self.expected + wrong
        return Forecast(self.rows + rows, expected, self.low + wrong, None if self.high is None else self.high + wrong)


def prediction_limits(wrong: int, reviewed: int, rows: int) -> tuple[int, int]:
    """Limits for the number of wrong rows among further rows of the same share, from beta-binomial distributions.

    They hold with at least 95 % confidence for any share: the priors are Beta(0, 1) for the lower limit and Beta(1, 0)
    for the upper one (Thatcher, Relationships between Bayesian and confidence limits for predictions, 1964).

    Args:
        wrong: Wrong rows among the reviewed ones.
        reviewed: Number of reviewed rows.
        rows: Number of rows to predict.

    Example:
        >>> prediction_limits(3, 100, 100)
        (0, 10)
    """
    right, counted = reviewed - wrong, min(rows, MOST_ROWS)
    low = 0 if wrong == 0 else _quantile(TAIL, counted, wrong, right + 1)
    high = counted if right == 0 else _quantile(1 - TAIL, counted, wrong + 1, right)
    scale = rows / max(counted, 1)
    return int(np.floor(low * scale)), int(np.ceil(high * scale))


def steady_forecast(wrong: Array, rows: int) -> Forecast:
    """Forecast for rows that are wrong as often as reviewed ones.

    Args:
        wrong: ``[reviewed]``, 1 = wrong, 0 = right.
        rows: Number of rows to predict.
    """
    return Forecast(rows, float(wrong.mean()) * rows, *prediction_limits(int(wrong.sum()), len(wrong), rows))


def last_rows(wrong: Array) -> Array:
    """The last of the reviewed rows, from which a steady share is taken."""
    return wrong[-max(STEADY_ROWS, int(STEADY_SHARE * len(wrong))) :]


def next_forecast(wrong: Array, places: Array, following: Array, n_rows: int) -> Forecast:
    """Forecast for the next rows of a ranking, from both a steady share and its trend.

    Args:
        wrong: ``[reviewed]``, 1 = wrong, 0 = right, with at least one of each, in the order of the ranking.
        places: ``[reviewed]``, their places, 1 = first.
        following: ``[next]``, places of the rows to predict.
        n_rows: Number of rows of the ranking.
    """
    steady = steady_forecast(last_rows(wrong), len(following))
    trend, _ = _trend(wrong, places, n_rows)
    share = expit(trend[:, :1] + trend[:, 1:] * _standardized(following, places, n_rows, len(wrong)))
    noise = np.random.default_rng(0).standard_normal(len(share))
    counts = np.clip(share.sum(axis=1) + np.sqrt((share * (1 - share)).sum(axis=1)) * noise, 0, len(following))
    low, middle, high = np.quantile(counts, [TAIL, 0.5, 1 - TAIL])
    limits = min(steady.low, int(np.floor(low))), max(steady.high or 0, int(np.ceil(high)))
    return Forecast(len(following), float(middle + (steady.expected or 0)) / 2, *limits)


def is_rising(wrong: Array, places: Array, n_rows: int) -> bool:
    """Return whether the share of wrong rows rises with the place in the last of the reviewed rows."""
    return bool(_trend(wrong, places, n_rows)[1] > RISING)


def _quantile(share: float, rows: int, a: int, b: int) -> int:
    """Smallest number of wrong rows with at least this share of a beta-binomial distribution at or below it."""
    distribution = np.cumsum(betabinom.pmf(np.arange(rows + 1), rows, a, b))
    return min(int(np.searchsorted(distribution, share)), rows)


def _trend_rows(n_reviewed: int) -> slice:
    return slice(-max(TREND_ROWS, int(TREND_SHARE * n_reviewed)), None)


def _quantiles(places: Array, n_rows: int) -> Array:
    return np.asarray(norm.ppf((places - 0.5) / n_rows))


def _standardized(at: Array, places: Array, n_rows: int, n_reviewed: int) -> Array:
    known = _quantiles(places[_trend_rows(n_reviewed)], n_rows)
    return (_quantiles(at, n_rows) - known.mean()) / max(float(known.std()), 1e-9)


def _trend(wrong: Array, places: Array, n_rows: int) -> tuple[Array, float]:
    """``[draws, 2]`` draws of intercept and slope of the logistic curve, and the slope in standard errors."""
    last = _trend_rows(len(wrong))
    if len(set(wrong[last])) < 2:
        last = slice(None)
    x = _standardized(places[last], places, n_rows, len(wrong))
    fit = LogisticRegression(C=RIDGE).fit(x[:, None], wrong[last])
    mean = np.array([fit.intercept_[0], fit.coef_[0, 0]])
    terms = np.column_stack([np.ones_like(x), x])
    share = expit(terms @ mean)
    precision = (terms * (share * (1 - share))[:, None]).T @ terms + np.diag([0, 1 / RIDGE])
    covariance = np.linalg.inv(precision)
    draws = np.random.default_rng(1).multivariate_normal(mean, covariance, size=DRAWS)
    return draws, float(mean[1] / np.sqrt(covariance[1, 1]))
