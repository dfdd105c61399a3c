"""One pass over a batch by a plan: forward, gradients, what the companions need."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.config import VoGConfig
from vog_hf.data.batch_reader import Batch
from vog_hf.errors import ConfigError, DataError, LabelError
from vog_hf.gradients.batchnorm_folding import Folding
from vog_hf.gradients.derived_tensors import DerivedTensors
from vog_hf.gradients.images_beside_texts import observed_images
from vog_hf.gradients.input_leaf import Forward, InputLeaf
from vog_hf.gradients.pair_sides import observed_sides
from vog_hf.gradients.sentence_encoders import parts_of_texts
from vog_hf.gradients.task import Task
from vog_hf.metric.batch_accumulator import BatchAccumulator
from vog_hf.metric.pixel_maps import MAP_BYTES
from vog_hf.metric.unit_kinds import CLASS, TOKEN, UnitKind
from vog_hf.metric.windows import Windows
from vog_hf.runtime.files import format_bytes

UNIT_BYTES = 50  # of one unit, on disk
LEAST_PATCH = 16  # pixels


@dataclass(frozen=True)
class ScoringPlan:
    """Everything that is the same for all batches and snapshots; a value: a `ModelRunner` has the state.

    Attributes:
        task: None where every target is a callable and the outputs have no logits.
        element_shape: Of one row of the first batch, after the channel mean.
        batch_seconds: Of forward and gradients on the first batch.
        batch_bytes: Of the first batch's tensors.
        dry_run_rows: Number of rows in the first batch.
        beside_bytes: Memory of the moments of one row's leaf beside the input: its images, or the other side of a pair.
        beside_shape: Shape of one row's other input of a dual encoder in the first batch.
        saved_bytes: Memory that the forward pass of the first batch keeps for its gradient; None: not known.
        batch_size: Number of rows in the others (see `BatchReader`).
        module: What is called: the model, or the compiled one.
        has_padding_mask: Whether batches say what is padding, so that a row's score does not depend on it.
        folding: BatchNorms that are folded while it is called.
        doubles_single_rows: Whether a batch of one row is scored as two copies (see `has_wrong_single_rows`).
        changes_state: Whether a forward changes the model, so that it is put back after every batch.
        derived: What the model derived from the weights it has, to be forgotten when it gets others.
        block_copies: How many times a block's collated rows are in memory: twice where the next block is read ahead.
        compared_shape: Shapes of the batch on which the dry run compared the fast way with the plain one.
    """

    config: VoGConfig
    task: Task | None
    leaf: InputLeaf
    channel_axis: int | None
    n_outputs: int | None
    element_shape: tuple[int, ...]
    dtype: torch.dtype
    batch_seconds: float
    batch_bytes: int
    dry_run_rows: int
    batch_size: int
    module: nn.Module
    has_padding_mask: bool
    folding: Folding = field(default_factory=Folding)
    block_copies: int = 1
    doubles_single_rows: bool = False
    changes_state: bool = False
    derived: DerivedTensors = field(default_factory=DerivedTensors)
    compared_shape: Hashable = None
    saved_bytes: int | None = None
    beside_bytes: int = 0
    beside_shape: tuple[int, ...] = ()

    @property
    def has_classes(self) -> bool:
        """True where each row has one class, within which scores are normalized."""
        return self.task is not None and self.task.has_classes

    @property
    def unit(self) -> UnitKind | None:
        """Kind of the rows' units; None for rows without."""
        if self.task is None:
            return None
        return TOKEN if self.config.token_units and self.task.has_token_units else self.task.unit

    @property
    def _most_units(self) -> int:
        """Units that a row may have."""
        if self.unit is None:
            return 0
        if self.unit.along_input:
            return self.element_shape[0]
        return self.unit.places or self.n_outputs or math.prod(self.element_shape) // LEAST_PATCH

    @property
    def row_seconds(self) -> float:
        """Time of forward and gradients of one row in a batch like the first one."""
        return self.batch_seconds / self.dry_run_rows

    @property
    def moment_bytes_per_row(self) -> int:
        """Memory of a row's moments."""
        moments = BatchAccumulator.bytes_per_row(self.element_shape, len(self.config.targets), self.dtype)
        return moments + self.beside_bytes

    def trajectory_bytes_per_row(self, n_snapshots: int) -> int:
        """Bytes of a row's trajectories."""
        return n_snapshots * BatchAccumulator.trajectory_bytes(self.config.loss_target)

    @property
    def bytes_per_row(self) -> int:
        """Memory of a row in a block, if it is like the first ones: its moments and its collated tensors."""
        return self.moment_bytes_per_row - (-self.block_copies * self.batch_bytes // self.dry_run_rows)

    def nbytes(self, batch: Batch) -> int:
        """Memory of a batch in a block: its moments and its collated tensors, of the length that they really have."""
        shape = self.leaf.kind.gradient_shape(self.shape(batch.inputs)[1:], self.element_shape)
        moments = BatchAccumulator.bytes_per_row(shape, len(self.config.targets), self.dtype)
        return len(batch) * (moments + self._beside_bytes(batch.inputs)) + self.block_copies * batch.nbytes

    def _beside_bytes(self, inputs: Mapping[str, Any]) -> int:
        """Memory of a row's moments of the leaf beside the input; texts of a dual encoder have several lengths."""
        other = self.leaf.beside
        if other is None:
            return self.beside_bytes
        return self.beside_bytes * math.prod(inputs[other.name].shape[1:]) // max(1, math.prod(self.beside_shape))

    def shape(self, inputs: Mapping[str, Any]) -> list[int]:
        """``[batch, *input]`` of the input itself (of token ids without the width), after the channel mean."""
        shape = list(inputs[self.leaf.name].shape)
        if self.channel_axis is not None:
            del shape[self.channel_axis]
        return shape

    def way(self, model: nn.Module) -> str | None:
        """The fast way that the model is run in, in words; None where it is run as it is."""
        is_compiled = self.module is not model
        return f"{self.folding}{', compiled' if is_compiled else ''}" if self.folding or is_compiled else None

    def plain(self, model: nn.Module) -> "ScoringPlan":
        """The same with the model run as it is."""
        return replace(self, module=model, folding=Folding())

    def counted_labels(self, batch: Batch) -> Tensor | None:
        """Labels of a batch without those at, or predicted from, padding."""
        if self.task is None:
            return batch.labels
        return self.task.counted_labels(batch.labels, {**batch.masks, **batch.inputs})

    def check(self, batch: Batch) -> None:
        """Raise DataError, naming the row, where a batch as it was read has a label or a mask that cannot be used."""
        self.check_labels(batch)
        self.require_elements(batch)

    def prediction(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        """Labels that the model predicts, ``[batch, ...]``.

        Raises:
            ConfigError: The task predicts none.
        """
        if self.task is None or not self.task.can_predict_label:
            name = "a model without a known task" if self.task is None else self.task.name
            raise ConfigError(f"{name} predicts no label; use label='given'", argument="label='given'")
        return self.task.prediction(self.task.logits(outputs, inputs))

    def check_labels(self, batch: Batch) -> None:
        """Raise DataError, naming the row, where a label is not one that the task can have."""
        labels = self.counted_labels(batch)
        if self.task is not None and labels is not None:
            check_labels(self.task, labels, self.n_outputs, batch.rows)
            with row_named(batch.rows):
                self.task.check_fit(labels, {**batch.masks, **batch.inputs})

    def to_memory_format(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs in the memory layout that the model is fastest in."""
        return {**inputs, self.leaf.name: self.folding.to_memory_format(inputs[self.leaf.name])}

    def disk_bytes(self, n_rows: int, n_snapshots: int) -> int:
        """Bytes that scoring this many rows takes on disk: trajectories, maps, units and columns.

        Twice, because finished blocks stay until the files that are made of them are whole.
        """
        heat_map = 2 * min(1024, self.leaf.kind.map_size(self.element_shape)) + 12 if self.config.heat_maps else 0
        units = UNIT_BYTES * self._most_units + (MAP_BYTES if self.unit is CLASS and self.config.heat_maps else 0)
        return 2 * n_rows * (self.trajectory_bytes_per_row(n_snapshots) + heat_map + units + 100)

    def estimate(self, n_rows: int, n_snapshots: int, block_rows: int) -> str:
        """One line for a person: rows, snapshots, memory of a block, disk, and time from the dry run's one batch."""
        in_memory = min(block_rows, n_rows)
        seconds = self.row_seconds * n_rows * n_snapshots
        return (
            f"{n_rows:,} rows x {n_snapshots} snapshots, {in_memory:,} rows at a time in about "
            f"{format_bytes(in_memory * self.bytes_per_row)} of memory, "
            f"{format_bytes(self.disk_bytes(n_rows, n_snapshots))} on disk, about {timedelta(seconds=round(seconds))} "
            "of computing"
        )

    def element_mask(self, batch: Batch) -> Tensor | None:
        """Mask of the elements of a batch that count; None = all of them."""
        inputs = {**batch.masks, **batch.inputs}
        return self.leaf.element_mask(inputs, self.shape(inputs))

    def require_elements(self, batch: Batch) -> None:
        """Raise DataError, naming the row, where a row of a batch has no element that counts."""
        mask = self.element_mask(batch)
        if mask is None:
            is_empty = 0 in self.shape(batch.inputs)
            empty, reason = torch.arange(len(batch) if is_empty else 0), f"{self.leaf.name} is empty"
        else:
            empty, reason = (~mask.flatten(1).any(1)).nonzero(), f"{self.leaf.kind.mask_name} is false everywhere"
        if len(empty):
            raise DataError(
                f"row {batch.rows[int(empty[0])]} has no element that counts: its {reason}{self.leaf.kind.emptiness}"
            )

    def observed_parts(self, forward: Forward) -> dict[str, Tensor]:
        """Observe the parts of the input that have columns of their own: images beside a text, both sides of a pair."""
        reduces = bool(self.config.reduce_channels)
        if self.leaf.beside is not None:
            return observed_sides(self.leaf, forward, reduce_channels=reduces)
        if self.leaf.embedding is None:
            return {}
        of_images = observed_images(forward.inputs, forward.x, forward.beside, reduce_channels=reduces)
        return of_images | parts_of_texts(forward.inputs)

    def accumulator(self, batch: Batch, windows: Windows) -> BatchAccumulator:
        """An empty accumulator for a batch on the device that passed `check`."""
        return self.accumulator_with(self.element_mask(batch), windows)

    def accumulator_with(self, mask: Tensor | None, windows: Windows) -> BatchAccumulator:
        """An empty accumulator for rows with this mask of elements that count; None = all."""
        return BatchAccumulator(
            self.config.column_names,
            windows,
            channel_axis=self.channel_axis,
            mask=mask,
            heat_maps=self.config.heat_maps,
            loss_target=self.config.loss_target,
            unit=self.unit,
        )


def tensor_shapes(inputs: Mapping[str, object], *, with_rows: bool) -> Hashable:
    """Shape of each tensor among a model's inputs, on which control flow may depend; with or without the rows' axis."""
    first = 0 if with_rows else 1
    return tuple((name, tuple(value.shape[first:])) for name, value in inputs.items() if isinstance(value, Tensor))


def check_labels(task: Task, labels: Tensor, n_outputs: int | None, rows: Sequence[int]) -> None:
    """Raise DataError, naming the row, where a label is not one that the task can have."""
    with row_named(rows):
        task.check_labels(labels, n_outputs)


@contextmanager
def row_named(rows: Sequence[int]) -> Iterator[None]:
    """Name the row in an error about the label of a row of a batch."""
    try:
        yield
    except LabelError as error:
        raise LabelError(f"row {rows[error.position]}: {error}", rows[error.position]) from error
