"""Warnings about the first rows: scores that depend on the batch, rows without a positive label."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor, nn

from vog_hf.data.batch_reader import Batch, BatchReader
from vog_hf.errors import DataError
from vog_hf.gradients.class_tasks import MultiLabelClassification
from vog_hf.gradients.input_gradients import target_gradients
from vog_hf.gradients.input_leaf import forward_from_leaf
from vog_hf.gradients.model_inputs import forward_parameters, to_device
from vog_hf.gradients.model_mode import model_device_and_dtype, preserved_rng, seed_global_streams
from vog_hf.metric.definition import mean_over_elements
from vog_hf.scoring.dry_run import FirstPass, fewest_labels, input_shapes, inputs_on_device, model_in_use
from vog_hf.scoring.fast_path import rounding_tolerance
from vog_hf.scoring.passes import sliced, state_kept
from vog_hf.scoring.plan import ScoringPlan

NEGLIGIBLE = 1e-3  # of the batch's mean gradient: what a row has below that is rounding
ONE_SEED, OTHER_SEED = 3_141_592_653, 2_718_281_828
RERUN_ROWS = 4  # to see whether the model draws random numbers: each row would have its own
DRAWN_INPUTS = ("noise", "bool_masked_pos", "mask_time_indices")  # of transformers: drawn in forward where not given


def warnings_for(model: nn.Module, reader: BatchReader, plan: ScoringPlan, first: FirstPass) -> list[str]:
    """List what a person should know before scoring, one line each; ``first`` as `plan_scoring` returned it."""
    try:
        with preserved_rng(), model_in_use(model, plan.config):
            dependence = chain(_draws(model, plan, first), _dependence_on_batch(model, reader, plan, first))
            lines = list(islice(dependence, 1))
    except DataError as error:
        lines = [f"whether scores depend on the batch is not known, because a row alone cannot be read: {error}"]
    return lines + list(_rows_without_positive_label(reader, plan, first.batch))


def _draws(model: nn.Module, plan: ScoringPlan, first: FirstPass) -> Iterator[str]:
    """Warning if the first few rows have other gradients under another seed."""
    n_rows, labels = len(first.batch), first.labels.target_labels
    rows = slice(0, min(n_rows, RERUN_ROWS))
    inputs, masks = (sliced(values, rows, n_rows) for values in (first.batch.inputs, first.batch.masks))
    few = replace(first.batch, rows=first.batch.rows[rows], inputs=dict(inputs), masks=dict(masks))
    seed_global_streams(ONE_SEED)
    before = _mean_gradients(model, plan, few, None if labels is None else labels[rows])
    seed_global_streams(OTHER_SEED)
    again = _mean_gradients(model, plan, few, None if labels is None else labels[rows])
    difference = _difference(before, again).amax(0)
    if float(difference.max()) <= rounding_tolerance(model, plan.config):
        return
    fixed = [name for name in forward_parameters(model) if name in DRAWN_INPUTS]
    advice = (
        f"Pass the draw as an input of each row: {', '.join(fixed)} is a parameter of forward. Let the collator make "
        "it, with each row's draw fixed: collate_fn=SeededPerRow(collator), from vog_hf.data"
        if fixed
        else "Let it draw only while module.training, or take the draw as an input of forward that the collator makes "
        "of each row (collate_fn=SeededPerRow(collator), from vog_hf.data)"
    )
    row, percent = few.rows[int(difference.argmax())], 100 * float(difference.max())
    yield (
        f"the gradient of row {row} changes by {percent:.1f} % when it is run again: the model "
        "draws random numbers in forward in evaluation mode, too (a random "
        f"mask, noise, dropout that is left on), so VoG would measure its draws. {advice}"
    )


def _difference(before: Tensor, now: Tensor) -> Tensor:
    """By how much of itself each row's mean gradient has changed, ``[targets, batch]``."""
    scale = torch.maximum(now, NEGLIGIBLE * before.mean(1, keepdim=True))
    return ((before - now).abs() / scale).nan_to_num(0.0)  # 0 of 0


