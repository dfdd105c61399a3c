"""The dry run: plan a scoring on the first rows, and find what would go wrong before the long work."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.config import VoGConfig
from vog_hf.data.batch_reader import Batch, BatchReader
from vog_hf.errors import ConfigError, DataError, ForwardError, LabelError, ModelError
from vog_hf.gradients.derived_tensors import DerivedTensors
from vog_hf.gradients.input_gradients import target_gradients
from vog_hf.gradients.input_leaf import (
    Forward,
    InputLeaf,
    averaged_axis,
    explained_forward,
    find_leaf,
    has_wrong_single_rows,
    is_lonely,
)
from vog_hf.gradients.model_inputs import copied, doubled, to_device
from vog_hf.gradients.model_mode import model_device_and_dtype, preserved_rng, scoring_mode
from vog_hf.gradients.model_outputs import CALLABLE_TARGET
from vog_hf.gradients.model_state import ModelState, require_weights_unchanged, weight_sums
from vog_hf.gradients.targets import check_target, find_task
from vog_hf.gradients.task import IGNORED_TOKEN, Task
from vog_hf.gradients.tasks import PREDICTING_TASKS
from vog_hf.gradients.token_tasks import TokenPrediction
from vog_hf.metric.windows import MIN_SNAPSHOTS, Windows
from vog_hf.runtime.memory import AdaptiveBatchSize, SavedBytes
from vog_hf.scoring.doubtful_rows import DOUBTFUL_ROWS, require_good_rows
from vog_hf.scoring.fast_path import FEW_ROWS, fast_path
from vog_hf.scoring.passes import LabelsForPass, observation, rows_of_pass, score_rows, sliced
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.runner import require_finite_rows
from vog_hf.scoring.skipped_rows import try_batch
from vog_hf.snapshots import temporary_weights


@dataclass(frozen=True)
class FirstPass:
    """The first batch, the labels that were used, one gradient per target, and why there is no fast path (if so)."""

    batch: Batch
    labels: LabelsForPass
    gradients: list[Tensor]
    why_not_fast: str | None


def plan_scoring(
    model: nn.Module,
    reader: BatchReader,
    config: VoGConfig,
    rows: Sequence[int],
    *,
    require_finite: bool = True,
    fold: bool = True,
    torch_compile: bool = False,
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
        torch_compile: Run it through ``torch.compile``, if that gives the same on these rows.

    Raises:
        DataError, ModelError, ConfigError, NonFiniteError: What is wrong with rows, labels, model or configuration.
    """
    with preserved_rng(), model_in_use(model, config):
        batch = next(reader.read([rows]))
        device, dtype = model_device_and_dtype(model)
        inputs = to_device(batch.inputs, device, dtype)
        leaf = find_leaf(model, inputs)
        state, sums = ModelState(model), weight_sums(model)
        named, began = f"rows {rows[0]}-{rows[-1]}", time.perf_counter()
        try:
            forward, saved_bytes = _counted_forward(model, inputs, leaf, named)
        except ForwardError as error:  # of the model, unless it is a matter of one row
            of_row = reader.forward_error(rows, error, partial(try_batch, model, None, AdaptiveBatchSize()))
            raise error if isinstance(of_row, ForwardError) else of_row from error.__cause__
        if is_lonely(forward):
            forward = explained_forward(model, doubled(inputs), leaf, of=named)
        seconds = time.perf_counter() - began
        plan = _plan(model, config, leaf, forward, batch, batch_size=reader.batch_size)
        plan = replace(plan, saved_bytes=saved_bytes)
        with reader.trying(partial(try_batch, model, plan, AdaptiveBatchSize())):
            good = reader.good_rows(rows)
        if len(good) < len(rows):
            return plan_scoring(
                model, reader, config, good, require_finite=require_finite, fold=fold, torch_compile=torch_compile
            )
        _check_labels(reader, plan, batch)
        if reader.bad_rows.on_error == "raise":
            require_good_rows(reader, plan)
        labels = _labels(plan, forward, batch)
        began = time.perf_counter()
        gradients = target_gradients(plan.config.targets, plan.task, forward, labels.target_labels)
        observed = observation(plan, forward, labels)
        if require_finite:
            for values in (gradient.reshape(len(gradient), -1).sum(1) for gradient in gradients):
                if reader.bad_rows.on_error == "raise" or not bool(torch.isfinite(values).any()):
                    require_finite_rows(values, batch.rows, "the model as it is now")
        seconds += time.perf_counter() - began
        plan.require_elements(batch)
        windows = Windows(MIN_SNAPSHOTS)  # of moments that are thrown away: what does not fit into them shows here
        accumulator = plan.accumulator(replace(batch, inputs=inputs_on_device(model, batch)), windows)
        accumulator.update(*rows_of_pass(len(batch), gradients, observed))
        plan, why_not_fast = replace(plan, batch_seconds=seconds, changes_state=state.is_changed()), None
        state.put_back()
        require_weights_unchanged(model, sums)
        plan = replace(plan, derived=DerivedTensors.find(model, lambda: _few_rows(plan, inputs)))
        if fold or torch_compile:
            plan, why_not_fast = fast_path(plan, forward, labels, gradients, fold=fold, torch_compile=torch_compile)
        if device.type != "cpu":  # the first pass on a device is not like the others
            plan = replace(plan, batch_seconds=_seconds(plan, inputs, labels))
    return plan, FirstPass(batch, labels, gradients, why_not_fast)


