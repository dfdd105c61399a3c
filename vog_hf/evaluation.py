"""What a ranking is worth in this run: error by decile of a column, and how columns agree."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from vog_hf.errors import ConfigError, NonFiniteError


def error_by_decile(scores: npt.ArrayLike, is_error: npt.ArrayLike, *, bins: int = 10) -> pd.DataFrame:
    """Error rate by decile of a score, lowest scores first.

    Args:
        scores: ``[rows]``, finite; any column of the scores.
        is_error: ``[rows]``, true where the row counts as an error (say, the final prediction is not the label), or
            the share 0..1 of it that does.
        bins: Number of equally filled bins; 10 = deciles. Ties are split in row order.

    Returns:
        One line per bin: ``decile`` (1 = lowest scores), ``rows``, ``lowest``, ``highest`` (scores in it) and
        ``error`` (share of the bin's rows that are errors, 0..1).

    Raises:
        ConfigError: Lengths differ, or fewer rows than bins.
        NonFiniteError: A score is NaN or infinite.

    Example:
        >>> error_by_decile([0.1, 0.2, 0.3, 0.4], [False, False, False, True], bins=2)["error"].tolist()
        [0.0, 0.5]
    """
    values, errors = _aligned({"scores": scores, "is_error": is_error}).to_numpy(dtype=float).T
    if len(values) < bins or bins < 1:
        msg = f"error_by_decile needs at least one row per bin, got {len(values)} rows for {bins} bins"
        raise ConfigError(msg)
    order = np.argsort(values, kind="stable")
    parts = np.array_split(order, bins)
    return pd.DataFrame(
        {
            "decile": np.arange(1, bins + 1),
            "rows": [len(part) for part in parts],
            "lowest": [values[part[0]] for part in parts],
            "highest": [values[part[-1]] for part in parts],
            "error": [errors[part].mean() for part in parts],
        }
    )


def rank_correlations(columns: Mapping[str, npt.ArrayLike] | pd.DataFrame) -> pd.DataFrame:
    """Spearman rank correlation of every pair of columns: a symmetric table of values in -1..1.

    A column of equal values has no ranks: its correlations are NaN.

    Raises:
        ConfigError: Columns of different lengths.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> rank_correlations({"vog": [1, 2, 3], "loss": [3, 2, 1]}).loc["vog", "loss"].item()
        -1.0
    """
    table = _aligned(columns)
    ranks = pd.DataFrame({name: rankdata(values) for name, values in table.items()})
    return ranks.corr(method="pearson")


def _aligned(columns: Mapping[str, npt.ArrayLike] | pd.DataFrame) -> pd.DataFrame:
    arrays = {str(name): np.asarray(values) for name, values in columns.items()}
    lengths = {name: array.shape for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or any(array.ndim != 1 for array in arrays.values()):
        msg = f"columns must be one value per row of the same rows, got shapes {lengths}"
        raise ConfigError(msg)
    for name, array in arrays.items():
        bad = ~np.isfinite(array.astype(float))
        if bad.any():
            msg = f"{name} must be finite, got {array[bad][0]} at row {int(bad.argmax())} ({int(bad.sum())} rows)"
            raise NonFiniteError(msg)
    return pd.DataFrame(arrays)


def class_table(
    label: npt.ArrayLike,
    vog: npt.ArrayLike,
    *,
    prediction: npt.ArrayLike | None = None,
    confidence: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """Mean, spread and error of each class, classes in the order of their numbers.

    Args:
        label: ``[rows]``, the given class; negative = none. Rows without a label are the line of class -1.
        vog: ``[rows]``, finite; any score.
        prediction: ``[rows]``, the predicted class.
        confidence: ``[rows]``, the probability of the label, 0..1.

    Returns:
        One line per class that occurs: ``class``, ``rows``, ``vog_mean`` and ``vog_std`` (ddof = 0, unit of the score)
        and, where given, ``error`` (share of the class's rows that are predicted as another class, 0..1; NaN without
        a label) and ``confidence`` (mean).

    Raises:
        ConfigError: Lengths differ.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> table = class_table([0, 1, 0], [1.0, 5.0, 3.0], prediction=[0, 0, 1])
        >>> table["vog_mean"].tolist(), table["error"].tolist()
        ([2.0, 5.0], [0.5, 1.0])
    """
    given = {"label": label, "vog": vog, "prediction": prediction, "confidence": confidence}
    table = _aligned({name: values for name, values in given.items() if values is not None})
    table["label"] = table["label"].clip(lower=-1)
    classes = table.groupby("label", sort=True)
    found = {"rows": classes.size(), "vog_mean": classes["vog"].mean(), "vog_std": classes["vog"].std(ddof=0)}
    if prediction is not None:
        wrong = (table["prediction"] != table["label"]).astype(float).where(table["label"] >= 0)
        found["error"] = wrong.groupby(table["label"]).mean()
    if confidence is not None:
        found["confidence"] = classes["confidence"].mean()
    return pd.DataFrame(found).rename_axis("class").reset_index()
