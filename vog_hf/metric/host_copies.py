"""host_copies: tensors of a device in one copy to the host."""

from collections.abc import Mapping

import torch
from torch import Tensor


def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU of tensors of one device, for which the host waits once; those of a CPU as they are.

    Args:
        tensors: Real tensors of any shape and dtype, by name, on a CPU or on one other device.

    Example:
        >>> host_copies({"vog": torch.tensor([0.5, 2.0]), "prediction": torch.tensor([1, 0])})
        {'vog': tensor([0.5000, 2.0000]), 'prediction': tensor([1, 0])}
    """
    on_device = [name for name in tensors if tensors[name].device.type != "cpu"]
    if not on_device:
        return dict(tensors)
    on_device.sort(key=lambda name: -tensors[name].itemsize)  # then each begins at a multiple of its own size
    packed = torch.cat([tensors[name].contiguous().reshape(-1).view(torch.uint8) for name in on_device]).cpu()
    parts = packed.split([tensors[name].nbytes for name in on_device])
    copies = {
        name: part.view(tensors[name].dtype).reshape(tensors[name].shape)
        for name, part in zip(on_device, parts, strict=True)
    }
    return {name: copies.get(name, value) for name, value in tensors.items()}
