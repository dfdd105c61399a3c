"""Loss spikes: the steps of a training whose loss stands out from that of the steps around them."""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import median_filter

from vog_hf.errors import ConfigError, real_number, whole_number
from vog_hf.evaluation.validation import one_array

NEIGHBORS = 51  # steps around a step, with itself
TO_DEVIATION = 1.4826  # times the median absolute deviation is the standard deviation of a normal distribution
MIN_STEPS = 20


def loss_spikes(
    step: npt.ArrayLike, loss: npt.ArrayLike, *, threshold: float = 6.0, neighbors: int = NEIGHBORS
) -> pd.DataFrame:
    """The steps whose mean loss is far above the running median, worst first.

    A step is a spike if its loss exceeds the median of the steps around it by more than ``threshold`` robust standard
    deviations (1.4826 times the median absolute deviation from the running median, over all steps).

    Args:
        step: ``[visits]``, the step that trained on a row.
        loss: ``[visits]``, the row's loss in that step; NaN is left out.
        threshold: Number of robust standard deviations, > 0.
        neighbors: Number of steps that the running median is over, with the step itself; odd.

    Returns:
        One line per spike: ``step``, ``loss`` (mean over its rows), ``expected`` (the running median) and
        ``deviations`` (by how many robust standard deviations it is above). Empty with fewer than 20 steps.

    Raises:
        ConfigError: Lengths differ, or an option is out of range.

    Example:
        >>> steps, losses = np.arange(60), 1 + 0.01 * np.sin(np.arange(60))
        >>> losses[40] = 5.0
        >>> loss_spikes(steps, losses)["step"].tolist()
        [40]
    """
    steps, losses = one_array("step", step), one_array("loss", loss).astype(float)
    threshold = real_number("threshold", threshold, 0, math.inf)
    neighbors = whole_number("neighbors", neighbors, 3)
    if steps.shape != losses.shape or steps.ndim != 1:
        raise ConfigError(
            f"step and loss must be one value per visit, got shapes {steps.shape} and {losses.shape}; pass two columns "
            "of one table"
        )
    known = np.isfinite(losses)
    means = pd.DataFrame({"step": steps[known], "loss": losses[known]}).groupby("step", as_index=False).mean()
    if len(means) < MIN_STEPS:
        return pd.DataFrame({"step": [], "loss": [], "expected": [], "deviations": []})
    means["expected"] = median_filter(means["loss"].to_numpy(), size=min(neighbors, len(means)), mode="nearest")
    above = means["loss"] - means["expected"]
    spread = TO_DEVIATION * float((above - above.median()).abs().median())
    means["deviations"] = above / max(spread, np.finfo(float).tiny)
    spikes = means[means["deviations"] > threshold]
    return spikes.sort_values("deviations", ascending=False, kind="stable").reset_index(drop=True)
