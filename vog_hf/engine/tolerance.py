"""How much of a difference between two ways to compute the same gradients is rounding."""

import torch
from torch import nn

from vog_hf.config import VoGConfig
from vog_hf.gradients import model_device_and_dtype

TOLERANCE = 1e-3
ROUNDINGS = 8  # that a gradient may differ by in low precision, in units of its last digit
TF32 = 2.0**-10  # last digit of what float32 is rounded to on a GPU, where that is allowed


def rounding_tolerance(model: nn.Module, config: VoGConfig) -> float:
    """The relative difference that is still rounding: 0.001 in float32 and float64, more in lower precision."""
    device, dtype = model_device_and_dtype(model)
    last_digit = torch.finfo(config.autocast or dtype or torch.float32).eps
    return max(TOLERANCE, ROUNDINGS * (max(last_digit, TF32) if device.type == "cuda" else last_digit))
