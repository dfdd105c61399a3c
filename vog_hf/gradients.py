"""Gradients of a scalar per row with respect to the model's input, with the model left as it was found."""

import functools
import inspect
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vog_hf.decoder_inputs import decoder_inputs
from vog_hf.errors import ConfigError, DataError, ModelError
from vog_hf.folding import graph_nodes
from vog_hf.model_state import clear_lru_caches, kept_state
from vog_hf.targets import (
    Target,
    Task,
    base_model,
    check_target,
    fill_missing_labels,
    find_logits,
    find_task,
    row_scalar,
)

LABEL_NAMES = ("labels", "label", "label_ids")
MASK_NAMES = ("attention_mask", "pixel_mask")
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def input_gradients(model: nn.Module, batch: Any, *, target: Target = "logit", labels: Tensor | None = None) -> Tensor:
    """Gradient of each row's target with respect to that row's input, ``[batch, *input]``.

    In evaluation mode, outside autocast; weights, ``.grad``, ``requires_grad``, module modes, buffers, the model's
    configuration and all random states are left as they were. Unit: target unit per unit of input; sign and direction
    as they are.

    Args:
        model: A transformers model, a timm model or any ``nn.Module`` whose output holds logits (see
            `vog_hf.targets.find_logits`); compiled and wrapped models are unwrapped.
        batch: A mapping as ``forward`` takes it (labels may be in it), a tensor, or a pair (inputs, labels).
        target: ``"logit"``, ``"probability"``, ``"loss"``, or ``target(outputs, batch) -> [batch]``.
        labels: ``[batch]`` classes, or what the model's task needs; default: those in the batch, else, for
            classifiers, the model's own prediction.

    Returns:
        The gradient w.r.t. the main input if that is floating (pixels, waveform, spectrogram), else w.r.t. the token
        embeddings, ``[batch, tokens, width]``.

    Raises:
        ModelError: The input or the logits cannot be found, or the target does not depend on the input.

    Example:
        >>> model = nn.Linear(3, 2, bias=False)
        >>> gradients = input_gradients(model, (torch.ones(4, 3), torch.tensor([0, 1, 1, 0])))
        >>> torch.equal(gradients[1], model.weight[1])  # the logit of class 1 is linear in the input
        True
    """
    require_module(model)
    model = unwrap(model)
    given, found_labels = split_batch(batch, model)
    labels = found_labels if labels is None else labels
    device, dtype = model_device_and_dtype(model)
    with preserved_rng(), scoring_mode(model):
        inputs = placed(forward_inputs(model, given, labels), device, dtype)
        if isinstance(labels, Tensor):
            labels = placed({"labels": labels}, device, None)["labels"]
        leaf = find_leaf(model, inputs)
        forward = forward_from_leaf(model, inputs, leaf)
        n_rows = len(forward.x)
        if is_lonely(forward):
            inputs = doubled(inputs)
            labels = torch.cat([labels, labels]) if isinstance(labels, Tensor) else labels
            forward = forward_from_leaf(model, inputs, leaf)
        task = None
        if isinstance(target, str):
            logits = find_logits(forward.outputs)
            task = find_task(model, logits, labels)
            check_target(target, task)
            labels = task.counted_labels(labels, {**given, **inputs})
            if labels is not None:
                task.check_labels(labels, logits.shape[-1] if logits.dim() > 1 else 1)
            if task.can_predict_label:
                labels = fill_missing_labels(labels, logits.argmax(-1))
        return target_gradients([target], task, forward, labels)[0][:n_rows]


@dataclass(frozen=True)
class Forward:
    """One forward pass: what the model gave, what it was fed, and the leaf ``x`` inside."""

    outputs: Any
    inputs: Mapping[str, Any]
    x: Tensor


