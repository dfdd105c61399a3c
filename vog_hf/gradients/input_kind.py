"""The kinds of input that are differentiated, and all in which they differ: channels, masks, sizes and words."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override


class InputKind:
    """A floating input: a waveform, a spectrogram, features, or an image under a name of its own."""

    mask_name = "attention_mask"  # key of the mask that says which elements are not padding
    emptiness = "; leave the row out, or give it at least one value"  # what to do about a row without elements

    def channel_axis(self, shape: Sequence[int]) -> int | None:
        """Axis of ``[batch, *input]`` that holds image channels, None where there is none."""
        return len(shape) - 3 if len(shape) == 4 else None

    def padding_mask(self, mask: Tensor, shape: Sequence[int]) -> Tensor | None:
        """Elements of ``shape = [batch, *input']`` that count by a batch's mask, None where it is of another shape."""
        shape = tuple(shape)
        if tuple(mask.shape) == shape[: mask.dim()]:
            return mask.bool()
        if mask.dim() == 2 and tuple(mask.shape) == (shape[0], shape[-1]):  # [batch, mel bins, frames]
            return mask.bool().unsqueeze(1).expand(shape)
        if mask.dim() == 3 and tuple(mask.shape) == (shape[0], *shape[2:]):  # [batch, channels, height, width]
            return mask.bool().unsqueeze(1).expand(shape)
        return None

    def unpadded(self, _value: Tensor) -> Tensor | None:
        """As `padding_mask`, of a batch without a mask; None = all elements count."""
        return None

    def gradient_shape(self, shape: Sequence[int], _element_shape: Sequence[int]) -> list[int]:
        """Shape of one row's gradient, from that of its input and that of another row's gradient."""
        return list(shape)

    def map_size(self, element_shape: Sequence[int]) -> int:
        """Values in the heat map of a row before it is pooled."""
        return math.prod(element_shape)


class Pixels(InputKind):
    """Images, and videos as ``[batch, frames, channels, height, width]``."""

    mask_name = "pixel_mask"

    @override
    def channel_axis(self, shape: Sequence[int]) -> int | None:
        return len(shape) - 3 if len(shape) >= 4 else None


class Tokens(InputKind):
    """Token ids, whose embeddings ``[batch, tokens, width]`` are differentiated: the width belongs to the token.

    Of several texts in a row (multiple choice), ``[batch, choices, tokens, width]``.
    """

    emptiness = " (an empty text?); leave the row out, or give it at least one token"

    @override
    def channel_axis(self, shape: Sequence[int]) -> int | None:
        return None

    @override
    def unpadded(self, value: Tensor) -> Tensor | None:
        return torch.ones(tuple(value.shape), dtype=torch.bool, device=value.device)

    @override
    def gradient_shape(self, shape: Sequence[int], element_shape: Sequence[int]) -> list[int]:
        return [*shape, element_shape[-1]]

    @override
    def map_size(self, element_shape: Sequence[int]) -> int:
        return math.prod(element_shape[:-1])
