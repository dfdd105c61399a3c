"""What a row looks like: its picture or text, a thumbnail, the heat map over it, contact sheet and decile plot.

Everything is drawn through matplotlib's objects (a figure and its canvas), never through pyplot, whose figures are
shared by the whole process. Titles and names come from data, so none of them is read as mathematics (``$``).
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vog_hf.config import target_of_column
from vog_hf.errors import ConfigError, DataError
from vog_hf.evaluation import RANKING_COLUMNS
from vog_hf.scores import VoGScores
from vog_hf.text import printable

logger = logging.getLogger(__name__)

PICTURE_NAMES = ("image", "img", "picture", "photo", "pixel_values")
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("text", "text_pair"),
)
TEXT_NAMES = ("sentence", "text", "content", "document", "review", "question", "premise", "prompt", "tokens", "words")
NOT_TEXT = ("label", "labels", "label_ids", "class", "target", "id", "idx", "guid")
CHANNELS = (1, 3, 4)
HEAT_COLORS = "inferno"
SMOOTHING = 1 / 32  # standard deviation, as a share of the map's longer side
MAX_STRIP = 128  # cells of a map of one axis
CELL = (8, 24)  # width and height of such a cell, in pixels
# What Pillow and the decoders of data sets raise on damaged files; an image too large to decode is among them.
BROKEN_PICTURE = (
    *(OSError, ValueError, TypeError, RuntimeError, SyntaxError, EOFError, KeyError, IndexError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_INK, _GREY, _RED = "#1f2328", "#656d76", "#b3261e"


def ranking_column(scores: VoGScores) -> str:
    """The column that tables and sheets rank by: normalised within the class, else over the data set, else raw.

    Example:
        >>> ranking_column(VoGScores({"vog": np.ones(2), "vog_normalized": np.zeros(2)}, {}))
        'vog_normalized'
    """
    return next((name for name in RANKING_COLUMNS if name in scores.column_names), "vog")


def most_extreme(scores: VoGScores, column: str, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the rows with the highest and the lowest values, most extreme first.

    Ties are in row order; NaN comes last in both. At most ``count`` rows each, fewer where there are fewer.

    Example:
        >>> highest, lowest = most_extreme(VoGScores({"vog": np.array([0.2, 0.9, 0.2, 0.5])}, {}), "vog", 2)
        >>> highest.tolist(), lowest.tolist()
        ([1, 3], [0, 2])
    """
    if count < 1:
        msg = f"count must be at least 1 row, got {count}"
        raise ConfigError(msg)
    values = scores.column(column).astype(np.float64)
    return np.argsort(-values, kind="stable")[:count], np.argsort(values, kind="stable")[:count]


def row_values(scores: VoGScores, column: str, rows: npt.ArrayLike) -> Sequence[str | int | float | None]:
    """A column's values of some rows as a reader wants them, all of one type: names of classes, else numbers.

    None where there is none: no label, or NaN or infinity.

    Example:
        >>> scores = VoGScores({"vog": np.ones(2), "label": np.array([1, -1])}, {"class_names": ["cat", "dog"]})
        >>> row_values(scores, "label", [0, 1])
        ['dog', None]
    """
    values = scores.column(column)[np.asarray(rows, dtype=np.int64)]
    if not np.issubdtype(values.dtype, np.integer):
        return [float(value) if np.isfinite(value) else None for value in values]
    if column not in ("label", "prediction") or not has_classes(scores):
        return [int(value) for value in values]
    return class_names(scores, values)


def has_classes(scores: VoGScores) -> bool:
    """Whether each row has one class (then, and only then, scores are normalised within it)."""
    return "vog_class_normalized" in scores.column_names or bool(scores.manifest.get("class_names"))


def class_names(scores: VoGScores, classes: Iterable[int]) -> list[str | int | None]:
    """The names of class numbers; the numbers themselves where classes have no names; None for a negative number."""
    names = scores.manifest.get("class_names")
    if not names:
        return [None if c < 0 else int(c) for c in classes]
    return [None if c < 0 else str(names[c]) if c < len(names) else str(c) for c in classes]


