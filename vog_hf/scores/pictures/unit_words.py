"""The words of a row with the scores of its units: colored by one of them, with labels to be shown when pointed at."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vog_hf.metric.row_units import RowUnits
from vog_hf.metric.unit_kinds import LABEL, POSITION, PREDICTION
from vog_hf.scores.formatting import number
from vog_hf.scores.pictures.words import Word
from vog_hf.scores.unit_columns import class_of_unit, coloring_column
from vog_hf.scores.vog_scores import VoGScores

NOTED = {LABEL: "label", PREDICTION: "predicted", "loss": "loss", "vog": "VoG"}


def words_of_units(scores: VoGScores, row: int, words: Sequence[str], names: Sequence[str] = ()) -> list[Word] | None:
    """The words of a row, of which the first ones are its units; None where it has more units than words.

    Args:
        scores: Scores with units.
        row: Number of the row.
        words: Its words, as the column of its labels has an entry for each.
        names: Names of the classes of units; default: those that the manifest knows.
    """
    column, units = coloring_column(scores), scores.units
    if column is None or units is None or not units.sizes[row] or units.sizes[row] > len(words):
        return None
    names = names or scores.facts.unit_class_names
    shares, notes, differs = _shares(units.of_row(column, row)), _notes(units, row, names), _mismatched(units, row)
    parts: list[Word] = []
    for at, word in enumerate(words):
        parts += [Word(" ")] if at else []
        is_unit = at < len(shares)
        parts.append(
            Word(word, shares[at], note=notes[at], is_mismatched=differs[at]) if is_unit else Word(word, is_unseen=True)
        )
    return parts


def heat_of_units(scores: VoGScores, row: int, n_tokens: int) -> npt.NDArray[np.float32] | None:
    """The coloring column on all tokens of a row, ``[tokens]``, 0 where a token is not a unit; None without units."""
    column, units = coloring_column(scores), scores.units
    if column is None or units is None or units.named(POSITION) not in units.columns or not units.sizes[row]:
        return None
    places, values = units.of_row(units.named(POSITION), row), units.of_row(column, row)
    if places.max() >= n_tokens:
        return None
    heat = np.zeros(n_tokens, dtype=np.float32)
    heat[places] = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    return heat


def _shares(values: npt.NDArray[Any]) -> list[float]:
    """Shares of the largest value of the row."""
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    return (finite / (finite.max() or 1.0)).tolist()


def _mismatched(units: RowUnits, row: int) -> list[bool]:
    label, prediction = units.named(LABEL), units.named(PREDICTION)
    if not {label, prediction} <= set(units.columns):
        return [False] * int(units.sizes[row])
    return (units.of_row(label, row) != units.of_row(prediction, row)).tolist()


def _notes(units: RowUnits, row: int, names: Sequence[str]) -> list[str]:
    """Label, prediction and scores of each unit, in words."""
    lines: list[list[str]] = [[] for _ in range(int(units.sizes[row]))]
    for name, heading in NOTED.items():
        if units.named(name) in units.columns:
            for line, value in zip(lines, units.of_row(units.named(name), row).tolist(), strict=True):
                is_class = name in (LABEL, PREDICTION)
                line.append(f"{heading} {class_of_unit(names, value) if is_class else number(value)}")
    return [", ".join(line) for line in lines]
