"""The objects of a row as boxes over its picture: the given ones, and those of the queries matched to them."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from vog_hf.metric.unit_kinds import BOX_COLUMNS, LABEL, PREDICTED, PREDICTION
from vog_hf.scores.formatting import number
from vog_hf.scores.unit_columns import class_of_unit, has_boxes
from vog_hf.scores.vog_scores import VoGScores

GIVEN_COLOR, PREDICTED_COLOR = "#00b248", "#ff8f00"
KINDS = ("given", "predicted")
NAMED_SIDE = 200  # pixels; in smaller pictures the names of classes would hide the objects
NOTED = {"loss_object": "loss", "iou_object": "IoU"}


@dataclass(frozen=True)
class Box:
    """An object, given or predicted.

    Attributes:
        left: Share of the picture's width; so is ``width``, and ``top`` and ``height`` are shares of its height.
        kind: ``"given"`` or ``"predicted"``.
        label: Number of its class.
        name: Name of its class.
        note: Its scores in words; of a given object alone.
    """

    left: float
    top: float
    width: float
    height: float
    kind: str
    label: int
    name: str
    note: str = ""


def row_boxes(scores: VoGScores, row: int) -> list[Box]:
    """The given boxes of a row, then the predicted ones; none for rows without objects.

    Example:
        >>> import numpy as np
        >>> row_boxes(VoGScores({"vog": np.ones(2)}, {}), 0)
        []
    """
    units = scores.units
    if units is None or not has_boxes(scores):
        return []
    names = scores.facts.unit_class_names
    notes = [""] * int(units.sizes[row])
    for column, heading in NOTED.items():
        values = units.of_row(column, row).tolist()
        notes = [f"{note}, {heading} {number(v)}".strip(", ") for note, v in zip(notes, values, strict=True)]
    boxes = []
    for kind, label, prefix in zip(KINDS, (LABEL, PREDICTION), ("", PREDICTED), strict=True):
        sides = [units.of_row(units.named(prefix + name), row).tolist() for name in BOX_COLUMNS]
        labels = units.of_row(units.named(label), row).tolist()
        of_kind = notes if kind == "given" else [""] * len(notes)
        for left, top, width, height, k, note in zip(*sides, labels, of_kind, strict=True):
            boxes.append(Box(left, top, width, height, kind, k, class_of_unit(names, k), note))
    return boxes


def with_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Draw boxes over a picture; in larger ones with the names of their classes."""
    if not boxes:
        return picture
    drawn = picture.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    line = max(1, max(picture.size) // 160)
    for box in sorted(boxes, key=lambda box: box.kind == "given"):  # the given ones on top
        color = GIVEN_COLOR if box.kind == "given" else PREDICTED_COLOR
        corners = _corners(box, picture.size)
        draw.rectangle(corners, outline=color, width=line if box.kind == "predicted" else 2 * line)
        if max(picture.size) >= NAMED_SIDE:
            at = (corners[0] + 3, corners[1] + 1) if box.kind == "given" else (corners[0] + 3, corners[3] - 13)
            draw.text(at, box.name, fill=color, stroke_width=1, stroke_fill="#000")
    return drawn


def _corners(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels, inside of the picture."""
    sides = [(box.left, size[0]), (box.top, size[1]), (box.left + box.width, size[0]), (box.top + box.height, size[1])]
    left, top, right, bottom = (round(min(max(share, 0.0), 1.0) * (pixels - 1)) for share, pixels in sides)
    return left, top, max(left, right), max(top, bottom)
