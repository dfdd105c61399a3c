"""The words of errors about rows: which row failed, its file, and what to do."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vog_hf.data.arrow_columns import has_table
from vog_hf.errors import DataError, VoGError


def explained(dataset: Any, rows: Sequence[int], error: Exception, bad: Mapping[int, Exception]) -> Exception:
    """The error of a batch in words that name the first bad row, or the rows where it is not a matter of one."""
    row, cause = next(iter(bad.items()), (None, error))
    if row is None and isinstance(error, KeyError):
        return DataError(
            f"reading rows {rows[0]}-{rows[-1]} of the dataset failed: {type(error).__name__}: {error}. "
            "A transform that reads a column which the model does not take (an image, a text) needs "
            "TrainingArguments(remove_unused_columns=False), because Trainer strips such columns before it"
        )
    if not isinstance(cause, VoGError):
        if row is None and len(rows) > 1:
            return DataError(
                f"{named(rows)} cannot be read, and most of them fail alone, too: {type(error).__name__}: {error}; fix "
                "the dataset, its transform or the collator"
            )
        return unreadable(dataset, rows[0] if row is None else row, cause)
    text = str(cause)
    place = named(rows) if row is None else f"row {row}"
    if row is None or not re.search(rf"\brow {row}\b", text):
        text = f"{text} ({place})"
    return type(cause)(text, argument=cause.arguments)


def unreadable(dataset: Any, row: int, error: Exception) -> DataError:
    """The error that names a row that cannot be read alone, and its file."""
    files = files_of(dataset, row)
    named_files = f" ({', '.join(files)})" if files else ""
    return DataError(
        f"row {row} cannot be read{named_files}: {type(error).__name__}: {error}; restore its "
        "file, leave the row out, or pass on_error='skip'"
    )


def files_of(dataset: Any, row: int) -> list[str]:
    """The files of images and sounds that a row of a `datasets.Dataset` names."""
    if not has_table(dataset):
        return []
    from datasets import Audio, Image

    names = [name for name, feature in dataset.features.items() if isinstance(feature, (Audio, Image))]
    stored = dataset.with_format(None).select_columns(names)
    for name in names:
        stored = stored.cast_column(name, type(stored.features[name])(decode=False))
    return [str(value["path"]) for value in (stored[row].values() if names else ()) if value and value.get("path")]


def named(rows: Sequence[int]) -> str:
    """The rows of a batch for a message."""
    if isinstance(rows, range):
        return f"rows {rows[0]}-{rows[-1]}"
    return f"rows {', '.join(map(str, rows[:3]))}{f' and {len(rows) - 3} others' if len(rows) > 3 else ''}"