def target_gradients(
    targets: Sequence[Target], task: Task | None, forward: Forward, labels: Tensor | None
) -> list[Tensor]:
    """Gradient of each target's row scalars with respect to the leaf, ``[batch, *input]``: one backward each."""
    gradients = []
    for i, target in enumerate(targets):
        scalars = row_scalar(target, task, forward.outputs, forward.inputs, labels)
        with _explained_autograd_errors():
            (gradient,) = torch.autograd.grad(
                scalars.sum(), forward.x, retain_graph=i < len(targets) - 1, allow_unused=True
            )
        if gradient is None:
            msg = (
                "the target does not depend on the input: it is used under no_grad, detached or not used at all; "
                "VoG needs a model that is differentiable from its input to its logits"
            )
            raise ModelError(msg)
        gradients.append(gradient)
    return gradients


# --- what is fed to the model ---------------------------------------------------------------------------------------


class EmbeddingCut:
    """A forward hook that cuts an embedding's output out of the graph; one object for all passes of a compiled model.

    ``caught`` are the outputs that were cut, each now a leaf; the model goes on with a copy.
    """

    def __init__(self) -> None:
        self.caught: list[Tensor] = []
        self._ids = torch.empty(0)

    @contextmanager
    def watching(self, embedding: nn.Module, ids: Tensor) -> Iterator[None]:
        """Cut while the model runs on ``ids``."""
        self.caught.clear()
        self._ids = ids
        compiles = "torch._dynamo" in sys.modules  # importing it takes a second
        handle = embedding.register_forward_hook(self._opaque if compiles else self)
        try:
            yield
        finally:
            handle.remove()
            self._ids = torch.empty(0)

    @functools.cached_property
    def _opaque(self) -> Callable[..., Tensor]:
        """The hook, not to be looked into by ``torch.compile``."""
        hook: Callable[..., Tensor] = torch.compiler.disable(self.__call__)
        return hook

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """As `torch.nn.Module.register_forward_hook` calls it."""
        swapped = _has_tokens_first(self._ids, args, output)
        self.caught.append((output.transpose(0, 1) if swapped else output).detach().requires_grad_())
        fed = self.caught[-1].clone()
        return fed.transpose(0, 1) if swapped else fed


@dataclass(frozen=True)
class InputLeaf:
    """The input with respect to which the gradient is taken: a floating tensor, or an embedding's output."""

    name: str  # key in the batch
    embedding: nn.Module | None  # the module whose output is the leaf; None: the tensor itself
    cut: EmbeddingCut = field(default_factory=EmbeddingCut, repr=False, compare=False)

    def channel_axis(self, shape: Sequence[int]) -> int | None:
        """Axis of ``[batch, *input]`` that holds image channels, None where the input is not an image."""
        if self.embedding is None and (len(shape) == 4 or (len(shape) > 4 and self.name.startswith("pixel_values"))):
            return len(shape) - 3
        return None

    @property
    def mask_name(self) -> str:
        """Key of the mask that says which elements of this input are no padding."""
        return "pixel_mask" if self.name.startswith("pixel") else "attention_mask"

    def element_mask(self, inputs: Mapping[str, Any], shape: Sequence[int]) -> Tensor | None:
        """Which elements of ``shape = [batch, *input']`` (after a channel mean) count; None = all of them."""
        mask = self.padding_mask(inputs, shape)
        if mask is None and self.embedding is not None:
            return torch.ones(tuple(shape[:2]), dtype=torch.bool, device=inputs[self.name].device)
        return mask

    def padding_mask(self, inputs: Mapping[str, Any], shape: Sequence[int]) -> Tensor | None:
        """As `element_mask`, of a batch that says what is padding; None where it does not."""
        mask, shape = inputs.get(self.mask_name), tuple(shape)
        if not isinstance(mask, Tensor):
            return None
        if tuple(mask.shape) == shape[: mask.dim()]:
            return mask.bool()
        if mask.dim() == 2 and tuple(mask.shape) == (shape[0], shape[-1]):  # [batch, mel bins, frames]
            return mask.bool().unsqueeze(1).expand(shape)
        if mask.dim() == 3 and tuple(mask.shape) == (shape[0], *shape[2:]):  # [batch, channels, height, width]
            return mask.bool().unsqueeze(1).expand(shape)
        return None


