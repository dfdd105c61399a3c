"""Both inputs of a dual encoder (image and text): the part of each in the gradient of the row's own pair."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vog_hf.gradients.input_leaf import Forward, InputLeaf
from vog_hf.metric.definition import squared_norm
from vog_hf.metric.input_parts import GRADIENT, MASK, PART, SHARE


def observed_sides(leaf: InputLeaf, forward: Forward, *, reduce_channels: bool) -> dict[str, Tensor]:
    """What the columns of both sides are made of, for `vog_hf.metric.input_parts`.

    Args:
        leaf: Input of a dual encoder, with the other one beside it.
        forward: As `vog_hf.gradients.input_gradients.target_gradients` left it, with the gradient of the first target
            in both leaves.
        reduce_channels: Average the gradient of images over their colors.

    Returns:
        {} where the embedding of the text did not give one vector per token.
    """
    other, x, beside = leaf.beside, forward.x, forward.beside
    if other is None or beside is None or x.grad is None:
        return {}
    gradient = torch.zeros_like(beside) if beside.grad is None else beside.grad
    sizes = {_side(leaf, x): _squared_norm(leaf, forward.inputs, x.grad)}
    sizes[_side(other, beside)] = _squared_norm(other, forward.inputs, gradient)
    seen = next(name for name in sizes if name != "text")
    own = _reduced(other, gradient) if reduce_channels else gradient
    shape = _reduced(leaf, x.grad).shape if reduce_channels else x.shape
    return {
        f"{PART}{_side(leaf, x)}": _mask(leaf, forward.inputs, shape, x),
        f"{GRADIENT}{_side(other, beside)}": own,
        f"{MASK}{_side(other, beside)}": _mask(other, forward.inputs, own.shape, own),
        f"{SHARE}{seen}": sizes[seen] / sum(sizes.values()),
    }


def _side(leaf: InputLeaf, value: Tensor) -> str:
    """What an input is, at the end of the names of its columns."""
    if leaf.embedding is not None:
        return "text"
    if not leaf.name.startswith("pixel"):
        return "audio"
    return "video" if value.dim() == 5 else "image"


def _reduced(leaf: InputLeaf, gradient: Tensor) -> Tensor:
    """The mean over the colors; the gradient itself where there are none."""
    axis = leaf.kind.channel_axis(gradient.shape)
    return gradient if axis is None else gradient.mean(axis)


def _squared_norm(leaf: InputLeaf, inputs: Mapping[str, Any], gradient: Tensor) -> Tensor:
    axis = leaf.kind.channel_axis(gradient.shape)
    shape = [n for i, n in enumerate(gradient.shape) if i != axis]
    return squared_norm(gradient, leaf.element_mask(inputs, shape), channel_axis=axis)


def _mask(leaf: InputLeaf, inputs: Mapping[str, Any], shape: torch.Size, value: Tensor) -> Tensor:
    """Elements that count, over the first axes of ``shape``."""
    mask = leaf.element_mask(inputs, shape)
    return torch.ones(len(value), dtype=torch.bool, device=value.device) if mask is None else mask
