"""The units of a row in words: ends of its answer, its choices, classes of its mask, its two sides, its objects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vog_hf.metric.row_units import RowUnits
from vog_hf.metric.unit_kinds import CHOICE, CLASS, END, LABEL, OBJECT, POSITION, PREDICTION, SIDE, UNIT_KINDS
from vog_hf.scores.formatting import number, shortened
from vog_hf.scores.unit_columns import class_of_unit
from vog_hf.scores.vog_scores import VoGScores

LISTED = (END, CHOICE, CLASS, SIDE, OBJECT)  # a row has few of these; words show tokens, and pictures show patches
MAX_LINES = 12
MAX_CHOICE = 120  # characters of a choice's text in its line
PLACES = {END: ("start", "end"), SIDE: ("chosen", "rejected")}
NOTED = {
    "loss": "loss",
    "iou": "IoU",
    "confidence": "confidence",
    "correctness": "correctness",
    "logp": "log-probability",
}
NOTED |= {"reward": "reward", "vog": "VoG"}


@dataclass(frozen=True)
class UnitLine:
    """A unit in words.

    Attributes:
        text: What it is and what is known of it.
        is_mismatched: Whether it is given and not predicted, or the other way round.
    """

    text: str
    is_mismatched: bool = False


def unit_lines(
    scores: VoGScores, row: int, part: Callable[[int, int], str | None], choices: Sequence[str] | None = None
) -> list[UnitLine]:
    """The units of a row, the worst ones first where there are too many; [] for kinds that are not `LISTED`.

    Args:
        scores: Scores of all rows.
        row: Number of the row.
        part: Text of the row from one token to another, None where it is not known.
        choices: Text of each choice of the row; None: they are not known, or it has none.
    """
    units = scores.units
    kind = None if units is None else UNIT_KINDS.get(units.unit)
    if units is None or kind not in LISTED or not units.sizes[row]:
        return []
    lines = [_line(scores, units, row, at, choices) for at in _worst(units, row)]
    return lines + (_answers(units, row, part) if kind is END else [])


def unit_name(units: RowUnits, row: int, at: int, names: Sequence[str] = ()) -> str:
    """Name of a unit of a row: its class, its place, or one of the two of the row.

    Args:
        units: Units of all rows.
        row: Number of the row.
        at: Number of the unit in it.
        names: Names of the classes of units.

    Example:
        >>> unit_name(RowUnits(np.array([2]), {"position_end": np.array([0, 1])}), 0, 1)
        'end'
    """
    kind = UNIT_KINDS.get(units.unit)
    if kind is CLASS:
        return class_of_unit(names, int(units.of_row(units.named(LABEL), row)[at]))
    has_place = units.named(POSITION) in units.columns
    place = int(units.of_row(units.named(POSITION), row)[at]) if has_place else at
    return PLACES[kind][place] if kind in PLACES else f"{units.unit} {place}"


def _worst(units: RowUnits, row: int) -> list[int]:
    """Numbers of the units to show, in their order; of too many, those with the highest loss."""
    n_units, loss = int(units.sizes[row]), units.named("loss")
    if n_units <= MAX_LINES or loss not in units.columns:
        return list(range(min(n_units, MAX_LINES)))
    return sorted(np.argsort(-units.of_row(loss, row), kind="stable")[:MAX_LINES].tolist())


def _line(scores: VoGScores, units: RowUnits, row: int, at: int, choices: Sequence[str] | None) -> UnitLine:
    known = {name: units.of_row(units.named(name), row)[at] for name in NOTED if units.named(name) in units.columns}
    noted = [f"{NOTED[name]} {number(value)}" for name, value in known.items()]
    given, predicted = _marks(scores, units, row, at)
    marks = [mark for mark in (given, predicted) if mark]
    name = unit_name(units, row, at, scores.facts.unit_class_names)
    if choices is not None:
        name = f"{name} ({shortened(choices[int(units.of_row(units.named(POSITION), row)[at])], MAX_CHOICE)})"
    text = f"{name}: {', '.join([*marks, *noted])}"
    is_compared = units.unit in (END.name, OBJECT.name)
    differs = _differ(units, row, at) if is_compared else bool(given) != bool(predicted)
    return UnitLine(text, is_mismatched=differs)


def _marks(scores: VoGScores, units: RowUnits, row: int, at: int) -> tuple[str, str]:
    """Words that say that a unit is given and predicted; empty where nothing does."""
    if units.unit == CHOICE.name:
        both = [scores.column(name)[row] if name in scores.column_names else -1 for name in (LABEL, PREDICTION)]
        place = units.of_row(units.named(POSITION), row)[at]
        return "given" * bool(both[0] == place), "predicted" * bool(both[1] == place)
    if units.unit not in (END.name, OBJECT.name):
        return "", ""
    columns = [units.named(name) for name in (LABEL, PREDICTION)]
    known = [int(units.of_row(name, row)[at]) if name in units.columns else None for name in columns]
    names = scores.facts.unit_class_names
    given, predicted = (
        "" if k is None else f"token {k}" if units.unit == END.name else class_of_unit(names, k) for k in known
    )
    return given and f"given {given}", predicted and f"predicted {predicted}"


def _differ(units: RowUnits, row: int, at: int) -> bool:
    label, prediction = units.named(LABEL), units.named(PREDICTION)
    if not {label, prediction} <= set(units.columns):
        return False
    return bool(units.of_row(label, row)[at] != units.of_row(prediction, row)[at])


def _answers(units: RowUnits, row: int, part: Callable[[int, int], str | None]) -> list[UnitLine]:
    """The given and the predicted answer in the words of the row, where both ends of it are known."""
    lines = []
    for name, heading in ((LABEL, "given answer"), (PREDICTION, "predicted answer")):
        if units.sizes[row] == len(PLACES[END]) and units.named(name) in units.columns:
            first, last = units.of_row(units.named(name), row).tolist()
            if text := part(first, last):
                lines.append(UnitLine(f"{heading}: {text}"))
    return lines
