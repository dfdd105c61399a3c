"""Tensors that a model's forward makes itself, to be made again after a change of weights."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vog_hf.gradients.model_state import kept_state

_ABSENT = object()


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
