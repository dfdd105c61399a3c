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
from vog_hf.metric.training_dynamics import TrainingDynamics
from vog_hf.metric.vocabulary import UNIT_LABEL, UNIT_PLACE, unit_column

UNIT = "unit/"  # begins the names of what is observed of units, among what is observed of rows
LABEL = "label"
NO_UNIT = -100  # the label of a place that is not a unit

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RowUnits:
    """Values of the units of rows, row after row.

    Attributes:
        sizes: ``[rows]``, number of units of each row.
        columns: ``[units]`` by name: ``label_token`` (the given label), ``position_token`` (place among the tokens of
            the row, padding left out) and the scores, each named after the column of rows.

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
    """What is observed of the units of a batch, streamed over the snapshots; everything is ``[batch, places]``."""

    def __init__(self) -> None:
        self.label: Tensor | None = None
        self._dynamics = TrainingDynamics()

    def update(self, observation: Mapping[str, Tensor]) -> None:
        """Add one snapshot: `vog_hf.metric.training_dynamics.classification_observation` of each place, its label."""
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
        """All columns, dense; {} without units.

        Args:
            deviations: ``[batch, places, *element]`` of each column of VoG; one of other places has no units.
            mask: ``[batch, places]``, true where there is no padding; None = all.
        """
        if self.label is None:
            return {}
        of_places = {
            name: values.flatten(2).mean(2)
            for name, values in deviations.items()
            if values.dim() > 2 and values.shape[:2] == self.label.shape
        }
        is_token = mask if mask is not None and mask.shape == self.label.shape else torch.ones_like(self.label)
        scores = {unit_column(name): values for name, values in (of_places | self._dynamics.columns()).items()}
        return {UNIT_LABEL: self.label, UNIT_PLACE: is_token.long().cumsum(1) - 1, **scores}


def ragged_units(dense: Mapping[str, Tensor]) -> RowUnits:
    """The units among the places of `UnitAccumulator.columns`, which are on the CPU."""
    is_unit = dense[UNIT_LABEL] != NO_UNIT
    return RowUnits(
        is_unit.sum(1).to(torch.int32).numpy(), {name: values[is_unit].numpy() for name, values in dense.items()}
    )
