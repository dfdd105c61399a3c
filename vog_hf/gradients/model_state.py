"""The state of a model besides its weights: recorded before a pass, and put back bit by bit after it.

Many models change something in evaluation mode, too: observers of quantization, running statistics, memory queues,
counters, recurrent states, tables that grow with the longest batch, weights derived from others.
"""

import enum
import functools
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.errors import ModelError
from vog_hf.gradients.object_records import ClassAttributes, Record, parts_of, record_of

_NO_STATE = (  # or state that belongs to others
    *(type(None), bool, int, float, complex, str, bytes, type, enum.Enum, range, torch.dtype, torch.device, torch.Size),
    *(FunctionType, MethodType, BuiltinFunctionType, ModuleType, property, staticmethod, classmethod),
    *(GetSetDescriptorType, MemberDescriptorType, functools.cached_property, logging.Logger, threading.Thread),
)
_PLAIN = (dict, list, set, OrderedDict)
_STATELESS: dict[type, bool] = {}  # of the classes that were asked for
_LRU_CACHE = type(functools.lru_cache(lambda: None))


class ModelState:
    """Everything but the values of weights that a forward pass can change in a model, as it is now.

    That is: buffers (persistent or not), tensors and arrays in attributes, lists, dictionaries and objects that modules
    refer to, every attribute, random generators, attributes of the modules' classes; what each of them refers to, and
    what is in it. Of parameters only the memory that they refer to is recorded. Costs one copy of these tensors.
    Functions, closures and global variables are not looked into. Weights that an embedding with ``max_norm`` scales
    down in its forward are recorded with their values.
    """

    def __init__(self, model: nn.Module) -> None:
        self._records: list[Record] = []
        self._empty: list[Any] = []  # collections: most of what modules have, so that they have to cost nothing
        self._visited: dict[int, Any] = {}  # holds each object, so that no other one gets its id
        scaled = {id(module.weight) for module in model.modules() if _scales_its_weight(module)}
        waiting: list[Any] = [model, *(ClassAttributes(kind) for kind in _own_classes(model))]
        while waiting:
            value = waiting.pop()
            if id(value) in self._visited:
                continue
            self._visited[id(value)] = value
            if type(value) in _PLAIN and not value:
                self._empty.append(value)
                continue
            is_weight = isinstance(value, Tensor) and isinstance(value, nn.Parameter)
            record = record_of(value, with_values=not is_weight or id(value) in scaled)
            if record is not None:
                self._records.append(record)
            waiting += [part for part in parts_of(value) if not _is_stateless(type(part))]

    def is_changed(self) -> bool:
        """Tell whether anything differs from what was recorded."""
        return any(self._empty) or any(record.is_changed() for record in self._records)

    def put_back(self) -> None:
        """Make everything what it was, in the same memory."""
        with torch.inference_mode():  # the only mode in which tensors made in it can be written to
            for record in self._records:
                record.put_back()
        for collection in filter(None, self._empty):
            collection.clear()


@contextmanager
def kept_state(model: nn.Module) -> Iterator[None]:
    """Put back on leaving whatever a model changes in itself, other than the values of its weights."""
    state = ModelState(model)
    try:
        yield
    finally:
        state.put_back()


def clear_lru_caches(model: nn.Module) -> None:
    """Empty the ``functools`` caches of the modules' methods, and of functions in the files that define them."""
    for kind in _own_classes(model):
        for holder in (kind, sys.modules.get(kind.__module__)):
            for value in list(vars(holder).values()) if holder is not None else []:
                if isinstance(value, _LRU_CACHE):
                    value.cache_clear()


def weight_sums(model: nn.Module) -> Tensor:
    """The sum of each parameter of at least 16 bits, ``[parameters]``: differs where a pass has changed one."""
    weights = [p.detach() for p in model.parameters() if p.dtype.itemsize > 1 and p.numel()]
    real = [torch.view_as_real(weight) if weight.is_complex() else weight for weight in weights]
    sums = [weight.sum(dtype=torch.float64) for weight in real]
    return torch.stack(sums).nan_to_num().cpu() if sums else torch.zeros(0)


def require_weights_unchanged(model: nn.Module, sums: Tensor) -> None:
    """Raise ModelError where the weights no longer have the sums that `weight_sums` found before a pass."""
    if not torch.equal(weight_sums(model), sums):
        raise ModelError(
            f"{type(model).__name__} changes its weights in forward, also in evaluation mode (initialization from the "
            "first batch, or a moving average of weights), but VoG must leave weights as they are; run one batch "
            "through the model before, or change weights only while module.training"
        )


def _is_stateless(kind: type) -> bool:
    if kind not in _STATELESS:
        _STATELESS[kind] = issubclass(kind, _NO_STATE)
    return _STATELESS[kind]


def _scales_its_weight(module: object) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None


def _own_classes(model: nn.Module) -> list[type]:
    """The classes of a model's modules, and their bases that are modules, but for those of torch."""
    kinds = {base: None for module in model.modules() for base in type(module).__mro__ if issubclass(base, nn.Module)}
    return [kind for kind in kinds if kind.__module__.split(".")[0] != "torch"]