def find_leaf(model: nn.Module, inputs: Mapping[str, Any]) -> InputLeaf:
    """What of ``inputs`` is differentiated: ``main_input_name``, else the first parameter of forward in the batch."""
    main = getattr(model, "main_input_name", None)
    names = [name for name in ([main] if isinstance(main, str) else []) if name in inputs]
    if "inputs_embeds" in inputs:
        names = ["inputs_embeds"]
    unnamed = inputs if takes_any_input(model) else ()
    candidates = sorted(dict.fromkeys([*forward_parameters(model), *unnamed]), key=_is_beside_the_input)
    names += [name for name in candidates if isinstance(inputs.get(name), Tensor)]
    if not names:
        msg = (
            f"none of forward's parameters {list(forward_parameters(model))} is a tensor of the batch, which has "
            f"{sorted(inputs)}; name the batch's keys after forward's parameters in the collator"
        )
        raise ModelError(msg)
    name = names[0]
    if inputs[name].is_floating_point():
        return InputLeaf(name, None)
    return InputLeaf(name, _input_embedding(model, name, inputs[name].dtype))


def _is_beside_the_input(name: str) -> bool:
    """Whether a parameter of forward is a mask or feeds a decoder, which is differentiated only for want of others."""
    return name in MASK_NAMES or name.startswith("decoder_")


