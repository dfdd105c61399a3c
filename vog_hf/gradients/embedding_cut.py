"""EmbeddingCut: the output of a token embedding as a leaf, by row, whatever layout the model gives it."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn


class EmbeddingCut:
    """One forward pass on token ids, in which a forward hook cuts the embedding's output out of the graph.

    ``caught`` are the outputs that were cut, each now a leaf; the model continues with a copy.
    """

    def __init__(self, ids: Tensor) -> None:
        self.caught: list[Tensor] = []
        self._ids = ids

    @contextmanager
    def watching(self, embedding: nn.Module) -> Iterator[None]:
        """Cut while the model runs."""
        compiles = "torch._dynamo" in sys.modules  # importing it takes a second
        handle = embedding.register_forward_hook(_opaque_hook() if compiles else _hook)
        token = _running_cut.set(self)
        try:
            yield
        finally:
            _running_cut.reset(token)
            handle.remove()

    @property
    def rows(self) -> Tensor | None:
        """The leaf, one vector per token of each row; None where the embedding gave something else, or several."""
        shape = self._ids.shape
        is_known = len(self.caught) == 1 and self.caught[0].dim() > len(shape)
        return self.caught[0] if is_known and self.caught[0].shape[: len(shape)] == shape else None

    def cut(self, args: tuple[object, ...], output: Tensor) -> Tensor:
        """Keep a leaf of what the embedding gave for ``args``, and return what the model is fed instead."""
        swapped = has_tokens_first(self._ids, args, output)
        rows = output.transpose(0, 1) if swapped else output
        if _has_texts_in_turn(self._ids, args, output):
            rows = output.unflatten(0, self._ids.shape[:2])
        self.caught.append(rows.detach().requires_grad_())
        fed = self.caught[-1].clone()
        return fed.transpose(0, 1) if swapped else fed.reshape(output.shape)


_running_cut: ContextVar[EmbeddingCut] = ContextVar("_running_cut")


def _hook(_module: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor:
    """As `torch.nn.Module.register_forward_hook` calls it; one function, because a compiled model keeps its hooks."""
    return _running_cut.get().cut(args, output)


@functools.cache
def _opaque_hook() -> Callable[..., Tensor]:
    """The hook, not to be looked into by ``torch.compile``."""
    hook: Callable[..., Tensor] = torch.compiler.disable(_hook)
    return hook


def has_tokens_first(ids: Tensor, args: tuple[object, ...], output: Tensor) -> bool:
    """Tell whether an embedding's output is ``[tokens, batch, width]`` (XLNet), of ids ``[batch, tokens]``."""
    if ids.dim() != 2 or output.shape[:2] != ids.shape[::-1]:
        return False
    if ids.shape[0] != ids.shape[1]:
        return True
    given = args[0] if args else None  # as many rows as tokens: only what was embedded tells
    if not isinstance(given, Tensor) or given.shape != ids.shape:
        return False
    if given.data_ptr() == ids.data_ptr() and given.stride() == ids.stride():  # the device need not be asked
        return False
    return not torch.equal(given, ids) and torch.equal(given, ids.T)


def _has_texts_in_turn(ids: Tensor, args: tuple[object, ...], output: Tensor) -> bool:
    """Tell whether an embedding's output is ``[batch * texts, tokens, width]``, of ids ``[batch, texts, tokens]``.

    The texts of a row are next to each other, as models for multiple choice flatten them.
    """
    if ids.dim() != 3 or output.dim() != 3 or output.shape[:2] != (ids.shape[0] * ids.shape[1], ids.shape[2]):
        return False
    given = args[0] if args else None
    return not isinstance(given, Tensor) or given.equal(ids.flatten(0, 1))