def _counted_forward(
    model: nn.Module, inputs: dict[str, Any], leaf: InputLeaf, named: str
) -> tuple[Forward, int | None]:
    """A forward pass, and the memory that it keeps for its gradient; None where that cannot be counted."""
    saved = SavedBytes(model)
    try:
        with saved.counted():
            return explained_forward(model, inputs, leaf, of=named), saved.total
    except ForwardError:  # torch.func in a model does not work with such hooks
        return explained_forward(model, inputs, leaf, of=named), None


def _seconds(plan: ScoringPlan, inputs: Mapping[str, object], labels: LabelsForPass) -> float:
    """Time a pass over a batch on a device, in seconds."""
    with plan.folding.installed():
        torch.accelerator.synchronize()
        began = time.perf_counter()
        score_rows(plan, plan.to_memory_format(inputs), labels)
        torch.accelerator.synchronize()
        return time.perf_counter() - began


@contextmanager
def model_in_use(model: nn.Module, config: VoGConfig) -> Iterator[None]:
    """The model as it is scored, with the weights that it has."""
    with temporary_weights(model, {}, cast_up=config.casts_up), scoring_mode(model, config.autocast):
        yield


# --- the plan -------------------------------------------------------------------------------------------------------


def _plan(
    model: nn.Module, config: VoGConfig, leaf: InputLeaf, forward: Forward, batch: Batch, *, batch_size: int
) -> ScoringPlan:
    task, n_outputs = _resolve_task(model, config, forward, batch.labels)
    _check_token_units(config, task, leaf)
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
        dry_run_rows=len(batch),
        batch_size=batch_size,
        module=model,
        has_padding_mask=leaf.padding_mask({**batch.masks, **batch.inputs}, shape) is not None,
        block_copies=1 if forward.x.device.type == "cpu" else 2,
        doubles_single_rows=has_wrong_single_rows(forward),
        beside_bytes=0 if forward.beside is None else 2 * forward.beside.nbytes // len(forward.beside),
        beside_shape=() if leaf.beside is None else tuple(forward.inputs[leaf.beside.name].shape[1:]),
    )


def _few_rows(plan: ScoringPlan, inputs: Mapping[str, Any]) -> None:
    """Run the model on a few rows."""
    few = sliced(inputs, slice(0, FEW_ROWS), len(inputs[plan.leaf.name]))
    with torch.no_grad():
        plan.module(**copied(few))


def _resolve_task(
    model: nn.Module, config: VoGConfig, forward: Forward, labels: Tensor | None
) -> tuple[Task | None, int | None]:
    try:
        task = find_task(model, forward.outputs, labels, name=config.task, inputs=forward.inputs.keys())
        logits = task.logits(forward.outputs, forward.inputs)
    except ModelError:
        if any(isinstance(target, str) for target in config.targets):
            raise
        return None, None
    if all(map(callable, config.targets)) and not _has_companions(task, logits, labels):
        return None, None
    for target in config.targets:
        check_target(target, task)
    if config.label == "predicted" and not task.can_predict_label:
        raise ConfigError(
            f"label='predicted' needs a task that predicts one label per row ({', '.join(PREDICTING_TASKS)}), this "
            f"model's task is {task.name}; use label='given'",
            argument=("label='predicted'", "label='given'"),
        )
    return task, task.n_outputs(logits)


