"""The state of a model besides its weights: recorded before a pass, and put back bit by bit after it.

Many models change something in evaluation mode, too: observers of quantization, running statistics, memory queues,
counters, recurrent states, tables that grow with the longest batch, weights derived from others.
"""

import copy
import enum
import functools
import logging
import pickle
import random
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vog_hf.errors import ModelError

_NO_STATE = (  # or state that belongs to others
    *(type(None), bool, int, float, complex, str, bytes, type, enum.Enum, range, torch.dtype, torch.device, torch.Size),
    *(FunctionType, MethodType, BuiltinFunctionType, ModuleType, property, staticmethod, classmethod),
    *(GetSetDescriptorType, MemberDescriptorType, functools.cached_property, logging.Logger, threading.Thread),
)
_LRU_CACHE = type(functools.lru_cache(lambda: None))
_ABSENT = object()


class ModelState:
    """Everything but the values of weights that a forward pass can change in a model, as it is now.

    That is: buffers (persistent or not), tensors and arrays in attributes, lists, dictionaries and objects that modules
    refer to, every attribute, random generators, attributes of the modules' classes; what each of them refers to, and
    what is in it. Of parameters only the memory that they refer to is recorded. Costs one copy of these tensors.
    Functions, closures and global variables are not looked into. Weights that an embedding with ``max_norm`` scales
    down in its forward are recorded with their values.
    """

    def __init__(self, model: nn.Module) -> None:
        self._records: list[_Record] = []
        self._visited: dict[int, Any] = {}  # holds each object, so that no other one gets its id
        scaled = {id(module.weight) for module in model.modules() if _scales_its_weight(module)}
        waiting: list[Any] = [model, *(_ClassAttributes(kind) for kind in _own_classes(model))]
        while waiting:
            value = waiting.pop()
            if isinstance(value, _NO_STATE) or id(value) in self._visited:
                continue
            self._visited[id(value)] = value
            record = _record(value, with_values=not isinstance(value, nn.Parameter) or id(value) in scaled)
            if record is not None:
                self._records.append(record)
            waiting += _parts(value)

    def is_changed(self) -> bool:
        """Tell whether anything differs from what was recorded."""
        return any(record.is_changed() for record in self._records)

    def put_back(self) -> None:
        """Make everything what it was, in the same memory."""
        with torch.inference_mode():  # the only mode in which tensors made in it can be written to
            for record in self._records:
                if record.is_changed():
                    record.put_back()


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


