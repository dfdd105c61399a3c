"""Detection of given rows (wrong labels, errors) by columns: AUROC, average precision, precision and recall at k."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from vog_hf.errors import ConfigError, require_type, whole_number
from vog_hf.evaluation.ties import rows_in_share, top_k_membership
from vog_hf.evaluation.validation import Columns, finite_table, require_binary

RANDOM, POSITIVE = "random", "is_positive"


def auroc(score: npt.ArrayLike, is_positive: npt.ArrayLike) -> float:
    """Probability that a positive row has a higher score than a negative one, ties counted half; 0..1, 0.5 = no signal.

    NaN if all rows are positive, or none.

    Args:
        score: ``[rows]``, finite.
        is_positive: ``[rows]``, true or false (1 or 0).

    Raises:
        ConfigError: Lengths differ, no rows, or ``is_positive`` has other values.
        NonFiniteError: A score is NaN or infinite.

    Example:
        >>> auroc([0.1, 0.4, 0.2, 0.3], [False, True, False, True])
        1.0
    """
    values, given = finite_table({"score": score, POSITIVE: is_positive}).to_numpy(dtype=float).T
    positive = require_binary(POSITIVE, given)
    return math.nan if positive.all() or not positive.any() else float(roc_auc_score(positive, values))


def detection_table(
    columns: Columns, is_positive: npt.ArrayLike, *, ks: Sequence[float] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Detection of the positive rows by each column, and by a random column.

    Args:
        columns: ``[rows]`` each, finite.
        is_positive: ``[rows]``, true or false (1 or 0), both present.
        ks: Numbers of top rows: whole numbers, or fractions between 0 and 1 of the rows (rounded up). Default: the
            number of positive rows.
        seed: Seed of the random column.

    Returns:
        One line per column in the order given, and a last one ``random``: ``column``, ``direction`` (``"high"``:
        highest values first; ``"low"``: lowest first), ``auroc`` (0.5..1), ``average_precision`` (0..1) and for each
        k ``precision_at_<k>`` (share 0..1 of the first k rows that are positive) and ``recall_at_<k>`` (share of
        the positive rows that are among them), all in that direction. Rows tied at the k-th place share it. The
        direction is the one with the better AUROC on these very rows, a choice that requires knowing the positive rows.

    Raises:
        ConfigError: Lengths differ, a column is named ``random``, all or no rows are positive, or a k is out of range.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> table = detection_table({"loss": [0.1, 0.9, 0.8], "confidence": [0.9, 0.2, 0.1]}, [False, True, True])
        >>> table[["column", "direction", "auroc", "precision_at_2"]].to_numpy()[:2].tolist()
        [['loss', 'high', 1.0, 1.0], ['confidence', 'low', 1.0, 1.0]]
    """
    require_type("columns", columns, (Mapping, pd.DataFrame), "pass arrays by name, or a table")
    seed = whole_number("seed", seed, 0)
    require_type("ks", ks, (Sequence, np.ndarray, type(None)), "pass a list of numbers of rows, or shares of them")
    taken = [name for name in (RANDOM, POSITIVE) if name in columns]
    if taken:
        raise ConfigError(f"no column may be named {taken[0]!r}, a name used by the table itself; rename it")
    table = finite_table({**columns, POSITIVE: is_positive})
    positive = require_binary(POSITIVE, table.pop(POSITIVE).to_numpy(dtype=float))
    if positive.all() or not positive.any():
        raise ConfigError(
            f"positive rows and others are needed to tell them apart, got {int(positive.sum())} positive of "
            f"{len(positive)} rows; compare the columns by rank_correlations instead"
        )
    table[RANDOM] = np.random.default_rng(seed).random(len(table))
    counts = _counts([int(positive.sum())] if ks is None else ks, len(positive))
    return pd.DataFrame([_line(str(name), v.to_numpy(dtype=float), positive, counts) for name, v in table.items()])


def _counts(ks: Sequence[float], n_rows: int) -> dict[str, int]:
    """Number of rows for each k, by its name."""
    counts = {}
    for k in ks:
        whole = isinstance(k, Integral) and not isinstance(k, bool)
        is_count, is_fraction = whole and 1 <= k <= n_rows, isinstance(k, Real) and not whole and 0 < k < 1
        if not (is_count or is_fraction):
            raise ConfigError(
                f"each of ks must be a whole number 1..{n_rows} of rows or a fraction between 0 and 1, got {k!r}"
            )
        counts[f"{k:g}" if is_fraction else str(k)] = rows_in_share(k, n_rows) if is_fraction else int(k)
    return counts


def _line(
    name: str, values: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_], counts: dict[str, int]
) -> dict[str, object]:
    area = float(roc_auc_score(positive, values))
    ranked = values if area >= 0.5 else -values
    line: dict[str, object] = {
        "column": name,
        "direction": "high" if area >= 0.5 else "low",
        "auroc": max(area, 1 - area),
        "average_precision": float(average_precision_score(positive, ranked)),
    }
    for k, count in counts.items():
        hits = float(top_k_membership(ranked, count) @ positive)
        line |= {f"precision_at_{k}": hits / count, f"recall_at_{k}": hits / int(positive.sum())}
    return line
