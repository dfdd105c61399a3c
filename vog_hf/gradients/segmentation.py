"""Semantic segmentation: a class for each pixel of a mask."""

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import DataError, LabelError
from vog_hf.gradients.task import IGNORED_TOKEN, Observations, Task, required_labels
from vog_hf.metric.pixel_maps import pixel_observation
from vog_hf.metric.unit_kinds import CLASS

NO_CLASS = 255  # of masks stored in 8 bits, and transformers' default of what its loss ignores
MEASURES = ("loss", "confidence", "correct")
IGNORE_OPTIONS = ("semantic_loss_ignore_index", "loss_ignore_index")  # of configurations in transformers


class SemanticSegmentation(Task):
    """Logits ``[batch, classes, height', width']``, labels ``[batch, height, width]``, class numbers.

    Logits are brought to the size of the mask by bilinear interpolation, as in transformers' loss. The scalar is the
    mean over the row's labeled pixels: those of neither the ignored class nor, if it is not a class of the model, 255.
    The classes in a mask are the units of a row.

    Args:
        ignored: Class number that the model's loss ignores.
    """

    name = "semantic_segmentation"
    is_observed_in_training = False
    unit = CLASS

    def __init__(self, ignored: int = NO_CLASS) -> None:
        self._ignored = ignored

    @override
    @classmethod
    def for_model(cls, model: nn.Module) -> Self:
        config: Any = getattr(model, "config", None)
        options = (getattr(config, name, None) for name in IGNORE_OPTIONS)
        return cls(next((option for option in options if option is not None), NO_CLASS))

    @override
    def n_outputs(self, logits: Tensor) -> int | None:
        return logits.shape[1]

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 3 or labels.is_floating_point():
            raise DataError(
                f"masks must be class numbers [batch, height, width], got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        labels = labels.long()
        counts = self._counts(labels, n_outputs)
        empty = ~counts.flatten(1).any(1)
        if bool(empty.any()):
            raise LabelError(
                f"a row has no labeled pixel (all are {self._ignored} or {NO_CLASS}), so it has no target; leave such "
                "rows out",
                int(empty.nonzero()[0]),
            )
        too_high = torch.zeros_like(counts) if n_outputs is None else labels >= n_outputs
        outside = counts & ((labels < 0) | too_high)
        if bool(outside.any()):
            at = int(outside.flatten(1).any(1).nonzero()[0])
            raise LabelError(
                f"class {int(labels[at][outside[at]][0])} of a pixel is outside the model's {n_outputs} classes; "
                f"{self._ignored} = left out",
                at,
            )

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        logits, labels, counts = self._aligned(logits, labels)
        values = logits if target == "logit" else F.log_softmax(logits, 1)
        at_label = values.gather(1, labels.unsqueeze(1)).squeeze(1)
        if target == "probability":
            at_label = at_label.exp()
        return _mean(-at_label if target == "loss" else at_label, counts)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        per_pixel, _, counts = self._per_pixel(logits, labels)
        return {name: _mean(per_pixel[name], counts) for name in MEASURES}

    @override
    def observations(
        self, logits: Tensor, labels: Tensor | None, outputs: object, inputs: Mapping[str, object]
    ) -> Observations:
        per_pixel, label, counts = self._per_pixel(logits, labels)
        of_rows = {name: _mean(per_pixel[name], counts) for name in MEASURES}
        of_units = _by_class({name: per_pixel[name] for name in MEASURES}, label, counts, logits.shape[1])
        of_pixels = pixel_observation(per_pixel["loss"], label, per_pixel["prediction"], counts)
        return Observations(of_rows, of_units, of_pixels)

    def _per_pixel(self, logits: Tensor, labels: Tensor | None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Observe each pixel ``[batch, height, width]``; with the labels, 0 where none counts, and which count."""
        logits, label, counts = self._aligned(logits, labels)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probability = F.log_softmax(logits, 1).gather(1, label.unsqueeze(1)).squeeze(1)
        prediction = logits.argmax(1)
        per_pixel = {
            "loss": -log_probability,
            "confidence": log_probability.exp(),
            "correct": (prediction == label).to(logits.dtype),
            "prediction": prediction,
        }
        return per_pixel, label, counts

    def _counts(self, labels: Tensor, n_classes: int | None) -> Tensor:
        """Pixels that have a class, ``[batch, height, width]``."""
        counts = labels != self._ignored
        return counts if n_classes is not None and n_classes > NO_CLASS else counts & (labels != NO_CLASS)

    def _aligned(self, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at the size of the mask, class numbers that can be looked up, and which of them count."""
        labels = required_labels(labels, self.name).long()
        counts = self._counts(labels, logits.shape[1])
        if logits.shape[-2:] != labels.shape[-2:]:
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return logits, labels.masked_fill(~counts, 0), counts


def _by_class(per_pixel: Mapping[str, Tensor], labels: Tensor, counts: Tensor, n_classes: int) -> dict[str, Tensor]:
    """Means over the pixels of each class, ``[batch, classes]``, and the number of the class where a row has it."""
    labels, counts = labels.flatten(1), counts.flatten(1)
    empty = per_pixel["loss"].new_zeros(len(labels), n_classes)
    n_pixels = empty.scatter_add(1, labels, counts.to(empty.dtype))
    means = {
        name: empty.scatter_add(1, labels, values.flatten(1).masked_fill(~counts, 0.0)) / n_pixels
        for name, values in per_pixel.items()
    }
    numbers = torch.arange(n_classes, device=labels.device).expand(len(labels), -1)
    return {"label": numbers.masked_fill(n_pixels == 0, IGNORED_TOKEN), **means}


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of each row over the pixels that count."""
    return values.masked_fill(~counts, 0.0).flatten(1).sum(1) / counts.flatten(1).sum(1)
