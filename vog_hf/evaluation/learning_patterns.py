"""Learning patterns: when a row was predicted correctly for the first time, and whether it stayed so."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.errors import ConfigError, shown, whole_number
from vog_hf.evaluation.validation import one_array, require_binary

# In the order of display: from the rows that are learned best to those that are never learned.
LEARNED_EARLY, LEARNED_LATE = "learned_early", "learned_late"
UNSTABLE, FORGOTTEN, NEVER_LEARNED = "unstable", "forgotten", "never_learned"
PATTERN_MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        LEARNED_EARLY: "correct from one of the first snapshots on (the window of vog_early) to the last",
        LEARNED_LATE: "correct from a later snapshot on to the last",
        UNSTABLE: "correct, then wrong, then correct again at least once",
        FORGOTTEN: "correct at first or for a while, then wrong to the last snapshot",
        NEVER_LEARNED: "wrong at every snapshot",
    }
)
PATTERNS = tuple(PATTERN_MEANINGS)


def learning_pattern(correct: npt.ArrayLike, *, early: int) -> npt.NDArray[np.str_]:
    """Learning pattern of each row, one of `PATTERNS`, from the correctness of its prediction at each snapshot.

    Consecutive snapshots with a correct prediction are a run:

    - no run: ``never_learned``;
    - one run, up to the last snapshot: ``learned_early`` if it begins within the first ``early`` snapshots, else
      ``learned_late``;
    - one run that ends before the last snapshot: ``forgotten``;
    - two runs or more: ``unstable``.

    With two snapshots there are no later ones to learn at or to learn again, so no row is ``learned_late`` or
    ``unstable``.

    The end of a run is a forgetting event, and a row that is learned and never forgotten an unforgettable one, as in
    Toneva et al. 2019 (arXiv 1812.05159), Definitions 1 and 2. ``learned_early``, ``unstable`` and ``never_learned``
    are what Dataset Cartography calls easy to learn, ambiguous and hard to learn, where it finds most wrong labels
    (Swayamdipta et al. 2020, arXiv 2009.10795, sections 2 and 5); it tells them by confidence and variability instead.

    Args:
        correct: ``[rows, snapshots]``, true where the prediction is the label; two snapshots or more, in the order of
            training.
        early: Number of first snapshots in which learning counts as early, the width of the window of ``vog_early``.

    Returns:
        ``[rows]``.

    Raises:
        ConfigError: Another shape, values that are not true or false, or ``early`` is out of range.

    Example:
        >>> learning_pattern([[1, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], early=2).tolist()
        ['learned_early', 'learned_late', 'unstable', 'forgotten', 'never_learned']
    """
    given = one_array("correct", correct)
    if given.ndim != 2 or given.shape[1] < 2:
        raise ConfigError(
            f"correct must be [rows, snapshots] with at least 2 snapshots, got shape {given.shape}; pass "
            "trajectory('prediction') == label[:, None]"
        )
    early = whole_number("early", early, 1, given.shape[1])
    if not given.size:
        return np.zeros(len(given), dtype="<U16")
    is_correct = require_binary("correct", given.ravel()).reshape(given.shape)
    before = np.pad(is_correct[:, :-1], ((0, 0), (1, 0)))  # nothing is correct before the first snapshot
    n_runs = (is_correct & ~before).sum(1)
    learned = np.where(is_correct.argmax(1) < early, LEARNED_EARLY, LEARNED_LATE)
    one_run = np.where(is_correct[:, -1], learned, FORGOTTEN)
    return np.select([n_runs == 0, n_runs == 1], [np.full(len(given), NEVER_LEARNED), one_run], UNSTABLE)


def learning_pattern_table(
    pattern: npt.ArrayLike, *, is_error: npt.ArrayLike, known_wrong: npt.ArrayLike | None = None
) -> pd.DataFrame:
    """Rows of each learning pattern, with the share of errors and, where known, of wrong labels.

    Args:
        pattern: ``[rows]``, one of `PATTERNS` each; None for rows without one, which are left out.
        is_error: ``[rows]``, whether the last prediction is not the label.
        known_wrong: ``[rows]``, whether the label is known to be wrong; None: not known.

    Returns:
        One line per pattern, in the order of `PATTERNS`: ``pattern``, ``rows``, ``share`` (0..1, of the rows with a
        pattern), ``error`` (0..1, of the rows of the pattern; NaN without rows) and, where known, ``known_wrong``
        (likewise).

    Raises:
        ConfigError: Lengths differ, or another pattern.

    Example:
        >>> table = learning_pattern_table(["forgotten", "learned_late", None], is_error=[True, False, True])
        >>> table[table["rows"] > 0].values.tolist()
        [['learned_late', 1, 0.5, 0.0], ['forgotten', 1, 0.5, 1.0]]
    """
    given = {"pattern": pattern, "error": is_error} | ({} if known_wrong is None else {"known_wrong": known_wrong})
    arrays = {name: one_array(name, values) for name, values in given.items()}
    if any(array.shape != (len(arrays["pattern"]),) for array in arrays.values()):
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ConfigError(f"pattern, is_error and known_wrong must be one value per row, got shapes {shapes}")
    table = pd.DataFrame(arrays).dropna(subset="pattern")
    other = [value for value in table["pattern"] if value not in PATTERN_MEANINGS]
    if other:
        raise ConfigError(f"a pattern must be one of {', '.join(PATTERNS)}, or None, got {shown(other[0])}")
    groups = table.groupby("pattern")
    counted = pd.DataFrame({"rows": groups.size()}).reindex(PATTERNS, fill_value=0)
    counted["share"] = counted["rows"] / max(len(table), 1)
    shares = groups[list(arrays)[1:]].mean().reindex(PATTERNS).astype(float)
    return counted.join(shares).rename_axis("pattern").reset_index()
