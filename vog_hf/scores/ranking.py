"""Rows ranked by a column of the scores, and their values as a person reads them: classes by name."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from vog_hf.errors import ConfigError
from vog_hf.evaluation import RANKING_COLUMNS
from vog_hf.scores.formatting import escaped
from vog_hf.scores.vog_scores import VoGScores


def ranking_column(scores: VoGScores) -> str:
    """The column that outputs rank by: VoG normalized within the class, else over the dataset, else raw; else the loss.

    Example:
        >>> ranking_column(VoGScores({"vog": np.ones(2), "vog_normalized": np.zeros(2)}, {}))
        'vog_normalized'
    """
    return next((name for name in (*RANKING_COLUMNS, "loss") if name in scores.column_names), "vog")


def raw_column(scores: VoGScores) -> str:
    """The column behind the ranking, not normalized: ``vog``, or ``loss`` in scores without VoG.

    Example:
        >>> raw_column(VoGScores({"loss": np.ones(2)}, {}))
        'loss'
    """
    return "vog" if "vog" in scores.column_names or "loss" not in scores.column_names else "loss"


def most_extreme(scores: VoGScores, column: str, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers with the highest and the lowest values of a column, most extreme first.

    Ties are in row order; NaN comes last in both. Of a column of units, a row counts by its most extreme unit.

    Returns:
        ``[count]`` and ``[count]``, fewer for a smaller dataset.

    Raises:
        ConfigError: ``count`` below 1, or no such column.

    Example:
        >>> highest, lowest = most_extreme(VoGScores({"vog": np.array([0.2, 0.9, 0.2, 0.5])}, {}), "vog", 2)
        >>> highest.tolist(), lowest.tolist()
        ([1, 3], [0, 2])
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}; pass a number of rows")
    lowest = values_to_rank(scores, column, highest=False)
    highest = values_to_rank(scores, column)
    return np.argsort(-highest, kind="stable")[:count], np.argsort(lowest, kind="stable")[:count]


def values_to_rank(scores: VoGScores, column: str, *, highest: bool = True) -> npt.NDArray[np.float64]:
    """Values of a column ``[rows]`` as floats; NaN also in a whole-number column for a row that was skipped.

    Args:
        scores: Scores of all rows.
        column: Column of rows, or of their units: then the highest value of each row counts.
        highest: Of units, whether it is the highest value that counts; else the lowest.

    Example:
        >>> scores = VoGScores({"vog": np.array([0.2, np.nan]), "forgetting": np.array([3, -1])}, {})
        >>> values_to_rank(scores, "forgetting").tolist()
        [3.0, nan]
    """
    if scores.units is not None and column in scores.units.columns:
        return scores.units.extreme(column, highest=highest)
    given = scores.column(column)
    values = given.astype(np.float64)
    if np.issubdtype(given.dtype, np.integer):
        values[is_skipped(scores) & (given == -1)] = np.nan
    return values


def is_skipped(scores: VoGScores, rows: npt.NDArray[np.int64] | slice = slice(None)) -> npt.NDArray[np.bool_]:
    """Mask of the rows (default: of all) without a score: its VoG (in scores without VoG, its loss) is NaN."""
    name = raw_column(scores)
    values = scores.column(name) if name in scores.column_names else np.zeros(len(scores))
    return np.isnan(values[rows].astype(np.float64))


def row_values(scores: VoGScores, column: str, rows: npt.ArrayLike) -> Sequence[str | int | float | None]:
    """Values of a column for some rows, as a reader wants them, all of one type: names of classes, texts or numbers.

    None for a row without a value: no label, NaN or infinity, or a row that was skipped.

    Example:
        >>> scores = VoGScores({"vog": np.ones(2), "label": np.array([1, -1])}, {"class_names": ["cat", "dog"]})
        >>> row_values(scores, "label", [0, 1])
        ['dog', None]
    """
    chosen = np.asarray(rows, dtype=np.int64)
    values = scores.column(column)[chosen]
    if values.dtype == object:
        return [None if value is None else str(value) for value in values]
    if not np.issubdtype(values.dtype, np.integer):
        return [float(value) if np.isfinite(value) else None for value in values]
    if column not in ("label", "prediction") or not has_classes(scores):
        blank = is_skipped(scores, chosen) & (values == -1)
        return [None if none else int(value) for value, none in zip(values, blank, strict=True)]
    return class_names(scores, values)


def has_classes(scores: VoGScores) -> bool:
    """Return whether each row has one class (then, and only then, scores are normalized within it)."""
    return scores.has_classes


def class_names(scores: VoGScores, classes: Iterable[int]) -> list[str | int | None]:
    """Names of classes by number; the numbers themselves if classes have no names; None for a negative number."""
    names = scores.facts.class_names
    if not names:
        return [None if c < 0 else int(c) for c in classes]
    return [None if c < 0 else escaped(str(names[c])) if c < len(names) else str(c) for c in classes]
