"""Faults that are planted in the boxes of made images are found by scores of objects and rows, next to cleanlab's."""

import numpy as np
import pytest
import torch
from cleanlab.object_detection.rank import (
    compute_badloc_box_scores,
    compute_overlooked_box_scores,
    compute_swap_box_scores,
    pool_box_scores_per_image,
)
from detection_cases import collate_images
from sklearn.metrics import roc_auc_score
from trainers import arguments
from transformers import Trainer, YolosConfig, YolosForObjectDetection, set_seed
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import HungarianMatcher, box_iou

from vog_hf import VoGCallback, VoGConfig
from vog_hf.scores.unit_columns import unit_orders

SIDE, ROWS, EPOCHS, FAULTY = 32, 400, 60, 0.1
COLORS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # of each class
LOWER_IS_WORSE = ("iou_object", "confidence_object", "correctness_object", "prediction_probability_object")


def made_images(seed):
    """Images of one to three ellipses or rectangles, which may overlap, on noise; their colors are the classes."""
    draw, rows = np.random.default_rng(seed), []
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    for i in range(ROWS):
        image, n_objects = 0.3 * draw.standard_normal((3, SIDE, SIDE)), 1 + i % 3
        classes, boxes = draw.integers(0, len(COLORS), n_objects), []
        for k in classes:
            width, height = draw.uniform(0.25, 0.45, 2)
            center_x, center_y = draw.uniform(width / 2, 1 - width / 2), draw.uniform(height / 2, 1 - height / 2)
            across, down = 2 * np.abs(x - center_x) / width, 2 * np.abs(y - center_y) / height
            inside = np.maximum(across, down) < 1 if draw.random() < 0.5 else across**2 + down**2 < 1
            image[:, inside] += 2 * COLORS[k][:, None]
            boxes.append([center_x, center_y, width, height])
        rows.append((torch.tensor(image, dtype=torch.float32), classes, np.array(boxes)))
    return rows


def with_faults(rows, seed):
    """The rows with faults; which objects are relabeled, which are shifted, and in which rows one is missing."""
    draw = np.random.default_rng(seed + 1)
    given, relabeled, shifted, dropped = [], [], [], []
    for pixels, true_classes, true_boxes in rows:
        is_dropped = len(true_classes) > 1 and draw.random() < FAULTY
        classes, boxes = true_classes[is_dropped:].copy(), true_boxes[is_dropped:].copy()
        fault = draw.random(len(classes))
        is_relabeled, is_shifted = fault < FAULTY, fault > 1 - FAULTY
        other = (classes + draw.integers(1, len(COLORS), len(classes))) % len(COLORS)
        classes = np.where(is_relabeled, other, classes)
        by = 0.5 * boxes[:, 2:] * draw.choice([-1, 1], (len(classes), 2))
        boxes[is_shifted, :2] = (boxes[:, :2] + by)[is_shifted].clip(0.1, 0.9)
        labels = {"class_labels": torch.tensor(classes), "boxes": torch.tensor(boxes, dtype=torch.float32)}
        given.append({"pixel_values": pixels, "labels": labels})
        relabeled.append(is_relabeled)
        shifted.append(is_shifted)
        dropped.append(is_dropped)
    return given, np.concatenate(relabeled), np.concatenate(shifted), np.array(dropped)


def detector(seed):
    """A small YOLOS."""
    set_seed(seed)
    size = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    config = YolosConfig(**size, image_size=[SIDE, SIDE], patch_size=4, num_detection_tokens=8, num_labels=len(COLORS))
    return YolosForObjectDetection(config)


