"""Which rows are the first k of a ranking, where tied rows share the places that are left for them."""

import math

import numpy as np
import numpy.typing as npt


def top_places(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """The chance 0..1 of each row to be among the ``count`` highest values, ties broken at random; sums to ``count``.

    Example:
        >>> top_places(np.array([3.0, 1.0, 2.0, 2.0]), 2).tolist()
        [1.0, 0.0, 0.5, 0.5]
    """
    cut = np.partition(values, len(values) - count)[len(values) - count]
    above, tied = values > cut, values == cut
    return above + tied * ((count - above.sum()) / tied.sum())


def share_of_rows(share: float, n_rows: int) -> int:
    """How many rows a share of them is, rounded up, at least one.

    Example:
        >>> share_of_rows(0.07, 100), share_of_rows(0.07, 101)  # in floats, 0.07 * 100 is a little more than 7
        (7, 8)
    """
    return max(1, math.ceil(round(share * n_rows, 6)))
