"""The dry run: what scoring needs and what would go wrong, found on the first rows before the long work."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from vog_hf.accumulate import Windows
from vog_hf.batches import Batch, BatchReader
from vog_hf.config import VoGConfig
from vog_hf.engine.fast_path import FEW_ROWS, fast_path
from vog_hf.engine.passes import (
    PassLabels,
    ScoringPlan,
    first_rows,
    require_finite_rows,
    score_batch,
    score_forward,
    sliced,
)
from vog_hf.engine.tolerance import rounding_tolerance
from vog_hf.errors import ConfigError, DataError, ForwardError, LabelError, ModelError
from vog_hf.gradients import (
    Forward,
    InputLeaf,
    averaged_axis,
    copied,
    doubled,
    find_leaf,
    forward_from_leaf,
    has_wrong_single_rows,
    is_lonely,
    model_device_and_dtype,
    placed,
    preserved_rng,
    required_parameters,
    scoring_mode,
    target_gradients,
)
from vog_hf.metric import mean_over_elements
from vog_hf.model_state import DerivedTensors, ModelState, weight_sums
from vog_hf.schedule import MIN_SNAPSHOTS
from vog_hf.snapshots import lend_weights
from vog_hf.targets import (
    CALLABLE_TARGET,
    IGNORED_TOKEN,
    TASKS,
    MultiLabelClassification,
    Task,
    check_target,
    find_logits,
    find_task,
)

NEGLIGIBLE = 1e-3  # of the batch's mean gradient: what a row has below that is rounding
DOUBTFUL_LABELS = 32  # that are read with their rows


@dataclass(frozen=True)
class FirstPass:
    """The first batch, the labels that were used, one gradient per target, and why there is no fast path (if so)."""

    batch: Batch
    labels: PassLabels
    gradients: list[Tensor]
    slow: str | None


def plan_scoring(
    model: nn.Module,
    reader: BatchReader,
    config: VoGConfig,
    rows: range,
    *,
    require_finite: bool = True,
    fold: bool = True,
    compiled: bool = False,
) -> tuple[ScoringPlan, FirstPass]:
    """One forward, one gradient per target and one update of ``rows``; raises what would go wrong later.

    The model and all random states are left as they were.

    Args:
        model: Unwrapped.
        reader: Of all rows.
        config: What is computed.
        rows: The first ones.
        require_finite: Whether the weights that the model has now are ones that will be scored.
        fold: Run the model with its BatchNorms folded, if that gives the same on these rows.
        compiled: Run it through ``torch.compile``, if that gives the same on these rows.

    Raises:
        DataError, ModelError, ConfigError, NonFiniteError: What is wrong with rows, labels, model or configuration.
    """
    with preserved_rng(), _model_in_use(model, config):
        batch = next(reader.read([rows]))
        device, dtype = model_device_and_dtype(model)
        inputs = placed(batch.inputs, device, dtype)
        leaf = find_leaf(model, inputs)
        state, sums = ModelState(model), weight_sums(model)
        began = time.perf_counter()
        forward = _first_forward(model, inputs, leaf, rows)
        if is_lonely(forward):
            forward = _first_forward(model, doubled(inputs), leaf, rows)
        seconds = time.perf_counter() - began
        plan = _plan(model, config, leaf, forward, batch, batch_size=reader.batch_size)
        _check_labels(reader, plan, batch)
        labels = _labels(plan, forward, batch)
        began = time.perf_counter()
        gradients, observation = score_forward(plan, forward, labels)
        if require_finite:
            for gradient in gradients:
                require_finite_rows(gradient.reshape(len(gradient), -1).sum(1), batch.rows, "the model as it is now")
        seconds += time.perf_counter() - began
        _require_weights_unchanged(model, sums)
        windows = Windows(MIN_SNAPSHOTS)  # of moments that are thrown away: what does not fit into them shows here
        accumulator = plan.accumulator(replace(batch, inputs=_placed(model, batch)), windows)
        accumulator.update(*first_rows(len(batch), gradients, observation))
        plan, slow = replace(plan, batch_seconds=seconds, changes_state=state.is_changed()), None
        state.put_back()
        plan = replace(plan, derived=DerivedTensors.find(model, lambda: _few_rows(plan, inputs)))
        if fold or compiled:
            plan, slow = fast_path(plan, forward, labels, gradients, fold=fold, compiled=compiled)
        if device.type != "cpu":  # whose first pass is not like the others
            plan = replace(plan, batch_seconds=_seconds(plan, inputs, labels))
    return plan, FirstPass(batch, labels, gradients, slow)


def unusual(model: nn.Module, reader: BatchReader, plan: ScoringPlan, first: FirstPass) -> list[str]:
    """What a person should know before scoring, one line each; ``first`` as `plan_scoring` returned it."""
    try:
        with preserved_rng(), _model_in_use(model, plan.config):
            torch.manual_seed(torch.initial_seed() + 1)  # other numbers than in the first pass, if the model draws any
            lines = list(islice(_dependence_on_batch(model, reader, plan, first), 1))
    except DataError as error:
        lines = [f"whether scores depend on the batch is not known, because a row alone cannot be read: {error}"]
    return lines + list(_rows_without_positive_label(reader, plan, first.batch))


def _seconds(plan: ScoringPlan, inputs: Mapping[str, Any], labels: PassLabels) -> float:
    """How long a pass over a batch takes on a device."""
    with plan.folding.installed():
        torch.accelerator.synchronize()
        began = time.perf_counter()
        score_batch(plan, plan.laid_out(inputs), labels)
        torch.accelerator.synchronize()
        return time.perf_counter() - began


@contextmanager
def _model_in_use(model: nn.Module, config: VoGConfig) -> Iterator[None]:
    """The model as it is scored, with the weights that it has."""
    with lend_weights(model, {}, cast_up=config.casts_up), scoring_mode(model, config.autocast):
        yield


# --- the plan -------------------------------------------------------------------------------------------------------


def _first_forward(model: nn.Module, inputs: dict[str, Any], leaf: InputLeaf, rows: range) -> Forward:
    try:
        return forward_from_leaf(model, inputs, leaf)
    except ModelError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if should_reduce_batch_size(error):  # then fewer rows at a time are tried
            raise
        missing = [name for name in required_parameters(model) if name not in inputs]
        if missing and isinstance(error, TypeError):
            msg = (
                f"forward of {type(model).__name__} requires {', '.join(map(repr, missing))}, and the batch has "
                f"{sorted(inputs)}; let the collator return what is missing, or give the parameter a default"
            )
            raise ModelError(msg) from error
        shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, Tensor)}
        msg = (
            f"the model's forward failed on rows {rows[0]}-{rows[-1]} with inputs {shapes}: {type(error).__name__}: "
            f"{error}. The rows must be prepared as for evaluation (same channels, size and tokenizer as in training), "
            "in batches of a size that the model takes (batch_size=)"
        )
        raise ForwardError(msg) from error


def _plan(
    model: nn.Module, config: VoGConfig, leaf: InputLeaf, forward: Forward, batch: Batch, *, batch_size: int
) -> ScoringPlan:
    task, n_outputs = _resolve_task(model, config, forward.outputs, batch.labels)
    channel_axis = averaged_axis(config.reduce_channels, leaf, forward.x.shape)
    shape = [n for axis, n in enumerate(forward.x.shape) if axis != channel_axis]
    return ScoringPlan(
        config=config,
        task=task,
        leaf=leaf,
        channel_axis=channel_axis,
        n_outputs=n_outputs,
        element_shape=tuple(shape[1:]),
        dtype=torch.promote_types(forward.x.dtype, torch.float32),
        batch_seconds=0.0,
        batch_bytes=batch.nbytes,
        first_rows=len(batch),
        batch_size=batch_size,
        module=model,
        says_padding=leaf.padding_mask({**batch.masks, **batch.inputs}, shape) is not None,
        readings=1 if forward.x.device.type == "cpu" else 2,
        doubles_single_rows=has_wrong_single_rows(forward),
    )


def _few_rows(plan: ScoringPlan, inputs: Mapping[str, Any]) -> None:
    """Run the model on a few rows."""
    few = sliced(inputs, slice(0, FEW_ROWS), len(inputs[plan.leaf.name]))
    with torch.no_grad():
        plan.module(**copied(few))


def _require_weights_unchanged(model: nn.Module, sums: Tensor) -> None:
    if not torch.equal(weight_sums(model), sums):
        msg = (
            f"{type(model).__name__} changes its weights in forward, also in evaluation mode (initialization from the "
            "first batch, or a moving average of weights), but VoG must leave weights as they are; run one batch "
            "through the model before, or change weights only while module.training"
        )
        raise ModelError(msg)


def _resolve_task(
    model: nn.Module, config: VoGConfig, outputs: Any, labels: Tensor | None
) -> tuple[Task | None, int | None]:
    try:
        logits = find_logits(outputs)
        task = TASKS[config.task] if config.task else find_task(model, logits, labels)
    except ModelError:
        if any(isinstance(target, str) for target in config.targets):
            raise
        return None, None
    if labels is None and task.needs_labels and not task.can_predict_label and all(map(callable, config.targets)):
        return None, None  # there is nothing to compute companions of
    for target in config.targets:
        check_target(target, task)
    if config.label == "predicted" and not task.can_predict_label:
        msg = f"label='predicted' needs a single-label classifier, this model's task is {task.name}; use label='given'"
        raise ConfigError(msg)
    return task, logits.shape[-1] if logits.dim() > 1 else 1


def _labels(plan: ScoringPlan, forward: Forward, batch: Batch) -> PassLabels:
    given = plan.counted_labels(batch)
    given = None if given is None else given.to(forward.x.device)
    predicts = plan.task is not None and plan.task.can_predict_label
    prediction = find_logits(forward.outputs).argmax(-1) if predicts else None
    if given is not None and len(forward.x) != len(batch):  # one row, as two copies
        given = torch.cat([given, given])
    return PassLabels.of(plan.config, plan.task, given, prediction)


def _check_labels(reader: BatchReader, plan: ScoringPlan, batch: Batch) -> None:
    """Check the labels of the first batch, and all that can be read without decoding rows."""
    task, config = plan.task, plan.config
    if task is None:
        return
    if batch.labels is None:
        if config.label == "given" and (task.needs_labels or "loss" in config.targets):
            otherwise = (
                "VoGConfig(label='predicted') to differentiate the predicted class"
                if task.can_predict_label
                else f"{CALLABLE_TARGET}, which needs none"
            )
            msg = (
                f"no label was found: the collated batch has none of {list(reader.label_names)}; pass "
                f"label_column= (a column of the rows), or {otherwise}"
            )
            raise DataError(msg)
        return
    plan.check_labels(batch)
    doubtful = chain.from_iterable(
        (rows[at] for at in _doubtful(task, labels, plan.n_outputs)) for rows, labels in reader.stored_labels(batch)
    )
    for row in islice(doubtful, DOUBTFUL_LABELS):
        (whole,) = reader.read([range(row, row + 1)])  # a transform may have mended what the column holds
        plan.check_labels(whole)


def _doubtful(task: Task, labels: Tensor, n_outputs: int | None) -> Iterator[int]:
    """Places of the labels that the task cannot have."""
    start = 0
    while start < len(labels):
        try:
            task.check_labels(labels[start:], n_outputs)
        except LabelError as error:
            start += error.position + 1
            yield start - 1
        except DataError:  # all of them
            yield from range(start, len(labels))
            return
        else:
            return


# --- what a person should know --------------------------------------------------------------------------------------


def _dependence_on_batch(model: nn.Module, reader: BatchReader, plan: ScoringPlan, first: FirstPass) -> Iterator[str]:
    """What is to be said where a row has another gradient alone than in its batch.

    Looked at are the longest row, which has no padding, the shortest, and the one with the fewest label tokens. Alone
    is a batch of two copies: in a batch of one, torch 2.15 has a wrong gradient of BatchNorm2d in evaluation mode (on a
    CPU, where the gradient that comes in is in another memory format than the input).
    """
    name, batch = plan.leaf.name, first.batch
    if len(batch) == 1:
        return
    together = _means(plan, _placed(model, batch), first.gradients)
    counted = _lengths(reader, plan, batch)
    for at in dict.fromkeys((int(counted.argmax()), int(counted.argmin()), _fewest_labels(plan, batch))):
        alone = reader.read_copies(batch.rows[at], 2)
        shapes = tuple(alone.inputs[name].shape[1:]), tuple(batch.inputs[name].shape[1:])
        if shapes[0] != shapes[1] and _padding_mask(plan, batch) is None:
            yield _padding_counts(plan, batch, batch.rows[at], shapes)
            continue
        try:
            single = _mean_gradients(model, plan, alone, _labels_alone(plan, first, alone, at))
        except (RuntimeError, ValueError, IndexError) as error:
            yield (
                f"row {batch.rows[at]} goes through the model in its batch, with {name!r} {shapes[1]}, but not alone, "
                f"with {shapes[0]} ({type(error).__name__}: {error}); pad every row to one fixed length"
            )
            continue
        scale = torch.maximum(single[:, 0], NEGLIGIBLE * together.mean(1))
        difference = float(((together[:, at] - single[:, 0]).abs() / scale).max())
        if difference > rounding_tolerance(model, plan.config):
            yield _changes(batch.rows[at], difference, is_padded=_shapes(alone) != _shapes(batch))


def _mean_gradients(model: nn.Module, plan: ScoringPlan, batch: Batch, labels: Tensor | None) -> Tensor:
    with plan.state_kept():
        forward = forward_from_leaf(model, placed(batch.inputs, *model_device_and_dtype(model)), plan.leaf)
        gradients = target_gradients(plan.config.targets, plan.task, forward, labels)
    return _means(plan, _placed(model, batch), gradients)


def _means(plan: ScoringPlan, inputs: dict[str, Any], gradients: list[Tensor]) -> Tensor:
    """Mean |gradient| of each row over the elements that enter its score, ``[targets, batch]``."""
    if plan.channel_axis is not None:
        gradients = [gradient.mean(plan.channel_axis) for gradient in gradients]
    mask = plan.leaf.element_mask(inputs, gradients[0].shape)
    return torch.stack([mean_over_elements(gradient.abs().to(plan.dtype), mask) for gradient in gradients])


def _placed(model: nn.Module, batch: Batch) -> dict[str, Any]:
    device, dtype = model_device_and_dtype(model)
    return placed(batch.masks, device, None) | placed(batch.inputs, device, dtype)


def _labels_alone(plan: ScoringPlan, first: FirstPass, alone: Batch, at: int) -> Tensor | None:
    """The class that the row had in its batch, also where the model said it; other labels as the row alone has them."""
    used = first.labels.differentiated
    if plan.task is not None and plan.task.can_predict_label and used is not None:
        return used[[at, at]]
    labels = plan.counted_labels(alone)
    return None if labels is None else labels.to(first.gradients[0].device)


def _padding_mask(plan: ScoringPlan, batch: Batch) -> Tensor | None:
    return plan.leaf.padding_mask({**batch.masks, **batch.inputs}, plan.shape(batch.inputs))


def _lengths(reader: BatchReader, plan: ScoringPlan, batch: Batch) -> Tensor:
    """How many elements of each row are no padding: as the mask says, else of the row when it is alone."""
    mask = _padding_mask(plan, batch)
    if mask is not None:
        return mask.flatten(1).sum(1)
    single = reader.read([range(row, row + 1) for row in batch.rows])
    return torch.tensor([row.inputs[plan.leaf.name].numel() for row in single])


def _fewest_labels(plan: ScoringPlan, batch: Batch) -> int:
    """The row with the most padding in its labels, 0 where labels are not token by token."""
    labels = plan.counted_labels(batch)
    return 0 if labels is None or labels.dim() != 2 else int((labels != IGNORED_TOKEN).sum(1).argmin())


def _shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape[1:]) for name, value in batch.inputs.items() if isinstance(value, Tensor)}


def _padding_counts(plan: ScoringPlan, batch: Batch, row: int, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
    given = {**batch.masks, **batch.inputs}.get(plan.leaf.mask_name)
    of_shape = f" of a fitting shape (it has {tuple(given.shape)})" if isinstance(given, Tensor) else ""
    return (
        f"row {row} has {plan.leaf.name!r} {shapes[0]} alone and {shapes[1]} in its batch, and the batch has no "
        f"{plan.leaf.mask_name}{of_shape} that says what is padding: padding counts in the scores, which depend on the "
        f"rows that share a batch. Let the collator return {plan.leaf.mask_name} (forward need not take it), or pad "
        "every row to one fixed length (padding='max_length')"
    )


def _changes(row: int, difference: float, *, is_padded: bool) -> str:
    if is_padded:
        return (
            f"the gradient of row {row} changes by {100 * difference:.1f} % when it is padded to the length of its "
            "batch: the model does not leave padding out. For scores that do not depend on the batch, pad on the right "
            "(tokenizer.padding_side='right'; for most decoders, position_ids that start at each row's first token do, "
            "too), or pad every row and its labels to one fixed length (padding='max_length')"
        )
    return (
        f"the gradient of row {row} changes by {100 * difference:.1f} % with the rows that share its batch: in "
        "evaluation mode the model takes statistics over the batch (BatchNorm with track_running_stats=False), takes "
        "another axis for the rows, or draws random numbers, so that scores depend on batch size and order. Make it "
        "treat each row by itself"
    )


def _rows_without_positive_label(reader: BatchReader, plan: ScoringPlan, batch: Batch) -> Iterator[str]:
    """Multi-label rows of which the sum over positive labels is an empty one."""
    empty = [target for target in plan.config.targets if target in ("logit", "probability")]
    if not isinstance(plan.task, MultiLabelClassification) or batch.labels is None or not empty:
        return
    parts = list(reader.stored_labels(batch)) or [(batch.rows, batch.labels)]
    none = sum(int((labels <= 0).all(1).sum()) for _, labels in parts)
    seen = sum(len(rows) for rows, _ in parts)
    if none:
        of = f"{seen:,} rows" if seen == len(reader.dataset) else f"the first {seen:,} rows"
        yield (
            f"{none:,} of {of} have no positive label: their {' and '.join(map(str, empty))} is a sum over none, so "
            "that their VoG is exactly 0 and they rank lowest, whatever the model does. Leave them out, or score them "
            "by VoGConfig(target='loss')"
        )
