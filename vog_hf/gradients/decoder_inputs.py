"""Decoder inputs of an encoder-decoder, made from labels exactly as its own forward makes them."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vog_hf.errors import ModelError
from vog_hf.gradients.model_outputs import base_model
from vog_hf.gradients.task import IGNORED_TOKEN

OWN_METHODS = ("prepare_decoder_input_ids_from_labels", "_shift_right")  # transformers, T5 and its relatives
OWN_FUNCTION = "shift_tokens_right"  # of the module that defines the model: BART and its relatives
TOKEN_IDS = ("pad_token_id", "decoder_start_token_id")  # its other parameters, in this order


def decoder_inputs(model: nn.Module, labels: Tensor) -> Tensor:
    """Decoder input ids ``[batch, tokens]`` for labels ``[batch, tokens]``, shifted right by one.

    The model's own method comes first, then the function of the module that defines the model; a model that has
    neither gets the shift that all of them share.

    Raises:
        ModelError: The configuration lacks the padding or the start token.
    """
    inner = base_model(model)
    own = next((method for name in OWN_METHODS if callable(method := getattr(inner, name, None))), None)
    if own is not None:
        shifted: Tensor = own(labels)
        return shifted
    shift = _shift_function(type(inner))
    n_ids = len(inspect.signature(shift).parameters) - 1  # mBART's takes no start token
    return shift(labels, *(_token_id(inner, name) for name in TOKEN_IDS[:n_ids]))


def _shift_function(model_class: type[nn.Module]) -> Callable[..., Tensor]:
    modules = (sys.modules.get(parent.__module__) for parent in model_class.__mro__)
    return next((getattr(module, OWN_FUNCTION) for module in modules if hasattr(module, OWN_FUNCTION)), _shifted)


def _shifted(labels: Tensor, pad_token_id: int, decoder_start_token_id: int) -> Tensor:
    shifted = labels.roll(1, -1)
    shifted[:, 0] = decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORED_TOKEN, pad_token_id)


def _token_id(model: nn.Module, name: str) -> int:
    """A token's id in the configuration, or in that of the model's text part."""
    config: Any = getattr(model, "config", None)
    values = [getattr(part, name, None) for part in (config, getattr(config, "text_config", None))]
    found = next((value for value in values if value is not None), None)
    if found is None:
        raise ModelError(
            f"the decoder inputs of {type(model).__name__} are made from its labels and need config.{name}, which is "
            f"None; set model.config.{name}, or let the collator return decoder_input_ids"
        )
    return int(found)
