"""Columns by what they hold: images, audio, texts or classes."""

from typing import Literal

from datasets import Audio, ClassLabel, Dataset, Image, Value

from vog_hf.data.arrow_columns import has_table
from vog_hf.errors import ConfigError, DataError, require_type

Kind = Literal["image", "audio", "text", "class"]
FEATURES = {"image": Image, "audio": Audio, "text": Value, "class": ClassLabel}
ORIGINAL, CORRUPTED = "original_label", "is_corrupted"  # `plant_label_noise` adds both


def columns_of_kind(rows: Dataset, kind: Kind) -> list[str]:
    """The columns of one split with a feature of this kind, in the order of the dataset.

    The original labels that `plant_label_noise` keeps beside the changed ones are not among them.

    Args:
        rows: One split.
        kind: ``"image"``, ``"audio"``, ``"text"`` or ``"class"`` (a ``ClassLabel``).

    Example:
        >>> columns_of_kind(Dataset.from_dict({"a": ["x"], "b": [1]}), "text")
        ['a']
    """
    left_out = ORIGINAL if CORRUPTED in rows.features else None
    return [name for name, feature in rows.features.items() if name != left_out and _is_of_kind(feature, kind)]


def find_column(rows: Dataset, kind: Kind, name: str | None = None) -> str:
    """The column of images, audio, texts or classes that a program reads.

    Args:
        rows: One split.
        kind: ``"image"``, ``"audio"``, ``"text"`` or ``"class"`` (a ``ClassLabel``).
        name: The column, if the caller knows it. It can hold classes in any form that `as_classes` reads.

    Returns:
        ``name`` if it is given, else the only column of this kind.

    Raises:
        DataError: There is no such column, it holds something else, or there are several and none is named.
        ConfigError: An unknown kind, or a name that is not text.

    Example:
        >>> find_column(Dataset.from_dict({"text": ["x"], "n": [1]}), "text")
        'text'
    """
    require_type("name", name, (str, type(None)), "pass the name of a column, or leave it out")
    if kind not in FEATURES:
        raise ConfigError(f"kind must be one of {', '.join(FEATURES)}, got {kind!r}")
    if not has_table(rows):
        raise DataError(f"a column is found in one split of a dataset, got a {type(rows).__name__}; pass rows['train']")
    all_columns = ", ".join(rows.column_names)
    if name is None:
        found = columns_of_kind(rows, kind)
        if len(found) != 1:
            which = f"several {kind} columns ({', '.join(found)})" if found else f"no {kind} column"
            raise DataError(f"the dataset has {which}; name one of its columns: {all_columns}")
        return found[0]
    if name not in rows.column_names:
        raise DataError(f"the dataset has no column {name!r}; name one of its columns: {all_columns}")
    if kind != "class" and not _is_of_kind(rows.features[name], kind):
        raise DataError(f"column {name!r} holds {rows.features[name]}; name a column of kind {kind}")
    return name


def _is_of_kind(feature: object, kind: Kind) -> bool:
    if kind == "text":
        return isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    return isinstance(feature, FEATURES[kind])
