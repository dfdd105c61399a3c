"""Pixel reconstruction: the row's own loss over the patches that the model does not see."""

from collections.abc import Mapping
from typing import Any, Self, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import LabelError, ModelError
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, base_model
from vog_hf.gradients.task import IGNORED_TOKEN, Observations, RowValue
from vog_hf.metric.unit_kinds import PATCH

MASK = "bool_masked_pos"
EMPTY_MASK = 1e-5  # that transformers adds to the number of masked pixels


class PixelReconstruction(RowValue):
    """Logits ``[batch]``: minus the reconstruction loss of each row, the one that the model computes for it alone.

    Masked autoencoders (ViTMAE, Hiera): the mean squared error over masked patches, normalized as the model's
    configuration says. Masked image models (SimMIM: ViT, DeiT, Swin, FocalNet): the mean absolute error over masked
    pixels. The pixels to reconstruct are what a label is elsewhere: constant. Masked pixels, which the model does not
    see, have a gradient of 0. The masked patches are the units of a row.

    Args:
        model: Model under an adapter, with its own way to cut images into patches; None: of no use but its names.
    """

    name = "pixel_reconstruction"
    targets = ("logit", "loss")
    unit = PATCH

    def __init__(self, model: Any = None) -> None:
        self._model = model

    @override
    @classmethod
    def for_model(cls, model: nn.Module) -> Self:
        return cls(base_model(model))

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        pixels = inputs.get("pixel_values")
        if not isinstance(pixels, Tensor) or not (has_images(outputs) or has_hidden_patches(outputs)):
            raise ModelError(
                "pixel reconstruction needs images and outputs with `reconstruction`, or with `logits` and "
                f"`ids_restore`, got {type(outputs).__name__}; for other outputs pass {CALLABLE_TARGET}"
            )
        if has_images(outputs):
            return -_absolute_error(outputs["reconstruction"], pixels, _required_mask(inputs))
        logits, is_masked = outputs["logits"], outputs.get("mask")
        if isinstance(is_masked, Tensor):  # [batch, patches], 1 = masked
            errors = (logits - self._patches(pixels, inputs)).square().mean(-1)
            return -(errors * is_masked).sum(1) / is_masked.sum(1)
        is_masked = ~outputs[MASK]  # of Hiera, where true says that a patch is seen
        target = self._model.get_pixel_label_2d(pixels, is_masked)  # [masked patches of all rows, pixels]
        return -(logits[is_masked] - target).square().unflatten(0, (len(pixels), -1)).flatten(1).mean(1)

    @override
    def observations(
        self, logits: Tensor, labels: Tensor | None, outputs: object, inputs: Mapping[str, object]
    ) -> Observations:
        errors, is_masked = self._of_patches(outputs, inputs)
        label = torch.zeros_like(is_masked, dtype=torch.int64).masked_fill(~is_masked, IGNORED_TOKEN)
        return Observations(self.observation(logits, labels), {"label": label, "loss": errors.to(logits.dtype)})

    def _of_patches(self, outputs: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss of each patch, and whether it is masked, ``[batch, patches]`` both."""
        pixels = inputs["pixel_values"]
        if has_images(outputs):
            mask = _required_mask(inputs).flatten(1).bool()
            errors = (outputs["reconstruction"] - pixels).abs().mean(1, keepdim=True)
            return F.adaptive_avg_pool2d(errors, _side(mask)).flatten(1), mask
        logits, mask = outputs["logits"], outputs.get("mask")
        if isinstance(mask, Tensor):
            return (logits - self._patches(pixels, inputs)).square().mean(-1), mask.bool()
        mask = ~outputs[MASK]
        errors = (logits[mask] - self._model.get_pixel_label_2d(pixels, mask)).square().mean(-1)
        return torch.zeros_like(mask, dtype=errors.dtype).masked_scatter(mask, errors), mask

    @override
    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:
        """The mask of the row, which says what is to be reconstructed; None where the model makes it of noise."""
        mask = batch.get(MASK)
        return mask if isinstance(mask, Tensor) else None

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        unmasked = ~labels.bool().any(-1) if labels.dim() == 2 else torch.zeros(0, dtype=torch.bool)
        if bool(unmasked.any()):
            raise LabelError(
                f"a row has no masked patch ({MASK} is false everywhere), so it has nothing to reconstruct; mask at "
                "least one patch of each row, or leave such rows out",
                int(unmasked.nonzero()[0]),
            )

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {"loss": -logits}

    def _patches(self, pixels: Tensor, inputs: Mapping[str, object]) -> Tensor:
        """The pixels of each patch as the model is to give them, ``[batch, patches, pixels]``."""
        options = {name: value for name, value in inputs.items() if name == "interpolate_pos_encoding"}
        patches: Tensor = self._model.patchify(pixels, **options)
        if self._model.config.norm_pix_loss:
            mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
            patches = (patches - mean) / (variance + 1.0e-6) ** 0.5
        return patches


def has_images(outputs: object) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether a model's outputs are images."""
    return isinstance(outputs, Mapping) and isinstance(outputs.get("reconstruction"), Tensor)


def has_hidden_patches(outputs: object) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether a model's outputs are patches of images, some of which were hidden from it (MAE)."""
    names = ("logits", "ids_restore")
    return isinstance(outputs, Mapping) and all(isinstance(outputs.get(name), Tensor) for name in names)


def _required_mask(inputs: Mapping[str, object]) -> Tensor:
    """Mask of the masked patches, ``[batch, patches]``."""
    mask = inputs.get(MASK)
    if not isinstance(mask, Tensor):
        raise ModelError(
            f"the reconstruction loss is over masked patches, and the batch has no {MASK} [batch, patches]; let the "
            "collator draw it, with each row's draw fixed: collate_fn=SeededPerRow(collator), from vog_hf.data"
        )
    return mask


def _side(mask: Tensor) -> int:
    """Number of patches along one side of an image."""
    return round(mask[0].numel() ** 0.5)


def _absolute_error(reconstruction: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of each row over its masked pixels and all channels."""
    side = _side(mask)
    is_masked = F.interpolate(mask.reshape(-1, 1, side, side).to(pixels.dtype), size=pixels.shape[-2:])
    errors = (reconstruction - pixels).abs() * is_masked
    n_masked = is_masked.flatten(1).sum(1) + EMPTY_MASK
    return errors.flatten(1).sum(1) / n_masked / pixels.shape[1]
