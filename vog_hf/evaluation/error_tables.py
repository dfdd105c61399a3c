"""Error rate by decile of a score."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from vog_hf.errors import ConfigError, whole_number
from vog_hf.evaluation.validation import finite_table

CONFIDENCE = 0.95  # level of the intervals


def error_by_decile(scores: npt.ArrayLike, is_error: npt.ArrayLike, *, bins: int = 10) -> pd.DataFrame:
    """Error rate by decile of a score, lowest scores first.

    Args:
        scores: ``[rows]``, finite; any column of the scores.
        is_error: ``[rows]``, true for errors (for example, the final prediction is not the label), or a share 0..1
            per row.
        bins: Number of equally filled bins; 10 = deciles. Rows with equal scores get their mean error, so that the
            result does not depend on the order of the rows, even if a cut separates them.

    Returns:
        One line per bin: ``decile`` (1 = lowest scores), ``rows``, ``lowest``, ``highest`` (scores in it), ``error``
        (share of the bin's rows that are errors, 0..1) and ``error_low``, ``error_high``, the 95 % Wilson interval of
        that rate. For shares the interval is conservative: they vary at most as much as errors of the same mean.

    Raises:
        ConfigError: Lengths differ, fewer rows than bins, or ``is_error`` outside 0..1.
        NonFiniteError: A score is NaN or infinite.

    Example:
        >>> error_by_decile([0.1, 0.2, 0.3, 0.4], [False, False, False, True], bins=2)["error"].tolist()
        [0.0, 0.5]
    """
    values, errors = finite_table({"scores": scores, "is_error": is_error}).to_numpy(dtype=float).T
    if len(values) < whole_number("bins", bins, 1):
        raise ConfigError(f"error_by_decile needs at least one row per bin, got {len(values)} rows for {bins} bins")
    outside = (errors < 0) | (errors > 1)
    if outside.any():
        row = int(outside.argmax())
        raise ConfigError(
            f"is_error must be true, false or a share 0..1, got {errors[row]} at row {row}; pass prediction != label"
        )
    order = np.argsort(values, kind="stable")
    parts = np.array_split(order, bins)
    rows = np.array([len(part) for part in parts])
    _, tied, size = np.unique(values[order], return_inverse=True, return_counts=True)
    shared = np.empty(len(order))
    shared[order] = (np.bincount(tied, errors[order]) / size)[tied]
    rate = np.array([shared[part].mean() for part in parts])
    low, high = _wilson_interval(rate, rows)
    return pd.DataFrame(
        {
            "decile": np.arange(1, bins + 1),
            "rows": rows,
            "lowest": [values[part[0]] for part in parts],
            "highest": [values[part[-1]] for part in parts],
            "error": rate,
            "error_low": low,
            "error_high": high,
        }
    )


def early_late_table(
    early: npt.ArrayLike, late: npt.ArrayLike, is_error: npt.ArrayLike, *, bins: int = 10
) -> pd.DataFrame:
    """Error rate by decile of the early and of the late score side by side, lowest scores first.

    Args:
        early: ``[rows]``, finite; for example ``vog_early``.
        late: ``[rows]``, finite; for example ``vog_late``.
        is_error: As for `error_by_decile`.
        bins: As for `error_by_decile`.

    Returns:
        One line per bin: ``decile`` (1 = lowest scores), ``rows``, ``error_early`` (share 0..1 of the rows in this
        decile of ``early`` that are errors) with its 95 % interval ``error_early_low`` and ``error_early_high``, and
        ``error_late``, ``error_late_low``, ``error_late_high`` of the rows in this decile of ``late``.

    Raises:
        ConfigError: As `error_by_decile`.
        NonFiniteError: A score is NaN or infinite.

    Example:
        >>> table = early_late_table([1, 2, 3, 4], [4, 3, 2, 1], [False, False, False, True], bins=2)
        >>> table["error_early"].tolist(), table["error_late"].tolist()
        ([0.0, 0.5], [0.5, 0.0])
    """
    values = finite_table({"early": early, "late": late, "is_error": is_error})
    tables = {name: error_by_decile(values[name], values["is_error"], bins=bins) for name in ("early", "late")}
    columns = {"decile": tables["early"]["decile"], "rows": tables["early"]["rows"]}
    for name, table in tables.items():
        columns |= {f"error_{name}{end}": table[f"error{end}"] for end in ("", "_low", "_high")}
    return pd.DataFrame(columns)


def _wilson_interval(
    rate: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wilson's score interval of rates, e.g. Brown, Cai & DasGupta 2001 (doi:10.1214/ss/1009213286), equation 4."""
    return _wilson_low(rate, rows), 1 - _wilson_low(1 - rate, rows)


def _wilson_low(rate: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The lower limit, as a product that is exactly 0 for a rate of 0; a difference would leave a rounding error."""
    z = norm.ppf(0.5 + CONFIDENCE / 2)
    center = rate + z**2 / (2 * rows)
    half = z * np.sqrt(rate * (1 - rate) / rows + z**2 / (4 * rows**2))
    return rate**2 / (center + half)


def class_table(
    label: npt.ArrayLike,
    vog: npt.ArrayLike,
    *,
    prediction: npt.ArrayLike | None = None,
    confidence: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """Mean, spread and error of each class, classes in the order of their numbers.

    Args:
        label: ``[rows]``, the given class; negative = none. Rows without a label form class -1.
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
    arguments = {"prediction": prediction, "confidence": confidence}
    optional = {name: values for name, values in arguments.items() if values is not None}
    table = finite_table({"label": label, "vog": vog, **optional})
    table["label"] = table["label"].clip(lower=-1)
    table["vog"] = table["vog"].astype(float)  # pandas would sum squares in float32
    classes = table.groupby("label", sort=True)
    columns = {"rows": classes.size(), "vog_mean": classes["vog"].mean(), "vog_std": classes["vog"].std(ddof=0)}
    if prediction is not None:
        wrong = (table["prediction"] != table["label"]).astype(float).where(table["label"] >= 0)
        columns["error"] = wrong.groupby(table["label"]).mean()
    if confidence is not None:
        columns["confidence"] = classes["confidence"].mean()
    return pd.DataFrame(columns).rename_axis("class").reset_index()
