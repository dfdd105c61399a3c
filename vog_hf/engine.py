"""One pass: what is differentiated w.r.t. what, resolved once; then forward and gradients of a batch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from vog_hf.accumulate import BatchAccumulator, Windows
from vog_hf.batches import Batch, BatchReader
from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, DataError, LabelError, ModelError, NonFiniteError
from vog_hf.files import format_bytes
from vog_hf.gradients import (
    Forward,
    InputLeaf,
    averaged_axis,
    find_leaf,
    forward_from_leaf,
    model_device_and_dtype,
    placed,
    preserved_rng,
    scoring_mode,
    target_gradients,
)
from vog_hf.snapshots import lend_weights
from vog_hf.targets import TASKS, Task, check_target, fill_missing_labels, find_logits, find_task

PADDING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ScoringPlan:
    """Everything that is the same for all batches and snapshots.

    Attributes:
        task: None where every target is a callable and the outputs have no logits.
        element_shape: Of one row of the first batch, after the channel mean.
        batch_seconds: Of forward and gradients on the first batch.
        batch_bytes: Of the first batch's tensors.
        first_rows: Number of rows in the first batch.
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
    first_rows: int

    @property
    def has_classes(self) -> bool:
        """Whether each row has one class, within which scores are normalised."""
        return self.task is not None and self.task.has_classes

    @property
    def moment_bytes_per_row(self) -> int:
        """Memory of a row's moments."""
        return BatchAccumulator.bytes_per_row(self.element_shape, len(self.config.targets), self.dtype)

    @property
    def bytes_per_row(self) -> int:
        """Memory of a row in a block: its moments and its collated tensors."""
        return self.moment_bytes_per_row + self.batch_bytes // self.first_rows

    def disk_bytes(self, n_rows: int, n_snapshots: int) -> int:
        """What scoring this many rows takes on disk: 12 bytes a row and snapshot, maps and columns.

        Twice, because finished blocks stay until the files that are made of them are whole.
        """
        mapped = self.element_shape[0] if self.leaf.embedding is not None else int(np.prod(self.element_shape))
        heat_map = 2 * min(1024, mapped) + 12 if self.config.heat_maps else 0
        return 2 * n_rows * (12 * n_snapshots + heat_map + 100)

    def estimate(self, n_rows: int, n_snapshots: int, block_rows: int) -> str:
        """One line for a person: rows, snapshots, memory of a block, disk, and time from the dry run's one batch."""
        in_memory = min(block_rows, n_rows)
        seconds = self.batch_seconds / self.first_rows * n_rows * n_snapshots
        return (
            f"{n_rows:,} rows x {n_snapshots} snapshots, {in_memory:,} rows at a time in about "
            f"{format_bytes(in_memory * self.bytes_per_row)} of memory, "
            f"{format_bytes(self.disk_bytes(n_rows, n_snapshots))} on disk, about {timedelta(seconds=round(seconds))} "
            "of computing"
        )

    def accumulator(self, inputs: dict[str, Any], windows: Windows) -> BatchAccumulator:
        """An empty accumulator for a batch whose inputs are placed."""
        shape = list(inputs[self.leaf.name].shape)
        if self.channel_axis is not None:
            del shape[self.channel_axis]
        return BatchAccumulator(
            self.config.column_names,
            windows,
            channel_axis=self.channel_axis,
            mask=self.leaf.element_mask(inputs, shape),
            heat_maps=self.config.heat_maps,
        )


def plan_scoring(model: nn.Module, reader: BatchReader, config: VoGConfig, rows: range) -> ScoringPlan:
    """The dry run: read ``rows`` (twice), one forward, one gradient per target; raises what would go wrong later.

    The model and all random states are left as they were.

    Raises:
        DataError, ModelError, ConfigError, NonFiniteError: What is wrong with rows, labels, model or configuration.
    """
    reader.check_deterministic(rows)
    with preserved_rng(), lend_weights(model, {}, cast_up=config.dtype == "float32"), scoring_mode(model):
        batch = next(reader.read([rows]))
        device, dtype = model_device_and_dtype(model)
        inputs = placed(batch.inputs, device, dtype)
        leaf = find_leaf(model, inputs)
        began = time.perf_counter()
        forward = _first_forward(model, inputs, leaf, rows)
        task, n_outputs = _resolve_task(model, config, forward.outputs, batch.labels)
        labels = _first_labels(reader, config, task, forward.outputs, batch)
        labels = labels.to(device) if labels is not None else None
        gradients = target_gradients(config.targets, task, forward, labels)
        for gradient in gradients:
            require_finite_rows(gradient.reshape(len(gradient), -1).sum(1), batch.rows, "the model as it is now")
        seconds = time.perf_counter() - began
        channel_axis = averaged_axis(config.reduce_channels, leaf, forward.x.shape)
        shape = [n for axis, n in enumerate(forward.x.shape) if axis not in (0, channel_axis)]
        return ScoringPlan(
            config=config,
            task=task,
            leaf=leaf,
            channel_axis=channel_axis,
            n_outputs=n_outputs,
            element_shape=tuple(shape),
            dtype=torch.promote_types(gradients[0].dtype, torch.float32),
            batch_seconds=seconds,
            batch_bytes=batch.nbytes,
            first_rows=len(batch),
        )


