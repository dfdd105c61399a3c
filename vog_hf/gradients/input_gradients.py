"""Gradients of a scalar per row with respect to the model's input, with the model left as it was found."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vog_hf.errors import ConfigError, ModelError, require_type
from vog_hf.gradients.images_beside_texts import images_by_row
from vog_hf.gradients.input_leaf import (
    Forward,
    explained_autograd_errors,
    explained_forward,
    find_leaf,
    forward_from_leaf,
    is_lonely,
)
from vog_hf.gradients.model_inputs import (
    doubled,
    forward_inputs,
    split_batch,
    to_device,
)
from vog_hf.gradients.model_mode import model_device_and_dtype, preserved_rng, require_module, scoring_mode, unwrap
from vog_hf.gradients.model_state import require_weights_unchanged, weight_sums
from vog_hf.gradients.targets import Target, check_target, fill_missing_labels, find_task, row_scalar
from vog_hf.gradients.task import TARGETS, Task


def input_gradients(
    model: nn.Module, batch: object, *, target: Target = "logit", labels: Tensor | None = None
) -> Tensor:
    """Gradient of each row's target with respect to that row's input, ``[batch, *input]``.

    In evaluation mode, outside autocast; weights, ``.grad``, ``requires_grad``, module modes, buffers, the model's
    configuration and all random states are left as they were. Unit: target unit per unit of input; sign and direction
    as they are.

    Args:
        model: A transformers model, a timm model or any ``nn.Module`` whose output holds logits (see
            `vog_hf.gradients.model_outputs.find_logits`); compiled and wrapped models are unwrapped.
        batch: A mapping as ``forward`` takes it (labels may be in it), a tensor, or a pair (inputs, labels).
        target: ``"logit"``, ``"probability"``, ``"loss"``, or ``target(outputs, batch) -> [batch]``.
        labels: ``[batch]`` classes, or what the model's task needs; default: those in the batch, else, for
            classifiers, the model's own prediction.

    Returns:
        The gradient w.r.t. the main input if that is floating (pixels, waveform, spectrogram), else w.r.t. the token
        embeddings, ``[batch, tokens, width]``.

    Raises:
        ConfigError: Labels that are not a tensor with one entry per row, or a target that does not exist.
        DataError: Labels that the task cannot have.
        ForwardError: The model fails on the batch.
        ModelError: The input or the logits cannot be found, the target does not depend on the input, or the model
            changes its weights in forward.

    Example:
        >>> model = nn.Linear(3, 2, bias=False)
        >>> gradients = input_gradients(model, (torch.ones(4, 3), torch.tensor([0, 1, 1, 0])))
        >>> torch.equal(gradients[1], model.weight[1])  # the logit of class 1 is linear in the input
        True
    """
    require_module(model)
    require_type("target", target, (str, Callable), f"pass one of {', '.join(TARGETS)} or a function")
    model = unwrap(model)
    given, found_labels = split_batch(batch, model)
    labels = found_labels if labels is None else labels
    require_type("labels", labels, (Tensor, type(None)), "pass a tensor with one label per row, or leave them out")
    device, dtype = model_device_and_dtype(model)
    sums = weight_sums(model)
    with preserved_rng(), scoring_mode(model):
        fed = images_by_row(model, forward_inputs(model, given, labels))
        inputs = to_device(fed, device, dtype)
        if isinstance(labels, Tensor):
            labels = to_device({"labels": labels}, device, None)["labels"]
        leaf = find_leaf(model, inputs)
        _require_label_per_row(labels, inputs[leaf.name])
        forward = explained_forward(model, inputs, leaf)
        n_rows = len(forward.x)
        if is_lonely(forward):
            inputs = doubled(inputs)
            labels = None if labels is None else torch.cat([labels, labels])
            forward = forward_from_leaf(model, inputs, leaf)
        task = None
        if isinstance(target, str):
            task = find_task(model, forward.outputs, labels, inputs=inputs.keys())
            check_target(target, task)
            logits = task.logits(forward.outputs, inputs)
            labels = task.counted_labels(labels, {**given, **inputs})
            if labels is not None:
                task.check_labels(labels, task.n_outputs(logits))
            if task.can_predict_label:
                labels = fill_missing_labels(labels, task.prediction(logits))
        gradients = target_gradients([target], task, forward, labels)[0][:n_rows]
    require_weights_unchanged(model, sums)
    return gradients


def _require_label_per_row(labels: Tensor | None, leaf: Tensor) -> None:
    """Raise ConfigError where labels are not real numbers, one entry for each row of the input."""
    if labels is None or leaf.dim() == 0:
        return
    if labels.is_complex() or labels.shape[:1] != leaf.shape[:1]:
        raise ConfigError(
            f"labels must be real numbers with one entry for each of the {len(leaf)} rows, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; pass those of the rows in the batch"
        )


def target_gradients(
    targets: Sequence[Target], task: Task | None, forward: Forward, labels: Tensor | None
) -> list[Tensor]:
    """Gradient of each target's row scalars with respect to the leaf, ``[batch, *input]``: one backward each.

    Where there is a leaf beside ``x``, that of the first target is left in ``grad`` of both.
    """
    gradients = []
    for i, target in enumerate(targets):
        scalars = row_scalar(target, task, forward.outputs, forward.inputs, labels)
        if scalars.shape != forward.x.shape[:1]:
            raise ModelError(
                f"the model gave outputs of {len(scalars)} rows for {len(forward.x)} rows of the input; pass inputs "
                "with the same number of rows to a model that gives one output per row"
            )
        leaves = [forward.x] if i or forward.beside is None else [forward.x, forward.beside]
        with explained_autograd_errors():
            gradient, *of_beside = torch.autograd.grad(
                scalars.sum(), leaves, retain_graph=i < len(targets) - 1, allow_unused=True
            )
        if gradient is None:
            raise ModelError(
                "the target does not depend on the input: it is used under no_grad, detached, quantized or not at all; "
                "VoG needs a model that is differentiable from its input to its logits"
            )
        if forward.beside is not None and of_beside:
            forward.x.grad, forward.beside.grad = gradient, of_beside[0]
        gradients.append(gradient)
    return gradients
