"""Made images of colored objects with their boxes, of which some have a wrong class, and a small YOLOS."""

import numpy as np
import numpy.typing as npt
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from transformers import YolosConfig, YolosForObjectDetection

from vog_hf.cli.demos.planted import PlantedTask, Row, Rows

N_ROWS, SIDE, SHARE_OF_FAULTS = 400, 32, 0.1
COLORS = {"red": (230, 40, 40), "green": (40, 230, 40), "blue": (40, 40, 230)}


def boxed_objects(seed: int) -> PlantedTask:
    """Detection of objects; the faults are classes of objects."""
    draw = np.random.default_rng(seed)
    pictures, boxes, true_classes = zip(*(drawn_objects(draw, 1 + row % 3) for row in range(N_ROWS)), strict=True)
    sizes, flat = [len(classes) for classes in true_classes], np.concatenate(true_classes)
    is_faulty = draw.random(len(flat)) < SHARE_OF_FAULTS
    given = np.where(is_faulty, (flat + draw.integers(1, len(COLORS), len(flat))) % len(COLORS), flat)
    objects = [
        {"bbox": of_row, "category": classes.tolist()}
        for of_row, classes in zip(boxes, np.split(given, np.cumsum(sizes)[:-1]), strict=True)
    ]
    of_objects = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=list(COLORS)))}
    features = Features({"image": Image(), "objects": of_objects})
    return PlantedTask(
        title=f"Object detection: a small YOLOS, {N_ROWS} made images",
        faults="objects with a wrong class",
        rows=Dataset.from_dict({"image": list(pictures), "objects": objects}, features=features),
        is_faulty=is_faulty,
        transform=to_pixels_and_boxes,
        collate_fn=collate,
        make_model=small_yolos,
        n_epochs=60,
        learning_rate=1e-3,
        of_units=True,
    )


def drawn_objects(
    draw: np.random.Generator, n_objects: int
) -> tuple[npt.NDArray[np.uint8], list[list[float]], npt.NDArray[np.int64]]:
    """Rectangles on noise: the picture ``[side, side, 3]``, boxes (left, top, width, height) and classes."""
    picture = draw.normal(100, 20, (SIDE, SIDE, 3))
    classes, boxes = draw.integers(0, len(COLORS), n_objects), []
    for kind in classes:
        width, height = draw.integers(8, 15, 2)
        left, top = draw.integers(0, SIDE - width), draw.integers(0, SIDE - height)
        picture[top : top + height, left : left + width] = tuple(COLORS.values())[kind] + draw.normal(0, 15, 3)
        boxes.append([float(left), float(top), float(width), float(height)])
    return picture.clip(0, 255).astype(np.uint8), boxes, classes


def to_pixels_and_boxes(rows: Rows) -> Row:
    """Pixels in -1..1, and for each row its classes and boxes: centers and sizes as shares of the image."""
    pixels = [
        torch.from_numpy(np.array(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1) for image in rows["image"]
    ]
    labels = []
    for objects in rows["objects"]:
        boxes = torch.tensor(objects["bbox"]) / SIDE
        centers = boxes[:, :2] + boxes[:, 2:] / 2
        classes = torch.tensor(objects["category"])
        labels.append({"class_labels": classes, "boxes": torch.cat([centers, boxes[:, 2:]], dim=1)})
    return {"pixel_values": pixels, "labels": labels}


def collate(rows: list[Row]) -> Row:
    """Images of one size, with the labels of each."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": [row["labels"] for row in rows],
    }


def small_yolos() -> YolosForObjectDetection:
    """A YOLOS of three layers."""
    return YolosForObjectDetection(
        YolosConfig(
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=[SIDE, SIDE],
            patch_size=4,
            num_detection_tokens=8,
            id2label=dict(enumerate(COLORS)),
        )
    )
