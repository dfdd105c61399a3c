"""The content of a row that can be shown: its image, or its text."""

import io
import logging
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from vog_hf.data.referenced_files import HiddenFileError, NamedFiles
from vog_hf.data.rows import AnyDataset
from vog_hf.scores.pictures.decoding import GAP, MAX_TEXT, decoded, reduced, require_small_array, text_of

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
SIDE = 640  # pixels with which a picture is shown where nobody says otherwise
# What Pillow and the decoders of `datasets` raise for damaged files, and for an image too large to decode.
BROKEN_PICTURE = (
    *(OSError, ValueError, TypeError, RuntimeError, SyntaxError, EOFError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class ShownRows:
    """Images or texts of the rows of a dataset, read within bounds of memory.

    Of a `datasets.Dataset` only the column with pictures or text is read, as it is stored, without its transform; other
    rows are not touched. A picture that cannot be decoded, or that is a file which may not be shown, gives None and a
    line in the log.

    Args:
        dataset: A `datasets.Dataset` or any map-style dataset.
        is_from_hub: Whether the rows are known to be from the Hub: see `vog_hf.data.referenced_files`.
    """

    def __init__(self, dataset: AnyDataset, *, is_from_hub: bool = False) -> None:
        from datasets import Dataset
        from datasets import Image as ImageFeature

        self._stored = _shown_columns(dataset)
        self._files = NamedFiles(self._stored, is_from_hub=is_from_hub)
        self._warned = False
        self._cells: Any = None
        self._picture: str | None = None
        if isinstance(self._stored, Dataset) and self._stored.format["type"] != "custom":
            self._cells = self._stored.with_format("arrow")
            pictures = (name for name, feature in self._stored.features.items() if isinstance(feature, ImageFeature))
            self._picture = next(pictures, None)

    def show(self, row: int, side: int) -> Image.Image | str | None:
        """A row's picture, reduced to a few times the side in pixels that it is shown with; or its text; or None."""
        if self._stored is None:
            return None
        try:
            return self._shown(row, side)
        except HiddenFileError as error:
            if not self._warned:
                logger.warning("row %d, and others like it, is shown without its picture: %s", row, error)
            self._warned = True
        except BROKEN_PICTURE as error:
            logger.warning("row %d is shown without its picture, which cannot be read: %r", row, error)
        return None

    def _shown(self, row: int, side: int) -> Image.Image | str | None:
        if self._picture is not None:
            return self._stored_picture(row, self._picture, side)
        if self._cells is not None and all(map(_is_text, self._cells.features.values())):
            cells = self._cells[row]
            return row_text({name: text_of(cells.column(name)[0]) for name in cells.column_names})
        self._files.require_shown(row)
        if self._cells is not None:
            require_small_array(self._cells[row])
        content = self._stored[row]
        picture = row_picture(content, side=side)
        if picture is not None:
            return picture
        text = row_text(content)
        return None if text is None else text[:MAX_TEXT]

    def _stored_picture(self, row: int, column: str, side: int) -> Image.Image | None:
        value = self._cells[row].column(column)[0].as_py()
        if value is None or (value["bytes"] is None and value["path"] is None):
            return None
        held = value["bytes"]
        with self._files.open(value["path"], column) if held is None else io.BytesIO(held) as file:
            return _as_picture(decoded(file, side), side)


def show_rows(dataset: AnyDataset, rows: Iterable[int], *, side: int = SIDE) -> list[Image.Image | str | None]:
    """The picture of each of these rows, or their text where the dataset has no pictures, or None: see `ShownRows`.

    Args:
        dataset: A `datasets.Dataset` or any map-style dataset.
        rows: Row numbers.
        side: Longer side in pixels with which pictures will be shown; larger ones are reduced to a few times that.
    """
    shown = ShownRows(dataset)
    return [shown.show(int(row), side) for row in rows]


def row_texts(dataset: AnyDataset) -> list[str] | None:
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
    table = stored.with_format("arrow")[:]
    columns = [table.column(name) for name in _text_columns(stored.column_names)]
    return ["\n".join(text_of(cell) or "" for cell in cells) for cells in zip(*columns, strict=True)]


def shown_column_names(dataset: AnyDataset) -> list[str]:
    """Names of the columns of a `datasets.Dataset` that `show_rows` shows: its image, its text or its pair of texts.

    Example:
        >>> from datasets import Dataset
        >>> shown_column_names(Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}))
        ['text']
    """
    from datasets import Dataset

    stored = _shown_columns(dataset) if isinstance(dataset, Dataset) else None
    return [] if stored is None or stored.format["type"] == "custom" else list(stored.column_names)


def row_picture(row: object, *, side: int | None = None) -> Image.Image | None:
    """The picture of a row in RGB and its own size; None where it has none.

    Args:
        row: A mapping (looked through for a picture, then for an array called like one: ``image``, ``pixel_values``),
            a tuple (its first entry that is a picture), or a picture: PIL, or an array or tensor ``[height, width]``,
            ``[channels, height, width]`` or ``[height, width, channels]``.
        side: Longer side in pixels with which it will be shown; a larger one is reduced to a few times that first.

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
    return next((picture for value in values if (picture := _as_picture(value, side)) is not None), None)


def row_text(row: object) -> str | None:
    r"""The text of a row: of a pair of sentences both, on two lines; None where it has none.

    Args:
        row: A mapping (columns called ``sentence``, ``text`` and so on, else its first text that is not a label), or a
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


def _shown_columns(dataset: AnyDataset) -> Any:
    """The dataset with only the columns to show, so that no other is decoded; None if there is nothing to show."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    if not isinstance(dataset, Dataset):
        return dataset
    features = dataset.features
    pictures = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    if pictures:
        name = next((name for name in PICTURE_NAMES if name in pictures), pictures[0])
        return dataset.with_format(None).select_columns([name]).cast_column(name, ImageFeature(decode=False))
    arrays = [n for n in PICTURE_NAMES if hasattr(features.get(n), "feature") or hasattr(features.get(n), "shape")]
    columns = arrays[:1] or _text_columns([name for name, feature in features.items() if _is_text(feature)])
    if columns:
        return dataset.with_format(None).select_columns(list(columns))
    return dataset if dataset.format["type"] == "custom" else None  # a transform makes the rows out of nothing


def _text_columns(names: Sequence[str]) -> Sequence[str]:
    """The text columns that describe a row best."""
    for pair in TEXT_PAIRS:
        if set(pair) <= set(names):
            return pair
    preferred = [name for name in TEXT_NAMES if name in names]
    return (preferred or [name for name in names if name not in NOT_TEXT])[:1]


def _is_text(feature: object) -> bool:
    item = getattr(feature, "feature", feature)  # of a list: texts that were split into words
    return getattr(item, "dtype", None) in ("string", "large_string")


def _as_text(value: object) -> str | None:
    if isinstance(value, (list, tuple)) and value and all(isinstance(word, str) for word in value):
        return " ".join(value)
    return value if isinstance(value, str) else None


def _as_picture(value: object, side: int | None) -> Image.Image | None:
    if isinstance(value, Image.Image):
        return rgb(value if side is None else reduced(value, side)) if min(value.size) else None
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
    step = 1 if side is None else max(1, max(values.shape[:2]) // (GAP * side))
    values = _eight_bits(values[::step, ::step])
    return rgb(Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _channels_first(first: int, _: int, last: int) -> bool:
    """Return whether the first axis is the channels; if both ends could be, the shorter one is, else the first."""
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
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
