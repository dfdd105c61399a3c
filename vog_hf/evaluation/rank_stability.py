"""Stability of the ranking of a run: its agreement from snapshot to snapshot."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.errors import ConfigError, NonFiniteError
from vog_hf.evaluation.ranking_agreement import Ranking, agreement
from vog_hf.evaluation.validation import one_array, real_numbers

# A ranking is called settled from this agreement with the previous one; our own convention.
SETTLED_SPEARMAN, SETTLED_OVERLAP = 0.95, 0.90


def ranking_stability(running: npt.ArrayLike) -> pd.DataFrame:
    """Agreement of the ranking after each snapshot with the previous one and with the final one; 1 = full agreement.

    Args:
        running: ``[rows, snapshots]``, finite: the score up to each snapshot, as ``VoGScores.trajectory("vog")``, in
            the order of training. Read one column at a time, so it may be a memory map larger than memory.

    Returns:
        One line for each number of ``snapshots`` from 2 (the variance of one snapshot is 0): ``spearman_previous``,
        ``overlap_top_1_previous`` and so on with the ranking one snapshot before (NaN after 2 snapshots), and
        ``spearman_final``, ``overlap_top_1_final`` and so on with that of all snapshots, as defined by
        `rank_agreement`. The compared rankings share snapshots, so values always rise towards the end.

    Raises:
        ConfigError: Not ``[rows, snapshots]``, no rows, or fewer than two snapshots.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> table = ranking_stability([[0, 1, 3], [0, 2, 2], [0, 3, 1]])
        >>> table[["snapshots", "spearman_previous", "spearman_final"]].to_numpy().round(3).tolist()
        [[2.0, nan, -1.0], [3.0, -1.0, 1.0]]
    """
    values = one_array("running", running)
    if values.ndim != 2 or not len(values) or values.shape[1] < 2:
        raise ConfigError(
            f"running must be [rows, snapshots] of at least one row and two snapshots, got shape {values.shape}"
        )
    final = _ranking_after(values, values.shape[1])
    previous, lines = None, []
    for snapshots in range(2, values.shape[1] + 1):
        current = final if snapshots == values.shape[1] else _ranking_after(values, snapshots)
        with_final = agreement(current, final)
        with_previous = dict.fromkeys(with_final, np.nan) if previous is None else agreement(previous, current)
        line = {"snapshots": snapshots} | {f"{name}_previous": value for name, value in with_previous.items()}
        lines.append(line | {f"{name}_final": value for name, value in with_final.items()})
        previous = current
    return pd.DataFrame(lines)


def stability_in_words(table: pd.DataFrame) -> str:
    """One sentence on how much the last snapshot changed the ranking by raw VoG.

    Args:
        table: Result of `ranking_stability`.

    Example:
        >>> stability_in_words(ranking_stability([[0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4, 5]]))
        'The last of 4 snapshots left the ranking by VoG almost unchanged (Spearman 1.000 with the previous ranking,
        100 % of its highest 10 % kept): one more would likely change it little.'
    """
    last = table.iloc[-1]
    count, spearman, overlap = int(last["snapshots"]), last["spearman_previous"], last["overlap_top_10_previous"]
    if count == 2:
        return "With two snapshots there is only one ranking, so its stability cannot be estimated."
    if np.isnan(spearman):
        return f"All scores are equal after one of the last two of {count} snapshots, so the ranking is undefined."
    settled = spearman >= SETTLED_SPEARMAN and overlap >= SETTLED_OVERLAP
    effect = "left the ranking by VoG almost unchanged" if settled else "changed the ranking by VoG"
    outlook = "little" if settled else "further"
    return (
        f"The last of {count} snapshots {effect} (Spearman {spearman:.3f} with the previous ranking, "
        f"{100 * overlap:.0f} % of its highest 10 % kept): one more would likely change it {outlook}."
    )


def _ranking_after(running: npt.NDArray[np.generic], snapshots: int) -> Ranking:
    column = real_numbers("running", running[:, snapshots - 1])
    bad = ~np.isfinite(column)
    if bad.any():
        row = int(bad.argmax())
        raise NonFiniteError(
            f"running must be finite, got {column[row]} at row {row} after {snapshots} snapshots "
            f"({int(bad.sum())} rows); leave these rows out"
        )
    return Ranking.of(column)
