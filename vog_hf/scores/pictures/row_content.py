"""The content of a row that can be shown: its image, or its text."""

import io
import logging
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from vog_hf.data.referenced_files import HiddenFileError, NamedFiles
from vog_hf.data.rows import AnyDataset
from vog_hf.scores.audio import Sounds
from vog_hf.scores.manifest import Manifest
from vog_hf.scores.pictures.choice_texts import ChoiceTexts
from vog_hf.scores.pictures.decoding import MAX_TEXT, decoded, require_small_array, text_of
from vog_hf.scores.pictures.rgb_pictures import as_picture
from vog_hf.scores.pictures.row_columns import (
    PICTURE_NAMES,
    SOUND_NAMES,
    TOKEN_IDS,
    TOKEN_MASK,
    RowColumns,
    is_array,
    row_columns,
    text_columns,
)
from vog_hf.scores.pictures.words import Word, WordFinder

logger = logging.getLogger(__name__)

SIDE = 640  # pixels with which a picture is shown where nobody says otherwise
# What Pillow and the decoders of `datasets` raise for damaged files, and for an image too large to decode.
BROKEN_PICTURE = (
    *(OSError, ValueError, TypeError, RuntimeError, SyntaxError, EOFError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class ShownRows:
    """Images, texts and sounds of the rows of a dataset, read within bounds of memory.

    Of a `datasets.Dataset` only the columns of `row_columns` are read, as they are stored, without its transform; other
    rows are not touched. A picture that cannot be decoded, or that is a file which may not be shown, gives None and a
    line in the log.

    Args:
        dataset: A `datasets.Dataset` or any map-style dataset.
        facts: Manifest of the scores, which may tell what the model's input was made of.
        finder: Finder of the words of a heat map, which also reads token ids.
        is_from_hub: Whether the rows are known to be from the Hub: see `vog_hf.data.referenced_files`.
        sound_bytes: Bytes of sounds that are given out in all; None: no bound.

    Attributes:
        sounds: The sounds of the rows.
        choices: The texts of their choices.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        facts: Manifest | None = None,
        *,
        finder: WordFinder | None = None,
        is_from_hub: bool = False,
        sound_bytes: int | None = None,
    ) -> None:
        is_table = isinstance(dataset, Dataset)
        columns = row_columns(dataset, facts) if is_table else RowColumns()
        self._finder = finder
        self._any_text = facts is None or facts.reads_tokens or not facts.input.get("name")
        self._stored = _shown_columns(dataset, columns) if is_table else dataset
        self._files = NamedFiles(self._stored, is_from_hub=is_from_hub)
        self._warned = False
        self._cells: Any = None
        self._picture: str | None = None
        if isinstance(self._stored, Dataset) and self._stored.format["type"] != "custom":
            self._cells = self._stored.with_format("arrow")
            is_file = columns.picture is not None and not is_array(self._stored.features[columns.picture])
            self._picture = columns.picture if is_file else None
        self._texts = columns.texts if self._cells is not None else ()
        self._tokens = _token_columns(dataset) if isinstance(dataset, Dataset) and self._texts else None
        named = self._picture or columns.sound
        self._named: Any = None
        if isinstance(dataset, Dataset) and named is not None:
            self._named = dataset.with_format("arrow").select_columns([named])
        self.choices = ChoiceTexts(dataset, facts)
        names = ([] if columns.sound is None else [columns.sound]) if is_table else SOUND_NAMES
        self.sounds = Sounds(dataset, names, is_from_hub=is_from_hub, budget=sound_bytes)

    def file(self, row: int) -> str | None:
        """The name, without a folder, of the file that a row's picture or sound was read from; None without one."""
        if self._named is None:
            return None
        cell = self._named[row].column(0)[0]
        path = cell["path"].as_py() if isinstance(cell, pa.StructScalar) and cell.is_valid and "path" in cell else None
        return re.split(r"[/\\]", path.partition("::")[0])[-1] or None if isinstance(path, str) else None

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

    def words(self, row: int, heat: npt.NDArray[np.float32], cut_at: int) -> list[Word] | None:
        """The row's text in parts with the heat of its tokens; None where they cannot be found in it.

        Args:
            row: Number of the row.
            heat: ``[tokens]``, its heat map.
            cut_at: Number of tokens of the longest row.
        """
        if self._finder is None or self._stored is None or self._picture is not None:
            return None
        if self._texts:
            texts = [text for text in self._stored_texts(row) if text is not None]
            words = self._finder.words(texts, heat, cut_at=cut_at) if texts else None
            ids = None if words is not None or self._tokens is None else token_ids(self._tokens[row])
            return words if ids is None else self._finder.words_of_ids(ids, heat)
        content = self._stored[row]
        text, ids = row_text(content, any_name=self._any_text), token_ids(content)
        if ids is not None:
            return self._finder.words_of_ids(ids, heat)
        return None if text is None else self._finder.words(text[:MAX_TEXT].split("\n", 1), heat, cut_at=cut_at)

    def part(self, row: int, ends: tuple[int, int], n_tokens: int, cut_at: int) -> str | None:
        """The row's text from one token to another, as the model saw it; None where they cannot be found.

        Args:
            row: Number of the row.
            ends: Numbers of the first and the last token.
            n_tokens: Number of tokens of the row.
            cut_at: Number of tokens of the longest row.
        """
        if self._finder is None or self._stored is None or self._picture is not None or ends[0] > ends[1]:
            return None
        texts = [text for text in self._stored_texts(row) if text is not None] if self._texts else []
        found = self._finder.part(texts, n_tokens, ends, cut_at=cut_at)
        ids = token_ids(self._stored[row]) if not texts else None
        ids = token_ids(self._tokens[row]) if self._tokens is not None else ids
        return found if found is not None or ids is None else self._finder.text(ids[ends[0] : ends[1] + 1])

    def word_list(self, row: int) -> list[str] | None:
        """The words of a row whose text is stored as a list of words; None for any other."""
        if len(self._texts) != 1:
            return None
        words = self._cells[row].column(self._texts[0])[0].as_py()
        is_list = isinstance(words, list) and all(isinstance(word, str) for word in words)
        return words if is_list else None

    def _stored_texts(self, row: int) -> list[str | None]:
        cells = self._cells[row]
        return [text_of(cells.column(name)[0]) for name in self._texts]

    def _shown(self, row: int, side: int) -> Image.Image | str | None:
        if self._picture is not None:
            return self._stored_picture(row, self._picture, side)
        if self._texts:
            return _joined(self._stored_texts(row))
        self._files.require_shown(row)
        if self._cells is not None:
            require_small_array(self._cells[row])
        content = self._stored[row]
        picture = row_picture(content, side=side)
        if picture is not None:
            return picture
        text, ids = row_text(content, any_name=self._any_text), token_ids(content)
        if text is None and ids is not None and self._finder is not None:
            text = self._finder.text(ids)
        return None if text is None else text[:MAX_TEXT]

    def _stored_picture(self, row: int, column: str, side: int) -> Image.Image | None:
        value = self._cells[row].column(column)[0].as_py()
        if value is None or (value["bytes"] is None and value["path"] is None):
            return None
        held = value["bytes"]
        with self._files.open(value["path"], column) if held is None else io.BytesIO(held) as file:
            return as_picture(decoded(file, side), side)


def show_rows(dataset: AnyDataset, rows: Iterable[int], *, side: int = SIDE) -> list[Image.Image | str | None]:
    """The picture of each of these rows, or their text where the dataset has no pictures, or None: see `ShownRows`.

    Args:
        dataset: A `datasets.Dataset` or any map-style dataset.
        rows: Row numbers.
        side: Longer side in pixels with which pictures will be shown; larger ones are reduced to a few times that.
    """
    shown = ShownRows(dataset)
    return [shown.show(int(row), side) for row in rows]


def row_texts(dataset: AnyDataset, facts: Manifest | None = None) -> list[str] | None:
    """The text of every row of a `datasets.Dataset`, as it is shown, to be searched; None where none is shown.

    Args:
        dataset: The rows.
        facts: Manifest of their scores.

    Example:
        >>> row_texts(Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}))
        ['a', 'b']
    """
    if not isinstance(dataset, Dataset):
        return None
    columns = row_columns(dataset, facts)
    if columns.picture is not None or not columns.texts:
        return None
    table = dataset.with_format("arrow").select_columns(list(columns.texts))[:]
    cells = (table.column(name) for name in columns.texts)
    return ["\n".join(text_of(cell) or "" for cell in of_row) for of_row in zip(*cells, strict=True)]


def shown_column_names(dataset: AnyDataset, facts: Manifest | None = None) -> list[str]:
    """Names of the columns of a `datasets.Dataset` that show its rows: an image, a sound, a text or a pair of texts.

    Args:
        dataset: The rows.
        facts: Manifest of their scores.

    Example:
        >>> shown_column_names(Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}))
        ['text']
    """
    return row_columns(dataset, facts).names if isinstance(dataset, Dataset) else []


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
    return next((picture for value in values if (picture := as_picture(value, side)) is not None), None)


def row_text(row: object, *, any_name: bool = True) -> str | None:
    r"""The text of a row: of a pair of sentences both, on two lines; None where it has none.

    Args:
        row: A mapping (columns called ``sentence``, ``text`` and so on, else its first text that is not a label), or a
            text.
        any_name: Whether a text under another name than the usual ones may be it.

    Example:
        >>> row_text({"idx": "7", "premise": "It rains.", "hypothesis": "It is wet.", "label": 0})
        'It rains.\nIt is wet.'
    """
    if not isinstance(row, Mapping):
        return row if isinstance(row, str) else None
    texts = {name: text for name, value in row.items() if (text := _as_text(value)) is not None}
    return _joined([texts[name] for name in text_columns(list(texts), any_name=any_name)])


def holds_only_tokens(dataset: AnyDataset) -> bool:
    """Whether the rows of a dataset have token ids and nothing else that can be shown, by its columns or first row.

    Example:
        >>> holds_only_tokens([{"input_ids": [7, 8]}]), holds_only_tokens([{"input_ids": [7, 8], "text": "a"}])
        (True, False)
    """
    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        return row_columns(dataset).tokens is not None
    row = dataset[0]
    return token_ids(row) is not None and row_text(row) is None and row_picture(row) is None


def token_ids(row: object) -> list[int] | None:
    """The token ids of a row that the model reads, without its padding; None where it has none.

    Example:
        >>> token_ids({"input_ids": [101, 7592, 0], "attention_mask": [1, 1, 0]})
        [101, 7592]
    """
    if not isinstance(row, Mapping) or TOKEN_IDS not in row:
        return None
    ids, mask = np.asarray(row[TOKEN_IDS]), np.asarray(row.get(TOKEN_MASK, True), dtype=bool)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0:
        return None
    seen = ids[mask] if mask.shape == ids.shape else ids
    return [int(number) for number in seen[:MAX_TEXT]]


def _joined(texts: Iterable[str | None]) -> str | None:
    """Texts one below the other; None without any."""
    known = [text for text in texts if text is not None]
    return "\n".join(known) if known else None


def _shown_columns(dataset: Dataset, columns: RowColumns) -> Any:
    """The dataset with only the columns to show, so that no other is decoded; None if there is nothing to show."""
    shown = [columns.picture] if columns.picture is not None else list(columns.texts)
    if columns.tokens is not None:
        shown = [name for name in (columns.tokens, TOKEN_MASK) if name in dataset.features]
    if not shown:  # a transform makes the rows out of nothing
        return dataset if dataset.format["type"] == "custom" and columns.sound is None else None
    stored = dataset.with_format(None).select_columns(shown)
    if columns.picture is not None and isinstance(stored.features[columns.picture], ImageFeature):
        stored = stored.cast_column(columns.picture, ImageFeature(decode=False))
    return stored


def _token_columns(dataset: Dataset) -> Dataset | None:
    """The token ids that a dataset stores next to its texts; None without any, or where a transform makes the rows."""
    if TOKEN_IDS not in dataset.features or dataset.format["type"] == "custom":
        return None
    return dataset.with_format(None).select_columns([n for n in (TOKEN_IDS, TOKEN_MASK) if n in dataset.features])


def _as_text(value: object) -> str | None:
    if isinstance(value, (list, tuple)) and value and all(isinstance(word, str) for word in value):
        return " ".join(value)
    return value if isinstance(value, str) else None
