"""Families of detectors, rows of images with objects, and what a row's scalars are by plain loops.

The oracle matches one row by transformers' own matcher and computes each loss from its formula.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import detectors
import numpy as np
import torch
from detectors import CLASSES, SIDE
from task_cases import N_ROWS, TaskCase
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher


def images(n: int = N_ROWS) -> list[dict[str, Any]]:
    """Images with one to four objects."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for i in range(n):
        n_objects = 1 + i % 4
        boxes = torch.rand((n_objects, 4), generator=generator)
        labels = {
            "class_labels": torch.randint(CLASSES, (n_objects,), generator=generator),
            "boxes": torch.cat([0.25 + 0.5 * boxes[:, :2], 0.1 + 0.4 * boxes[:, 2:]], dim=1),
        }
        rows.append({"pixel_values": torch.randn((3, SIDE, SIDE), generator=generator), "labels": labels})
    return rows


def collate_images(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As `collate_fn` of transformers' example run_object_detection.py."""
    batch = {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}
    masks = {"pixel_mask": torch.stack([row["pixel_mask"] for row in rows])} if "pixel_mask" in rows[0] else {}
    return batch | masks | {"labels": [row["labels"] for row in rows]}


# --- the oracle -----------------------------------------------------------------------------------------------------


def corners(box: torch.Tensor) -> list[torch.Tensor]:
    """Left, top, right, bottom."""
    x, y, width, height = box
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def overlap(box: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and generalized IoU of two boxes."""
    a, b = corners(box), corners(other)
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(width, 0 * width) * max(height, 0 * height)
    union = box[2] * box[3] + other[2] * other[3] - shared
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union, shared / union - (around - union) / around


@dataclass(frozen=True)
class Family:
    """How a family of detectors matches and what its loss of classes is.

    Attributes:
        matcher: Matcher from a configuration.
        has_no_object: Softmax with "no object", else a sigmoid for each class.
        loss: Loss of classes of logits ``[queries, classes]``, the class of each matched query, and its IoU.
        weights: Weights of L1 and generalized IoU.
        clips: Whether predicted boxes are clipped to 0..1.
    """

    matcher: Callable[[Any], Any]
    has_no_object: bool
    loss: Callable[..., torch.Tensor]
    weights: tuple[float, float] = (5.0, 2.0)
    clips: bool = False

    def boxes(self, outputs: Any) -> torch.Tensor:
        """Predicted boxes as the loss sees them."""
        return outputs.pred_boxes.clamp(0, 1) if self.clips else outputs.pred_boxes

    def matches(self, config: Any, outputs: Any, row: dict[str, Any]) -> list[int]:
        """The query of each object."""
        target = {"class_labels": row["labels"]["class_labels"], "boxes": row["labels"]["boxes"].double()}
        alone = {"logits": outputs.logits.detach(), "pred_boxes": self.boxes(outputs).detach()}
        ((queries, objects),) = self.matcher(config)(alone, [target])
        by_object = dict(zip(objects.tolist(), queries.tolist(), strict=True))
        return [by_object[i] for i in range(len(by_object))]

    def probability(self, z: torch.Tensor) -> torch.Tensor:
        """Of each class."""
        return z.exp()[:-1] / z.exp().sum() if self.has_no_object else 1 / (1 + (-z).exp())

    def objects(self, config: Any, outputs: Any, row: dict[str, Any]) -> list[dict[str, Any]]:
        """What is true of each object."""
        found = []
        classes, boxes = row["labels"]["class_labels"].tolist(), row["labels"]["boxes"].double()
        for k, box, query in zip(classes, boxes, self.matches(config, outputs, row), strict=True):
            z, predicted = outputs.logits[0, query], self.boxes(outputs)[0, query]
            p, (iou, giou) = self.probability(z), overlap(predicted, box)
            of_box = self.weights[0] * (predicted - box).abs().sum() + self.weights[1] * (1 - giou)
            prediction = int(p.argmax())
            found.append(
                {"logit": z[k], "probability": p[k], "loss": of_box - p[k].log(), "iou": iou, "of_box": of_box,
                 "correct": prediction == k, "prediction": prediction, "highest": p.max(), "query": query, "class": k,
                 "predicted": predicted}
            )  # fmt: skip
        return found

    def scalar(self, outputs: Any, row: dict[str, Any], target: str, *, make: Callable[[], Any]) -> torch.Tensor:
        """The number that is differentiated."""
        objects = self.objects(make().config, outputs, row)
        if target != "loss":
            return sum(of_object[target] for of_object in objects) / len(objects)
        matched = {of_object["query"]: (of_object["class"], float(of_object["iou"].detach())) for of_object in objects}
        of_boxes = sum(of_object["of_box"] for of_object in objects) / len(objects)
        return self.loss(outputs.logits[0], matched) + of_boxes

    def observed(self, outputs: Any, row: dict[str, Any], *, make: Callable[[], Any]) -> dict[str, float]:
        """Companions of a row."""
        objects = self.objects(make().config, outputs, row)
        return {
            "loss": float(self.scalar(outputs, row, "loss", make=make)),
            "confidence": np.mean([float(of_object["probability"]) for of_object in objects]),
            "correctness": np.mean([of_object["correct"] for of_object in objects]),
        }


def cross_entropy(z: torch.Tensor, matched: dict[int, tuple[int, float]]) -> torch.Tensor:
    """DETR: a weighted mean over the queries, of which those without an object weigh a tenth."""
    terms, weights = [], []
    for query, of_query in enumerate(z):
        k = matched[query][0] if query in matched else len(of_query) - 1
        weights.append(1.0 if query in matched else 0.1)
        terms.append(-weights[-1] * (of_query[k] - of_query.exp().sum().log()))
    return sum(terms) / sum(weights)


def focal(z: torch.Tensor, matched: dict[int, tuple[int, float]]) -> torch.Tensor:
    """Deformable DETR: alpha 0.25, gamma 2, over all queries and classes."""
    total = 0.0
    for query, of_query in enumerate(z):
        for k, p in enumerate(1 / (1 + (-of_query).exp())):
            is_target = query in matched and matched[query][0] == k
            total = total - (0.25 * (1 - p) ** 2 * p.log() if is_target else 0.75 * p**2 * (1 - p).log())
    return total / len(matched)


def varifocal(z: torch.Tensor, matched: dict[int, tuple[int, float]]) -> torch.Tensor:
    """RT-DETR: the target is the IoU, and weighs as much; others weigh 0.75 p squared."""
    total = 0.0
    for query, of_query in enumerate(z):
        for k, p in enumerate(1 / (1 + (-of_query).exp())):
            is_target = query in matched and matched[query][0] == k
            aim = matched[query][1] if is_target else 0.0
            weight = aim if is_target else 0.75 * float(p) ** 2
            total = total - weight * (aim * p.log() + (1 - aim) * (1 - p).log())
    return total / len(matched)


def matching_aware(z: torch.Tensor, matched: dict[int, tuple[int, float]]) -> torch.Tensor:
    """DEIMv2: the target is the squared IoU, and weighs 1; others weigh p squared."""
    total = 0.0
    for query, of_query in enumerate(z):
        for k, p in enumerate(1 / (1 + (-of_query).exp())):
            is_target = query in matched and matched[query][0] == k
            aim, weight = (matched[query][1] ** 2, 1.0) if is_target else (0.0, float(p.detach()) ** 2)
            total = total - weight * (aim * p.log() + (1 - aim) * (1 - p).log())
    return total / len(matched)


def iou_aware(z: torch.Tensor, matched: dict[int, tuple[int, float]]) -> torch.Tensor:
    """LW-DETR: the target is the probability to the power 0.25 times the IoU to the power 0.75, at least 0.01."""
    total = 0.0
    for query, of_query in enumerate(z):
        for k, p in enumerate(1 / (1 + (-of_query).exp())):
            if query in matched and matched[query][0] == k:
                aim = max(float(p.detach()) ** 0.25 * matched[query][1] ** 0.75, 0.01)
                total = total - aim * p.log() - (1 - aim) * (1 - p).log()
            else:
                total = total - p**2 * (1 - p).log()
    return total / len(matched)


def _costs(config: Any) -> dict[str, float]:
    return {"class_cost": config.class_cost, "bbox_cost": config.bbox_cost, "giou_cost": config.giou_cost}


def _softmax_matcher(config: Any) -> HungarianMatcher:
    return HungarianMatcher(**_costs(config))


def _sigmoid_matcher(config: Any) -> DeformableDetrHungarianMatcher:
    return DeformableDetrHungarianMatcher(**_costs(config))


def _one_group_matcher(config: Any) -> Any:
    return partial(LwDetrHungarianMatcher(**_costs(config)), group_detr=1)


FAMILIES = {
    "detr": (detectors.detr, Family(_softmax_matcher, True, cross_entropy)),
    "yolos": (detectors.yolos, Family(_softmax_matcher, True, cross_entropy)),
    "conditional_detr": (detectors.conditional_detr, Family(_sigmoid_matcher, False, focal)),
    "deformable_detr": (detectors.deformable_detr, Family(_sigmoid_matcher, False, focal)),
    "rt_detr": (detectors.rt_detr, Family(RTDetrHungarianMatcher, False, varifocal)),
    "rt_detr_v2": (detectors.rt_detr_v2, Family(RTDetrHungarianMatcher, False, varifocal)),
    "d_fine": (detectors.d_fine, Family(RTDetrHungarianMatcher, False, varifocal, clips=True)),
    "deim_v2": (detectors.deim_v2, Family(RTDetrHungarianMatcher, False, matching_aware, clips=True)),
    "lw_detr": (detectors.lw_detr, Family(_one_group_matcher, False, iou_aware)),
    "rf_detr": (detectors.rf_detr, Family(_one_group_matcher, False, iou_aware)),
}


def _case(make: Callable[[], Any], family: Family) -> TaskCase:
    make = functools.cache(make)
    return TaskCase(
        lambda: copy.deepcopy(make()),
        images,
        ("pixel_values",),
        partial(family.scalar, make=make),
        partial(family.observed, make=make),
        absent=("label", "prediction", "forgetting", "margin", "el2n", "vog_class_normalized"),
        collate_fn=collate_images,
        channels=True,
    )


DETECTION_CASES = {f"object_detection/{name}": _case(*pair) for name, pair in FAMILIES.items()}
