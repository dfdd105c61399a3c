"""Agreement of rankings: rank correlation, and overlap of the highest and lowest rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Real

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from vog_hf.errors import ConfigError, require_type
from vog_hf.evaluation.ties import rows_in_share, top_k_membership
from vog_hf.evaluation.validation import Columns, finite_table

TOP = (0.01, 0.05, 0.10)


def rank_correlations(columns: Columns) -> pd.DataFrame:
    """Spearman rank correlation of every pair of columns: a symmetric table of values in -1..1.

    A column of equal values has no ranks: its correlations are NaN.

    Raises:
        ConfigError: Columns of different lengths.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> rank_correlations({"vog": [1, 2, 3], "loss": [3, 2, 1]}).loc["vog", "loss"].item()
        -1.0
    """
    table = finite_table(columns)
    ranks = pd.DataFrame({name: rankdata(values) for name, values in table.items()})
    return ranks.corr(method="pearson")


def rank_agreement(a: npt.ArrayLike, b: npt.ArrayLike, *, top: Sequence[float] = TOP) -> pd.Series:
    """Agreement of two rankings of the same rows; 1 = full agreement.

    Args:
        a: ``[rows]``, finite.
        b: ``[rows]``, finite.
        top: Shares of the rows, each above 0 and at most 1.

    Returns:
        ``spearman`` (-1..1; NaN where all values of a column are equal), and per share, in percent,
        ``overlap_top_<percent>`` and ``overlap_bottom_<percent>``: the share 0..1 of the ``ceil(share * rows)``
        highest (lowest) rows of ``a`` that are among those of ``b``. About ``share`` for
        independent rankings. If ties straddle the cut, it is the mean over random tie-breaking in each column, so it
        does not depend on the order of the rows and is below 1 even for a column and itself.

    Raises:
        ConfigError: Lengths differ, no rows, or a share out of range.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> rank_agreement([1, 2, 3, 4], [1, 3, 2, 4], top=[0.5]).to_dict()
        {'spearman': 0.8, 'overlap_top_50': 0.5, 'overlap_bottom_50': 0.5}
    """
    table = finite_table({"a": a, "b": b})
    require_type("top", top, (Sequence, np.ndarray), "pass a list of shares")
    if not len(table) or not all(isinstance(share, Real) and 0 < share <= 1 for share in top):
        raise ConfigError(
            f"rank_agreement needs rows, and shares of them above 0 and at most 1, got {len(table)} rows, top={top}"
        )
    return pd.Series(agreement(Ranking.of(table["a"].to_numpy()), Ranking.of(table["b"].to_numpy()), top))


@dataclass(frozen=True)
class Ranking:
    """A column with its average ranks, ``[rows]`` each."""

    values: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.float64]

    @classmethod
    def of(cls, values: npt.ArrayLike) -> "Ranking":
        """The ranking of finite values."""
        array = np.asarray(values, dtype=float)
        return cls(array, rankdata(array))


def agreement(a: Ranking, b: Ranking, top: Sequence[float] = TOP) -> dict[str, float]:
    """The values of `rank_agreement`, by name."""
    values = {"spearman": float(pd.DataFrame({"a": a.ranks, "b": b.ranks}).corr().to_numpy()[0, 1])}
    for name, sign in (("top", 1), ("bottom", -1)):
        for share in top:
            count = rows_in_share(share, len(a.values))
            both = top_k_membership(sign * a.values, count) @ top_k_membership(sign * b.values, count)
            values[f"overlap_{name}_{100 * share:g}"] = float(both / count)
    return values


SUMMARIES = ("mean_rank", "disagreement")


def merge_rankings(runs: Mapping[str, npt.ArrayLike]) -> pd.DataFrame:
    """Percentile rank of each row in each run, their mean and their spread.

    Args:
        runs: ``[rows]`` each, finite: the same column of at least two runs over the same rows.

    Returns:
        One line per row, in row order: a column per run (100 * (average rank - 0.5) / rows, as ``vog_percentile``;
        above 0, below 100, higher = higher in the ranking), ``mean_rank`` (their mean) and ``disagreement`` (their
        standard deviation, ddof = 0; 0 = all runs agree, at most 50).

    Raises:
        ConfigError: Fewer than two runs, a run named like a summary, or columns of different lengths.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> merge_rankings({"seed 0": [0.1, 0.2], "seed 1": [0.3, 0.2]}).to_numpy().tolist()
        [[25.0, 75.0, 50.0, 25.0], [75.0, 25.0, 50.0, 25.0]]
    """
    table = _runs(runs)
    taken = [name for name in SUMMARIES if name in table]
    if taken:
        raise ConfigError(f"no run may be named {taken[0]!r}, a column of the result; rename the run")
    percentiles = {name: 100 * (Ranking.of(values).ranks - 0.5) / len(table) for name, values in table.items()}
    stacked = np.stack(list(percentiles.values()))
    return pd.DataFrame({**percentiles, "mean_rank": stacked.mean(0), "disagreement": stacked.std(0)})


def agreement_table(runs: Mapping[str, npt.ArrayLike]) -> pd.DataFrame:
    """Agreement of every pair of runs on the ranking of the same rows.

    Args:
        runs: As for `merge_rankings`.

    Returns:
        One line per pair, in the order given: ``first``, ``second`` and the values of `rank_agreement`.

    Raises:
        ConfigError: Fewer than two runs, no rows, or columns of different lengths.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> table = agreement_table({"a": [1, 2, 3], "b": [1, 2, 3], "c": [3, 2, 1]})
        >>> table[["first", "second", "spearman"]].to_numpy().tolist()
        [['a', 'b', 1.0], ['a', 'c', -1.0], ['b', 'c', -1.0]]
    """
    rankings = {str(name): Ranking.of(values) for name, values in _runs(runs).items()}
    pairs = combinations(rankings.items(), 2)
    return pd.DataFrame([{"first": a, "second": b, **agreement(of_a, of_b)} for (a, of_a), (b, of_b) in pairs])


def _runs(runs: Mapping[str, npt.ArrayLike]) -> pd.DataFrame:
    table = finite_table(runs)
    if table.shape[1] < 2 or not len(table):
        raise ConfigError(
            f"at least two runs over at least one row are needed, got {table.shape[1]} over {len(table)} rows"
        )
    return table
