"""Rankings of the same rows by several runs: how far they agree, and their mean."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.errors import ConfigError
from vog_hf.evaluation.agreement import Ranking, agreement
from vog_hf.evaluation.aligned import aligned

SUMMARIES = ("mean_rank", "disagreement")


def merge_rankings(runs: Mapping[str, npt.ArrayLike]) -> pd.DataFrame:
    """Percentile rank of each row in each run, their mean and their spread.

    Args:
        runs: ``[rows]`` each, finite: the same column of at least two runs over the same rows.

    Returns:
        One line per row, in row order: a column per run (100 * (average rank - 0.5) / rows, as ``vog_percentile``;
        above 0, below 100, higher = higher in the ranking), ``mean_rank`` (their mean) and ``disagreement`` (their
        standard deviation, ddof = 0; 0 = all runs rank the row alike, at most 50).

    Raises:
        ConfigError: Fewer than two runs, a run named as a summary, or columns of different lengths.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> merge_rankings({"seed 0": [0.1, 0.2], "seed 1": [0.3, 0.2]}).to_numpy().tolist()
        [[25.0, 75.0, 50.0, 25.0], [75.0, 25.0, 50.0, 25.0]]
    """
    table = _runs(runs)
    taken = [name for name in SUMMARIES if name in table]
    if taken:
        msg = f"no run may be called {taken[0]!r}, which is a column of the result; rename the run"
        raise ConfigError(msg)
    percentiles = {name: 100 * (Ranking.of(values).ranks - 0.5) / len(table) for name, values in table.items()}
    stacked = np.stack(list(percentiles.values()))
    return pd.DataFrame({**percentiles, "mean_rank": stacked.mean(0), "disagreement": stacked.std(0)})


def agreement_table(runs: Mapping[str, npt.ArrayLike]) -> pd.DataFrame:
    """How far every two runs agree on the ranking of the same rows.

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
    table = aligned(runs)
    if table.shape[1] < 2 or not len(table):
        msg = f"at least two runs over at least one row are needed, got {table.shape[1]} over {len(table)} rows"
        raise ConfigError(msg)
    return table