def _check_token_units(config: VoGConfig, task: Task | None, leaf: InputLeaf) -> None:
    """Raise ConfigError where tokens are to be scored that are not units of their row, or not differentiated."""
    is_of_tokens = leaf.embedding is not None or leaf.name == "inputs_embeds"
    if not config.token_units or (task is not None and task.has_token_units and is_of_tokens):
        return
    if task is not None and task.has_token_units:
        raise ConfigError(
            f"token_units=True scores the label tokens of a text, and the gradient is that of {leaf.name!r}; set "
            "model.main_input_name = 'input_ids', or leave it out",
            argument="token_units=True",
        )
    reason = "a model without a known task" if task is None else f"{task.name} of this model"
    if isinstance(task, TokenPrediction):
        reason += ", whose label tokens are those of the decoder, and the gradient is the encoder's,"
    raise ConfigError(
        f"token_units=True scores the label tokens of causal and masked language models, and {reason} has none; leave "
        "it out (heat maps have one value per token of the input)",
        argument="token_units=True",
    )


def _has_companions(task: Task, logits: Tensor, labels: Tensor | None) -> bool:
    """Tell whether logits and labels are those of a task, which a callable target does not need: CTC's are not."""
    if labels is None or not task.companions_of_callables:
        return task.can_predict_label or not task.needs_labels
    try:
        task.check_labels(labels, task.n_outputs(logits))
        task.observation(logits, labels)
    except LabelError:  # of one row
        return True
    except (DataError, ModelError, RuntimeError):
        return False
    return True


def _labels(plan: ScoringPlan, forward: Forward, batch: Batch) -> LabelsForPass:
    given = plan.counted_labels(batch)
    given = None if given is None else given.to(forward.x.device)
    predicts = plan.task is not None and plan.task.can_predict_label
    prediction = plan.prediction(forward.outputs, forward.inputs) if predicts else None
    if given is not None and len(forward.x) != len(batch):  # one row, as two copies
        given = torch.cat([given, given])
    return LabelsForPass.resolve(plan.config, plan.task, given, prediction)


def _check_labels(reader: BatchReader, plan: ScoringPlan, batch: Batch) -> None:
    """Check the labels of the first batch, and all that can be read without decoding rows."""
    task, config = plan.task, plan.config
    if task is None:
        return
    if batch.labels is None:
        if config.label == "given" and (task.needs_labels or ("loss" in config.targets and task.loss_needs_labels)):
            otherwise = (
                "VoGConfig(label='predicted') to differentiate the predicted class"
                if task.can_predict_label
                else f"{CALLABLE_TARGET}, which needs none"
            )
            advice = task.label_advice
            raise DataError(
                f"no label was found: the collated batch has none of {list(reader.label_names)}; "
                f"{advice}, or {otherwise}",
                argument="label_column=",
            )
        plan.check_labels(batch)  # what a task finds among the inputs
        return
    plan.check_labels(batch)
    if reader.bad_rows.on_error == "skip":  # such a row is noticed when it is read
        return
    doubtful = chain.from_iterable(
        (rows[at] for at in _doubtful(task, labels, plan.n_outputs))
        for rows, labels in reader.labels.stored(batch.rows, batch.labels)
    )
    for row in islice(doubtful, DOUBTFUL_ROWS):
        (whole,) = reader.read([range(row, row + 1)])  # a transform may have fixed what the column holds
        plan.check_labels(whole)


def _doubtful(task: Task, labels: Tensor, n_outputs: int | None) -> Iterator[int]:
    """Places of the labels that the task cannot have, and of the longest where a row may have no room for it."""
    if task.labels_need_room and labels.dim() == 2 and len(labels):
        yield int((labels >= 0).sum(1).argmax())
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


def inputs_on_device(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Masks and inputs of a batch on the model's device, in its dtype."""
    device, dtype = model_device_and_dtype(model)
    return to_device(batch.masks, device, None) | to_device(batch.inputs, device, dtype)


def fewest_labels(plan: ScoringPlan, batch: Batch) -> int:
    """The row with the most padding in its labels, 0 where labels are not token by token."""
    labels = plan.counted_labels(batch)
    return 0 if labels is None or labels.dim() != 2 else int((labels != IGNORED_TOKEN).sum(1).argmin())


def input_shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    """Shape of each input tensor, without the axis of rows."""
    return {name: tuple(value.shape[1:]) for name, value in batch.inputs.items() if isinstance(value, Tensor)}
