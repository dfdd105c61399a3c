"""The state of a model while gradients are taken: modes, caches and random states, restored afterwards."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vog_hf.errors import ModelError
from vog_hf.gradients.model_state import clear_lru_caches, kept_state


def unwrap(model: nn.Module) -> nn.Module:
    """The module under ``torch.compile`` and data-parallel wrappers: hooks on a compiled module are ignored."""
    # neither is imported for this
    engine = getattr(sys.modules.get("deepspeed"), "DeepSpeedEngine", nn.DataParallel)
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    while True:
        if isinstance(model, compiled):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, engine)):
            model = model.module
        else:
            return model


def require_module(model: object) -> None:
    """Raise ModelError where a model is not a torch module (as in SetFit and pipelines), or not one that can be run."""
    if not isinstance(model, nn.Module):
        inside = [name for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)]
        advice = f"pass the module inside it ({', '.join(inside)})" if inside else "pass the model that was trained"
        raise ModelError(f"a torch.nn.Module is expected as the model, got {type(model).__name__}; {advice}")
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise ModelError(
            f"a model of Python modules is expected, got one that is scripted or traced ({type(model).__name__}); pass "
            "the model as it was before torch.jit"
        )
    tensors = chain(model.named_parameters(), model.named_buffers())
    shapeless = [name for name, tensor in tensors if is_lazy(tensor)]
    if shapeless:
        raise ModelError(
            f"{type(model).__name__} has lazy layers that have not seen a batch ({shapeless[0]!r} has no shape); call "
            "it once on a batch of the data, model(**batch), before it is trained or scored"
        )


def require_weights(model: nn.Module) -> None:
    """Raise ModelError for a model without parameters and buffers."""
    if not any(True for _ in chain(model.parameters(), model.buffers())):
        raise ModelError(
            f"a model with weights is expected, got {type(model).__name__} without any; pass a trained one, as it was "
            "before it was quantized"
        )


def model_device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Device of the model and dtype of its first floating weight (None: it has no floating weight)."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    return device, next((t.dtype for t in tensors if t.is_floating_point()), None)


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Give back the random states of python, numpy and torch (all devices) as they were.

    Some models draw numbers in evaluation mode, too: wav2vec2 of transformers 5.0 for its layer drop.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def seed_global_streams(seed: int) -> None:
    """Seed what a model, a transform or a collator may draw from; within `preserved_rng`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def scoring_mode(model: nn.Module, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Evaluation mode without compilation, gradients on, autocast to a dtype or off; on leaving, all is as before.

    Flags are set one by one; modules with a ``train`` of their own, which may do more than that, have it called as
    well. Whatever the model changes in itself is put back (see `ModelState`); what modules keep of weights that they
    had before, or had meanwhile, is dropped (see `drop_caches`). Recurrent networks run without cuDNN.

    Raises:
        ModelError: ``train()`` or ``eval()`` of a module changes weights.
    """
    device, _ = model_device_and_dtype(model)
    with ExitStack() as stack:
        stack.callback(clear_lru_caches, model)
        stack.enter_context(_unwritten_problem_type(list(model.modules())))
        stack.enter_context(kept_state(model))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        # Weights are exchanged under it: what it keeps of them would be old.
        casting = torch.autocast(device.type, dtype=autocast, enabled=autocast is not None, cache_enabled=False)
        stack.enter_context(casting)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_without_cudnn())
        modes = [(module, module.training) for module in _acting_on_train(model)]
        with _weights_unwritten(model):
            drop_caches(model)
        stack.callback(_call_train, model, modes)
        for module in model.modules():
            module.training = False
            if module.__dict__.get("_compiled_call_impl") is not None:
                module.__dict__["_compiled_call_impl"] = None
        if "forward" in model.__dict__ and hasattr(model, "_original_forward"):
            model.__dict__["forward"] = _forward_before_accelerate(model)
        yield


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leave cuDNN, which has no backward of recurrent layers in evaluation mode, to itself for a while."""
    was_enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = was_enabled


@contextmanager
def _unwritten_problem_type(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give configurations their ``problem_type`` back: a model that must be fed labels writes it."""
    configs: list[Any] = [vars(module).get("config") for module in modules]
    before = [(config, config.problem_type) for config in configs if hasattr(config, "problem_type")]
    try:
        yield
    finally:
        for config, problem_type in before:
            if config.problem_type != problem_type:
                config.problem_type = problem_type


def drop_caches(model: nn.Module) -> None:
    """Have modules forget what they computed of their weights: to be called when a model's weights have changed.

    Some keep it in evaluation mode until ``train(True)`` is called (attention biases of LeViT and TinyViT, norms of
    weights of DoRA), some compute it in ``train(False)``. Both are called, on modules with a ``train`` of their own;
    modes and ``requires_grad`` stay as they are. Caches of ``functools`` are emptied.
    """
    clear_lru_caches(model)
    acting = _acting_on_train(model)
    for mode in (True, False):
        _call_train(model, [(module, mode) for module in acting])


def _acting_on_train(model: nn.Module) -> list[nn.Module]:
    """Modules with a ``train`` of their own: not torch's, nor the one that all transformers models share."""
    homes = [(module, getattr(type(module).train, "__module__", "")) for module in model.modules()]
    return [module for module, home in homes if not home.startswith(("torch.", "transformers.modeling_utils"))]


def _call_train(model: nn.Module, modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Call ``train(mode)`` of some modules; the flags of all modules and ``requires_grad`` stay as they are."""
    if not modes:
        return
    flags = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, mode in modes:
            module.train(mode)
    finally:
        for module, was_training in flags:
            module.training = was_training
        for parameter, was_trainable in trainable:
            parameter.requires_grad_(was_trainable)


@contextmanager
def _weights_unwritten(model: nn.Module) -> Iterator[None]:
    """Raise ModelError where a weight is about to be overwritten, or was exchanged, removed or added."""
    before = {name: (weight, _address(weight)) for name, weight in model.named_parameters()}
    with _UnwrittenWeights({address: name for name, (_, address) in before.items() if address}):
        yield
    after = {name: (weight, _address(weight)) for name, weight in model.named_parameters()}
    for name in after.keys() | before.keys():
        now, then = after.get(name, (None, 0)), before.get(name, (None, 0))
        if now[0] is not then[0] or now[1] != then[1]:
            raise _changed_by_train(name)


class _UnwrittenWeights(TorchDispatchMode):
    """Raises ModelError before an operation that writes to a weight."""

    def __init__(self, name_by_address: Mapping[int, str]) -> None:
        super().__init__()
        self._names = name_by_address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        for argument, value in chain(zip(arguments, args, strict=False), ((a, kwargs.get(a.name)) for a in arguments)):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for leaf in tree_leaves(value):
                    name = self._names.get(_address(leaf)) if isinstance(leaf, Tensor) else None
                    if name is not None:
                        raise _changed_by_train(name)
        return func(*args, **kwargs)


def _address(tensor: Tensor) -> int:
    """Address of a tensor's memory; 0 for those without one (empty, sparse, on the meta device)."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided and not tensor.is_meta else 0


def _changed_by_train(weight: str) -> ModelError:
    return ModelError(
        f"train() or eval() of a module changes the weight {weight!r} (a low-rank difference merged by eval(), layers "
        "fused or norms removed), but VoG needs the weights of the training in evaluation mode; switch the merging off "
        "(merge_weights=False in loralib), or fuse layers only after scoring"
    )


def _forward_before_accelerate(model: nn.Module) -> Callable[..., Any]:
    """The forward that Accelerate patched for bf16 or fp16, under one layer of wrapping for each time it did."""
    function: Any = getattr(model._original_forward, "__func__", model._original_forward)
    plain = type(model).forward
    while function is not plain and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
        function = getattr(function, "__func__", function)
    if function is plain:
        return MethodType(plain, model)
    original: Callable[..., Any] = model._original_forward  # type: ignore[assignment]
    return original
