"""The random mask of a masked autoencoder, drawn once for each row: its model gets the noise that it would draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from vog_hf.gradients.model_outputs import base_model

NOISE = "noise"  # of transformers: a row's patches are masked in the order of these numbers


def draws_noise(model: nn.Module, parameters: Sequence[str]) -> bool:
    """Tell whether a model with these parameters of forward draws ``noise`` of its own where it is given none."""
    names = (cls.__name__ for cls in type(base_model(model)).__mro__)
    return NOISE in parameters and any(name.endswith("ForPreTraining") for name in names)


def fixed_noise(model: nn.Module, inputs: Mapping[str, object]) -> dict[str, Tensor]:
    """Noise of each row, uniform in 0..1, ``{"noise": [batch, patches]}``; nothing where the batch has some.

    The seed is made of the row's pixels, so that a row has the same mask in every batch, snapshot and process.
    """
    pixels = inputs.get("pixel_values")
    if inputs.get(NOISE) is not None or not isinstance(pixels, Tensor) or pixels.dim() != 4:
        return {}
    n_patches = _n_patches(base_model(model), pixels)
    bytes_of_rows = pixels.detach().to("cpu", torch.float32).flatten(1).contiguous().numpy()
    drawn = [np.random.default_rng(xxhash.xxh3_64_intdigest(row.data)).random(n_patches) for row in bytes_of_rows]
    return {NOISE: torch.from_numpy(np.array(drawn, dtype=np.float32)).to(pixels.device)}


def _n_patches(model: Any, pixels: Tensor) -> int:
    """Number of units of an image that are masked or not."""
    config, height, width = model.config, *pixels.shape[-2:]
    strides = getattr(config, "masked_unit_size", None)  # Hiera masks several patches at a time
    if strides is None:
        return (height // config.patch_size) * (width // config.patch_size)
    sides = (config.patch_stride[axis] * strides[axis] for axis in (0, 1))
    return int(np.prod([n // side for n, side in zip((height, width), sides, strict=True)]))
