"""Changes of single rows from snapshot to snapshot."""

import numpy as np
import numpy.typing as npt


def total_change(trajectory: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Sum of the absolute steps of each row's values ``[rows, snapshots]``; ``[rows]``, >= 0, higher = larger change.

    Values are read column by column, because they may be memory-mapped.

    Example:
        >>> total_change(np.array([[0.0, 1.0, 0.5], [0.5, 0.5, 0.5]])).tolist()
        [1.5, 0.0]
    """
    total = np.zeros(len(trajectory))
    before = np.asarray(trajectory[:, 0], dtype=np.float64)
    for snapshot in range(1, trajectory.shape[1]):
        after = np.asarray(trajectory[:, snapshot], dtype=np.float64)
        total += np.abs(after - before)
        before = after
    return total
