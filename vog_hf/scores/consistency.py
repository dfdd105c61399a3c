"""Checks that the parts of scores fit together: columns, classes, trajectories and heat maps."""

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vog_hf.errors import ConfigError, DataError, OutputFolderError, require_type, shown
from vog_hf.evaluation import PATTERNS
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.metric.vocabulary import LEARNING_PATTERN

if TYPE_CHECKING:
    from vog_hf.scores.vog_scores import VoGScores

MAX_CLASSES = 100_000


def n_values(values: Any) -> int | None:
    """Number of values; None for something that is not a list of values."""
    is_list = isinstance(values, Sized) and not isinstance(values, str | bytes) and getattr(values, "ndim", 1) > 0
    return len(values) if is_list else None


def require_one_per_row(columns: Mapping[str, object], optional: Mapping[str, object]) -> None:
    """Raise ConfigError unless all values have one length, and there is a column of numbers.

    Args:
        columns: Values by name.
        optional: More of them, each of which may be None.
    """
    given = {**columns, **{name: values for name, values in optional.items() if values is not None}}
    lengths = {name: n_values(values) for name, values in given.items()}
    if not set(columns) - {LEARNING_PATTERN} or None in lengths.values() or len(set(lengths.values())) > 1:
        raise ConfigError(f"columns must have one value per row each, got lengths {lengths}")


def named_values(values: Mapping[str, npt.NDArray[Any]], name: str, kind: str) -> npt.NDArray[Any]:
    """Values by their name; raises ConfigError with the names that there are."""
    require_type(f"the name of a {kind}", name, str, "pass one that these scores have")
    if name not in values:
        raise ConfigError(f"there is no {kind} {name!r}; these scores have {', '.join(values) or 'none'}")
    return values[name]


def row_numbers(rows: npt.ArrayLike, n_rows: int) -> npt.NDArray[np.int64]:
    """Row numbers as an array; raises ConfigError where they are not numbers of this many rows."""
    try:
        chosen = np.asarray(rows)
    except (TypeError, ValueError, RuntimeError):
        chosen = np.asarray(None)
    is_whole = np.issubdtype(chosen.dtype, np.integer) or chosen.size == 0
    if chosen.ndim != 1 or not is_whole or not ((chosen >= -n_rows) & (chosen < n_rows)).all():
        raise ConfigError(
            f"rows must be a list of whole numbers in 0..{n_rows - 1}, got {shown(rows)}; pass row numbers"
        )
    return chosen.astype(np.int64)


def class_count(scores: "VoGScores") -> int:
    """Number of classes: the number of names, or one more than the highest label or prediction.

    Raises:
        DataError: A label outside the named classes, or one of `MAX_CLASSES` or more.

    Example:
        >>> from vog_hf.scores import VoGScores
        >>> class_count(VoGScores({"vog": np.ones(2), "label": np.array([0, 4])}, {}))
        5
    """
    count = names = len(scores.facts.class_names or [])
    for name in {"label", "prediction"} & {*scores.column_names} if len(scores) else ():
        values = scores.column(name)
        highest, most = int(values.max()), names if names and name == "label" else MAX_CLASSES
        if highest >= most:
            raise DataError(
                f"row {int(values.argmax())} has the {name} {highest:,}, and there are at most {most:,} classes; pass "
                "scores with the labels and class names of the same data"
            )
        count = max(count, highest + 1)
    return count


def require_fitting(scores: "VoGScores", heat_maps: RaggedMaps | None, folder: Path) -> None:
    """Raise OutputFolderError where the parts of scores that a folder holds do not fit together."""
    fault = fault_in_scores(scores, heat_maps)
    if fault is not None:
        raise OutputFolderError(
            f"the scores in {folder} do not fit together: {fault}; restore the folder, or score again"
        )


def fault_in_scores(scores: "VoGScores", heat_maps: RaggedMaps | None) -> str | None:
    """The reason why columns, trajectories and heat maps are not of the same rows or classes; None if they are."""
    fault = _fault_in_trajectories(scores) or _fault_in_columns(scores)
    return fault or (None if heat_maps is None else heat_maps.fault(len(scores)))


def _fault_in_columns(scores: "VoGScores") -> str | None:
    for name in scores.column_names:
        kind = scores.column(name).dtype
        if not (np.issubdtype(kind, np.number) or np.issubdtype(kind, np.bool_)):
            return f"the column {name!r} holds {kind}, expected numbers"
    if scores.text_column_names:
        unknown = set(scores.column(LEARNING_PATTERN).tolist()) - {None, *PATTERNS}
        if unknown:
            return (
                f"the column {LEARNING_PATTERN!r} holds {shown(unknown.pop())}, expected one of {', '.join(PATTERNS)}"
            )
    if not scores.has_classes:
        return None
    for name in {"label", "prediction"} & {*scores.column_names}:
        if not np.issubdtype(scores.column(name).dtype, np.integer):
            return f"the column {name!r} holds {scores.column(name).dtype}, expected whole numbers of classes"
    try:
        class_count(scores)
    except DataError as error:
        return str(error)
    return None


def _fault_in_trajectories(scores: "VoGScores") -> str | None:
    n_snapshots = len(scores.facts.snapshots)
    for name in scores.trajectory_names:
        shape = scores.trajectory(name).shape
        if len(shape) != 2 or shape[0] != len(scores) or (n_snapshots and shape[1] != n_snapshots):
            expected = f"[{len(scores)}, {n_snapshots or 'snapshots'}]"
            return f"the trajectory {name!r} has the shape {list(shape)}, expected {expected}"
    return None
