"""An unsharded copy of a sharded model, on which scoring runs."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vog_hf.errors import MemoryBudgetError, ModelError
from vog_hf.gradients.model_mode import preserved_rng, unwrap
from vog_hf.runtime.files import format_bytes
from vog_hf.runtime.memory import free_memory
from vog_hf.runtime.processes import current_processes, run_together
from vog_hf.snapshots import FullTensor, full_tensors, is_sharded, model_tensors
from vog_hf.snapshots.whole_tensors import WRAPPER_NAMES, unwrapped_name

HELD_TWICE = 2  # scoring holds a snapshot in addition to the model's own tensors
SCORE_LATER = (
    "store snapshots in your own callback, with SnapshotWriter(folder, model).take(model, step) of vog_hf.snapshots, "
    "and score them later with an unsharded model: VoGScorer(model).score(dataset, folder)"
)


def unsharded_copy(model: nn.Module) -> nn.Module:
    """An unsharded copy of a sharded transformers model on this process's device, in evaluation mode.

    It has the current weights of the model. All processes must call this together. Random states and the model are
    unchanged.

    Supported are `transformers.PreTrainedModel` models sharded by FSDP2 (``fully_shard``), FSDP 1 or DeepSpeed ZeRO-3
    with the modules that their class creates from the config. Not supported are models changed after creation (PEFT
    adapters, other heads, quantization) and plain modules, which cannot be created from a config. Later assignments
    (``layer.eps = ...``) are not copied.

    Raises:
        ModelError: The model cannot be created from its config; the message says how to score it anyway.
        MemoryBudgetError: The copy and a snapshot do not fit on the device of some process. Memory that training will
            allocate later (optimizer, activations) is not included.
    """
    source = _unwrapped(model)
    whole = _build_on_meta(source)
    tensors = {tensor.name: tensor for tensor in full_tensors(model)}
    _require_same_modules(source, whole)
    _require_same_tensors(tensors, whole)
    processes = current_processes()
    run_together(processes, "making room for a whole model", _require_room, tensors, processes.device)
    _allocate(whole, source, tensors, processes.device)
    copy_weights(model, whole)
    return whole.eval()


@torch.no_grad()
def copy_weights(model: nn.Module, whole: nn.Module) -> None:
    """Copy the current parameters and persistent buffers of a sharded model into its copy; for all processes."""
    copies = model_tensors(whole)
    for tensor in full_tensors(model):
        copies[tensor.name].copy_(tensor.gather())


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module under compilation, data parallelism and a FSDP 1 wrapper."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = unwrap(model)
    while isinstance(model, FullyShardedDataParallel):
        model = unwrap(model.module)
    return model


def _original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before ``fully_shard`` changed it."""
    from torch.distributed.fsdp import FSDPModule

    return next(
        base for base in type(module).__mro__ if issubclass(base, nn.Module) and not issubclass(base, FSDPModule)
    )


def _build_on_meta(source: nn.Module) -> nn.Module:
    """The model that the class of ``source`` creates from its config, on the meta device (without memory)."""
    from transformers import PreTrainedModel
    from transformers.modeling_utils import set_zero3_state

    if not isinstance(source, PreTrainedModel):
        raise ModelError(
            f"{_original_class(source).__name__} is sharded, and only a transformers model (without an adapter) can be "
            f"copied in full for scoring; {SCORE_LATER}"
        )
    # Under ZeRO-3, transformers would also shard the new model, unless it believes that this is under way.
    with preserved_rng(), set_zero3_state(), torch.device("meta"):
        model_class: Any = _original_class(source)
        whole: PreTrainedModel = model_class(copy.deepcopy(source.config))
        whole.tie_weights()  # transformers 5.0 does not on the meta device
    if is_sharded(whole):
        raise ModelError(f"{type(whole).__name__} can only be made sharded here (inside of zero.Init); {SCORE_LATER}")
    return whole


def _require_same_modules(source: nn.Module, whole: nn.Module) -> None:
    ours, theirs = _module_classes(whole), _module_classes(source)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            expected, actual = (getattr(classes.get(name), "__name__", "nothing") for classes in (ours, theirs))
            raise ModelError(
                f"{type(whole).__name__} was changed after creation: its config gives {expected} at {name!r}, it has "
                f"{actual}; {SCORE_LATER}"
            )


def _module_classes(model: nn.Module) -> dict[str, type[nn.Module]]:
    """The class of every module by name, without wrappers."""
    return {
        unwrapped_name(name): _original_class(module)
        for name, module in model.named_modules()
        if not WRAPPER_NAMES & set(dict(module.named_children()))
    }


def _require_same_tensors(tensors: Mapping[str, FullTensor], whole: nn.Module) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model_tensors(whole).items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise ModelError(
                f"{type(whole).__name__} was changed after creation: its config gives {name!r} the shape "
                f"{expected.get(name)}, and it has {shapes.get(name)}; {SCORE_LATER}"
            )


def _require_room(tensors: Mapping[str, FullTensor], device: torch.device) -> None:
    needed = HELD_TWICE * sum(tensor.nbytes for tensor in tensors.values())
    free = free_memory(device)
    if needed > free:
        raise MemoryBudgetError(
            f"scoring needs the whole model on each device, {format_bytes(needed)} with one snapshot, and "
            f"{format_bytes(free)} are free on {device}; {SCORE_LATER}"
        )


def _allocate(whole: nn.Module, source: nn.Module, tensors: Mapping[str, FullTensor], device: torch.device) -> None:
    """Allocate device memory for the tensors; copy buffers that are never stored."""
    copies = model_tensors(whole)
    for name, tensor in copies.items():
        like = tensors[name]
        allocated = torch.empty(like.shape, dtype=like.dtype, device=device)
        if like.is_parameter:
            allocated = nn.Parameter(allocated, requires_grad=like.requires_grad)
        torch.utils.swap_tensors(tensor, allocated)  # in place, so that tied tensors stay tied
    stored = {id(tensor) for tensor in copies.values()}
    buffers = {unwrapped_name(name): buffer for name, buffer in source.named_buffers()}
    for name, buffer in whole.named_buffers():
        if id(buffer) not in stored:
            torch.utils.swap_tensors(buffer, buffers[name].detach().to(device, copy=True))
