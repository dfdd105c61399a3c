"""RowUnits: values of the units of rows (the labeled tokens of a text), as many for each row as it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from vog_hf.errors import ConfigError
from vog_hf.metric.definition import mean_over_elements
from vog_hf.metric.training_dynamics import TrainingDynamics
from vog_hf.metric.unit_kinds import BOX_COLUMNS, LABEL, POSITION, PREDICTED, UnitKind, unit_column

UNIT = "unit/"  # begins the names of what is observed of units, among what is observed of rows
NO_UNIT = -100  # the label of a place that is not a unit
IS_UNIT = "is_unit"
GIVEN_BOX, PREDICTED_BOX = "given_box", "predicted_box"  # of objects, [batch, places, 4]: center, width and height

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RowUnits:
    """Values of the units of rows, row after row.

    Attributes:
        sizes: ``[rows]``, number of units of each row.
        columns: ``[units]`` by name: ``label_token`` (the given label), ``position_token`` (place among the tokens of
            the row, padding left out) and the scores, each named after the column of rows and the kind of unit.

    Example:
        >>> units = RowUnits(np.array([2, 0, 1]), {"loss_token": np.array([0.5, 2.0, 1.0])})
        >>> units.of_row("loss_token", 0).tolist(), units.of_row("loss_token", 1).tolist()
        ([0.5, 2.0], [])
    """

    sizes: npt.NDArray[np.int32]
    columns: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """``[rows + 1]``, where the units of each row begin, and where the last ones end."""
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    @cached_property
    def unit(self) -> str:
        """Name of a unit, with which the names of all columns end: ``token``."""
        return next(iter(self.columns)).rpartition("_")[2]

    def named(self, name: str) -> str:
        """Name of a column of these units, after that of rows: ``loss_token`` for ``loss``."""
        return unit_column(name, self.unit)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Row number of each unit, ``[units]``."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def column(self, name: str) -> Array:
        """A column of all units, ``[units]``, row after row.

        Raises:
            ConfigError: There is no such column.
        """
        if name not in self.columns:
            raise ConfigError(f"there is no column {name!r} of units; these have {', '.join(self.columns)}")
        return self.columns[name]

    def of_row(self, name: str, row: int) -> Array:
        """A column of the units of one row, in their order: ``[units of the row]``."""
        return self.column(name)[self._starts[row] : self._starts[row + 1]]

    def select(self, rows: npt.ArrayLike) -> "RowUnits":
        """The units of some rows ``[n]``, in the order of these rows; negative numbers count from the end."""
        chosen = np.arange(len(self))[np.asarray(rows, dtype=np.int64)]
        sizes = self.sizes[chosen]
        before = np.cumsum(sizes, dtype=np.int64) - sizes
        at = np.repeat(self._starts[chosen] - before, sizes) + np.arange(sizes.sum())
        return RowUnits(sizes, {name: values[at] for name, values in self.columns.items()})

    def without(self, rows: Sequence[int]) -> "RowUnits":
        """The same with no unit in some rows, given by their numbers."""
        sizes = self.sizes.copy()
        sizes[rows] = 0
        kept = np.repeat(sizes > 0, self.sizes)
        return RowUnits(sizes, {name: values[kept] for name, values in self.columns.items()})

    def extreme(self, name: str, *, highest: bool = True) -> npt.NDArray[np.float64]:
        """The highest (or lowest) value among the units of each row, ``[rows]``; NaN for a row without a finite one.

        Example:
            >>> RowUnits(np.array([2, 0]), {"loss_token": np.array([0.5, 2.0])}).extreme("loss_token").tolist()
            [2.0, nan]
        """
        sign = 1.0 if highest else -1.0
        values, extremes = sign * self.column(name).astype(np.float64), np.full(len(self), -np.inf)
        np.maximum.at(extremes, self.rows, np.where(np.isfinite(values), values, -np.inf))
        return np.where(np.isfinite(extremes), sign * extremes, np.nan)

    def to_pandas(self) -> pd.DataFrame:
        """All units as a table with one line per unit: the row's number, the number of the unit in it, the columns."""
        number = np.arange(self._starts[-1]) - np.repeat(self._starts[:-1], self.sizes)
        return pd.DataFrame({"row": self.rows, "unit": number, **self.columns})