# --- what a forward makes itself ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DerivedTensors:
    """Attributes and non-persistent buffers that a model makes in its forward where they are missing.

    They may be derived from weights that the model had before, so that they have to go when it gets others.

    Attributes:
        places: Where each of them is: the attributes of a module or its buffers, the name, and its value when missing.
    """

    places: tuple[tuple[dict[str, Any], str, Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.places)

    def forget(self) -> None:
        """Let the next forward make them again."""
        for attributes, name, missing in self.places:
            _set(attributes, name, missing)

    @classmethod
    def find(cls, model: nn.Module, forward: Callable[[], object]) -> "DerivedTensors":
        """Try a forward without each of them, once per class of module and name; the model is left as it was."""
        derived: list[tuple[dict[str, Any], str, Any]] = []
        by_kind: dict[tuple[type, str], list[dict[str, Any]]] = {}
        for module in model.modules():
            for attributes, name in _tensors_beside_weights(module):
                by_kind.setdefault((type(module), name), []).append(attributes)
        for (kind, name), places in by_kind.items():
            is_property = isinstance(getattr(kind, name, None), functools.cached_property)
            for missing in (_ABSENT,) if is_property else _ways_to_be_missing(places[0][name]):
                if _is_made_again(model, forward, places, name, missing):
                    derived += [(attributes, name, missing) for attributes in places]
                    break
        return cls(tuple(derived))


def _tensors_beside_weights(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Find the floating tensors of a module that no state dict has."""
    for name, value in vars(module).items():
        if name not in ("_parameters", "_buffers", "_modules") and _holds_floating(value):
            yield vars(module), name
    for name in module._non_persistent_buffers_set:
        if _holds_floating(module._buffers.get(name)):
            yield module._buffers, name


def _holds_floating(value: object) -> bool:
    """Tell whether a value is a floating tensor (not a parameter), or a collection with one in it."""
    if isinstance(value, dict):
        return any(map(_holds_floating, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_floating, value))
    return isinstance(value, Tensor) and value.is_floating_point() and not isinstance(value, nn.Parameter)


def _ways_to_be_missing(value: object) -> tuple[Any, ...]:
    return (type(value)(),) if type(value) in (dict, list, OrderedDict) else (None, _ABSENT)


def _is_made_again(
    model: nn.Module, forward: Callable[[], object], places: list[dict[str, object]], name: str, missing: object
) -> bool:
    with kept_state(model):
        for attributes in places:
            _set(attributes, name, missing)
        try:
            forward()
        except (RuntimeError, TypeError, AttributeError, ValueError, LookupError):
            return False  # the model cannot do without it
        return all(_holds_floating(attributes.get(name)) for attributes in places)


def _set(attributes: dict[str, Any], name: str, value: object) -> None:
    if value is _ABSENT:
        attributes.pop(name, None)
    else:
        attributes[name] = copy.copy(value)


# --- records of one object each -------------------------------------------------------------------------------------


class _Record(Protocol):
    def is_changed(self) -> bool: ...

    def put_back(self) -> None: ...


class _ClassAttributes:
    """The attributes of a class, as an object to be recorded."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def values(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self.kind).items()
            if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__")
        }


class _Tensor:
    def __init__(self, tensor: Tensor, *, with_values: bool) -> None:
        self._tensor = tensor
        self._data = tensor.data  # keeps its shape and memory where ``tensor`` is resized or refers to another
        self._values = self._distinct().clone() if with_values else None

    def is_changed(self) -> bool:
        return self._is_elsewhere() or self._is_overwritten()

    def put_back(self) -> None:
        if self._is_overwritten() and self._values is not None:
            if self._data.layout is torch.strided:
                self._distinct().copy_(self._values)
            else:
                self._tensor.data = self._data = self._values.clone()
        if self._is_elsewhere():
            self._tensor.data = self._data

    def _is_elsewhere(self) -> bool:
        now, then = self._tensor, self._data
        if (now.shape, now.dtype, now.device) != (then.shape, then.dtype, then.device):
            return True
        if now.layout is not torch.strided or then.is_meta:
            return False
        return now.stride() != then.stride() or now.data_ptr() != then.data_ptr()

    def _is_overwritten(self) -> bool:
        if self._values is None or self._data.is_meta:
            return False
        return not _are_equal(self._distinct(), self._values)

    def _distinct(self) -> Tensor:
        """The recorded tensor, each element in memory once (an expanded tensor cannot be written to)."""
        data = self._data
        if data.layout is torch.strided and 0 in data.stride():
            shape = [1 if step == 0 else n for n, step in zip(data.shape, data.stride(), strict=True)]
            return data if 0 in data.shape else data.as_strided(shape, data.stride())
        return data


def _are_equal(first: Tensor, second: Tensor) -> bool:
    if first.layout is torch.strided:
        return torch.equal(first, second)
    return first.shape == second.shape and all(map(torch.equal, _members(first), _members(second)))


def _members(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that a sparse one is made of."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


class _Collection:
    """A dictionary, list, deque or set, or the attributes of a class: which objects are in it."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._items = _items(value)

    def is_changed(self) -> bool:
        now = _items(self._value)
        return len(now) != len(self._items) or any(a is not b for a, b in zip(now, self._items, strict=True))

    def put_back(self) -> None:
        value, items = self._value, self._items
        if isinstance(value, _ClassAttributes):
            for name in value.values().keys() - set(items[::2]):
                delattr(value.kind, name)
            for name, item in zip(items[::2], items[1::2], strict=True):
                setattr(value.kind, name, item)
        elif isinstance(value, dict):  # the methods of subclasses may refuse
            base: Any = OrderedDict if isinstance(value, OrderedDict) else dict
            base.clear(value)
            for key, item in zip(items[::2], items[1::2], strict=True):
                base.__setitem__(value, key, item)
        else:
            value.clear()
            (value.update if isinstance(value, set) else value.extend)(items)


class _Saved:
    """An object with a state that can be read, pickled and set."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        self._read, self._write = read, write
        self._saved = pickle.dumps(read())

    def is_changed(self) -> bool:
        return pickle.dumps(self._read()) != self._saved

    def put_back(self) -> None:
        self._write(pickle.loads(self._saved))  # noqa: S301 (this process has written it)


class _Slots:
    """The attributes of an object without a dictionary."""

    def __init__(self, value: object) -> None:
        self._value = value
        self._saved = self._now()

    def _now(self) -> dict[str, Any]:
        names = _slot_names(type(self._value))
        return {name: getattr(self._value, name) for name in names if hasattr(self._value, name)}

    def is_changed(self) -> bool:
        now = self._now()
        return now.keys() != self._saved.keys() or any(now[name] is not value for name, value in self._saved.items())

    def put_back(self) -> None:
        for name in self._now().keys() - self._saved.keys():
            object.__delattr__(self._value, name)
        for name, value in self._saved.items():
            object.__setattr__(self._value, name, value)


def _scales_its_weight(module: object) -> bool:
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None


def _record(value: object, *, with_values: bool) -> _Record | None:
    record: _Record | None = None
    if isinstance(value, Tensor):
        if not isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            record = _Tensor(value, with_values=with_values)
    elif isinstance(value, (dict, list, deque, set, _ClassAttributes)):
        record = _Collection(value)
    elif isinstance(value, np.ndarray):
        if value.flags.writeable and value.dtype != object:
            record = _Saved(lambda: value, partial(np.copyto, value))
    elif isinstance(value, torch.Generator):
        record = _Saved(value.get_state, value.set_state)
    elif isinstance(value, random.Random):
        record = _Saved(value.getstate, value.setstate)
    elif isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        record = _Saved(partial(getattr, bits, "state"), partial(setattr, bits, "state"))
    elif _slot_names(type(value)):
        record = _Slots(value)
    return record


def _slot_names(kind: type) -> list[str]:
    """Names of the slots of a class that is written in Python."""
    slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    names = [name for several in slots for name in ((several,) if isinstance(several, str) else several)]
    return [name for name in names if not name.startswith("__")]


def _items(value: Any) -> list[Any]:
    if isinstance(value, _ClassAttributes):
        value = value.values()
    if isinstance(value, dict):
        return [part for item in dict.items(value) for part in item]
    return list(value)


def _parts(value: object) -> list[Any]:
    """The objects that an object refers to."""
    if isinstance(value, (dict, list, deque, set, tuple, frozenset, _ClassAttributes)):
        parts = _items(value)
    elif isinstance(value, (Tensor, np.ndarray)):
        return []
    else:
        parts = [getattr(value, name, None) for name in _slot_names(type(value))]
    own = getattr(value, "__dict__", None)
    return [*parts, own] if isinstance(own, dict) and not isinstance(value, _ClassAttributes) else parts


def _own_classes(model: nn.Module) -> list[type]:
    """The classes of a model's modules, and their bases that are modules, but for those of torch."""
    kinds = {base: None for module in model.modules() for base in type(module).__mro__ if issubclass(base, nn.Module)}
    return [kind for kind in kinds if kind.__module__.split(".")[0] != "torch"]
