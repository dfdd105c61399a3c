"""BatchAccumulator: all values of one batch of rows, streamed over the snapshots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vog_hf.metric.definition import mean_over_elements, squared_norm
from vog_hf.metric.heat_maps import RaggedMaps, map_parts, pooled_maps, ragged_maps
from vog_hf.metric.host_copies import host_copies
from vog_hf.metric.input_parts import BESIDE, PART, PartAccumulator
from vog_hf.metric.moments import GradientMoments
from vog_hf.metric.pixel_maps import PIXEL, PixelMapAccumulator, units_of_pixels
from vog_hf.metric.row_units import UNIT, RowUnits, UnitAccumulator, ragged_units
from vog_hf.metric.training_dynamics import TrainingDynamics
from vog_hf.metric.unit_kinds import UnitKind
from vog_hf.metric.vocabulary import CSG
from vog_hf.metric.windows import Windows

OBSERVED_TRAJECTORIES = ("confidence", "prediction", "loss")


@dataclass(frozen=True)
class RowResults:
    """Final values of some rows: ``columns`` [rows], ``trajectories`` [rows, snapshots], what is of parts of rows.

    Attributes:
        heat_maps: Variance per element.
        units: Values of units.
        pixels: Maps of masks.
    """

    columns: dict[str, npt.NDArray[np.generic]]
    trajectories: dict[str, npt.NDArray[np.generic]]
    heat_maps: RaggedMaps | None
    units: RowUnits | None = None
    pixels: RowUnits | None = None


class BatchAccumulator:
    """Moments of every target and window, dynamics and trajectories of one collated batch.

    Args:
        column_names: Name of the VoG column of each target.
        windows: Planned snapshots and their windows.
        channel_axis: Axis of ``[batch, *input]`` to average first, None for none.
        mask: ``[batch, *first axes]`` after the channel mean, true for elements to include, at least one of each row;
            None = all.
        heat_maps: Pool the map of the first target at the end.
        loss_target: Position of the target of which the Cumulative Sample Gradient is kept; None for none.
        unit: What the units of rows are; None for rows without.

    Attributes:
        n_snapshots: Number of snapshots added.
        running: ``[targets, batch]``, the current VoG; not finite if a gradient was not.
    """

    def __init__(
        self,
        column_names: Sequence[str],
        windows: Windows,
        *,
        channel_axis: int | None,
        mask: Tensor | None,
        heat_maps: bool,
        loss_target: int | None = None,
        unit: UnitKind | None = None,
    ) -> None:
        self._names = tuple(column_names)
        self._windows = windows
        self._channel_axis = channel_axis
        self._mask = mask
        self._heat_maps = heat_maps
        self._loss_target = loss_target
        self._all: list[GradientMoments] = []
        self._late: list[GradientMoments] = []
        self._early: list[Tensor] = []
        self._magnitude: Tensor | None = None
        self._dynamics = TrainingDynamics()
        self._units = None if unit is None else UnitAccumulator(unit)
        self._pixels = PixelMapAccumulator()
        self._parts = PartAccumulator()
        self._trajectories: dict[str, list[Tensor]] = {}
        self.n_snapshots = 0
        self.running = torch.empty(0)

    @staticmethod
    def trajectory_bytes(loss_target: int | None) -> int:
        """Bytes of a row's trajectories per snapshot: VoG, the observed ones and the Cumulative Sample Gradient."""
        return 4 * (1 + len(OBSERVED_TRAJECTORIES) + (loss_target is not None))

    @staticmethod
    def bytes_per_row(element_shape: Sequence[int], n_targets: int, dtype: torch.dtype) -> int:
        """Memory of one row's moments: all snapshots and the late window, for each target."""
        return 2 * n_targets * GradientMoments.nbytes(1, element_shape, dtype)

    def update(self, gradients: Sequence[Tensor], observation: dict[str, Tensor]) -> None:
        """Add the next snapshot of training.

        Args:
            gradients: ``[batch, *input]`` per target.
            observation: ``[batch]`` by name; that of units, ``[batch, places]``, under names that begin with `UNIT`, of
                pixels, ``[batch, height, width]``, with `PIXEL`; and what a `PartAccumulator` takes.
        """
        of_units, of_pixels = _under(UNIT, observation), _under(PIXEL, observation)
        self._parts.update(observation)
        others = (UNIT, PIXEL, PART, BESIDE)
        observation = {name: values for name, values in observation.items() if not name.startswith(others)}
        per_snapshot = {name: observation[name] for name in OBSERVED_TRAJECTORIES if name in observation}
        if self._loss_target is not None:
            per_snapshot[CSG] = squared_norm(gradients[self._loss_target], self._mask, channel_axis=self._channel_axis)
        if self._channel_axis is not None:
            gradients = [gradient.mean(self._channel_axis) for gradient in gradients]
        if not self.n_snapshots:
            self._start(gradients)
        late = self._windows.is_late(self.n_snapshots)
        magnitude = mean_over_elements(gradients[0].abs().to(self._all[0].grad_mean.dtype), self._mask)
        self._magnitude = magnitude if self._magnitude is None else self._magnitude + magnitude
        can_overwrite = self._channel_axis is not None  # a mean is a new tensor; a gradient may share memory
        for i, gradient in enumerate(gradients):
            if late:
                self._late[i].update(slice(None), gradient)
            self._all[i].update(slice(None), gradient, consume=can_overwrite)
        self._dynamics.update(observation)
        if self._units is not None and of_units and (not self.n_snapshots or self._units.label is not None):
            self._units.update(of_units)
        if self._heat_maps and of_pixels and (not self.n_snapshots or self._pixels.has_begun):
            self._pixels.update(of_pixels)
        self.n_snapshots += 1
        self.running = torch.stack([moments.scores() for moments in self._all])
        if self.n_snapshots == self._windows.width:
            self._early = list(self.running)
        self._extend_trajectories({**per_snapshot, "vog": self.running[0]})

    def results(self, *, of_parts: bool = True) -> RowResults:
        """The current values; columns ``early`` and ``late`` only after all planned snapshots.

        Args:
            of_parts: Include what is of parts of the rows: heat maps, units and pixels.
        """
        columns: dict[str, Tensor] = {}
        for i, name in enumerate(self._names):
            columns[name] = self._all[i].scores()
            if self.n_snapshots == self._windows.n_snapshots:
                columns[f"{name}_early"] = self._early[i]
                columns[f"{name}_late"] = self._late[i].scores()
        if self._magnitude is not None:
            columns["gradient_magnitude"] = self._magnitude / self.n_snapshots
        columns |= self._dynamics.columns()
        columns = self._parts.columns(self._all[0].deviation(), self.n_snapshots) | columns
        if CSG in self._trajectories:
            columns[CSG] = torch.stack(self._trajectories[CSG], dim=1).mean(1)
        trajectories = {name: torch.stack(values, dim=1) for name, values in self._trajectories.items()}
        parts = map_parts(self._all[0].deviation(), self._mask) if of_parts and self._heat_maps else {}
        units = _as_stored(self._unit_columns()) if of_parts else {}
        pixels = _as_stored(self._pixels.columns(self.n_snapshots)) if of_parts else {}
        groups = {"columns": _as_stored(columns), "trajectories": _as_stored(trajectories), "map": parts}
        groups |= {"unit": units, "pixel": pixels}
        copies = host_copies({f"{group}/{name}": v for group, values in groups.items() for name, v in values.items()})
        return RowResults(
            {name: values.numpy() for name, values in _under("columns/", copies).items()},
            {name: values.numpy() for name, values in _under("trajectories/", copies).items()},
            ragged_maps(_under("map/", copies)) if parts else None,
            ragged_units(_under(UNIT, copies)) if units else None,
            units_of_pixels(_under(PIXEL, copies)) if pixels else None,
        )

    def _unit_columns(self) -> dict[str, Tensor]:
        """The columns of units, dense; {} without units."""
        if self._units is None or self._units.label is None:
            return {}
        deviations = {name: moments.deviation() for name, moments in zip(self._names, self._all, strict=True)}
        return self._units.columns(deviations, self._mask)

    def heat_maps(self) -> RaggedMaps | None:
        """The current maps of the first target; None if they are disabled."""
        return pooled_maps(self._all[0].deviation(), self._mask) if self._heat_maps else None

    def state(self) -> dict[str, Tensor]:
        """The state for `restore`; shares memory with the accumulator."""
        state = {f"dynamics/{name}": values for name, values in self._dynamics.state().items()}
        if self._units is not None:
            state |= {f"{UNIT}{name}": values for name, values in self._units.state().items()}
        state |= {f"{PIXEL}{name}": values for name, values in self._pixels.state().items()}
        state |= self._parts.state()
        for kind, several in (("all", self._all), ("late", self._late)):
            for i, moments in enumerate(several):
                state |= {f"{kind}/{i}/{name}": values for name, values in moments.state().items() if name != "mask"}
        state |= {f"early/{i}": values for i, values in enumerate(self._early)}
        state |= {f"trajectory/{name}": torch.stack(values, dim=1) for name, values in self._trajectories.items()}
        if self._magnitude is not None:
            state["magnitude"] = self._magnitude
        if self._mask is not None:
            state["mask"] = self._mask
        return state

    def restore(self, state: Mapping[str, Tensor], n_snapshots: int) -> None:
        """Restore the `state` after ``n_snapshots`` (at least one); tensors are not copied."""
        self.n_snapshots = n_snapshots
        self._mask = state.get("mask")
        self._dynamics = TrainingDynamics.from_state(_under("dynamics/", state), n_snapshots)
        if self._units is not None:
            self._units.restore(_under(UNIT, state), n_snapshots)
        self._pixels.restore(_under(PIXEL, state))
        self._parts.restore(state)
        self._all = [GradientMoments.from_state(_under(f"all/{i}/", state)) for i in range(len(self._names))]
        self._late = [GradientMoments.from_state(_under(f"late/{i}/", state)) for i in range(len(self._names))]
        for moments in (*self._all, *self._late):
            moments.mask = self._mask
        self._early = [state[f"early/{i}"] for i in range(len(self._names)) if f"early/{i}" in state]
        self._magnitude = state["magnitude"]
        self._trajectories = {name: list(values.unbind(1)) for name, values in _under("trajectory/", state).items()}

    def _extend_trajectories(self, values: Mapping[str, Tensor]) -> None:
        """Add one snapshot. What an earlier version did not keep from the first snapshot on is not begun later."""
        if self.n_snapshots == 1:
            self._trajectories = {name: [] for name in values}
        for name, trajectory in self._trajectories.items():
            trajectory.append(values[name])

    def _start(self, gradients: Sequence[Tensor]) -> None:
        for gradient in gradients:
            dtype = torch.promote_types(gradient.dtype, torch.float32)
            for moments in (self._all, self._late):
                moments.append(GradientMoments(len(gradient), gradient.shape[1:], dtype, device=gradient.device))
                moments[-1].mask = self._mask  # without the checks of `GradientMoments`, which wait for the device


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def _as_stored(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float64 stays float64 (the model was), other floats are float32, whole numbers int32."""
    return {
        name: values.to(torch.promote_types(values.dtype, torch.float32) if values.is_floating_point() else torch.int32)
        for name, values in columns.items()
    }
