"""Galleries: rows as cards with picture or text, heat map, label, scores and the confidence over the snapshots."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata

from vog_hf.evaluation import total_change
from vog_hf.scores.formatting import number, printable
from vog_hf.scores.pictures import HEAT_COLORS, SMOOTHING, show_rows, strip, thumbnail
from vog_hf.scores.ranking import class_names, has_classes, row_values
from vog_hf.scores.vog_scores import VoGScores

SIDE = 112  # pixels of a picture's longer side; smaller pictures keep their size
LOSSLESS_SIDE = 40  # up to here a picture is stored exactly: its pixels are shown as squares
QUALITY = 72  # of WebP
HEAT_LEVELS = 32  # shades of a heat map
HEAT_OPACITY = 0.85  # of the largest value, over a picture; of others in proportion to their square
MAX_TEXT = 600  # characters of a row's text
SPARK_WIDTH, SPARK_HEIGHT = 100, 22


@dataclass(frozen=True)
class Heat:
    """A heat map as a small picture.

    Attributes:
        source: The picture as a data URI.
        alt: What it shows, in words.
        kind: ``"overlay"`` over the row's picture, ``"plane"`` by itself, or ``"strip"``: a cell per token or part.
    """

    source: str
    alt: str
    kind: str


@dataclass(frozen=True)
class Card:
    """What the page says of one row.

    Attributes:
        ratio: The picture's width by its height.
        pixelated: Whether its pixels are shown as squares.
        prediction: The last one, where it is not the label.
    """

    row: int
    ident: str | None
    picture: str | None
    pixelated: bool
    ratio: float
    alt: str
    text: str | None
    heat: Heat | None
    label: str | None
    prediction: str | None
    values: Sequence[tuple[str, str]]
    spark: Markup | None


@dataclass(frozen=True)
class Gallery:
    """Some rows for one reason; ``tone`` is the colour: ``high``, ``low`` or ``changed``."""

    title: str
    note: str
    tone: str
    cards: Sequence[Card]


class CardMaker:
    """Cards of the rows of one data set; a row that stands in several galleries is read and drawn once.

    Args:
        scores: Of the data set.
        dataset: For pictures and texts; None = cards without them.
        column: What the galleries rank by.
    """

    def __init__(self, scores: VoGScores, dataset: Any, column: str) -> None:
        self._scores = scores
        self._dataset = dataset
        self._cards: dict[int, Card] = {}
        self._has_confidence = "confidence" in scores.trajectory_names
        self._has_classes = has_classes(scores)
        headings = {} if self._has_classes else {"label": "label", "prediction": "prediction"}
        headings |= {column: "normalised" if column.endswith("normalized") else column}
        headings |= {"vog": "VoG", "loss": "loss"}
        self._values = [(name, heading) for name, heading in headings.items() if name in scores.column_names]
        self._embedded = bool((scores.manifest.get("input") or {}).get("embedding"))

    def cards(self, rows: Iterable[int]) -> list[Card]:
        """The cards of these rows, in this order."""
        rows = [int(row) for row in rows]
        missing = [row for row in dict.fromkeys(rows) if row not in self._cards]
        shown = [None] * len(missing) if self._dataset is None else show_rows(self._dataset, missing, side=SIDE)
        for row, content in zip(missing, shown, strict=True):
            self._cards[row] = self._card(row, content)
        return [self._cards[row] for row in rows]

    def _card(self, row: int, content: Image.Image | str | None) -> Card:
        scores = self._scores
        label, prediction = (self._class(name, row) for name in ("label", "prediction"))
        picture, pixelated, ratio = None, False, 1.0
        if isinstance(content, Image.Image):
            picture, pixelated = picture_source(content)
            ratio = content.width / content.height
        told = f"row {row}" + (f", label {label}" if label is not None else "")
        return Card(
            row=row,
            ident=None if scores.ids is None else str(scores.ids[row]),
            picture=picture,
            pixelated=pixelated,
            ratio=ratio,
            alt=f"Picture of {told}",
            text=_cut(content) if isinstance(content, str) else None,
            heat=heat_of(scores.heat_map(row), row, over_picture=picture is not None, tokens=self._embedded)
            if scores.has_heat_maps
            else None,
            label=label,
            prediction=prediction if prediction != label else None,
            values=[(heading, number(scores.column(name)[row])) for name, heading in self._values],
            spark=sparkline(scores.trajectory("confidence")[row]) if self._has_confidence else None,
        )

    def _class(self, column: str, row: int) -> str | None:
        if not self._has_classes or column not in self._scores.column_names:
            return None
        value = row_values(self._scores, column, [row])[0]
        return None if value is None else number(value)


def class_galleries(
    scores: VoGScores, make: CardMaker, column: str, classes: pd.DataFrame, *, per_class: int, limit: int
) -> list[tuple[str, list[Gallery]]]:
    """The highest and lowest rows of each class with their class's name; of the ``limit`` classes with most errors.

    Args:
        scores: With a label.
        make: Maker of the cards.
        column: What to rank by.
        classes: From `vog_hf.evaluation.class_table`.
        per_class: Rows in each of a class's two galleries.
        limit: How many classes; of more, those with the highest error, else with the most rows.
    """
    known = classes[classes["class"] >= 0]
    by = "error" if "error" in known else "rows"
    chosen = known.sort_values(by, ascending=False, kind="stable").head(limit).sort_values("class")["class"]
    label, values = scores.column("label"), scores.column(column).astype(np.float64)
    found = []
    for number_of_class, name in zip(chosen, class_names(scores, chosen), strict=True):
        rows = np.flatnonzero((label == number_of_class) & np.isfinite(values))
        order = rows[np.argsort(values[rows], kind="stable")]
        count = min(per_class, max(1, len(rows) // 2))  # a row stands at one end
        highest = rows[np.argsort(-values[rows], kind="stable")][:count]
        lowest = [row for row in order[:count] if row not in set(highest.tolist())]
        galleries = [
            Gallery("Highest", "", "high", make.cards(highest)),
            Gallery("Lowest", "", "low", make.cards(lowest)),
        ]
        found.append((str(name), [gallery for gallery in galleries if gallery.cards]))
    return found


# Pictures


def picture_source(image: Image.Image) -> tuple[str, bool]:
    """A small copy of a picture as a data URI, and whether its pixels are to be shown as squares."""
    side = max(image.size)
    small = thumbnail(image, min(SIDE, side))
    exact = side <= LOSSLESS_SIDE
    return _webp(small, lossless=exact), exact


def heat_of(heat: npt.NDArray[np.float32], row: int, *, over_picture: bool, tokens: bool) -> Heat | None:
    """A heat map as a picture: over the row's own picture, or by itself; None where it has no value to show.

    A map of one axis is a strip with a cell per token, or per equal part of a long input. Colours compare places of one
    row, not two rows: each map is divided by its own largest value.
    """
    heat = np.nan_to_num(np.asarray(heat, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
    if not heat.size or heat.ndim not in (1, 2):
        return None
    place = "token" if tokens else "part"
    if heat.ndim == 1:
        cells, each = strip(heat)
        largest = int(heat.argmax()) + 1
        alt = f"Heat of row {row} by {place}, largest at {place} {largest} of {len(heat)}"
        alt += f", each cell the largest of {each}" if each > 1 else ""
        return Heat(_heat_picture(cells[None], opacity=None), alt, "strip")
    smooth = gaussian_filter(heat, sigma=SMOOTHING * max(heat.shape))
    alt = f"Heat map of row {row}, largest {_where(smooth)}"
    if over_picture:
        return Heat(_heat_picture(smooth, opacity=HEAT_OPACITY), alt, "overlay")
    return Heat(_heat_picture(smooth, opacity=None), alt, "plane")


def _where(heat: npt.NDArray[np.float32]) -> str:
    """In which ninth of the map its largest value lies."""
    line, column = (
        3 * at // size for at, size in zip(np.unravel_index(heat.argmax(), heat.shape), heat.shape, strict=True)
    )
    if (line, column) == (1, 1):
        return "in the middle"
    words = (("upper", "", "lower")[int(line)], ("left", "", "right")[int(column)])
    return "at the " + " ".join(word for word in words if word)


def _heat_picture(heat: npt.NDArray[np.float32], opacity: float | None) -> str:
    """A map as a picture of few shades, transparent in proportion where ``opacity`` says how much at most."""
    share = heat / max(float(heat.max()), float(np.finfo(np.float32).tiny))
    levels = np.linspace(0, 1, HEAT_LEVELS)
    shades = (share * (HEAT_LEVELS - 1)).round().astype(np.uint8)
    picture = Image.frombytes("P", shades.shape[::-1], shades.tobytes())
    picture.putpalette((255 * colormaps[HEAT_COLORS](levels)[:, :3]).round().astype(np.uint8).tobytes())
    target = io.BytesIO()
    if opacity is None:
        picture.save(target, "PNG", optimize=True)
    else:
        alpha = (255 * opacity * levels**2).round().astype(np.uint8).tobytes()
        picture.save(target, "PNG", optimize=True, transparency=alpha)
    return _data_uri("image/png", target)


def _webp(image: Image.Image, *, lossless: bool) -> str:
    target = io.BytesIO()
    image.save(target, "WEBP", lossless=lossless, quality=100 if lossless else QUALITY, method=6)
    return _data_uri("image/webp", target)


def _data_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _cut(text: str) -> str:
    text = printable(text.strip())
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


# Lines


def sparkline(confidence: npt.ArrayLike) -> Markup | None:
    """The confidence over the snapshots as a small line from 0 (bottom) to 1 (top); None with nothing to draw."""
    values = np.asarray(confidence, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2:
        return None
    across = 2 + (SPARK_WIDTH - 4) * known / (len(values) - 1)
    points = [(x, 2 + (SPARK_HEIGHT - 4) * (1 - y)) for x, y in zip(across, values[known], strict=True)]
    line = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
    first, last = (f"{values[i]:.2f}" for i in known[[0, -1]])
    said = f"Confidence over {len(values)} snapshots, from {first} to {last}"
    return Markup(  # noqa: S704 (numbers only)
        f'<svg class="spark" viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" role="img" aria-label="{said}">'
        f'<polyline points="{line}"/><circle cx="{points[-1][0]:.0f}" cy="{points[-1][1]:.1f}" r="2"/></svg>'
        f'<span class="from-to" aria-hidden="true">{first} → {last}</span>'
    )


@dataclass(frozen=True)
class Changed:
    """Rows, most changed first, with the words for what changed."""

    title: str
    note: str
    rows: npt.NDArray[np.int64]


def most_changed(scores: VoGScores, count: int) -> Changed | None:
    """The rows whose confidence moved most, else those that moved most in the ranking; None with neither.

    The way of the confidence is the sum of its absolute steps from snapshot to snapshot: a row that is learned and kept
    goes at most 1, one that is learned and lost again more.
    """
    if "confidence" in scores.trajectory_names and scores.trajectory("confidence").shape[1] > 1:
        way = total_change(scores.trajectory("confidence"))
        return Changed(
            "Most changed rows",
            "By the way that the confidence went: the sum of its absolute steps from snapshot to snapshot. A row that "
            "is learned and kept goes at most 1, one that is learned, lost and learned again goes further.",
            _largest(way, count),
        )
    if {"vog_early", "vog_late"} <= set(scores.column_names):
        ranks = [rankdata(scores.column(name), nan_policy="omit") for name in ("vog_early", "vog_late")]
        return Changed(
            "Most changed rows",
            "By the number of places between the row's rank by early and by late VoG.",
            _largest(np.abs(ranks[1] - ranks[0]), count),
        )
    return None


def _largest(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Numbers of the rows with the largest finite values that are not 0, ties in row order."""
    order = np.argsort(-values, kind="stable")[:count]
    return order[np.nan_to_num(values[order]) > 0]