def _input_embedding(model: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
    owners: list[Any] = [model]
    get_encoder: Any = getattr(model, "get_encoder", None)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and callable(get_encoder):
        owners.insert(0, get_encoder())
    embedding = next((found for owner in owners if (found := _named_embedding(owner)) is not None), None)
    if embedding is None:
        msg = (
            f"the input {name!r} is {dtype}, which has no gradient, and {type(model).__name__} names no embedding to "
            "differentiate instead; define get_input_embeddings() on it, or feed a floating input"
        )
        raise ModelError(msg)
    return _copy_in_use(model, embedding)


def _copy_in_use(model: nn.Module, module: nn.Module) -> nn.Module:
    """The module that runs instead of one inside a module that PEFT has copied to train it (``modules_to_save``).

    PEFT leaves the original in the wrapper, and may hang further wrappers on it, which never run.
    """
    wrapper_class: Any = getattr(sys.modules.get("peft.utils.other"), "ModulesToSaveWrapper", ())
    wrappers: Iterator[Any] = model.modules()  # outermost first
    for wrapper in wrappers:
        path = wrapper is not module and isinstance(wrapper, wrapper_class) and _path_to(wrapper, module)
        if not path:
            continue
        trained = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
        runs = (
            wrapper.modules_to_save[trained[0]] if trained and not wrapper.disable_adapters else wrapper.original_module
        )
        inner: nn.Module = runs.get_submodule(re.sub(r"^(original_module|modules_to_save\.[^.]+)(\.|$)", "", path))
        return inner
    return module


def _path_to(root: nn.Module, module: nn.Module) -> str | None:
    return next((path for path, found in root.named_modules() if found is module), None)


def _named_embedding(owner: Any) -> nn.Module | None:
    """What a module returns from ``get_input_embeddings()``, None where it has no such method or no answer."""
    try:
        embedding = owner.get_input_embeddings() if hasattr(owner, "get_input_embeddings") else None
    except NotImplementedError:
        return None
    return embedding if isinstance(embedding, nn.Module) else None


def forward_from_leaf(model: nn.Module, inputs: Mapping[str, Any], leaf: InputLeaf) -> Forward:
    """Run ``model(**inputs)`` with the leaf cut out of the graph, so that gradients stop there.

    The model is fed a copy of the leaf: autograd forbids a model to change a leaf in place, as some do.

    Raises:
        ModelError: The leaf is not one tensor ``[batch, *input]`` that the model uses once.
    """
    if leaf.embedding is None:
        x = inputs[leaf.name].detach().requires_grad_()
        others = {name: value for name, value in inputs.items() if name != leaf.name}
        with _explained_autograd_errors():
            return Forward(model(**copied(others), **{leaf.name: x.clone()}), inputs, x)
    cut = leaf.cut
    with cut.watching(leaf.embedding, inputs[leaf.name]), _explained_autograd_errors():
        outputs = model(**copied(inputs))
    caught, ids = cut.caught, inputs[leaf.name]
    if len(caught) != 1:
        msg = (
            f"the input embedding of {type(model).__name__} ({type(leaf.embedding).__name__}) was used {len(caught)} "
            "times in one forward pass, expected exactly once; pass inputs_embeds, or return the embedding that is "
            "really used from get_input_embeddings()"
        )
        raise ModelError(msg)
    if caught[0].shape[: ids.dim()] != ids.shape:
        advice = (
            "Pad them in the collator to the length that it wants (Longformer: pad_to_multiple_of="
            "config.attention_window)"
            if ids.dim() == 2
            else "Rows with several texts (multiple choice) are not supported: score a model of one text per row "
            "(...ForSequenceClassification), with each choice as a row of its own"
        )
        msg = (
            f"the input embedding of {type(model).__name__} gave {tuple(caught[0].shape)} for {leaf.name!r} "
            f"{tuple(ids.shape)}, expected one vector per token, [batch, tokens, width]: the model flattens, pads or "
            f"reorders its tokens itself. {advice}"
        )
        raise ModelError(msg)
    return Forward(outputs, inputs, caught.pop())


def is_lonely(forward: Forward) -> bool:
    """Whether this is a pass over one row that must be scored as two copies (see `has_wrong_single_rows`)."""
    return len(forward.x) == 1 and has_wrong_single_rows(forward)


def has_wrong_single_rows(forward: Forward) -> bool:
    """Whether torch may give wrong gradients of a batch of one row: on a CPU, behind BatchNorm.

    In torch 2.15 they are wrong in evaluation mode where the gradient that comes in is in another memory format than
    the input.
    """
    return forward.x.device.type == "cpu" and any("BatchNorm" in node.name() for node in graph_nodes(forward.outputs))


def doubled(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of one row as those of two copies of it."""
    return {
        name: torch.cat([value, value]) if isinstance(value, Tensor) and value.shape[:1] == (1,) else value
        for name, value in inputs.items()
    }


def copied(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """``inputs`` with tensors of their own: a model that changes its input must not change the row."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _has_tokens_first(ids: Tensor, args: tuple[Any, ...], output: Tensor) -> bool:
    """Whether an embedding's output is ``[tokens, batch, width]`` (XLNet), of ids ``[batch, tokens]``."""
    if ids.dim() != 2 or output.shape[:2] != ids.shape[::-1]:
        return False
    if ids.shape[0] != ids.shape[1]:
        return True
    given = args[0] if args else None  # as many rows as tokens: only what was embedded tells
    if not isinstance(given, Tensor) or given.shape != ids.shape:
        return False
    return not torch.equal(given, ids) and torch.equal(given, ids.T)


def split_batch(batch: Any, model: nn.Module, label_names: Sequence[str] = LABEL_NAMES) -> tuple[dict[str, Any], Any]:
    """A collated batch as (inputs by name, labels or None): mappings, pairs (inputs, labels) and bare tensors."""
    required = required_parameters(model)
    if isinstance(batch, Mapping):
        labels = [batch[name] for name in label_names if name in batch]
        inputs = {name: value for name, value in batch.items() if name not in label_names or name in required}
        return inputs, next((value for value in labels if value is not None), None)
    first = next(iter(forward_parameters(model)), None)
    if isinstance(batch, Tensor):
        batch = (batch,)
    if not isinstance(batch, (tuple, list)) or not 1 <= len(batch) <= 2 or first is None:
        msg = f"a batch must be a mapping, a pair (inputs, labels) or a tensor, got {type(batch).__name__}"
        raise DataError(msg)
    if isinstance(batch[0], Mapping):
        return dict(batch[0]), batch[1] if len(batch) == 2 else None
    if len(batch) == 1:
        return {first: batch[0]}, None
    others = [name for name in required if name != first]
    return {first: batch[0], **dict.fromkeys(others if len(others) == 1 else ())}, batch[1]


def forward_inputs(
    model: nn.Module, inputs: Mapping[str, Any], labels: Tensor | None, label_names: Sequence[str] = LABEL_NAMES
) -> dict[str, Any]:
    """``inputs`` reduced to what forward accepts, without labels unless forward cannot do without.

    A model that is given labels computes a loss and writes ``config.problem_type``. Sequence-to-sequence models get
    the decoder's inputs from the labels where the batch has none.

    Raises:
        DataError: Forward has a parameter for labels without a default, and there are none.
    """
    accepted, takes_all = forward_parameters(model), takes_any_input(model)
    kept = {
        name: value
        for name, value in inputs.items()
        if name in accepted or (takes_all and isinstance(value, Tensor) and name not in label_names)
    }
    for name in required_parameters(model):
        if name in label_names or (name in kept and kept[name] is None):
            kept[name] = _required_labels(model, name, labels if kept.get(name) is None else kept[name])
    config = getattr(model, "config", None)
    if (
        getattr(config, "is_encoder_decoder", False)
        and isinstance(labels, Tensor)
        and labels.dim() == 2
        and not labels.is_floating_point()
        and "decoder_input_ids" in accepted
        and not kept.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}
    ):
        kept["decoder_input_ids"] = decoder_inputs(model, labels)
    if "use_cache" in accepted and getattr(config, "use_cache", False):
        kept["use_cache"] = False  # keys and values of every layer would be kept for nothing

    return kept


def _required_labels(model: nn.Module, name: str, labels: Any) -> Any:
    """Labels for a forward that cannot do without; class 0 where a row has none, which only enters the loss."""
    if labels is None:
        msg = (
            f"forward of {type(base_model(model)).__name__} requires {name!r}, and the batch has no labels; give the "
            f"parameter a default ({name}=None), or name the labels (label_column=)"
        )
        raise DataError(msg)
    is_classes = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return labels.clamp(min=0) if is_classes else labels


def placed(inputs: Mapping[str, Any], device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """``inputs`` on a device, their floating tensors in a dtype (None: as they are).

    Tensors that were made in inference mode are copied: autograd takes none of those.
    """
    found = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            tensor = value.clone() if value.is_inference() else value
            found[name] = tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)
    return found


def forward_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of forward's parameters, of the model under an adapter or a wrapper whose own forward names none."""
    return tuple(p.name for p in _parameters(model) if p.kind in NAMED)


def required_parameters(model: nn.Module) -> tuple[str, ...]:
    """Those of `forward_parameters` that have no default."""
    return tuple(p.name for p in _parameters(model) if p.kind in NAMED and p.default is p.empty)


def takes_any_input(model: nn.Module) -> bool:
    """Whether forward takes inputs that it does not name (``**kwargs``); what transformers takes so are options."""
    if type(base_model(model)).forward.__module__.startswith("transformers."):
        return False
    return any(p.kind is p.VAR_KEYWORD for p in _parameters(model))


def _parameters(model: nn.Module) -> tuple[inspect.Parameter, ...]:
    model_class: Any = type(base_model(model))
    return _signature(model_class)


@functools.cache
def _signature(model_class: type[nn.Module]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(model_class.forward).parameters.values())[1:]  # without self


# --- leaving the model as it was found ------------------------------------------------------------------------------


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


def require_module(model: Any) -> None:
    """Raise ModelError where a model is not a torch module, as those of SetFit and pipelines are not."""
    if not isinstance(model, nn.Module):
        inside = [name for name, value in getattr(model, "__dict__", {}).items() if isinstance(value, nn.Module)]
        advice = f"pass the module inside it ({', '.join(inside)})" if inside else "pass the model that was trained"
        msg = f"a torch.nn.Module is expected as the model, got {type(model).__name__}; {advice}"
        raise ModelError(msg)


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


@contextmanager
def scoring_mode(model: nn.Module, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Evaluation mode without compilation, gradients on, autocast to a dtype or off; on leaving, all is as before.

    Modes are set flag by flag, because ``train()`` and ``eval()`` of some modules do more than that. Whatever the
    model changes in itself is put back (see `ModelState`); what modules keep of weights that they had before, or had
    meanwhile, is dropped (see `drop_caches`). Recurrent networks run without cuDNN.
    """
    device, _ = model_device_and_dtype(model)
    with ExitStack() as stack:
        stack.callback(drop_caches, model)
        stack.enter_context(_unwritten_problem_type(list(model.modules())))
        stack.enter_context(kept_state(model))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        # Weights are exchanged under it: what it keeps of them would be old.
        casting = torch.autocast(device.type, dtype=autocast, enabled=autocast is not None, cache_enabled=False)
        stack.enter_context(casting)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_without_cudnn())
        drop_caches(model)
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

    Some keep it in evaluation mode until ``train(True)`` is called: attention biases (LeViT, EfficientFormer, TinyViT),
    norms of weights (DoRA). It is called on those only that have a ``train`` of their own and hold tensors beside
    their weights; modes and ``requires_grad`` stay as they are. Caches of ``functools`` are emptied.
    """
    clear_lru_caches(model)
    keeping = [m for m in model.modules() if _acts_on_train(m) and any(map(_holds_tensors, m.modules()))]
    if not keeping:
        return
    modes = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module in keeping:
            module.train(True)
    finally:
        for module, was_training in modes:
            module.training = was_training
        for parameter, was_trainable in trainable:
            parameter.requires_grad_(was_trainable)


def _acts_on_train(module: nn.Module) -> bool:
    """Whether ``train`` is the module's own: not torch's, nor the one that all transformers models share."""
    home = getattr(type(module).train, "__module__", "")
    return not home.startswith(("torch.", "transformers.modeling_utils"))


def _holds_tensors(module: nn.Module) -> bool:
    """Whether a module has tensors, or collections of them, that are neither parameters nor buffers."""
    kept = [value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")]
    return any(_has_tensor(value) for value in kept)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_tensor(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_tensor(item) for item in value)
    return isinstance(value, Tensor)


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


@contextmanager
def _explained_autograd_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "use_reentrant" in text or "Checkpointing is not compatible with .grad()" in text:
            msg = (
                "the model uses re-entrant gradient checkpointing in evaluation mode, through which no input gradient "
                "can be taken; call torch.utils.checkpoint.checkpoint(..., use_reentrant=False), or checkpoint only "
                "while module.training"
            )
            raise ModelError(msg) from error
        if "does not require grad and does not have a grad_fn" in text:
            msg = (
                "the target has no gradient: the model computes its logits under no_grad or from detached or integer "
                "values; VoG needs a model that is differentiable from its input to its logits"
            )
            raise ModelError(msg) from error
        raise


def averaged_axis(reduce_channels: bool | str, leaf: InputLeaf, shape: Sequence[int]) -> int | None:  # noqa: FBT001 (an option's value, not a switch)
    """The axis over which channels are averaged, None for none; raises where an input without channels is asked."""
    axis = leaf.channel_axis(shape)
    if reduce_channels is True and axis is None:
        msg = f"reduce_channels=True needs images [batch, channels, height, width], got {leaf.name!r} {tuple(shape)}"
        raise ConfigError(msg)
    return axis if reduce_channels else None
