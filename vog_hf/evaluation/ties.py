"""Membership of rows in the top k of a ranking; tied rows share the remaining places."""

import math

import numpy as np
import numpy.typing as npt


def top_k_membership(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Probability 0..1 that each row is among the ``count`` highest values, ties broken at random; sums to ``count``.

    Example:
        >>> top_k_membership(np.array([3.0, 1.0, 2.0, 2.0]), 2).tolist()
        [1.0, 0.0, 0.5, 0.5]
    """
    cut = np.partition(values, len(values) - count)[len(values) - count]
    above, tied = values > cut, values == cut
    return above + tied * ((count - above.sum()) / tied.sum())


def rows_in_share(share: float, n_rows: int) -> int:
    """Number of rows in a share of them, rounded up, at least one.

    Example:
        >>> rows_in_share(0.07, 100), rows_in_share(0.07, 101)  # in floats, 0.07 * 100 is a little more than 7
        (7, 8)
    """
    return max(1, math.ceil(round(share * n_rows, 6)))
