"""transformers' own matchers and losses of detectors, for one row at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from vog_hf.errors import ModelError
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, base_model

Target = Mapping[str, Tensor]
Fields = dict[str, Any]  # of `DetectionLoss`


@dataclass(frozen=True)
class DetectionLoss:
    """The criterion of a detector in transformers, of its final predictions.

    Called for one row, because transformers divides the loss by the number of objects of the batch, and under
    Accelerate by that of all processes.

    Attributes:
        criterion: transformers' module with ``losses`` and ``get_loss``.
        matcher: transformers' matcher, called with predictions and targets.
        weights: Weight of each part of the loss, with ``loss_bbox`` and ``loss_giou``.
        has_no_object: Whether probabilities are a softmax with a last class "no object", else a sigmoid for each class.
        clips_boxes: Whether it clips predicted centers and sizes to 0..1.
    """

    criterion: Any
    matcher: Callable[..., Any]
    weights: Mapping[str, float]
    has_no_object: bool
    clips_boxes: bool = False

    @classmethod
    def for_model(cls, model: nn.Module) -> Self:
        """The criterion of a model's ``loss_type``.

        Raises:
            ModelError: It is none of those that are known here.
        """
        inner: Any = base_model(model)
        kind, config = getattr(inner, "loss_type", None), getattr(inner, "config", None)
        needs, build = CRITERIA.get(kind, ("", None))
        if build is None or not hasattr(config, needs):
            raise ModelError(
                f"the detection loss of {type(inner).__name__} is not one of {', '.join(CRITERIA)} in transformers, so "
                f"its objects cannot be matched; score {NEAREST} instead, or pass {CALLABLE_TARGET}"
            )
        return cls(**build(config))

    def matched(self, logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
        """Number of the query that is matched to each object of a row, ``[objects]``, on the CPU.

        Of predictions that are not finite, nothing can be matched: the first queries, so that scores are not finite.

        Args:
            logits: ``[queries, classes]``.
            boxes: ``[queries, 4]``, predicted.
            target: The row's ``class_labels`` ``[objects]`` and ``boxes`` ``[objects, 4]``.
        """
        queries = torch.arange(len(target["class_labels"]))
        if is_finite(logits, boxes):
            ((matched, objects),) = self.matcher({"logits": logits[None], "pred_boxes": boxes[None]}, [target])
            queries[objects] = matched
        return queries

    def of_row(self, logits: Tensor, boxes: Tensor, target: Target, queries: Tensor) -> Tensor:
        """The row's own loss, a number, with the objects matched to these queries; arguments as of `matched`."""
        if not is_finite(logits, boxes):
            return logits.sum() + boxes.sum()
        criterion = self.criterion.to(logits)
        outputs, indices = {"logits": logits[None], "pred_boxes": boxes[None]}, [(queries, torch.arange(len(queries)))]
        parts: dict[str, Tensor] = {}
        for name in criterion.losses:
            parts |= criterion.get_loss(name, outputs, [target], indices, max(len(queries), 1))
        return torch.stack([self.weights[name] * value for name, value in parts.items() if name in self.weights]).sum()


def is_finite(*tensors: Tensor) -> bool:
    """Tell whether all values are finite."""
    return all(bool(torch.isfinite(values).all()) for values in tensors)


def _box_weights(config: Any) -> dict[str, float]:
    return {"loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}


def _costs(config: Any) -> dict[str, float]:
    return {name: getattr(config, name) for name in ("class_cost", "bbox_cost", "giou_cost")}


def _detr(config: Any) -> Fields:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    matcher = HungarianMatcher(**_costs(config))
    criterion = ImageLoss(matcher, config.num_labels, config.eos_coefficient, ["labels", "boxes"])
    weights = {"loss_ce": 1.0, **_box_weights(config)}
    return {"criterion": criterion, "matcher": matcher, "weights": weights, "has_no_object": True}


def _deformable_detr(config: Any) -> Fields:
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

    matcher = DeformableDetrHungarianMatcher(**_costs(config))
    criterion = DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes"])
    weights = {"loss_ce": 1.0, **_box_weights(config)}
    return {"criterion": criterion, "matcher": matcher, "weights": weights, "has_no_object": False}


def _lw_detr(config: Any) -> Fields:
    from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss

    matcher = LwDetrHungarianMatcher(**_costs(config))
    criterion = LwDetrImageLoss(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes"], 1)
    of_classes = getattr(config, "class_loss_coefficient", 1.0)  # not an option in transformers 5.0
    weights = {"loss_ce": of_classes, **_box_weights(config)}
    in_one_group = partial(matcher, group_detr=1)  # models have more in training alone
    return {"criterion": criterion, "matcher": in_one_group, "weights": weights, "has_no_object": False}


def _rt_detr(config: Any) -> Fields:
    from transformers.loss.loss_rt_detr import RTDetrLoss

    return _of_criterion(RTDetrLoss(config))


def _d_fine(config: Any) -> Fields:
    from transformers.loss.loss_d_fine import DFineLoss

    return {**_of_criterion(DFineLoss(config)), "clips_boxes": True}


def _deim(config: Any) -> Fields:
    from transformers.loss.loss_deimv2 import Deimv2Loss

    return {**_of_criterion(Deimv2Loss(config)), "clips_boxes": True}


def _of_criterion(criterion: Any) -> Fields:
    """Of those that hold their own weights and a sigmoid for each class."""
    weights = criterion.weight_dict
    return {"criterion": criterion, "matcher": criterion.matcher, "weights": weights, "has_no_object": False}


NEAREST = "a detector with a fixed list of classes (RTDetrV2ForObjectDetection, DFineForObjectDetection, ...)"
CRITERIA: dict[Any, tuple[str, Callable[[Any], Fields]]] = {  # by `loss_type`: an option that the criterion reads
    "ForObjectDetection": ("class_cost", _detr),
    "DeformableDetrForObjectDetection": ("focal_alpha", _deformable_detr),
    "ConditionalDetrForObjectDetection": ("focal_alpha", _deformable_detr),
    "DabDetrForObjectDetection": ("focal_alpha", _deformable_detr),
    "RTDetrForObjectDetection": ("matcher_class_cost", _rt_detr),
    "RTDetrV2ForObjectDetection": ("matcher_class_cost", _rt_detr),
    "DFineForObjectDetection": ("matcher_class_cost", _d_fine),
    "Deimv2ForObjectDetection": ("matcher_class_cost", _deim),
    "LwDetrForObjectDetection": ("class_cost", _lw_detr),
    "RfDetrForObjectDetection": ("class_cost", _lw_detr),
}