class UnitAccumulator:
    """Moments of the units of a batch, streamed over the snapshots; everything is ``[batch, places]``.

    Args:
        kind: What the units are.
    """

    def __init__(self, kind: UnitKind) -> None:
        self.label: Tensor | None = None
        self._kind = kind
        self._dynamics = TrainingDynamics()

    def update(self, observation: Mapping[str, Tensor]) -> None:
        """Add one snapshot: `vog_hf.metric.training_dynamics.classification_observation` of each place, its label.

        Of objects also the given and the predicted box, which are kept of the last snapshot.
        """
        self.label = observation[LABEL]
        self._dynamics.update({name: values for name, values in observation.items() if name != LABEL})

    def state(self) -> dict[str, Tensor]:
        """The state for `restore`; shares memory with the accumulator."""
        return {} if self.label is None else {LABEL: self.label, **self._dynamics.state()}

    def restore(self, state: Mapping[str, Tensor], n_snapshots: int) -> None:
        """Restore the `state` after ``n_snapshots``; of an earlier version, that had none, nothing is begun."""
        self.label = state.get(LABEL)
        self._dynamics = TrainingDynamics.from_state({k: v for k, v in state.items() if k != LABEL}, n_snapshots)

    def columns(self, deviations: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        """All columns, dense, and whether a place `IS_UNIT`; {} without units.

        Args:
            deviations: ``[batch, places, *element]`` of each column of VoG; one of other places has no units.
            mask: ``[batch, places, ...]``, true where there is no padding; None = all.
        """
        if self.label is None:
            return {}
        is_element = mask if self._kind.along_input and mask is not None and mask.shape == self.label.shape else None
        counts = torch.ones_like(self.label) if is_element is None else is_element
        known = {LABEL: self.label, POSITION: counts.long().cumsum(1) - 1}
        described = {name: known[name] for name in self._kind.described_by}
        columns = described | self._vog(self.label, deviations, mask) | self._dynamics.columns()
        if GIVEN_BOX in self._dynamics.last:
            columns |= _sides(self._dynamics.last[GIVEN_BOX], mask)
            predicted = _sides(self._dynamics.last[PREDICTED_BOX], mask)
            columns |= {PREDICTED + name: values for name, values in predicted.items()}
        named = {unit_column(name, self._kind.name): values for name, values in columns.items()}
        return {IS_UNIT: (self.label != NO_UNIT).long(), **named}

    def _vog(self, label: Tensor, deviations: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        """VoG of each place, where places are those of the input; padding inside of a place is left out."""
        inside = mask.flatten(0, 1) if mask is not None and mask.dim() > 2 else None
        return {
            name: mean_over_elements(values.flatten(0, 1), inside).view_as(label)
            for name, values in deviations.items()
            if self._kind.along_input and values.dim() > 2 and values.shape[:2] == label.shape
        }


def _sides(box: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """The sides of boxes as shares of the picture, which is in the upper left corner of the padded input."""
    if mask is not None and mask.dim() == 3:
        extent = torch.stack([mask.any(axis).float().mean(-1) for axis in (1, 2)], dim=-1)
        box = box / torch.cat([extent, extent], dim=-1).unsqueeze(1).to(box.dtype)
    center, size = box[..., :2], box[..., 2:]
    return dict(zip(BOX_COLUMNS, torch.cat([center - size / 2, size], dim=-1).unbind(-1), strict=True))


def ragged_units(dense: Mapping[str, Tensor]) -> RowUnits:
    """The units among the places of `UnitAccumulator.columns`, which are on the CPU."""
    is_unit = dense[IS_UNIT] > 0
    columns = {name: values[is_unit].numpy() for name, values in dense.items() if name != IS_UNIT}
    return RowUnits(is_unit.sum(1).to(torch.int32).numpy(), columns)
