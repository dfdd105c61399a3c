"""Copies of a batch to a device."""

import pytest
import torch
from torch import Tensor

from vog_hf.gradients.model_inputs import to_device


@pytest.fixture
def copies(monkeypatch):
    """Records how tensors are copied: this machine may have no CUDA device."""
    made = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: made.append("pinned") or tensor)
    monkeypatch.setattr(Tensor, "to", lambda tensor, *_, non_blocking: made.append(f"{non_blocking=}") or tensor)
    return made


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda:0", ["pinned", "non_blocking=True"]), ("cpu", ["non_blocking=True"]), ("mps", ["non_blocking=True"])],
)
def test_copies_to_cuda_are_pinned_and_asynchronous(copies, device, expected):
    """CUDA copies from pinned memory while the host continues; values other than tensors stay as they are."""
    to_device({"pixel_values": torch.ones(2, 3), "output_attentions": False}, torch.device(device), torch.float32)
    assert copies == expected
