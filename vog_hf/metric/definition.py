"""The definition: Variance of Gradients of stacked gradients, its class-normalized form, and percentiles."""

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from vog_hf.errors import ConfigError, NonFiniteError, require_type, shown


def vog(gradients: Tensor, *, reduce_channels: bool = False, mask: Tensor | None = None) -> Tensor:
    """Variance of Gradients of each example: higher = its gradient changed more between snapshots.

    The mean over the input's elements of the population standard deviation (ddof = 0) over the snapshots; ``>= 0``,
    in target units (logits, unless another target was differentiated) per unit of input.

    Args:
        gradients: ``[snapshots, examples, *input]``, the gradient of a scalar per example w.r.t. its input.
        reduce_channels: Average axis 2 (the channels of ``[snapshots, examples, channels, height, width]``) first.
        mask: ``[examples, *input']``, true for elements to include; ``input'`` is the input after the channel mean,
            or its first axes (``[examples, tokens]`` for gradients ``[snapshots, examples, tokens, width]``).

    Returns:
        ``[examples]``.

    Raises:
        ConfigError: Fewer than two snapshots, shapes that do not match, or an example without an included element.

    Source: Agarwal, D'souza & Hooker 2022 (arXiv 2008.11600) as computed by the authors' code, github.com/chirag126/VOG
    imagenet/train_visualize_grad.py:63-68 (the formula as printed in other papers ranks differently).

    Example:
        >>> gradients = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])  # 2 snapshots, 1 example, 2 elements
        >>> vog(gradients)  # standard deviations 1 and 0
        tensor([0.5000])
    """
    require_floats("gradients", gradients)
    if gradients.dim() < 2 or len(gradients) < 2:
        raise ConfigError(
            "vog needs gradients [snapshots, examples, *input] of at least 2 snapshots, "
            f"got shape {tuple(gradients.shape)}"
        )
    if reduce_channels and gradients.dim() < 3:
        raise ConfigError(
            f"reduce_channels needs channels at axis 2, got gradients of shape {tuple(gradients.shape)}; leave it out"
        )
    if reduce_channels:
        gradients = gradients.mean(dim=2)
    deviation = gradients.std(dim=0, correction=0)
    if mask is not None:
        require_elements(mask, deviation.shape)
    return mean_over_elements(deviation, mask)


