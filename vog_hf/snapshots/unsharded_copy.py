"""A whole model beside a sharded one: what scoring runs on where training is sharded."""

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

HELD_TWICE = 2  # scoring holds a snapshot beside the model's own tensors
SCORE_LATER = (
    "store snapshots in a callback of your own, SnapshotWriter(folder, model).take(model, step) of vog_hf.snapshots, "
    "and score them later with an unsharded model: VoGScorer(model).score(dataset, folder)"
)


def replica(model: nn.Module) -> nn.Module:
    """An unsharded copy of a sharded transformers model on this process's device, in evaluation mode.

    It holds the weights that the model holds now. All processes must call this together. Random states are kept, and
    nothing of the model is changed.

    Works for a `transformers.PreTrainedModel` that is sharded by FSDP2 (``fully_shard``), by FSDP 1 or by DeepSpeed
    ZeRO-3 and has the modules that its class makes from its config. Does not work for models that were rebuilt after
    they were made (PEFT adapters, other heads, quantisation), and for plain modules, which nothing can make anew.
    What a module was told by assignment later (``layer.eps = ...``) is not seen.

    Raises:
        ModelError: The model cannot be made anew from its config; says how to score it all the same.
        MemoryBudgetError: The copy does not fit on the device of some process, counted twice because scoring holds a
            snapshot beside it. What training has yet to allocate (optimizer, activations) is not known here.
    """
    source = _unwrapped(model)
    twin = _built_anew(source)
    tensors = {tensor.name: tensor for tensor in full_tensors(model)}
    _require_same_modules(source, twin)
    _require_same_tensors(tensors, twin)
    processes = current_processes()
    run_together(processes, "making room for a whole model", _require_room, tensors, processes.device)
    _allocate(twin, source, tensors, processes.device)
    copy_weights(model, twin)
    return twin.eval()


@torch.no_grad()
def copy_weights(model: nn.Module, whole: nn.Module) -> None:
    """Give a replica the parameters and persistent buffers that the sharded model holds now; for all processes."""
    own = model_tensors(whole)
    for tensor in full_tensors(model):
        own[tensor.name].copy_(tensor.gather())


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module under compilation, data parallelism and a FSDP 1 wrapper."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = unwrap(model)
    while isinstance(model, FullyShardedDataParallel):
        model = unwrap(model.module)
    return model


def _original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before ``fully_shard`` put one of its own in front of it."""
    from torch.distributed.fsdp import FSDPModule

    return next(
        base for base in type(module).__mro__ if issubclass(base, nn.Module) and not issubclass(base, FSDPModule)
    )


def _built_anew(source: nn.Module) -> nn.Module:
    """The model that the class of ``source`` makes from its config, without memory (on the meta device)."""
    from transformers import PreTrainedModel
    from transformers.modeling_utils import set_zero3_state

    if not isinstance(source, PreTrainedModel):
        raise ModelError(
            f"{_original_class(source).__name__} is sharded, and only a transformers model (without an adapter) can be "
            f"made anew in full to score on; {SCORE_LATER}"
        )
    # Under ZeRO-3, transformers would shard the parts of the new model, too, unless it believes that this is under way.
    with preserved_rng(), set_zero3_state(), torch.device("meta"):
        made_by: Any = _original_class(source)
        twin: PreTrainedModel = made_by(copy.deepcopy(source.config))
        twin.tie_weights()  # transformers 5.0 does not on the meta device
    if is_sharded(twin):
        raise ModelError(f"{type(twin).__name__} can only be made sharded here (inside of zero.Init); {SCORE_LATER}")
    return twin


def _require_same_modules(source: nn.Module, twin: nn.Module) -> None:
    ours, theirs = _module_classes(twin), _module_classes(source)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            made, given = (getattr(classes.get(name), "__name__", "nothing") for classes in (ours, theirs))
            raise ModelError(
                f"{type(twin).__name__} was changed after it was made: its config gives {made} at {name!r}, and there "
                f"is {given}; {SCORE_LATER}"
            )


def _module_classes(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Every module's class by name, without the wrappers around modules."""
    return {
        unwrapped_name(name): _original_class(module)
        for name, module in model.named_modules()
        if not WRAPPER_NAMES & set(dict(module.named_children()))
    }


def _require_same_tensors(tensors: Mapping[str, FullTensor], twin: nn.Module) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model_tensors(twin).items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise ModelError(
                f"{type(twin).__name__} was changed after it was made: its config gives {name!r} the shape "
                f"{expected.get(name)}, and it has {shapes.get(name)}; {SCORE_LATER}"
            )


def _require_room(tensors: Mapping[str, FullTensor], device: torch.device) -> None:
    needed = HELD_TWICE * sum(tensor.nbytes for tensor in tensors.values())
    free = free_memory(device)
    if needed > free:
        raise MemoryBudgetError(
            f"scoring needs the whole model on each device, {format_bytes(needed)} with a snapshot beside it, and "
            f"{format_bytes(free)} are free on {device}; {SCORE_LATER}"
        )


def _allocate(twin: nn.Module, source: nn.Module, tensors: Mapping[str, FullTensor], device: torch.device) -> None:
    """Memory on a device for tensors without any; buffers that are never stored are copied at once."""
    own = model_tensors(twin)
    for name, tensor in own.items():
        like = tensors[name]
        made = torch.empty(like.shape, dtype=like.dtype, device=device)
        if like.is_parameter:
            made = nn.Parameter(made, requires_grad=like.requires_grad)
        torch.utils.swap_tensors(tensor, made)  # in place, so that tied tensors stay tied
    stored = {id(tensor) for tensor in own.values()}
    buffers = {unwrapped_name(name): buffer for name, buffer in source.named_buffers()}
    for name, buffer in twin.named_buffers():
        if id(buffer) not in stored:
            torch.utils.swap_tensors(buffer, buffers[name].detach().to(device, copy=True))
