"""The tensors of a model: by name, each once, and their digests."""

import hashlib

import torch
from torch import Tensor, nn


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by the names that ``state_dict`` gives them.

    A tensor that is shared (tied) stands once, under its first name. Names are taken by identity, because wrappers
    (activation checkpointing) have them changed on the way into the state dict.
    """
    state = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name, value in state.items():
        names.setdefault(id(value), name)
    tensors: dict[str, Tensor] = {names.get(id(p), name): p for name, p in model.named_parameters()}
    return tensors | {names[id(b)]: b for b in model.buffers() if id(b) in names}


def aliases(model: nn.Module) -> dict[str, str]:
    """Every name of a shared tensor, to the name under which `model_tensors` has it."""
    first = {id(tensor): name for name, tensor in model_tensors(model).items()}
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    everything += model.state_dict(keep_vars=True).items()
    return {name: first[id(tensor)] for name, tensor in everything if id(tensor) in first}


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
