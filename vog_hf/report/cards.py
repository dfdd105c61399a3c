"""Cards: rows with picture or text, heat map, label, scores and the confidence over the snapshots."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import gaussian_filter

from vog_hf.scores.formatting import number, printable
from vog_hf.scores.pictures import HEAT_COLORS, SMOOTHING, RowView, RowViews, strip, thumbnail
from vog_hf.scores.pictures.unit_lines import UnitLine
from vog_hf.scores.pictures.words import beginning, words_markup
from vog_hf.scores.ranking import has_classes
from vog_hf.scores.scored_rows import ScoredSplit

SIDE, LEAST_SIDE = 320, 112  # pixels of a picture's longer side, as it opens; smaller pictures keep their size
MAX_PICTURE = 10_000  # bytes; a picture that takes more is stored with fewer pixels, but not below `LEAST_SIDE`
LOSSLESS_SIDE = 40  # up to here a picture is stored exactly: its pixels are shown as squares
QUALITY = 72  # of WebP
HEAT_LEVELS = 32  # shades of a heat map
HEAT_OPACITY = 0.85  # of the largest value, over a picture; of others in proportion to their square
SOUND_BYTES = 16 * 2**20  # of all sounds of a split; they travel inside the page
MAX_TEXT = 600  # characters of a row's text
SPARK_WIDTH, SPARK_HEIGHT = 100, 22


@dataclass(frozen=True)
class Heat:
    """A heat map as a small picture.

    Attributes:
        source: The picture as a data URI.
        alt: Text alternative.
        kind: ``"overlay"`` over the row's picture, ``"plane"`` by itself, or ``"strip"``: a cell per token or part.
    """

    source: str
    alt: str
    kind: str


@dataclass(frozen=True)
class Card:
    """Content of one row's card.

    Attributes:
        ratio: The picture's width by its height.
        pixelated: Whether its pixels are shown as squares.
        prediction: The last one, where it is not the label.
        sound: The sound as a data URI.
        file: Name of the picture's or sound's file.
        words: The text with the heat of its words, as HTML.
        units: The row's units in words.
    """

    row: int
    ident: str | None
    file: str | None
    sound: str | None
    picture: str | None
    pixelated: bool
    ratio: float
    alt: str
    text: str | None
    words: Markup | None
    heat: Heat | None
    label: str | None
    prediction: str | None
    values: Sequence[tuple[str, str]]
    units: Sequence[UnitLine]
    spark: Markup | None


class CardMaker:
    """Cards of the rows of a split; a row in several galleries is read and drawn once.

    Args:
        split: Scores with their rows; without rows, cards have neither pictures nor texts.
        column: Column that the galleries rank by.
        start: Column that the rows to open first are ranked by.
    """

    def __init__(self, split: ScoredSplit, column: str, start: str) -> None:
        scores = split.scores
        self._views = RowViews(split, SIDE, fit=_not_enlarged, cache_size=0, sound_bytes=SOUND_BYTES)
        self._cards: dict[int, Card] = {}
        self._has_classes = has_classes(scores)
        headings = {} if self._has_classes else {"label": "label", "prediction": "prediction"}
        headings |= {column: "normalized" if column.endswith("normalized") else column}
        headings |= {"vog": "VoG", "loss": "loss"}
        headings.setdefault(start, start)
        self._values = [(name, heading) for name, heading in headings.items() if name in scores.column_names]
        self._embedded = scores.facts.reads_tokens

    @property
    def n_unplayed(self) -> int:
        """Number of rows with a sound that is left out, because all of them would be too large for a page."""
        return self._views.n_unplayed

    def cards(self, rows: Iterable[int]) -> list[Card]:
        """The cards of these rows, in this order."""
        numbers = [int(row) for row in rows]
        for row in dict.fromkeys(numbers):
            if row not in self._cards:
                self._cards[row] = self._card(self._views.view(row))
        return [self._cards[row] for row in numbers]

    def _card(self, view: RowView) -> Card:
        known = (view.label, view.prediction) if self._has_classes else (None, None)
        label, prediction = (None if name is None else number(name) for name in known)
        width, height = view.size or (1, 1)
        return Card(
            row=view.row,
            ident=view.id,
            file=view.file,
            sound=None if (sound := view.sound) is None else sound.uri,
            picture=None if (picture := view.boxed_picture) is None else _webp(picture, lossless=_is_small(view)),
            pixelated=_is_small(view),
            ratio=width / height,
            alt=f"Picture of row {view.row}" + (f", label {label}" if label is not None else ""),
            text=None if view.text is None else _shortened(view.text),
            words=None if view.words is None else words_markup(beginning(view.words, MAX_TEXT)),
            heat=heat_of(view, tokens=self._embedded) if view.words is None else None,
            label=label,
            prediction=prediction if prediction != label else None,
            values=[(heading, number(view.value(name))) for name, heading in self._values],
            units=view.unit_lines,
            spark=None if view.confidence is None else sparkline(view.confidence),
        )


# Pictures


def _not_enlarged(image: Image.Image, side: int) -> Image.Image:
    return thumbnail(image, min(side, max(image.size)))


def _is_small(view: RowView) -> bool:
    """Return whether the pixels of a row's picture are shown as squares."""
    return view.size is not None and max(view.size) <= LOSSLESS_SIDE