def mean_over_elements(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of ``values [examples, *input]`` over the included elements of each example: ``[examples]``.

    NaN for an example without any; whether there is one is for `require_elements` to say, which waits for the device.
    """
    if mask is None:
        return values.flatten(1).mean(1) if values.dim() > 1 else values
    full = broadcast_mask(mask, values.shape)
    return torch.where(full, values, torch.zeros_like(values)).flatten(1).sum(1) / full.flatten(1).sum(1)


def require_elements(mask: Tensor, shape: torch.Size) -> None:
    """Raise ConfigError where a mask over ``shape = [examples, *input]`` includes no element of an example."""
    is_empty = ~broadcast_mask(mask, shape).flatten(1).any(1)
    if bool(is_empty.any()):
        row = int(is_empty.nonzero()[0])
        raise ConfigError(
            f"example {row} has no element that counts: its mask is all false; leave the example out or fix its mask"
        )


def squared_norm(gradients: Tensor, mask: Tensor | None = None, *, channel_axis: int | None = None) -> Tensor:
    """Squared L2 norm of each example's gradient over its included elements: ``[examples]``, >= 0.

    Args:
        gradients: ``[examples, *input]``.
        mask: ``[examples, *first axes]`` of the input without its channel axis, true for elements to include.
        channel_axis: Axis of the channels, all of which are included; None: the input has none.

    Example:
        >>> squared_norm(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        tensor([25.,  1.])
    """
    values = (gradients if channel_axis is None else gradients.movedim(channel_axis, -1)).unsqueeze(-1)
    first_summed = 1 if mask is None else mask.dim()
    dtype = torch.promote_types(values.dtype, torch.float32)
    summed = tuple(range(first_summed, values.dim()))
    squares = torch.linalg.vector_norm(values, dim=summed, dtype=dtype).square()  # without a copy of the gradient
    if mask is None:
        return squares
    return torch.where(mask, squares, torch.zeros_like(squares)).unsqueeze(-1).flatten(1).sum(1)


def broadcast_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """``mask`` over the first axes of ``shape``, as a boolean view of the whole shape."""
    require_type("mask", mask, Tensor, "pass a tensor of true and false")
    if mask.shape != shape[: mask.dim()] or mask.dim() < 1:
        raise ConfigError(f"a mask must cover the first axes of {tuple(shape)}, got {tuple(mask.shape)}")
    return mask.bool().reshape(mask.shape + (1,) * (len(shape) - mask.dim())).expand(shape)


def class_normalize(scores: Tensor, labels: Tensor) -> Tensor:
    """Z-score of each score within its class: higher = higher than the others of its class; dimensionless.

    ``(score - mean of its class) / standard deviation of its class`` with ddof = 0. A class of one example, or of
    equal scores, gives 0.

    Args:
        scores: ``[examples]``, finite.
        labels: ``[examples]``, the class of each example.

    Returns:
        ``[examples]``, in the dtype of ``scores`` (computed in float64).

    Raises:
        ConfigError: Shapes that differ.
        NonFiniteError: A score that is NaN or infinite.

    Source: github.com/chirag126/VOG imagenet/train_visualize_grad.py:72-80.

    Example:
        >>> class_normalize(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 0, 1]))
        tensor([-1.,  1.,  0.])
    """
    scores, labels = as_values("scores", scores), as_values("labels", labels)
    if scores.dim() != 1 or scores.shape != labels.shape:
        raise ConfigError(
            f"scores and labels must be [examples] each, got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    require_finite(scores)
    classes, member_of = torch.unique(labels, return_inverse=True)
    values = scores.double()
    count = torch.bincount(member_of, minlength=len(classes)).double()
    per_class = torch.zeros_like(count)
    mean = per_class.index_add(0, member_of, values) / count
    deviation = values - mean[member_of]
    std = (per_class.index_add(0, member_of, deviation.square()) / count).sqrt()
    # Equal scores leave a rounding error in the mean, which must not become a z-score of +-1.
    highest = per_class.scatter_reduce(0, member_of, values, "amax", include_self=False)
    lowest = per_class.scatter_reduce(0, member_of, values, "amin", include_self=False)
    flat = (highest == lowest) | (std == 0)
    z = torch.where(flat[member_of], torch.zeros_like(values), deviation / std.masked_fill(flat, 1.0)[member_of])
    return z.to(scores.dtype if scores.is_floating_point() else torch.float64)


def percentile(scores: Tensor) -> Tensor:
    """Mid-rank percentile of each score: ``100 * (average rank - 0.5) / examples``, in (0, 100); ties share a value.

    Example:
        >>> percentile(torch.tensor([10.0, 30.0, 20.0, 20.0]))
        tensor([12.5000, 87.5000, 50.0000, 50.0000])
    """
    scores = as_values("scores", scores)
    if scores.dim() != 1:
        raise ConfigError(f"scores must be [examples], got {tuple(scores.shape)}")
    require_finite(scores)
    ranks = rankdata(scores.cpu().numpy(), method="average")
    values = 100.0 * (ranks - 0.5) / max(len(ranks), 1)
    return torch.from_numpy(np.asarray(values)).to(scores.dtype if scores.is_floating_point() else torch.float64)


def require_floats(name: str, values: object) -> None:
    """Raise ConfigError unless the value is a tensor of real floating-point numbers."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else shown(values)
        raise ConfigError(
            f"{name} must be a floating tensor, got {got}; pass torch.as_tensor({name}, dtype=torch.float32)"
        )


def as_values(name: str, values: object) -> Tensor:
    """Real numbers as a tensor, also from lists and numpy; raises ConfigError for anything else."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(
            f"{name} must be numbers, got {shown(values)}: {error}; pass a tensor or a list with one for each example"
        ) from error
    if tensor.is_complex():
        raise ConfigError(
            f"{name} must be real numbers, got {tensor.dtype}; pass their real parts, or their magnitudes"
        )
    return tensor


def require_finite(scores: Tensor) -> None:
    """Refuse NaN and infinite scores: a rank or a class mean over them would be silently wrong."""
    bad = ~torch.isfinite(scores)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise NonFiniteError(
            f"scores must be finite, got {scores[row].item()} at row {row} ({int(bad.sum())} of {len(scores)} rows)"
        )
