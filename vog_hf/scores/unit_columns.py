"""The units of rows as columns of lists in a dataset, aligned with the column of the labels."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import ClassLabel, Dataset, List, Value

from vog_hf.errors import DataError
from vog_hf.metric.row_units import RowUnits
from vog_hf.metric.unit_kinds import (
    BOX_COLUMNS,
    LABEL,
    OBJECT,
    POSITION,
    PREDICTED,
    PREDICTION,
    TOKEN,
    UNIT_KINDS,
    UnitKind,
)
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.unit_table import lists_of, parts_of_lists, units_of_lists
from vog_hf.scores.vog_scores import VoGScores

BOXES = (*BOX_COLUMNS, *(PREDICTED + side for side in BOX_COLUMNS))
# Mostly, the dataset has the labels and the boxes, and places are those of the model's tokens.
NOT_SCORES = (LABEL, POSITION, *BOXES)


def unit_kind(scores: VoGScores) -> UnitKind | None:
    """Kind of the rows' units; None for rows without units, and for units that this version does not know."""
    return None if scores.units is None else UNIT_KINDS.get(scores.units.unit)


def unit_column_names(scores: VoGScores) -> list[str]:
    """Columns of units that a dataset can get; none for rows without units."""
    if scores.units is None:
        return []
    kind = unit_kind(scores)
    shown = () if kind is None else kind.shown
    left_out = {scores.units.named(name) for name in NOT_SCORES if name not in shown}
    return [name for name in scores.units.columns if name not in left_out]


def unit_orders(scores: VoGScores) -> list[str]:
    """Columns of units by whose most extreme value rows can be ordered; none for rows without units."""
    if scores.units is None:
        return []
    names = {scores.units.named(name) for name in (*NOT_SCORES, PREDICTION)}
    return [name for name in unit_column_names(scores) if name not in names]


def coloring_column(scores: VoGScores) -> str | None:
    """The column of units by which words are colored: the loss, else VoG; None for rows without units.

    Example:
        >>> coloring_column(VoGScores({"vog": np.ones(2)}, {})) is None
        True
    """
    if scores.units is None or unit_kind(scores) is not TOKEN:
        return None
    return next((name for name in ("loss_token", "vog_token") if name in scores.units.columns), None)


def has_boxes(scores: VoGScores) -> bool:
    """Return whether rows have objects with boxes to be drawn, which scores from a dataset's columns do not have.

    Example:
        >>> has_boxes(VoGScores({"vog": np.ones(2)}, {}))
        False
    """
    units = scores.units
    return (
        units is not None and unit_kind(scores) is OBJECT and {units.named(name) for name in BOXES} <= {*units.columns}
    )


def class_of_unit(names: Sequence[str], label: int) -> str:
    """Name of a class of units, its number without names."""
    return str(names[label]) if 0 <= label < len(names) else str(label)


def unit_feature(split: ScoredSplit, name: str, declaration: str) -> List:
    """The feature of a column of units; its entries declare that they are scores, because a list keeps no ``id``."""
    units = _units(split.scores)
    values = units.column(name)
    if not np.issubdtype(values.dtype, np.integer):
        return List(Value("float32", id=declaration))
    classes = _classes(split, name)
    if int(values.max(initial=0)) >= len(classes):
        return List(Value("int32", id=declaration))
    return List(ClassLabel(names=classes, id=declaration))


def _classes(split: ScoredSplit, name: str) -> list[str]:
    """Names of the classes that a column of units holds numbers of; none where they are not known."""
    units, kind = _units(split.scores), unit_kind(split.scores)
    if name == units.named(PREDICTION) and split.label_lists is not None:
        return list(split.label_lists.names)
    of_labels = kind is not None and kind.labels_are_classes and name == units.named(LABEL)
    return [str(known) for known in split.scores.facts.unit_class_names] if of_labels else []


def unit_values(split: ScoredSplit, name: str) -> pa.Array:
    """A list per row: a value for each of its labels, null for those of words that the model did not see.

    Of units that every row has a place for, a value for each place, null where there is none.
    """
    units = _units(split.scores)
    values = units.column(name)
    values = values.astype(np.float32) if np.issubdtype(values.dtype, np.floating) else values.astype(np.int64)
    kind = unit_kind(split.scores)
    if kind is not None and kind.places is not None and units.named(POSITION) in units.columns:
        counts, is_seen = np.full(len(units), kind.places), _is_taken(units, kind.places)
    elif split.label_lists is not None:
        counts, is_seen = split.label_lists.counts, split.label_lists.is_unit(units)
    else:
        return lists_of(units.sizes, pa.array(values))
    spread = np.zeros(len(is_seen), dtype=values.dtype)
    spread[is_seen] = values
    return lists_of(counts, pa.array(spread, mask=~is_seen))


def units_from_columns(dataset: Dataset, columns_of: Iterable[tuple[str, str]]) -> RowUnits:
    """Units whose scores are columns of a dataset, given the name of each among the scores and in the dataset.

    Raises:
        DataError: The lists of a row differ in length.
    """
    names = dict(columns_of)
    table = dataset.select_columns(list(names.values())).with_format("arrow")[:]
    lists = {name: _without_null(table.column(column)) for name, column in names.items()}
    try:
        units = units_of_lists(lists)
    except ValueError as error:
        raise DataError(
            f"the columns {', '.join(names.values())} must have lists of one length in each row: {error}; add the "
            "scores again"
        ) from error
    kind = UNIT_KINDS.get(units.unit)
    if kind is None or kind.places is None:
        return units
    places = _places(table.column(next(iter(names.values()))))
    return RowUnits(units.sizes, {units.named(POSITION): places, **units.columns})


def _is_taken(units: RowUnits, n_places: int) -> npt.NDArray[np.bool_]:
    """Of each place of each row, row after row: whether it has a unit."""
    is_taken = np.zeros(len(units) * n_places, dtype=bool)
    is_taken[units.rows * n_places + units.column(units.named(POSITION))] = True
    return is_taken


def _places(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """Place in its list of each entry that is not null."""
    sizes, values = parts_of_lists(column)
    places = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places[values.is_valid().to_numpy(zero_copy_only=False)].astype(np.int32)


def _without_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists without their null entries: labels of words that the model did not see."""
    sizes, values = parts_of_lists(column)
    is_seen = values.is_valid().to_numpy(zero_copy_only=False)
    counts = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[is_seen], minlength=len(sizes))
    return pa.chunked_array([lists_of(counts, values.drop_null())])


def _units(scores: VoGScores) -> RowUnits:
    if scores.units is None:
        raise DataError("these scores have no units, because their task has none")
    return scores.units
