"""The BatchNorms of a model that can be folded, found by watching one forward pass and its graph."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from vog_hf.gradients.batchnorm_folding import Folding, is_changed, own_tensors

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def find_folding(model: nn.Module, forward: Callable[[], object]) -> Folding:
    """Find what can be folded in a model by watching one forward pass and its graph.

    Folded are modules of torch's own classes (and timm's BatchNormAct2d), without hooks or parametrizations, that run
    once and with their own tensors; a convolution only if nothing but its BatchNorm reads its output.

    Args:
        model: In evaluation mode.
        forward: Runs one batch through the model, with gradients from its input on, and returns the outputs.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        >>> x = torch.rand(2, 3, 8, 8)
        >>> plain = model(x)
        >>> folding = find_folding(model, lambda: model(x))
        >>> str(folding)
        '1 BatchNorms folded into convolutions'
        >>> with folding.installed():
        ...     torch.allclose(model(x), plain, atol=1e-6)
        True
    """
    norms = [module for module in model.modules() if _is_affine_in_eval(module)]
    if not norms:
        return Folding()
    convolutions = [module for module in model.modules() if type(module) in CONVOLUTIONS and not is_changed(module)]
    seen = _Watch([*convolutions, *norms])
    with ExitStack() as hooks:
        for module in convolutions:
            hooks.callback(module.register_forward_hook(seen.convolution).remove)
        for module in norms:
            hooks.callback(module.register_forward_pre_hook(seen.norm).remove)
        with _Reads(seen):
            outputs = forward()
    readers = _readers(_tensors(outputs))
    pairs, affine = [], []
    for norm, node in seen.read_by.items():
        if norm in seen.lent:
            continue
        convolution = seen.made_by.get(node)
        if (
            convolution is not None
            and convolution not in seen.lent
            and seen.reads[convolution] == 1
            and readers[node] == seen.calls[convolution] == seen.calls[norm] == 1
        ):
            pairs.append((convolution, norm))
        else:
            affine.append(norm)
    return Folding(pairs, affine)


class _Watch:
    """Record of a forward pass: the module that made and the BatchNorm that read each node, and how often each ran.

    Reads are counted in two ways, as neither sees all of them: the graph knows what the model returns and what an
    custom autograd function reads; `_Reads` knows what is read under no_grad or behind detach.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._tensors = {module: own_tensors(module) for module in modules}
        self.lent: set[nn.Module] = set()  # called with tensors that are not their own
        self.calls: Counter[nn.Module] = Counter()
        self.reads: Counter[nn.Module] = Counter()  # also those that leave no trace in the graph
        self.outputs: dict[int, tuple[Tensor, nn.Module]] = {}
        self.made_by: dict[Any, nn.Module] = {}
        self.read_by: dict[nn.Module, Any] = {}

    def _called(self, module: nn.Module) -> None:
        self.calls[module] += 1
        if any(now is not own for now, own in zip(own_tensors(module), self._tensors[module], strict=True)):
            self.lent.add(module)

    def convolution(self, module: nn.Module, _args: object, output: Tensor) -> None:
        self._called(module)
        self.outputs[id(output)] = output, module  # held, so that no other tensor gets its id
        if output.grad_fn is not None:
            self.made_by[output.grad_fn] = module

    def norm(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._called(module)
        if args:
            self.read_by[module] = args[0].grad_fn


class _Reads(TorchFunctionMode):
    """Counts what reads the values of watched outputs, under no_grad and behind detach, too."""

    def __init__(self, seen: _Watch) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        about = getattr(func, "__name__", "") == "__get__" and not isinstance(result, Tensor)
        if not about and not isinstance(result, (int, torch.Size)):  # shape, dim(), dtype
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self._seen.outputs:
                    self._seen.reads[self._seen.outputs[id(leaf)][1]] += 1
        return result


def graph_nodes(outputs: object) -> Iterable[Any]:
    """Every node of the autograd graph of what a model returned."""
    return _readers(_tensors(outputs)).keys()


def _readers(outputs: Sequence[Tensor]) -> Counter[Any]:
    """Count the operations, and outputs, that read what each node of the graph of ``outputs`` made."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    readers: Counter[Any] = Counter(waiting)
    visited = set()
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        before = [source for source, _ in node.next_functions if source is not None]
        readers.update(before)
        waiting += before
    return readers


def _tensors(outputs: object) -> list[Tensor]:
    """All tensors in what a model returned."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    elif hasattr(outputs, "__dict__"):
        outputs = list(vars(outputs).values())
    return [tensor for part in outputs for tensor in _tensors(part)] if isinstance(outputs, (list, tuple)) else []


def _is_affine_in_eval(module: nn.Module) -> bool:
    """Tell whether this is torch's BatchNorm, or timm's with an activation behind it, and uses running statistics."""
    if type(module) not in BATCH_NORMS and type(module).__name__ != "BatchNormAct2d":
        return False
    return not module.training and getattr(module, "running_var", None) is not None and not is_changed(module)
