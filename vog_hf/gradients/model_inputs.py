"""From a collated batch to the keyword arguments of a model's `forward`."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.errors import DataError
from vog_hf.gradients.decoder_inputs import decoder_inputs
from vog_hf.gradients.detection import objects_as_tensor
from vog_hf.gradients.fixed_noise import draws_noise, fixed_noise
from vog_hf.gradients.images_beside_texts import fed_in_turn
from vog_hf.gradients.model_outputs import base_model
from vog_hf.gradients.preferences import TASK_ONLY, TEXTS_OF_ROW
from vog_hf.gradients.question_answering import ANSWER_LABELS
from vog_hf.gradients.sentence_encoders import AS_MAPPING, is_sentence_model, sentence_inputs

LABEL_NAMES = ("labels", "label", "label_ids")
MASK_NAMES = ("attention_mask", "pixel_mask")
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def doubled(inputs: Mapping[str, object]) -> dict[str, Any]:
    """Inputs of one row as those of two copies of it."""
    return {
        name: torch.cat([value, value]) if isinstance(value, Tensor) and value.shape[:1] == (1,) else value
        for name, value in inputs.items()
    }


def copied(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """``inputs`` as forward gets them, with tensors of their own: a model that changes them leaves the row as it is.

    Several texts or images of a row follow one another, as rows of their own; what only the task needs is left out.
    """
    several = inputs.get(TEXTS_OF_ROW, ())
    fed: dict[str, Any] = {}
    for name, value in inputs.items():
        if name.startswith(TASK_ONLY):
            continue
        if not isinstance(value, Tensor):
            fed[name] = value
        elif (in_turn := fed_in_turn(name, inputs)) is not None:
            fed[name] = (in_turn.flatten(0, 1) if name in several else in_turn).clone()
    mapping = inputs.get(AS_MAPPING)
    return fed if mapping is None else {mapping: fed}


def split_batch(
    batch: object, model: nn.Module, label_names: Sequence[str] = LABEL_NAMES
) -> tuple[dict[str, Any], Any]:
    """A collated batch as (inputs by name, labels or None): mappings, pairs (inputs, labels) and bare tensors."""
    required = required_parameters(model)
    if isinstance(batch, Mapping):
        answer = _answer(batch, model)
        if answer is not None:
            label_names = (*label_names, *ANSWER_LABELS)
        labels = [answer, *(batch[name] for name in label_names if name in batch)]
        inputs = {name: value for name, value in batch.items() if name not in label_names or name in required}
        return inputs, objects_as_tensor(next((value for value in labels if value is not None), None))
    first = next(iter(forward_parameters(model)), None)
    if isinstance(batch, Tensor):
        batch = (batch,)
    if not isinstance(batch, (tuple, list)) or not 1 <= len(batch) <= 2 or first is None:
        raise DataError(f"a batch must be a mapping, a pair (inputs, labels) or a tensor, got {type(batch).__name__}")
    if isinstance(batch[0], Mapping):
        return dict(batch[0]), batch[1] if len(batch) == 2 else None
    if len(batch) == 1:
        return {first: batch[0]}, None
    others = [name for name in required if name != first]
    return {first: batch[0], **dict.fromkeys(others if len(others) == 1 else ())}, batch[1]


def _answer(batch: Mapping[str, object], model: nn.Module) -> Tensor | None:
    """Start and end of each row's answer, ``[rows, 2]``, where they are labels of the model and the batch has them."""
    ends = [batch.get(name) for name in ANSWER_LABELS]
    if not _answers_questions(model) or any(end is None for end in ends):
        return None
    return torch.stack([torch.as_tensor(end).reshape(-1) for end in ends], dim=-1)


def _answers_questions(model: nn.Module) -> bool:
    return set(ANSWER_LABELS) <= set(forward_parameters(model))


def forward_inputs(
    model: nn.Module, inputs: Mapping[str, object], labels: Tensor | None, label_names: Sequence[str] = LABEL_NAMES
) -> dict[str, Any]:
    """``inputs`` reduced to what forward accepts, without labels unless forward cannot do without.

    A model that is given labels computes a loss and writes ``config.problem_type``. Sequence-to-sequence models get
    the decoder's inputs from the labels where the batch has none, masked autoencoders the noise that they would draw.

    Raises:
        DataError: Forward has a parameter for labels without a default, and there are none.
    """
    if is_sentence_model(model):
        return sentence_inputs(model, inputs)
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
        and not _answers_questions(model)
        and not kept.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}
    ):
        kept["decoder_input_ids"] = decoder_inputs(model, labels)
    if "use_cache" in accepted and getattr(config, "use_cache", False):
        kept["use_cache"] = False  # keys and values of every layer would be kept for nothing
    if draws_noise(model, accepted):
        kept |= fixed_noise(model, kept)
    return kept


def _required_labels(model: nn.Module, name: str, labels: Any) -> Any:
    """Labels for a forward that cannot do without; class 0 where a row has none, which only enters the loss."""
    if labels is None:
        raise DataError(
            f"forward of {type(base_model(model)).__name__} requires {name!r}, and the batch has no labels; give the "
            f"parameter a default ({name}=None), or name the labels (label_column=)",
            argument="label_column=",
        )
    is_classes = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return labels.clamp(min=0) if is_classes else labels


def to_device(inputs: Mapping[str, object], device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """``inputs`` on a device, their floating tensors in a dtype (None: as they are).

    Tensors that were made in inference mode are copied: autograd takes none of those. CUDA copies from pinned memory
    while the host continues.
    """
    found = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            tensor = value.clone() if value.is_inference() else value
            if device.type == "cuda" and tensor.device.type == "cpu":
                tensor = tensor.pin_memory()
            found[name] = tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)
    return found


def forward_parameters(model: nn.Module) -> tuple[str, ...]:
    """Names of forward's parameters, of the model under an adapter or a wrapper that names none itself."""
    return tuple(p.name for p in _parameters(model) if p.kind in NAMED)


def required_parameters(model: nn.Module) -> tuple[str, ...]:
    """Those of `forward_parameters` that have no default."""
    return tuple(p.name for p in _parameters(model) if p.kind in NAMED and p.default is p.empty)


def takes_any_input(model: nn.Module) -> bool:
    """Tell whether forward takes inputs that it does not name (``**kwargs``); in transformers those are options."""
    if type(base_model(model)).forward.__module__.startswith("transformers."):
        return False
    return any(p.kind is p.VAR_KEYWORD for p in _parameters(model))


def _parameters(model: nn.Module) -> tuple[inspect.Parameter, ...]:
    model_class: Any = type(base_model(model))
    return _signature(model_class)


@functools.cache
def _signature(model_class: type[nn.Module]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(model_class.forward).parameters.values())[1:]  # without self
