"""Folding: eval-mode BatchNorm as part of the convolution before it, or as one multiply-add; the same function, faster.

In evaluation mode BatchNorm is a fixed affine map per channel, and torch differentiates it as if it were not: half of
the time of a small ResNet goes there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TENSORS = ("weight", "bias", "running_mean", "running_var")
WATCHED = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FastPathError(Exception):
    """The fast way to run a model is not the function that the plain one is; caught where the plain one takes over."""


class _Use:
    """Sees to it that folded modules are used as they were when they were found, in every pass that is not compiled.

    Each computes with its own tensors (`torch.func.functional_call` gives it others), in evaluation mode, and what a
    convolution makes goes to its BatchNorm next.
    """

    def __init__(self) -> None:
        self._tensors: dict[nn.Module, tuple[Any, ...]] = {}
        self.unread: dict[nn.Module, Tensor] = {}

    def note(self, modules: Iterable[nn.Module]) -> None:
        self._tensors = {module: own_tensors(module) for module in modules}
        self.unread.clear()

    def require(self, module: nn.Module) -> None:
        if torch.compiler.is_compiling():
            return
        same = all(now is noted for now, noted in zip(own_tensors(module), self._tensors[module], strict=True))
        if not same or module.training:
            self.refuse(module, "computes with other tensors than its own, or in training mode")

    def made(self, convolution: nn.Module, output: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        if convolution in self.unread:
            self.refuse(convolution, "was called without its BatchNorm")
        self.unread[convolution] = output

    def read(self, convolution: nn.Module, norm: nn.Module, x: Tensor) -> None:
        if not torch.compiler.is_compiling() and self.unread.pop(convolution, None) is not x:
            self.refuse(norm, "reads something else than what its convolution made")

    def refuse(self, module: nn.Module, what: str) -> None:
        self.unread.clear()
        raise FastPathError(f"a folded {type(module).__name__} {what}")


def own_tensors(module: nn.Module) -> tuple[Any, ...]:
    """The tensors that a convolution or BatchNorm computes with, as they are looked up in `forward`."""
    return tuple(getattr(module, name, None) for name in TENSORS)


@dataclass(frozen=True)
class Folding:
    """The BatchNorms of a model that can be folded, and how; a value: `FoldedModules` holds the state.

    Attributes:
        pairs: Convolution and the BatchNorm that alone reads its output: which the convolution takes over.
        affine: BatchNorms behind something else: one multiply-add.
        channels_last: Whether images and weights of convolutions are laid out with the channels last.
    """

    pairs: Sequence[tuple[nn.Module, nn.Module]] = ()
    affine: Sequence[nn.Module] = ()
    channels_last: bool = False

    def __bool__(self) -> bool:
        return bool(self.pairs or self.affine or self.channels_last)

    def __str__(self) -> str:
        parts = [
            f"{len(self.pairs)} BatchNorms folded into convolutions" if self.pairs else "",
            f"{len(self.affine)} as multiply-adds" if self.affine else "",
            "channels last" if self.channels_last else "",
        ]
        return ", ".join(filter(None, parts)) or "nothing folded"

    @contextmanager
    def installed(self) -> Iterator["FoldedModules"]:
        """Let the model compute the folded way; `FoldedModules.refresh` after every change of its weights."""
        folded = FoldedModules(self)
        try:
            folded.install()
            folded.refresh()
            yield folded
        finally:
            folded.remove()

    def to_memory_format(self, tensor: Tensor) -> Tensor:
        """Images ``[batch, channels, height, width]`` in the layout of the folded model; other tensors as they are."""
        if not self.channels_last or tensor.dim() != 4:
            return tensor
        return tensor.contiguous(memory_format=torch.channels_last)


class FoldedModules:
    """The modules of a `Folding` while they compute the folded way: their forwards and folded weights."""

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        # Weight and bias of a convolution, scale and shift of a BatchNorm.
        self._folded_weights: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._used = _Use()
        self._forwards: dict[nn.Module, Any] = {}
        for convolution, norm in folding.pairs:
            self._forwards[convolution] = self._convolution(convolution, norm)
            self._forwards[norm] = self._taken_over(convolution, norm)
        for norm in folding.affine:
            self._forwards[norm] = self._affine(norm)
        self._used.note(self._forwards)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the model compute the plain way for a while, if this is installed."""
        self.remove()
        try:
            yield
        finally:
            self.install()

    def install(self) -> None:
        """Let the model compute the folded way from here on."""
        for module, forward in self._forwards.items():
            module.__dict__["forward"] = forward

    def remove(self) -> None:
        """Let the model compute the plain way from here on."""
        for module in self._forwards:
            module.__dict__.pop("forward", None)

    def require_as_found(self) -> None:
        """Raise FastPathError where a module has got hooks, a parametrization or other tensors since it was folded."""
        with self.paused():
            for module in self._forwards:
                if is_changed(module):
                    self._used.refuse(module, "has got hooks, a parametrization or a forward")

    def require_all_read(self) -> None:
        """Raise FastPathError where the last pass did not feed a convolution's output to its BatchNorm."""
        for convolution in self._used.unread:
            self._used.refuse(convolution, "was called without its BatchNorm")

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights and statistics that the modules hold now."""
        for convolution, norm in self._folding.pairs:
            self._folded_weights[convolution] = self._folded(convolution, norm)
        for norm in self._folding.affine:
            self._folded_weights[norm] = scale_and_shift(norm)

    def _folded(self, convolution: Any, norm: nn.Module) -> tuple[Tensor, Tensor]:
        scale, shift = scale_and_shift(norm)
        weight = convolution.weight * scale.reshape(-1, *[1] * (convolution.weight.dim() - 1))
        bias = shift if convolution.bias is None else torch.addcmul(shift, convolution.bias, scale)
        return self._folding.to_memory_format(weight), bias

    def _convolution(self, convolution: Any, norm: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            self._used.require(convolution)
            self._used.require(norm)
            output: Tensor = convolution._conv_forward(x, *self._folded_weights[convolution])  # noqa: SLF001 (padding modes and all)
            self._used.made(convolution, output)
            return output

        return forward

    def _taken_over(self, convolution: nn.Module, norm: nn.Module) -> Callable[[Tensor], Tensor]:
        behind = _behind(norm)

        def forward(x: Tensor) -> Tensor:
            self._used.read(convolution, norm, x)
            return behind(x)

        return forward

    def _affine(self, norm: nn.Module) -> Callable[[Tensor], Tensor]:
        behind = _behind(norm)

        def forward(x: Tensor) -> Tensor:
            self._used.require(norm)
            shape = (1, -1, *[1] * (x.dim() - 2))
            scale, shift = (factor.reshape(shape) for factor in self._folded_weights[norm])
            return behind(torch.addcmul(shift, x, scale))

        return forward


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """The affine map that a BatchNorm is in evaluation mode, ``[channels]`` each: ``x * scale + shift``."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def is_changed(module: nn.Module) -> bool:
    """Tell whether hooks, a parametrization, other classes of tensors or its own forward make it another function."""
    hooked = any(getattr(module, name) for name in WATCHED) or any(
        getattr(torch.nn.modules.module, f"_global{name}", None) for name in WATCHED
    )
    own = any(name in module.__dict__ for name in ("forward", "_conv_forward", *TENSORS))
    special = any(type(tensor) not in (nn.Parameter, Tensor, type(None)) for tensor in own_tensors(module))
    return hooked or own or special or torch.nn.utils.parametrize.is_parametrized(module)


def _behind(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The part of timm's BatchNormAct2d behind the normalization; nothing for torch's own."""
    layers = [layer for layer in (getattr(norm, "drop", None), getattr(norm, "act", None)) if layer is not None]

    def forward(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    return forward