def heat_of(view: RowView, *, tokens: bool) -> Heat | None:
    """A heat map as a picture: over the row's own picture, or by itself; None for a row without a heat map.

    A map of one axis is a strip with a cell per token, or per equal part of a long input. Colors compare places within
    one row, not between rows: each map is divided by its own largest value.
    """
    heat, row = view.heat_map, view.row
    if heat is None:
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
    if view.picture is not None:
        return Heat(_heat_picture(smooth, opacity=HEAT_OPACITY), alt, "overlay")
    return Heat(_heat_picture(smooth, opacity=None), alt, "plane")


def _where(heat: npt.NDArray[np.float32]) -> str:
    """The ninth of the map that holds its largest value, in words."""
    line, column = (
        3 * at // size for at, size in zip(np.unravel_index(heat.argmax(), heat.shape), heat.shape, strict=True)
    )
    if (line, column) == (1, 1):
        return "in the middle"
    words = (("upper", "", "lower")[int(line)], ("left", "", "right")[int(column)])
    return "at the " + " ".join(word for word in words if word)


def _heat_picture(heat: npt.NDArray[np.float32], opacity: float | None) -> str:
    """A map as a picture with few shades; with ``opacity`` (that of the largest value), transparent in proportion."""
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
    target = _encoded(image, lossless=lossless)
    size, side = target.getbuffer().nbytes, max(image.size)
    if not lossless and size > MAX_PICTURE and side > LEAST_SIDE:
        fitting = int(side * (MAX_PICTURE / size) ** 0.5)
        target = _encoded(thumbnail(image, max(LEAST_SIDE, fitting)), lossless=False)
    return _data_uri("image/webp", target)


def _encoded(image: Image.Image, *, lossless: bool) -> io.BytesIO:
    target = io.BytesIO()
    image.save(target, "WEBP", lossless=lossless, quality=100 if lossless else QUALITY, method=6 if lossless else 4)
    return target


def _data_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def _shortened(text: str) -> str:
    text = printable(text.strip())
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


# Lines


def sparkline(confidence: npt.NDArray[np.float64]) -> Markup:
    """The confidence over the snapshots as a small line from 0 (bottom) to 1 (top), with two finite values or more."""
    values, known = confidence, np.flatnonzero(np.isfinite(confidence))
    across = 2 + (SPARK_WIDTH - 4) * known / (len(values) - 1)
    points = [(x, 2 + (SPARK_HEIGHT - 4) * (1 - y)) for x, y in zip(across, values[known], strict=True)]
    line = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
    first, last = (f"{values[i]:.2f}" for i in known[[0, -1]])
    alt = f"Confidence over {len(values)} snapshots, from {first} to {last}"
    return Markup(  # noqa: S704 (numbers only)
        f'<svg class="spark" viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" role="img" aria-label="{alt}">'
        f'<polyline points="{line}"/><circle cx="{points[-1][0]:.0f}" cy="{points[-1][1]:.1f}" r="2"/></svg>'
        f'<span class="from-to" aria-hidden="true">{first} → {last}</span>'
    )
