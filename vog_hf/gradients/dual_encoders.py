"""Dual encoders (CLIP, SigLIP, ALIGN, CLAP): one encoder for images or sounds, one for texts, and their similarity."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import ModelError
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, base_model
from vog_hf.gradients.task import RowValue

SIMILARITIES = ("logits_per_image", "logits_per_video", "logits_per_audio")  # transposed: "logits_per_text"
FEATURE_METHODS = {
    "get_image_features": "pixel_values",
    "get_video_features": "pixel_values",
    "get_audio_features": "input_features",
}
TEXT_INPUT = "input_ids"


class PairSimilarity(RowValue):
    """Logits ``[batch]``: the similarity of each row's image (or sound) with its own text, whatever shares the batch.

    The one that the model's loss has: a cosine times the model's scale, for SigLIP plus its bias. The loss is over all
    pairs of a batch, so that no row has one of its own.
    """

    name = "pair_similarity"

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        if not has_similarities(outputs):
            raise ModelError(
                f"the similarity of pairs needs outputs with logits_per_text and one of {', '.join(SIMILARITIES)}, got "
                f"{type(outputs).__name__}; for other outputs pass {CALLABLE_TARGET}"
            )
        similarities = next(outputs[name] for name in SIMILARITIES if name in outputs)
        if similarities.shape[0] != similarities.shape[1]:
            raise ModelError(
                f"the similarity of pairs needs as many texts as images or sounds, got {tuple(similarities.shape)}; "
                f"give each row one of both, or pass {CALLABLE_TARGET}"
            )
        own: Tensor = similarities.diagonal()
        return own

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {"prediction": logits}


def has_similarities(outputs: object) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether a model's outputs are similarities of all images (videos, sounds) of a batch with all its texts."""
    if not isinstance(outputs, Mapping) or not isinstance(outputs.get("logits_per_text"), Tensor):
        return False
    return any(isinstance(outputs.get(name), Tensor) and outputs[name].dim() == 2 for name in SIMILARITIES)


def main_input(model: nn.Module) -> str | None:
    """Name of the input to differentiate: ``main_input_name``; of a dual encoder its image or sound.

    Another name that was set on the model itself (``model.main_input_name = "input_ids"``) is kept.
    """
    named, inner = getattr(model, "main_input_name", None), base_model(model)
    if "main_input_name" not in vars(model) and "main_input_name" not in vars(inner) and text_encoder(model):
        named = next((name for method, name in FEATURE_METHODS.items() if hasattr(inner, method)), named)
    return named if isinstance(named, str) else None


def other_input(model: nn.Module, name: str) -> str | None:
    """Name of the input of a dual encoder's other encoder than the one that reads ``name``; None for other models."""
    if text_encoder(model) is None:
        return None
    inner = base_model(model)
    seen = [input_name for method, input_name in FEATURE_METHODS.items() if hasattr(inner, method)]
    if name == TEXT_INPUT:
        return seen[0]
    return TEXT_INPUT if name in seen else None


def text_encoder(model: nn.Module) -> nn.Module | None:
    """The encoder of texts of a dual encoder; None: the model is something else."""
    inner = base_model(model)
    is_dual = hasattr(inner, "get_text_features") and any(hasattr(inner, method) for method in FEATURE_METHODS)
    part = getattr(inner, "text_model", None) if is_dual else None
    return part if isinstance(part, nn.Module) else None