# What a row shows


def show_rows(dataset: Any, rows: Iterable[int]) -> list[Image.Image | str | None]:
    """The picture of each of these rows, or their text where the data set has no pictures, or None.

    Of a `datasets.Dataset` only the column with pictures or text is read, as it is stored, without its transform; other
    rows are not touched. A picture that cannot be decoded gives None and one line in the log.

    Args:
        dataset: A `datasets.Dataset` or any map-style data set.
        rows: Row numbers.
    """
    stored = _shown_columns(dataset)
    return [None if stored is None else _show_row(stored, int(row)) for row in rows]


def row_texts(dataset: Any) -> list[str] | None:
    """The text of every row of a `datasets.Dataset`, as `show_rows` shows it, to be searched; None where it shows none.

    Example:
        >>> from datasets import Dataset
        >>> row_texts(Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}))
        ['a', 'b']
    """
    from datasets import Dataset
    from datasets import Image as ImageFeature

    stored = _shown_columns(dataset) if isinstance(dataset, Dataset) else None
    if stored is None or stored.format["type"] == "custom":
        return None
    if any(isinstance(feature, ImageFeature) or not _is_text(feature) for feature in stored.features.values()):
        return None
    columns = [stored[name][:] for name in _text_columns(stored.column_names)]
    return ["\n".join(_as_text(value) or "" for value in values) for values in zip(*columns, strict=True)]


def row_picture(row: Any) -> Image.Image | None:
    """The picture of a row in RGB and its own size; None where it has none.

    Args:
        row: A mapping (looked through for a picture, then for an array called like one: ``image``, ``pixel_values``),
            a tuple (its first entry that is a picture), or a picture: PIL, or an array or tensor ``[height, width]``,
            ``[channels, height, width]`` or ``[height, width, channels]``.

    Example:
        >>> row_picture({"label": 1, "pixel_values": np.zeros((3, 4, 6))}).size
        (6, 4)
    """
    if isinstance(row, Mapping):
        named = [row[name] for name in PICTURE_NAMES if name in row]
        values = [*(v for v in (*named, *row.values()) if isinstance(v, Image.Image)), *named]
    elif isinstance(row, tuple):
        values = list(row)
    else:
        values = [row]
    return next((picture for picture in map(_as_picture, values) if picture is not None), None)


def row_text(row: Any) -> str | None:
    r"""The text of a row: of a pair of sentences both, on two lines; None where it has none.

    Args:
        row: A mapping (columns called ``sentence``, ``text`` and so on, else its first text that is no label), or a
            text.

    Example:
        >>> row_text({"idx": "7", "premise": "It rains.", "hypothesis": "It is wet.", "label": 0})
        'It rains.\nIt is wet.'
    """
    if not isinstance(row, Mapping):
        return row if isinstance(row, str) else None
    texts = {name: _as_text(value) for name, value in row.items()}
    columns = _text_columns([name for name, text in texts.items() if text is not None])
    return "\n".join(str(texts[name]) for name in columns) if columns else None