def padding_difference(model: nn.Module, reader: BatchReader, plan: ScoringPlan, rows: range) -> float | None:
    """How much the gradient of the shortest of ``rows`` changes when it is not alone in its batch, relative.

    None where no row is padded. Above `PADDING_TOLERANCE` a model does not leave padding out (group norm over time in
    some speech models), and scores depend on what a row is batched with.
    """
    with preserved_rng(), lend_weights(model, {}, cast_up=plan.config.dtype == "float32"), scoring_mode(model):
        device, dtype = model_device_and_dtype(model)
        batch = next(reader.read([rows]))
        mask = plan.leaf.element_mask(batch.inputs, batch.inputs[plan.leaf.name].shape)
        if mask is None or mask.dim() < 2 or bool(mask.all()):
            return None
        shortest = int(mask.flatten(1).sum(1).argmin())
        alone = next(reader.read([rows[shortest : shortest + 1]]))
        gradients = []
        for part, at in ((batch, shortest), (alone, 0)):
            inputs = placed(part.inputs, device, dtype)
            forward = forward_from_leaf(model, inputs, plan.leaf)
            labels = None if part.labels is None else part.labels.to(device)
            if plan.task is not None and plan.task.can_predict_label:
                labels = fill_missing_labels(labels, find_logits(forward.outputs).argmax(-1))
            gradient = target_gradients(plan.config.targets[:1], plan.task, forward, labels)[0]
            kept = plan.leaf.element_mask(inputs, gradient.shape)
            gradients.append(gradient[at] if kept is None else gradient[at][kept[at]])
        together, single = gradients
        if together.shape != single.shape:
            return None
        return float((together - single).norm() / single.norm().clamp(min=torch.finfo(single.dtype).tiny))


