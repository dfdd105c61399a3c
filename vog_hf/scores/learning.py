"""The learning pattern of each row of scores, or the reason why there is none."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vog_hf.errors import ConfigError
from vog_hf.evaluation import learning_pattern
from vog_hf.metric.vocabulary import LEARNING_PATTERN
from vog_hf.metric.windows import MIN_SNAPSHOTS, Windows

if TYPE_CHECKING:
    from vog_hf.scores.vog_scores import VoGScores


def no_pattern(scores: "VoGScores") -> str | None:
    """The reason why rows have no learning pattern; None if they have one."""
    if not scores.has_classes:
        return "the rows of these scores have no single class each (only single-label classification has it)"
    if "label" not in scores.column_names or not (scores.column("label") >= 0).any():
        return "no row of these scores has a label"
    if "prediction" not in scores.trajectory_names:
        return "these scores have no prediction for each snapshot (trajectory 'prediction')"
    if scores.trajectory("prediction").shape[1] < MIN_SNAPSHOTS:
        return f"these scores have fewer than {MIN_SNAPSHOTS} snapshots"
    return None


def learning_patterns(scores: "VoGScores") -> npt.NDArray[Any]:
    """Learning pattern of each row, ``[rows]`` texts; None without a label or with fewer than two observations.

    A pattern is over the snapshots that observed the row.

    Raises:
        ConfigError: The rows have none, see `no_pattern`.
    """
    if (reason := no_pattern(scores)) is not None:
        raise ConfigError(f"there is no column {LEARNING_PATTERN!r}, because {reason}; leave it out")
    prediction, label = scores.trajectory("prediction"), scores.column("label")
    patterns = np.full(len(scores), None, dtype=object)
    seen = np.asarray(prediction) >= 0  # a skipped row was never predicted; a training may leave rows out of an epoch
    count = seen.sum(1)
    for n_seen in np.unique(count[(count >= MIN_SNAPSHOTS) & (label >= 0)]):
        rows = np.flatnonzero((count == n_seen) & (label >= 0))
        predicted = prediction[rows][seen[rows]].reshape(len(rows), n_seen)
        early = Windows(int(n_seen)).width
        patterns[rows] = learning_pattern(predicted == label[rows, None], early=early)
    return patterns
