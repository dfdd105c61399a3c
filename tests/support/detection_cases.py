"""Tiny detectors of several families, rows of images with objects, and what a row's scalars are by plain loops.

The oracle matches one row by transformers' own matcher and computes each loss from its formula.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import models
import numpy as np
import torch
import transformers as T
from task_cases import N_ROWS, TaskCase
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

SIDE = 16
CLASSES = 3
SIZE = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
QUERIES = {"num_queries": 5, "num_labels": CLASSES}


def backbone(*names: str) -> T.ResNetConfig:
    """A small ResNet; its stages of these names are used."""
    return T.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=[*names]
    )


def detr(**options: Any) -> Any:
    """DETR on a small ResNet."""
    config = T.DetrConfig(backbone_config=backbone("stage2"), **SIZE, **HEADS, **QUERIES, **options)
    return models._made(lambda: T.DetrForObjectDetection(config), 0)


def yolos() -> Any:
    """YOLOS."""
    config = T.YolosConfig(
        image_size=[SIDE, SIDE], patch_size=8, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, num_detection_tokens=5, num_labels=CLASSES,
    )  # fmt: skip
    return models._made(lambda: T.YolosForObjectDetection(config), 0)


def conditional_detr() -> Any:
    """Conditional DETR, whose classes are a sigmoid each."""
    config = T.ConditionalDetrConfig(backbone_config=backbone("stage2"), **SIZE, **HEADS, **QUERIES)
    return models._made(lambda: T.ConditionalDetrForObjectDetection(config), 0)


def deformable_detr() -> Any:
    """Deformable DETR with two levels."""
    size = {**SIZE, "d_model": 32, "decoder_layers": 2}  # 32 groups of channels; the heads of all layers are one
    config = T.DeformableDetrConfig(
        backbone_config=backbone("stage1", "stage2"), num_feature_levels=2, **size, **HEADS, **QUERIES
    )
    return models._made(lambda: T.DeformableDetrForObjectDetection(config), 0)


def rt_detr() -> Any:
    """RT-DETR with two levels."""
    own = T.RTDetrResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=["stage1", "stage2"]
    )
    config = T.RTDetrConfig(
        backbone_config=own, encoder_hidden_dim=8, encoder_in_channels=[4, 8], feat_strides=[4, 8],
        encode_proj_layers=[1], encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2, d_model=8,
        decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2, decoder_in_channels=[8, 8],
        num_feature_levels=2, num_denoising=0, **QUERIES,
    )  # fmt: skip
    model = models._made(lambda: T.RTDetrForObjectDetection(config), 0)
    for module in list(model.modules()):  # behind BatchNorm, torch has wrong gradients of one row, as the oracle takes
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, torch.nn.Identity())
    return model


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
    """

    matcher: Callable[[Any], Any]
    has_no_object: bool
    loss: Callable[..., torch.Tensor]
    weights: tuple[float, float] = (5.0, 2.0)

    def matches(self, config: Any, outputs: Any, row: dict[str, Any]) -> list[int]:
        """The query of each object."""
        target = {"class_labels": row["labels"]["class_labels"], "boxes": row["labels"]["boxes"].double()}
        alone = {"logits": outputs.logits.detach(), "pred_boxes": outputs.pred_boxes.detach()}
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
            z, predicted = outputs.logits[0, query], outputs.pred_boxes[0, query]
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


def _costs(config: Any) -> dict[str, float]:
    return {"class_cost": config.class_cost, "bbox_cost": config.bbox_cost, "giou_cost": config.giou_cost}


def _softmax_matcher(config: Any) -> HungarianMatcher:
    return HungarianMatcher(**_costs(config))


def _sigmoid_matcher(config: Any) -> DeformableDetrHungarianMatcher:
    return DeformableDetrHungarianMatcher(**_costs(config))


FAMILIES = {
    "detr": (detr, Family(_softmax_matcher, True, cross_entropy)),
    "yolos": (yolos, Family(_softmax_matcher, True, cross_entropy)),
    "conditional_detr": (conditional_detr, Family(_sigmoid_matcher, False, focal)),
    "deformable_detr": (deformable_detr, Family(_sigmoid_matcher, False, focal)),
    "rt_detr": (rt_detr, Family(RTDetrHungarianMatcher, False, varifocal)),
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
