"""The columns that show a row: one rule for every output, by what the dataset holds and what the model read."""

import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Audio, Dataset
from datasets import Image as ImageFeature

from vog_hf.metric.vocabulary import LEARNING_PATTERN
from vog_hf.scores.audio import media_type
from vog_hf.scores.manifest import Manifest

PICTURE_NAMES = ("image", "img", "picture", "photo", "pixel_values")
SOUND_NAMES = ("audio", "sound", "speech", "file")
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("text", "text_pair"),
    ("sent1", "sent2"),
)
TEXT_NAMES = (
    "sentence",
    "text",
    "content",
    "document",
    "review",
    "question",
    "premise",
    "prompt",
    "ctx",
    "tokens",
    "words",
)
TOKEN_IDS, TOKEN_MASK = "input_ids", "attention_mask"
NOT_TEXT = ("label", "labels", "label_ids", "class", "target", "id", "idx", "guid", LEARNING_PATTERN)
# How image files begin; WebP begins as sounds do, and is told apart by them.
IMAGE_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
IMAGE_BRANDS = (b"ftypavif", b"ftypheic", b"ftypmif1")  # from the fifth byte on, in the container that sounds use, too
LOOKED_AT = 8  # rows of a column of files, until one has a file


@dataclass(frozen=True)
class RowColumns:
    """Names of the columns that show a row; None or empty without one.

    Attributes:
        picture: Column of images, as files or as arrays of one of the usual names.
        sound: Column of sounds, as files or as samples with their rate.
        texts: Column of texts, or two of them for pairs; empty for rows with pictures.
        tokens: Column of token ids, for rows with nothing else to show.
    """

    picture: str | None = None
    sound: str | None = None
    texts: tuple[str, ...] = ()
    tokens: str | None = None

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [name for name in (self.picture, self.sound, *self.texts, self.tokens) if name is not None]


def row_columns(dataset: Dataset, facts: Manifest | None = None) -> RowColumns:
    """Find the columns that show the rows of a dataset.

    The columns that the model's input was made of, where the manifest names them; else by kind and by name. A column
    of strings that has none of the usual names of texts is the row's text only if nothing else can be the input: a
    model that reads sounds, numbers or the token ids of the rows has not read the speaker's name.

    Args:
        dataset: Rows, of which types alone are read, and the beginning of a file where a type does not tell.
        facts: Manifest of their scores.

    Example:
        >>> row_columns(Dataset.from_dict({"name": ["Ann"], "label": [1]})).texts
        ('name',)
        >>> row_columns(Dataset.from_dict({"name": ["Ann"], "x": [0.5]}), Manifest(input={"name": "x"})).texts
        ()
    """
    facts = facts or Manifest()
    named = [name for name in facts.transform.get("input_columns") or () if name in dataset.features]
    features = {name: dataset.features[name] for name in named or dataset.features}
    kinds = {name: _kind(dataset, name) for name in features}
    pictures, sounds, texts = ([n for n in kinds if kinds[n] == kind] for kind in ("picture", "sound", "text"))
    arrays = [name for name in PICTURE_NAMES if is_array(features.get(name))]
    picture, sound = preferred(pictures, PICTURE_NAMES) or next(iter(arrays), None), preferred(sounds, SOUND_NAMES)
    if picture is not None:
        return RowColumns(picture, sound)
    if named:
        return RowColumns(None, sound, tuple(texts[:2]))
    is_input = sound is None and (facts.reads_tokens or not facts.input.get("name"))
    shown = tuple(text_columns(texts, any_name=is_input and TOKEN_IDS not in features))
    holds_tokens = not shown and sound is None and is_array(features.get(TOKEN_IDS))
    return RowColumns(None, sound, shown, TOKEN_IDS if holds_tokens else None)


def text_columns(names: Sequence[str], *, any_name: bool = True) -> Sequence[str]:
    """The text columns that describe a row best.

    Args:
        names: Columns of texts.
        any_name: Whether a column with none of the usual names may be it.
    """
    for pair in TEXT_PAIRS:
        if set(pair) <= set(names):
            return pair
    usual = [name for name in TEXT_NAMES if name in names]
    others = [name for name in names if name not in NOT_TEXT] if any_name else []
    return (usual or others)[:1]


def preferred(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column with one of the usual names, else the first one; None without any."""
    return next((name for name in usual if name in names), next(iter(names), None))


def is_text(feature: object) -> bool:
    """Return whether a column holds texts, or lists of words."""
    item = getattr(feature, "feature", feature)
    return getattr(item, "dtype", None) in ("string", "large_string")


def is_array(feature: object) -> bool:
    """Return whether a column holds lists or arrays."""
    return hasattr(feature, "feature") or hasattr(feature, "shape")


def _kind(dataset: Dataset, name: str) -> str | None:
    """``"picture"``, ``"sound"``, ``"text"`` or None."""
    feature: Any = dataset.features[name]
    if isinstance(feature, ImageFeature):
        return "picture"
    if isinstance(feature, Audio):
        return "sound"
    fields = set(feature) if isinstance(feature, Mapping) else set()
    if {"array", "sampling_rate"} <= fields:
        return "sound"
    if {"bytes", "path"} <= fields:
        return _kind_of_files(dataset, name)
    return "text" if is_text(feature) else None


def _kind_of_files(dataset: Dataset, name: str) -> str | None:
    """The kind of the first files in a column of structs of bytes and path, by how they begin or are called."""
    cells: Any = dataset.with_format("arrow").select_columns([name])
    for row in range(min(LOOKED_AT, len(dataset))):
        cell = cells[row].column(name)[0]
        if not cell.is_valid:
            continue
        held, path = cell["bytes"], cell["path"].as_py()
        if held.is_valid and hasattr(held, "as_buffer"):
            buffer = held.as_buffer()
            beginning = buffer.slice(0, min(buffer.size, 16)).to_pybytes()
            if media_type(beginning) is not None and not beginning[4:].startswith(IMAGE_BRANDS):
                return "sound"
            return "picture" if beginning.startswith(IMAGE_BEGINNINGS) or media_type(beginning) else None
        if path:
            kind = str(mimetypes.guess_type(str(path))[0])
            return "sound" if kind.startswith("audio/") else "picture" if kind.startswith("image/") else None
    return None