def _shown_columns(dataset: Any) -> Any:
    """The data set with nothing but the columns to show, so that no other is decoded; None: nothing to show."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    if not isinstance(dataset, Dataset):
        return dataset
    features = dataset.features
    pictures = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    if pictures:
        name = next((name for name in PICTURE_NAMES if name in pictures), pictures[0])
        return dataset.with_format(None).select_columns([name]).cast_column(name, ImageFeature())
    arrays = [n for n in PICTURE_NAMES if hasattr(features.get(n), "feature") or hasattr(features.get(n), "shape")]
    columns = arrays[:1] or _text_columns([name for name, feature in features.items() if _is_text(feature)])
    if columns:
        return dataset.with_format(None).select_columns(list(columns))
    return dataset if dataset.format["type"] == "custom" else None  # a transform makes the rows out of nothing


def _show_row(dataset: Any, row: int) -> Image.Image | str | None:
    try:
        stored = dataset[row]
        picture = row_picture(stored)
    except BROKEN_PICTURE as error:
        logger.warning("row %d is shown without its picture, which cannot be read: %r", row, error)
        return None
    return row_text(stored) if picture is None else picture


def _text_columns(names: Sequence[str]) -> Sequence[str]:
    """Which of these text columns say what a row is about."""
    for pair in TEXT_PAIRS:
        if set(pair) <= set(names):
            return pair
    preferred = [name for name in TEXT_NAMES if name in names]
    return (preferred or [name for name in names if name not in NOT_TEXT])[:1]


def _is_text(feature: Any) -> bool:
    item = getattr(feature, "feature", feature)  # of a list: texts that were split into words
    return getattr(item, "dtype", None) in ("string", "large_string")


def _as_text(value: Any) -> str | None:
    if isinstance(value, (list, tuple)) and value and all(isinstance(word, str) for word in value):
        return " ".join(value)
    return value if isinstance(value, str) else None


# Pictures


def thumbnail(image: Image.Image, side: int = 96) -> Image.Image:
    """The picture in RGB, its longer side ``side`` pixels, its proportions kept.

    Small pictures (8 x 8, 32 x 32) are enlarged with their pixels as squares, nothing made up between them.

    Example:
        >>> thumbnail(Image.new("L", (400, 100)), side=96).size
        (96, 24)
    """
    if side < 1:
        msg = f"side must be at least 1 pixel, got {side}"
        raise ConfigError(msg)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale >= 1:
        return _rgb(image).resize(size, Image.Resampling.NEAREST)
    if image.mode in ("RGB", "L"):  # a large picture is first reduced, then converted
        return _rgb(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    return _rgb(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def overlay(image: Image.Image, heat_map: npt.ArrayLike, *, alpha: float = 0.75) -> Image.Image:
    """The picture with a heat map over it: the brighter, the larger; where the map is 0 the picture shows unchanged.

    The map is smoothed by a thirty-second of its side, so that regions show where single pixels would only sparkle, and
    divided by its own largest value: colours compare places of one picture, not two pictures. It is stretched over the
    whole picture: where the model's transform crops, places are approximate.

    Args:
        image: Its size is kept.
        heat_map: ``[height, width]``, >= 0, as `VoGScores.heat_map` gives it for pictures.
        alpha: Opacity of the map at its largest value, 0..1.

    Raises:
        ConfigError: The map has another number of axes (that of a text has one), or alpha is outside 0..1.

    Example:
        >>> corner = overlay(Image.new("RGB", (4, 4)), [[1.0, 0.0], [0.0, 0.0]], alpha=1.0)
        >>> corner.getpixel((0, 0)), corner.getpixel((3, 3))
        ((252, 255, 164), (0, 0, 0))
    """
    heat = np.asarray(heat_map, dtype=np.float32)
    if heat.ndim != 2 or not heat.size or not 0 <= alpha <= 1:
        msg = f"overlay needs a map [height, width] and alpha in 0..1, got shape {heat.shape} and alpha {alpha}"
        raise ConfigError(msg)
    heat = gaussian_filter(_values_of(heat), sigma=SMOOTHING * max(heat.shape))
    share = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    stretched = Image.fromarray(share).resize(image.size, Image.Resampling.BILINEAR)
    share = np.asarray(stretched)[..., None]
    colors = 255 * colormaps[HEAT_COLORS](share[..., 0])[..., :3]
    picture = np.asarray(_rgb(image), dtype=np.float32)
    opacity = alpha * share
    return Image.fromarray((picture * (1 - opacity) + colors * opacity).round().astype(np.uint8))


def row_overlay(scores: VoGScores, row: int, image: Image.Image) -> Image.Image:
    """The picture with the row's own heat map over it; the picture itself where the scores have no map of a picture."""
    if not scores.has_heat_maps:
        return image
    heat = scores.heat_map(row)
    return overlay(image, heat) if heat.ndim == 2 and heat.size else image