def aurocs(seed, folder, epochs=EPOCHS):
    """AUROC of each fault for each column, in the direction that its meaning says, and for cleanlab."""
    rows, relabeled, shifted, dropped = with_faults(made_images(seed), seed)
    args = arguments(folder, num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=1e-3, seed=seed)
    vog = VoGCallback(config=VoGConfig(target=("logit", "loss")), max_snapshots=10, log=False, batch_size=64)
    trainer = Trainer(detector(seed), args, train_dataset=rows, data_collator=collate_images, callbacks=[vog])
    trainer.train()
    scores, units = vog.scores, vog.scores.units
    signs = {name: -1 if name in LOWER_IS_WORSE else 1 for name in unit_orders(scores)}
    of_objects = {name: sign * units.column(name) for name, sign in signs.items()}
    of_rows = {name: scores.column(name) for name in ("vog", "vog_loss", "loss")}
    of_objects |= {f"{name} of the row": values[units.rows] for name, values in of_rows.items()}
    swap, badloc, overlooked = cleanlab_scores(trainer.model.eval(), rows)
    of_rows["overlooked, cleanlab"] = -overlooked
    of_rows["query without an object"] = unmatched_confidence(trainer.model, rows)
    of_rows["highest loss_object of the row"] = units.extreme("loss_object")
    found = {"mean IoU": units.column("iou_object")[~relabeled & ~shifted].mean()}
    for fault, is_faulty, own in (("relabeled", relabeled, swap), ("shifted", shifted, badloc)):
        chosen = is_faulty | ~(relabeled | shifted)
        for name, values in (of_objects | {"cleanlab": -own}).items():
            found[f"{fault}: {name}"] = roc_auc_score(is_faulty[chosen], values[chosen])
    for name, values in of_rows.items():
        found[f"dropped: {name}"] = roc_auc_score(dropped, values)
    return found


def unmatched_confidence(model, rows):
    """Of each row, the highest confidence of a query without an object, times 1 minus its highest IoU with a box."""
    costs = {name: getattr(model.config, name) for name in ("class_cost", "bbox_cost", "giou_cost")}
    matcher, found = HungarianMatcher(**costs), []
    for row in rows:
        with torch.no_grad():
            outputs = model(pixel_values=row["pixel_values"][None])
        predictions = {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}
        ((queries, _),) = matcher(predictions, [row["labels"]])
        confidence = outputs.logits[0].softmax(-1)[:, :-1].amax(-1)
        confidence[queries] = 0.0
        of_boxes = (center_to_corners_format(boxes) for boxes in (outputs.pred_boxes[0], row["labels"]["boxes"]))
        found.append(float((confidence * (1 - box_iou(*of_boxes)[0].amax(1))).max()))
    return np.array(found)


def cleanlab_scores(model, rows):
    """Cleanlab's quality of each given box for its class and for its place, and of each image for boxes left out."""
    labels, predictions = [], []
    for row in rows:
        with torch.no_grad():
            outputs = model(pixel_values=row["pixel_values"][None])
        p = outputs.logits[0].softmax(-1)[:, :-1].numpy().astype(np.float64)
        boxes = _corners(outputs.pred_boxes[0].numpy().astype(np.float64))
        best = p.argmax(1)
        by_class = [np.column_stack([boxes[best == k], p[best == k, k]]) for k in range(len(COLORS))]
        predictions.append(np.array([*by_class, None], dtype=object)[:-1])
        given = row["labels"]
        labels.append({"bboxes": _corners(given["boxes"].numpy()), "labels": given["class_labels"].numpy()})
    swap = compute_swap_box_scores(labels=labels, predictions=predictions)
    badloc = compute_badloc_box_scores(labels=labels, predictions=predictions)
    overlooked = compute_overlooked_box_scores(labels=labels, predictions=predictions)
    return np.concatenate(swap), np.concatenate(badloc), pool_box_scores_per_image(overlooked)


def _corners(boxes):
    return SIDE * np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])


@pytest.mark.slow
@pytest.mark.timeout(900)  # trains for a minute and a half on an idle core
def test_faults_of_boxes_are_found_by_the_scores_of_their_objects(tmp_path):
    """Another class by the confidence, a shifted box by IoU and loss; a missing object by no column."""
    found = aurocs(0, tmp_path)
    assert found["relabeled: confidence_object"] > 0.85
    assert found["relabeled: confidence_object"] > found["relabeled: loss of the row"] + 0.1
    assert found["shifted: iou_object"] > 0.7
    assert found["shifted: loss_object"] > 0.7


if __name__ == "__main__":  # the figures of docs/concepts/score.md
    from pathlib import Path
    from tempfile import TemporaryDirectory

    for seed in range(3):
        with TemporaryDirectory() as made:
            print(seed, {name: round(float(value), 3) for name, value in aurocs(seed, Path(made)).items()})
