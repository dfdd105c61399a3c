"""Records of one object each: tensors, collections, generators and objects with slots, compared and put back."""

import functools
import itertools
import operator
import pickle
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

_SLOT_NAMES: dict[type, list[str]] = {}  # of the classes that were asked for


class Record(Protocol):
    """The state of an object when it was recorded."""

    def is_changed(self) -> bool:
        """Tell whether the object differs from what was recorded."""

    def put_back(self) -> None:
        """Make the object what it was, if it is not."""


class ClassAttributes:
    """The attributes of a class, as an object to be recorded."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def values(self) -> dict[str, Any]:
        """The attributes that hold state, by name."""
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
        if self._values is not None and (self._is_on_device() or self._is_overwritten()):
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

    def _is_on_device(self) -> bool:
        """True where writing the same values again costs less than waiting for a device to say that they differ."""
        return self._data.device.type not in ("cpu", "meta") and self._data.layout is torch.strided

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
        if not now:
            return bool(self._items)
        return len(now) != len(self._items) or not all(map(operator.is_, now, self._items))

    def put_back(self) -> None:
        value, items = self._value, self._items
        if not self.is_changed():
            return
        if isinstance(value, ClassAttributes):
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
        if self.is_changed():
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
        if not self.is_changed():
            return
        for name in self._now().keys() - self._saved.keys():
            object.__delattr__(self._value, name)
        for name, value in self._saved.items():
            object.__setattr__(self._value, name, value)


def record_of(value: object, *, with_values: bool) -> Record | None:
    """Record an object; None if nothing in it can change. ``with_values`` includes the values of a tensor."""
    record: Record | None = None
    if isinstance(value, (dict, list, deque, set, ClassAttributes)):
        record = _Collection(value)
    elif isinstance(value, Tensor):
        if not isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            record = _Tensor(value, with_values=with_values)
    elif isinstance(value, np.ndarray):
        if value.flags.writeable and value.dtype != object:
            record = _Saved(lambda: value, functools.partial(np.copyto, value))
    elif isinstance(value, torch.Generator):
        record = _Saved(value.get_state, value.set_state)
    elif isinstance(value, random.Random):
        record = _Saved(value.getstate, value.setstate)
    elif isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        record = _Saved(functools.partial(getattr, bits, "state"), functools.partial(setattr, bits, "state"))
    elif _slot_names(type(value)):
        record = _Slots(value)
    return record


def _slot_names(kind: type) -> list[str]:
    """Names of the slots of a class that is written in Python."""
    if kind not in _SLOT_NAMES:
        slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
        names = [name for several in slots for name in ((several,) if isinstance(several, str) else several)]
        _SLOT_NAMES[kind] = [name for name in names if not name.startswith("__")]
    return _SLOT_NAMES[kind]


def _items(value: Any) -> list[Any]:
    if isinstance(value, ClassAttributes):
        value = value.values()
    if isinstance(value, dict):
        return [*itertools.chain.from_iterable(dict.items(value))]
    return list(value)


def parts_of(value: object) -> list[Any]:
    """The objects that an object refers to."""
    if isinstance(value, (dict, list, deque, set, tuple, frozenset, ClassAttributes)):
        parts = _items(value)
    elif isinstance(value, (Tensor, np.ndarray)):
        return []
    else:
        parts = [getattr(value, name, None) for name in _slot_names(type(value))]
    own = getattr(value, "__dict__", None)
    return [*parts, own] if isinstance(own, dict) and not isinstance(value, ClassAttributes) else parts