def row_heat(scores: VoGScores, row: int, picture: Image.Image | None) -> Image.Image | None:
    """The row's heat map: over its picture, else by itself; None where the scores have none of this row."""
    if not scores.has_heat_maps:
        return None
    heat = scores.heat_map(row)
    if not heat.size or heat.ndim not in (1, 2):
        return None
    return overlay(picture, heat) if picture is not None and heat.ndim == 2 else heat_by_itself(heat)


def heat_by_itself(heat_map: npt.ArrayLike, *, side: int = 96) -> Image.Image:
    """A heat map without a picture under it: the brighter, the larger, divided by its own largest value.

    Args:
        heat_map: ``[height, width]``, smoothed as in `overlay`; or ``[positions]``, then a strip with a cell for each
            (of more than `MAX_STRIP` positions, a cell for the largest of its neighbours).
        side: Longer side of a map of two axes, in pixels.

    Example:
        >>> heat_by_itself([0.0, 1.0, 0.5]).size
        (24, 24)
    """
    heat = _values_of(heat_map)
    heat = strip(heat)[0][None] if heat.ndim == 1 else gaussian_filter(heat, sigma=SMOOTHING * max(heat.shape))
    share = np.asarray(heat) / max(float(heat.max()), np.finfo(np.float32).tiny)
    cells = Image.fromarray((255 * colormaps[HEAT_COLORS](share)[..., :3]).round().astype(np.uint8))
    if len(heat) == 1:
        return cells.resize((CELL[0] * heat.shape[1], CELL[1]), Image.Resampling.NEAREST)
    return thumbnail(cells, side)


