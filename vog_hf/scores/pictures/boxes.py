"""The objects of a row as boxes over its picture: the given ones, and those of the queries matched to them."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from vog_hf.metric.unit_kinds import BOX_COLUMNS, LABEL, PREDICTED, PREDICTION
from vog_hf.scores.formatting import number, shortened
from vog_hf.scores.unit_columns import class_of_unit, has_boxes
from vog_hf.scores.vog_scores import VoGScores

GIVEN_COLOR, PREDICTED_COLOR = "#00b248", "#ff8f00"
KINDS = ("given", "predicted")
DRAWN_SIDE = 256  # pixels; the longer side of smaller pictures is enlarged to at least that, or lines hide the objects
EDGE, ON_COLOR = "#000000", "#000000"
LINES_PER_SIDE, LETTERS_PER_SIDE, DASH = 100, 20, 4  # of the longer side; a dash is as long as 4 lines are wide
Corners = tuple[int, int, int, int]
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
    """Draw boxes over a picture, which is enlarged if it is small.

    Given boxes are solid, with the name of their class; predicted ones are dashed, with the name of theirs where it is
    another one.

    Args:
        picture: The picture, which is left as it is.
        boxes: Boxes of each object: first all that are given, then those that are predicted, as of `row_boxes`.
    """
    if not boxes:
        return picture
    factor = -(-DRAWN_SIDE // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    drawn = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    draw, given_names = ImageDraw.Draw(drawn), [box.name for box in boxes if box.kind == "given"]
    line = max(3, max(size) // LINES_PER_SIDE)
    for box in boxes:
        _draw_edges(draw, _corners(box, size), line, is_dashed=box.kind == "predicted")
    predicted_names = [box.name for box in boxes if box.kind == "predicted"]
    agree = [given == predicted for given, predicted in zip(given_names, predicted_names, strict=False)]
    hidden = [False] * len(given_names) + agree
    taken: list[Corners] = []
    for box, is_hidden in zip(boxes, hidden, strict=True):
        if not is_hidden:
            taken.append(_draw_name(draw, box, size, taken))
    return drawn


def _draw_edges(draw: ImageDraw.ImageDraw, corners: Corners, line: int, *, is_dashed: bool) -> None:
    """The four sides, in a dark frame that tells them from objects of their own color."""
    left, top, right, bottom = corners
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=EDGE, width=line + 2)
    if not is_dashed:
        draw.rectangle(corners, outline=GIVEN_COLOR, width=line)
        return
    step = DASH * line
    for x in range(left, right + 1, 2 * step):
        end = min(x + step, right)
        draw.rectangle((x, top, end, min(top + line - 1, bottom)), fill=PREDICTED_COLOR)
        draw.rectangle((x, max(bottom - line + 1, top), end, bottom), fill=PREDICTED_COLOR)
    for y in range(top, bottom + 1, 2 * step):
        end = min(y + step, bottom)
        draw.rectangle((left, y, min(left + line - 1, right), end), fill=PREDICTED_COLOR)
        draw.rectangle((max(right - line + 1, left), y, right, end), fill=PREDICTED_COLOR)


def _draw_name(draw: ImageDraw.ImageDraw, box: Box, size: tuple[int, int], taken: Sequence[Corners]) -> Corners:
    """The name of a class on its box's color: of a given box at its top, of a predicted one at its bottom.

    It is drawn elsewhere at the box where it would hide another name, if there is such a place.

    Args:
        draw: Where it is drawn.
        box: The box.
        size: Width and height of the picture.
        taken: Places of the other names.

    Returns:
        Its own place.
    """
    left, top, right, bottom = _corners(box, size)
    letter = max(10, max(size) // LETTERS_PER_SIDE)
    font = ImageFont.load_default(letter)
    name = shortened(box.name, 60)  # in one line, which alone can be measured
    while len(name) > 1 and draw.textlength(name, font) > size[0] - 4:
        name = name.removesuffix("\N{HORIZONTAL ELLIPSIS}")[:-1] + "\N{HORIZONTAL ELLIPSIS}"
    width, height = int(draw.textlength(name, font)) + 4, letter + letter // 3 + 1
    xs = [max(0, min(x, size[0] - width)) for x in (left, right - width + 1)]
    ys = [y for y in (top - height, top, bottom - height + 1, bottom + 1) if 0 <= y <= size[1] - height]
    ys = ys[::-1] if box.kind == "predicted" else ys
    places = [(x, y, x + width - 1, y + height - 1) for x in xs for y in ys or [0]]
    place = next((place for place in places if not any(_meet(place, other) for other in taken)), places[0])
    draw.rectangle(place, fill=GIVEN_COLOR if box.kind == "given" else PREDICTED_COLOR)
    draw.text((place[0] + 2, place[1]), name, fill=ON_COLOR, font=font)
    return place


def _meet(place: Corners, other: Corners) -> bool:
    return place[0] <= other[2] and other[0] <= place[2] and place[1] <= other[3] and other[1] <= place[3]


def _corners(box: Box, size: tuple[int, int]) -> Corners:
    """Left, top, right and bottom in pixels, inside of the picture."""
    sides = [(box.left, size[0]), (box.top, size[1]), (box.left + box.width, size[0]), (box.top + box.height, size[1])]
    left, top, right, bottom = (round(min(max(share, 0.0), 1.0) * (pixels - 1)) for share, pixels in sides)
    return left, top, max(left, right), max(top, bottom)
