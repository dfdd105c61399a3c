"""Mean, spread and error of each class."""

import numpy.typing as npt
import pandas as pd

from vog_hf.evaluation.aligned import aligned


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
    table = aligned({name: values for name, values in given.items() if values is not None})
    table["label"] = table["label"].clip(lower=-1)
    table["vog"] = table["vog"].astype(float)  # pandas would sum squares in float32
    classes = table.groupby("label", sort=True)
    found = {"rows": classes.size(), "vog_mean": classes["vog"].mean(), "vog_std": classes["vog"].std(ddof=0)}
    if prediction is not None:
        wrong = (table["prediction"] != table["label"]).astype(float).where(table["label"] >= 0)
        found["error"] = wrong.groupby(table["label"]).mean()
    if confidence is not None:
        found["confidence"] = classes["confidence"].mean()
    return pd.DataFrame(found).rename_axis("class").reset_index()