def strip(heat: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """At most `MAX_STRIP` cells of a map of one axis, and how many positions the largest cell covers."""
    if len(heat) <= MAX_STRIP:
        return heat, 1
    parts = np.array_split(heat, MAX_STRIP)
    return np.array([part.max() for part in parts], dtype=np.float32), max(map(len, parts))


def _values_of(heat_map: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """A map of finite values of at least 0."""
    return np.nan_to_num(np.asarray(heat_map, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)


def _as_picture(value: Any) -> Image.Image | None:
    if isinstance(value, Image.Image):
        return _rgb(value) if min(value.size) else None
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()  # numpy has no bfloat16
    if not isinstance(value, (np.ndarray, list)):
        return None
    values = np.asarray(value)
    if values.ndim == 3 and _channels_first(*values.shape):
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or not values.size or (values.ndim == 3 and values.shape[2] not in CHANNELS):
        return None
    values = _eight_bits(values)
    return _rgb(Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _channels_first(first: int, _: int, last: int) -> bool:
    """Whether the first axis is the channels; where both ends could be, the shorter one is, of equals the first."""
    return first in CHANNELS and (last not in CHANNELS or first <= last)


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: over white where it is transparent, spread over 0..255 where it has 16 or 32 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """0..255: as they are if they are bytes, times 255 if all lie in 0..1, else from the least to the largest."""
    if values.dtype == np.uint8:
        return values
    floats = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = floats.min(), floats.max()
    if low < 0 or high > 1:
        floats = (floats - low) / ((high - low) or 1.0)
    return (255 * floats).round().astype(np.uint8)


# Sheets and plots


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels of a contact sheet: two grids of tiles, each tile a picture beside itself with its heat map."""

    side: int
    columns: int
    lines: int
    twins: bool

    margin = 24
    header = 74
    gap = 14

    @property
    def tile(self) -> tuple[int, int]:
        width = 2 * self.side + 2 if self.twins else self.side
        return width, self.side + 40

    @property
    def grid_width(self) -> int:
        return self.columns * (self.tile[0] + self.gap) - self.gap

    @property
    def size(self) -> tuple[int, int]:
        height = self.header + self.lines * (self.tile[1] + self.gap) + self.margin // 2
        return 2 * self.grid_width + 4 * self.margin, height

    def corner(self, grid: int, place: int) -> tuple[int, int]:
        """Upper left corner of a tile."""
        line, column = divmod(place, self.columns)
        width, height = self.tile
        return self.grid_left(grid) + column * (width + self.gap), self.header + line * (height + self.gap)

    def grid_left(self, grid: int) -> int:
        return self.margin + grid * (self.grid_width + 2 * self.margin)


def contact_sheet(
    scores: VoGScores, dataset: Any, *, column: str | None = None, count: int = 25, side: int = 96
) -> Image.Image:
    """Two grids side by side: the rows with the highest and those with the lowest value of a column.

    Each picture stands beside itself with its heat map over it (if there are heat maps); below, the row's number and
    value, and its label, with the prediction behind it where the two differ. Which of the grids holds the hard rows
    is for the run to show: see `vog_hf.evaluation`.

    Args:
        scores: Of this data set.
        dataset: With pictures, stored or made by its rows.
        column: What to rank by; default: `ranking_column`.
        count: Pictures per grid; 25 = 5 x 5.
        side: Longer side of each picture, in pixels.

    Raises:
        DataError: None of these rows has a picture.
        ConfigError: There is no such column, or ``count`` or ``side`` is below 1.
    """
    column = column or ranking_column(scores)
    grids = most_extreme(scores, column, count)
    pictures = [show_rows(dataset, rows) for rows in grids]
    if not any(isinstance(picture, Image.Image) for grid in pictures for picture in grid):
        msg = (
            f"a contact sheet needs pictures, and rows {grids[0][:3].tolist()} of the data set have none (a column of "
            f"pictures, or an array called {', '.join(PICTURE_NAMES)}); pass the data set with its pictures"
        )
        raise DataError(msg)
    n_tiles = len(grids[0])
    columns = int(np.ceil(np.sqrt(n_tiles)))
    twins = scores.has_heat_maps and scores.heat_map(int(grids[0][0])).ndim == 2
    layout = _Layout(side, columns, -(-n_tiles // columns), twins)
    sheet = Image.new("RGB", layout.size, "white")
    for grid, rows in enumerate(grids):
        for place, row in enumerate(rows):
            sheet.paste(_tile(scores, int(row), pictures[grid][place], layout), layout.corner(grid, place))
    return _lettered(sheet, scores, column, grids, layout)


def decile_plot(deciles: pd.DataFrame, *, column: str = "VoG", width: int = 640) -> Image.Image:
    """Bars of the error rate by decile of a score, lowest scores left.

    Args:
        deciles: As `vog_hf.evaluation.error_by_decile` returns it.
        column: Name of the score, for the axis.
        width: Of the picture, in pixels; the height is 0.6 of it.
    """
    figure, canvas = _figure((width, round(0.6 * width)))
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.75))
    axes.bar(deciles["decile"], deciles["error"], color="#3b6ea5", width=0.8)
    overall = float(np.average(deciles["error"], weights=deciles["rows"]))
    axes.axhline(overall, color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xticks(deciles["decile"])
    axes.set_ylim(0, max(1e-3, 1.15 * float(deciles["error"].max())))
    axes.set_xlabel(
        f"tenth of the rows by {printable(shortened(column, 40))} (1 = lowest)", color=_INK, parse_math=False
    )
    axes.set_ylabel("error rate", color=_INK)
    axes.set_title(f"dashed: all rows, {overall:.3f}", color=_GREY, fontsize=9, loc="right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    return _drawn(canvas)


def shortened(text: object, width: int) -> str:
    """A text on one line of at most ``width`` characters; what was cut off is an ellipsis.

    Example:
        >>> shortened("a  very long name", 8)
        'a very …'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _tile(scores: VoGScores, row: int, picture: Image.Image | str | None, layout: _Layout) -> Image.Image:
    """A picture, and beside it the same with its heat map, each centred on light grey."""
    square = (layout.side, layout.side)
    tile = Image.new("RGB", (layout.tile[0], layout.side), "white")
    small = thumbnail(picture, layout.side) if isinstance(picture, Image.Image) else Image.new("RGB", square, "#d8dee4")
    tile.paste(ImageOps.pad(small, square, color="#f0f2f4"), (0, 0))
    if layout.twins:
        tile.paste(ImageOps.pad(row_overlay(scores, row, small), square, color="#f0f2f4"), (layout.side + 2, 0))
    return tile


def _lettered(
    sheet: Image.Image, scores: VoGScores, column: str, grids: Sequence[npt.NDArray[np.int64]], layout: _Layout
) -> Image.Image:
    """The sheet with its titles and captions."""
    figure, canvas = _figure(sheet.size)
    figure.figimage(np.asarray(sheet), origin="upper")

    def write(x: int, y: int, text: str, *, color: str = _INK, size: float, weight: str = "normal") -> None:
        style: dict[str, Any] = {"va": "top", "parse_math": False, "usetex": False}
        figure.text(
            x / sheet.width, 1 - y / sheet.height, printable(text), color=color, size=size, weight=weight, **style
        )

    width = layout.tile[0] // 7  # characters that fit, at 7 pixels each; 12 in the titles
    for grid, (name, rows) in enumerate(zip(("highest", "lowest"), grids, strict=True)):
        title = shortened(f"{name} {column}", max(8, layout.grid_width // 12))
        write(layout.grid_left(grid), 16, title, size=14, weight="bold")
        for place, row in enumerate(rows):
            x, y = layout.corner(grid, place)
            names, differ = _caption(scores, int(row), width)
            value = _number(row_values(scores, column, [int(row)])[0], signed=column.endswith("normalized"))
            write(x, y + layout.side + 4, names, color=_RED if differ else _INK, size=8.5)
            write(x, y + layout.side + 20, shortened(f"row {row}   {value}", width), color=_GREY, size=8)
    subtitle = shortened(_subtitle(scores, column, layout), sheet.width // 7)
    write(layout.margin, 46, subtitle, color=_GREY, size=8.5)
    return _drawn(canvas)


def _caption(scores: VoGScores, row: int, width: int) -> tuple[str, bool]:
    """Label, and behind it the prediction where it differs; and whether it does."""
    label, prediction = (
        row_values(scores, name, [row])[0] if name in scores.column_names else None for name in ("label", "prediction")
    )
    if not has_classes(scores) or prediction is None or label == prediction:
        return ("" if label is None else shortened(_number(label), width)), False
    if label is None:
        return f"no label → {shortened(prediction, max(4, width - 11))}", False
    first = max(4, (width - 3) // 2, width - 3 - len(str(prediction)))  # what the shorter name leaves to the longer
    label = shortened(label, first)
    return f"{label} → {shortened(prediction, max(4, width - 3 - len(label)))}", True


def _subtitle(scores: VoGScores, column: str, layout: _Layout) -> str:
    """What the column was computed from (of several targets, its own), and what the second pictures show."""
    parts = [f"{len(scores):,} rows"]
    if "snapshots" in scores.manifest:
        parts.append(f"{len(scores.manifest['snapshots'])} snapshots")
    targets = scores.manifest.get("config", {}).get("target", [])
    target = target_of_column(column, targets)
    if target:
        parts.append(f"target {shortened(target, 40)}")
    if has_classes(scores):
        parts.append("label → prediction where they differ")
    if layout.twins:
        # whatever the sheet is ranked by, the heat maps are the first target's
        of = f" of the {shortened(targets[0], 40)}" if targets and target != targets[0] else ""
        parts.append(f"second picture: where the gradient{of} changed most between snapshots (bright; smoothed)")
    return " · ".join(parts)


def _number(value: str | float | None, *, signed: bool = False) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return (f"{value:+.2f}" if signed else f"{value:.3g}").replace("-", "\N{MINUS SIGN}")


def _figure(size: tuple[int, int]) -> tuple[Figure, FigureCanvasAgg]:
    """An empty white figure of so many pixels."""
    dpi = 100
    figure = Figure(figsize=((size[0] + 0.5) / dpi, (size[1] + 0.5) / dpi), dpi=dpi, facecolor="white")  # rounded down
    return figure, FigureCanvasAgg(figure)


def _drawn(canvas: FigureCanvasAgg) -> Image.Image:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script the font has not
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