def predictions(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The predicted class of each row, ``[batch]``, of the model as it is."""
    with torch.no_grad():
        return find_logits(model(**inputs)).argmax(-1)


def score_batch(
    model: nn.Module, plan: ScoringPlan, inputs: dict[str, Any], labels: Tensor | None
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients of every target and the observation for the companions, of one batch and the model as it is."""
    forward = forward_from_leaf(model, inputs, plan.leaf)
    gradients = target_gradients(plan.config.targets, plan.task, forward, labels)
    if plan.task is None:
        return gradients, {}
    with torch.no_grad():
        logits = find_logits(forward.outputs).detach()
        return gradients, plan.task.observation(logits.to(plan.dtype), labels)


def sliced(
    inputs: dict[str, Any], labels: Tensor | None, rows: slice, n_rows: int
) -> tuple[dict[str, Any], Tensor | None]:
    """Some rows of a batch of ``n_rows``: of what has a value per row; everything else is the same for all rows."""
    if rows.start == 0 and rows.stop >= n_rows:
        return inputs, labels
    part = {
        name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (n_rows,) else value
        for name, value in inputs.items()
    }
    return part, None if labels is None else labels[rows]


def joined(parts: Sequence[tuple[list[Tensor], dict[str, Tensor]]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What `score_batch` would have given for all rows at once."""
    if len(parts) == 1:
        return parts[0]
    gradients = [torch.cat(several) for several in zip(*(part for part, _ in parts), strict=True)]
    return gradients, {name: torch.cat([observed[name] for _, observed in parts]) for name in parts[0][1]}


def used_labels(plan: ScoringPlan, labels: Tensor | None, prediction: Tensor | None) -> Tensor | None:
    """The class whose scalar is differentiated: the given one, or the last snapshot's prediction."""
    if plan.task is None or not plan.task.can_predict_label or prediction is None:
        return labels
    return prediction if plan.config.label == "predicted" else fill_missing_labels(labels, prediction)


def needs_prediction(plan: ScoringPlan, batches: Sequence[Batch]) -> bool:
    """Whether the last snapshot has to say a class for some of the rows."""
    if plan.task is None or not plan.task.can_predict_label:
        return False
    return plan.config.label == "predicted" or any(b.labels is None or bool((b.labels < 0).any()) for b in batches)


def require_finite_rows(values: Tensor, rows: Sequence[int], snapshot: str, target: str = "the target") -> None:
    """Raise NonFiniteError, naming the row and the snapshot, where a row's value is NaN or infinite."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        row = rows[int(bad.nonzero()[0])]
        msg = (
            f"the gradient of {target} is not finite at row {row}, snapshot {snapshot!r} ({int(bad.sum())} rows of its "
            "batch); training may have diverged, or the row's input is extreme. Leave the snapshot or the row out"
        )
        raise NonFiniteError(msg)


def _first_forward(model: nn.Module, inputs: dict[str, Any], leaf: InputLeaf, rows: range) -> Forward:
    try:
        return forward_from_leaf(model, inputs, leaf)
    except ModelError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if should_reduce_batch_size(error):  # then fewer rows at a time are tried
            raise
        shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, Tensor)}
        msg = (
            f"the model's forward failed on rows {rows[0]}-{rows[-1]} with inputs {shapes}: {type(error).__name__}: "
            f"{error}. The rows must be prepared as for evaluation (same channels, size and tokenizer as in training)"
        )
        raise ModelError(msg) from error


def _resolve_task(
    model: nn.Module, config: VoGConfig, outputs: Any, labels: Tensor | None
) -> tuple[Task | None, int | None]:
    try:
        logits = find_logits(outputs)
    except ModelError:
        if any(isinstance(target, str) for target in config.targets):
            raise
        return None, None
    try:
        task = TASKS[config.task] if config.task else find_task(model, logits, labels)
    except ModelError:
        if any(isinstance(target, str) for target in config.targets):
            raise
        return None, None
    for target in config.targets:
        check_target(target, task)
    if config.label == "predicted" and not task.can_predict_label:
        msg = f"label='predicted' needs a single-label classifier, this model's task is {task.name}; use label='given'"
        raise ConfigError(msg)
    return task, _n_outputs(logits)


def _n_outputs(logits: Tensor) -> int:
    return logits.shape[-1] if logits.dim() > 1 else 1


def _first_labels(
    reader: BatchReader, config: VoGConfig, task: Task | None, outputs: Any, batch: Batch
) -> Tensor | None:
    """Labels of the first batch, after all labels that can be read without decoding rows were checked."""
    if task is None:
        return batch.labels
    n_outputs = _n_outputs(find_logits(outputs))
    if batch.labels is None:
        needs_loss = "loss" in config.targets
        if config.label == "given" and (task.needs_labels or needs_loss):
            msg = (
                f"no label was found: the collated batch has none of {list(reader.label_names)}; pass label_column= "
                "(a column of the rows), or VoGConfig(label='predicted') to differentiate the predicted class"
            )
            raise DataError(msg)
    else:
        check_labels(task, batch.labels, n_outputs, batch.rows)
        everything = reader.all_labels(batch.rows, batch.labels)
        if everything is not None:
            check_labels(task, torch.from_numpy(everything), n_outputs, range(len(everything)))
    if task.can_predict_label:
        prediction = find_logits(outputs).argmax(-1).cpu()
        return prediction if config.label == "predicted" else fill_missing_labels(batch.labels, prediction)
    return batch.labels


def check_labels(task: Task, labels: Tensor, n_outputs: int | None, rows: Sequence[int]) -> None:
    """Raise DataError, naming the row, where a label is not one that the task can have."""
    try:
        task.check_labels(labels, n_outputs)
    except LabelError as error:
        msg = f"row {rows[error.position]}: {error}"
        raise LabelError(msg, rows[error.position]) from error


def to_numpy_labels(labels: Tensor | None, n_rows: int) -> npt.NDArray[np.generic] | None:
    """Given labels as a column, None where rows have no single one."""
    if labels is None or labels.shape != (n_rows,):
        return None
    return labels.to(torch.float32 if labels.is_floating_point() else torch.int32).cpu().numpy()
