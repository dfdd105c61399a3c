"""The tensors of a model: by name, each once, and their digests."""

import hashlib
from collections.abc import Mapping
from functools import cache

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


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


def is_storable(tensor: Tensor) -> bool:
    """Whether a safetensors file holds such a tensor: dense, of a dtype of that format, and not a wrapper of others."""
    is_dense = tensor.layout is torch.strided and not is_traceable_wrapper_subclass(tensor)
    return is_dense and _is_dtype_of_format(tensor.dtype)


@cache
def _is_dtype_of_format(dtype: torch.dtype) -> bool:
    """Whether safetensors knows a dtype; not those of quantized tensors, nor complex128."""
    try:
        save({"": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError):
        return False
    return True


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two overlap in memory, as safetensors demands; only what overlaps is copied."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    stops: dict[torch.device, int] = {}
    for name, tensor in sorted(contiguous.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < stops.get(tensor.device, 0):
            contiguous[name] = tensor.clone()
        stops[tensor.device] = max(stops.get(tensor.device, 0), tensor.data_ptr() + tensor.nbytes)
    return contiguous


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor, or of the dense tensors that it is made of."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    parts = _parts(tensor.detach())
    for part in parts:
        digest.update(tensor_digest(part).encode())
    if not parts and tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a sparse, quantized or wrapping tensor is made of; none of a dense one."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    if tensor.layout is torch.strided:
        return []
    entries = tensor.to_sparse_coo().coalesce()
    return [entries.indices(), entries.values()]
