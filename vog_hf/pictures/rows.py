"""What a row of a data set shows: its picture, or its text."""

import logging
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

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
# What Pillow and the decoders of data sets raise on damaged files; an image too large to decode is among them.
BROKEN_PICTURE = (
    *(OSError, ValueError, TypeError, RuntimeError, SyntaxError, EOFError, KeyError, IndexError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


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


def _as_picture(value: Any) -> Image.Image | None:
    if isinstance(value, Image.Image):
        return rgb(value) if min(value.size) else None
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
    return rgb(Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _channels_first(first: int, _: int, last: int) -> bool:
    """Whether the first axis is the channels; where both ends could be, the shorter one is, of equals the first."""
    return first in CHANNELS and (last not in CHANNELS or first <= last)


def _eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """0..255: as they are if they are bytes, times 255 if all lie in 0..1, else from the least to the largest."""
    if values.dtype == np.uint8:
        return values
    floats = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = floats.min(), floats.max()
    if low < 0 or high > 1:
        floats = (floats - low) / ((high - low) or 1.0)
    return (255 * floats).round().astype(np.uint8)


def rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: over white where it is transparent, spread over 0..255 where it has 16 or 32 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