def _dependence_on_batch(model: nn.Module, reader: BatchReader, plan: ScoringPlan, first: FirstPass) -> Iterator[str]:
    """Warn where a row has another gradient alone than in its batch.

    Looked at are the longest row, which has no padding, the shortest, and the one with the fewest label tokens. Alone
    is a batch of two copies: in a batch of one, torch 2.15 has a wrong gradient of BatchNorm2d in evaluation mode (on a
    CPU, where the gradient that comes in is in another memory format than the input).
    """
    name, batch = plan.leaf.name, first.batch
    if len(batch) == 1:
        return
    together = _means(plan, inputs_on_device(model, batch), first.gradients)
    counted = _lengths(reader, plan, batch)
    for at in dict.fromkeys((int(counted.argmax()), int(counted.argmin()), fewest_labels(plan, batch))):
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
        difference = float(_difference(together, single[:, :1])[:, at].max())
        if difference > rounding_tolerance(model, plan.config):
            yield _changes(batch.rows[at], difference, is_padded=input_shapes(alone) != input_shapes(batch))


def _mean_gradients(model: nn.Module, plan: ScoringPlan, batch: Batch, labels: Tensor | None) -> Tensor:
    with state_kept(plan):
        forward = forward_from_leaf(model, to_device(batch.inputs, *model_device_and_dtype(model)), plan.leaf)
        gradients = target_gradients(plan.config.targets, plan.task, forward, labels)
    return _means(plan, inputs_on_device(model, batch), gradients)


def _means(plan: ScoringPlan, inputs: Mapping[str, object], gradients: list[Tensor]) -> Tensor:
    """Mean |gradient| of each row over the elements that enter its score, ``[targets, batch]``."""
    if plan.channel_axis is not None:
        gradients = [gradient.mean(plan.channel_axis) for gradient in gradients]
    mask = plan.leaf.element_mask(inputs, gradients[0].shape)
    return torch.stack([mean_over_elements(gradient.abs().to(plan.dtype), mask) for gradient in gradients])


def _labels_alone(plan: ScoringPlan, first: FirstPass, alone: Batch, at: int) -> Tensor | None:
    """The class that the row had in its batch, also a predicted one; other labels as the row alone has them."""
    used = first.labels.target_labels
    if plan.task is not None and plan.task.can_predict_label and used is not None:
        return used[[at, at]]
    labels = plan.counted_labels(alone)
    return None if labels is None else labels.to(first.gradients[0].device)


def _padding_mask(plan: ScoringPlan, batch: Batch) -> Tensor | None:
    return plan.leaf.padding_mask({**batch.masks, **batch.inputs}, plan.shape(batch.inputs))


def _lengths(reader: BatchReader, plan: ScoringPlan, batch: Batch) -> Tensor:
    """Number of elements of each row that are not padding: by the mask, else those of the row when it is alone."""
    mask = _padding_mask(plan, batch)
    if mask is not None:
        return mask.flatten(1).sum(1)
    single = reader.read([range(row, row + 1) for row in batch.rows])
    return torch.tensor([row.inputs[plan.leaf.name].numel() for row in single])


def _padding_counts(plan: ScoringPlan, batch: Batch, row: int, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
    mask_name = plan.leaf.kind.mask_name
    mask = {**batch.masks, **batch.inputs}.get(mask_name)
    of_shape = f" of a fitting shape (it has {tuple(mask.shape)})" if isinstance(mask, Tensor) else ""
    return (
        f"row {row} has {plan.leaf.name!r} {shapes[0]} alone and {shapes[1]} in its batch, and the batch has no "
        f"{mask_name}{of_shape} that says what is padding: padding counts in the scores, which depend on the rows that "
        f"share a batch. Let the collator return {mask_name} (forward need not take it), or pad every row to one fixed "
        "length (padding='max_length')"
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
        "evaluation mode the model takes statistics over the batch (BatchNorm with track_running_stats=False) or "
        "takes another axis for the rows, so that scores depend on batch size and order. Make it "
        "treat each row by itself"
    )


def _rows_without_positive_label(reader: BatchReader, plan: ScoringPlan, batch: Batch) -> Iterator[str]:
    """Multi-label rows of which the sum over positive labels is an empty one."""
    empty = [target for target in plan.config.targets if target in ("logit", "probability")]
    if not isinstance(plan.task, MultiLabelClassification) or batch.labels is None or not empty:
        return
    parts = list(reader.labels.stored(batch.rows, batch.labels)) or [(batch.rows, batch.labels)]
    none = sum(int((labels <= 0).all(1).sum()) for _, labels in parts)
    seen = sum(len(rows) for rows, _ in parts)
    if none:
        of = f"{seen:,} rows" if seen == len(reader.dataset) else f"the first {seen:,} rows"
        yield (
            f"{none:,} of {of} have no positive label: their {' and '.join(map(str, empty))} is a sum over none, so "
            "that their VoG is exactly 0 and they rank lowest, whatever the model does. Leave them out, or score them "
            "by VoGConfig(target='loss')"
        )
