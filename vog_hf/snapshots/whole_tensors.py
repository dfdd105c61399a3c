"""The full tensors of a model, also if it is sharded: FSDP, tensor parallelism, DeepSpeed ZeRO-3."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vog_hf.errors import ModelError
from vog_hf.gradients.model_mode import unwrap


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by the names that ``state_dict`` gives them.

    A shared (tied) tensor appears once, under its first name. Names are matched by identity, because wrappers
    (activation checkpointing) change them in the state dict.
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
    """True if safetensors can store the tensor: dense, of a supported dtype, and not a wrapper of other tensors."""
    is_dense = tensor.layout is torch.strided and not is_traceable_wrapper_subclass(tensor)
    return is_dense and _is_dtype_of_format(tensor.dtype)


@cache
def _is_dtype_of_format(dtype: torch.dtype) -> bool:
    """True if safetensors supports a dtype; not those of quantized tensors, nor complex128."""
    try:
        save({"": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError):
        return False
    return True


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors without overlapping memory, as safetensors requires; only overlapping tensors are copied."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    stops: dict[torch.device, int] = {}
    for name, tensor in sorted(contiguous.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < stops.get(tensor.device, 0):
            contiguous[name] = tensor.clone()
        stops[tensor.device] = max(stops.get(tensor.device, 0), tensor.data_ptr() + tensor.nbytes)
    return contiguous


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor ``[...]``, or of its dense parts."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    parts = _parts(tensor.detach())
    for part in parts:
        digest.update(tensor_digest(part).encode())
    if not parts and tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(tensor: Tensor) -> list[Tensor]:
    """The dense parts of a sparse, quantized or wrapping tensor; empty for a dense tensor."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    if tensor.layout is torch.strided:
        return []
    entries = tensor.to_sparse_coo().coalesce()
    return [entries.indices(), entries.values()]


# Wrapping modules, which appear in the names of their submodules.
WRAPPER_NAMES = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})


@dataclass(frozen=True)
class FullTensor:
    """Description of a full tensor of a model, and a function to gather it.

    ``gather`` must be called by every process or by none, before the next tensor is requested. Its value has no
    gradient; for an unsharded model it is the model's own memory.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype
    is_parameter: bool
    requires_grad: bool
    is_storable: bool
    gather: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size of the full tensor."""
        return self.shape.numel() * self.dtype.itemsize


def is_sharded(model: nn.Module) -> bool:
    """True if this process holds only parts of the parameters: FSDP (1 and 2), DTensors, or DeepSpeed ZeRO-3."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False  # sharding needs processes, and checking for it is a slow import
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules()) or any(
        isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def require_whole(model: nn.Module) -> None:
    """Raise ModelError if a model is sharded and therefore cannot be scored."""
    if is_sharded(model):
        raise ModelError(
            f"{type(model).__name__} is sharded (FSDP or ZeRO-3): each process holds a part of its weights, and "
            "scoring needs them whole; score an unsharded model of the same architecture from the stored snapshots"
        )


def is_main_process() -> bool:
    """True on the only or the first process."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def full_tensors(model: nn.Module) -> Iterator[FullTensor]:
    """Parameters and persistent buffers of a model, sharded or not, by their names in the unsharded model.

    For a sharded model, every process must iterate over all of them. Only one tensor at a time is held in full (FSDP 1:
    the tensors of one wrapper).
    """
    model = unwrap(model)
    if not is_sharded(model):
        yield from (_described(name, tensor, tensor.detach) for name, tensor in model_tensors(model).items())
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        yield from _summoned(model)
        return
    for name, tensor in model_tensors(model).items():
        yield _described(name, tensor, partial(_gathered, tensor))


def unwrapped_name(name: str) -> str:
    """A name without the wrappers of modules."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES)


def _described(name: str, tensor: Tensor, gather: Callable[[], Tensor]) -> FullTensor:
    shape = getattr(tensor, "ds_shape", tensor.shape)  # under ZeRO-3 the parameter itself is empty
    local = getattr(tensor, "_local_tensor", tensor)  # of a DTensor
    return FullTensor(
        name=name,
        shape=torch.Size(shape),
        dtype=tensor.dtype,
        is_parameter=isinstance(tensor, nn.Parameter),
        requires_grad=tensor.requires_grad,
        is_storable=is_storable(local),
        gather=gather,
    )


@torch.no_grad()
def _gathered(tensor: Tensor) -> Tensor:
    """The full value of a DTensor or ZeRO-3 parameter; a collective operation."""
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        where = tensor.device_mesh.device_type
        on_mesh: Any = tensor if tensor.device.type == where else tensor.to(where)  # FSDP2's CPU offload
        return on_mesh.full_tensor().detach()
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def _summoned(model: nn.Module) -> Iterator[FullTensor]:
    """The tensors of a model with FSDP 1 wrappers, wrapper by wrapper, the outermost first, as FSDP requires."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    units = [(name, unit) for name, unit in model.named_modules() if isinstance(unit, FullyShardedDataParallel)]
    if not isinstance(model, FullyShardedDataParallel):
        yield from _own_tensors("", model)
    for prefix, unit in units:
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            yield from _own_tensors(prefix, unit)


def _own_tensors(prefix: str, unit: nn.Module) -> Iterator[FullTensor]:
    """The tensors of a module, each once, without those in nested FSDP 1 wrappers."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    inner = [name for name, m in unit.named_modules() if name and isinstance(m, FullyShardedDataParallel)]
    seen: set[int] = set()
    for path, module in unit.named_modules():
        if any(f"{path}.".startswith(f"{name}.") for name in inner):
            continue
        persistent = {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set  # noqa: SLF001 (state_dict() would gather everything)
        }
        for name, tensor in {**dict(module.named_parameters(recurse=False)), **persistent}.items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                full_name = unwrapped_name(".".join(filter(None, (prefix, path, name))))
                yield _described(full_name, tensor, tensor.detach().clone)  # the wrapper frees its memory on exit
