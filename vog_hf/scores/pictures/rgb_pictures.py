"""Pictures in RGB: of any mode of Pillow, and of arrays and tensors of any range."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from vog_hf.scores.pictures.decoding import GAP, reduced

CHANNELS = (1, 3, 4)


def as_picture(value: object, side: int | None) -> Image.Image | None:
    """A picture, array or tensor as a picture in RGB; None if it is none of these, or has another shape.

    Args:
        value: PIL image, or an array or tensor ``[height, width]``, with or without 1, 3 or 4 channels on either side.
        side: Longer side in pixels with which it will be shown; a larger one is reduced to a few times that first.
    """
    if isinstance(value, Image.Image):
        return rgb(value if side is None else reduced(value, side)) if min(value.size) else None
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    if not isinstance(value, (np.ndarray, list)):
        return None
    values = np.asarray(value)
    if values.ndim == 3 and _channels_first(*values.shape):
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or not values.size or (values.ndim == 3 and values.shape[2] not in CHANNELS):
        return None
    step = 1 if side is None else max(1, max(values.shape[:2]) // (GAP * side))
    values = _eight_bits(values[::step, ::step])
    return rgb(Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _channels_first(first: int, _: int, last: int) -> bool:
    """Return whether the first axis is the channels; if both ends could be, the shorter one is, else the first."""
    return first in CHANNELS and (last not in CHANNELS or first <= last)


def _eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """0..255: as they are if they are bytes, times 255 if all lie in 0..1, else from the least to the largest."""
    if values.dtype == np.uint8:
        return values
    floats = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = floats.min(), floats.max()
    if low < 0 or high > 1:
        floats = (floats - low) / ((high - low) or 1.0)
    return (255 * floats).round().astype(np.uint8)


def rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: over white where it is transparent, spread over 0..255 where it has 16 or 32 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
