"""The sound of a row as a browser plays it; nothing is decoded, so that no codec is needed here."""

import base64
import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vog_hf.review.named_files import is_cached

MAX_BYTES = 20 * 2**20  # of one row's sound; it travels inside the page
SOUND_NAMES = ("audio", "sound", "speech", "file")
# How files of sound begin (offset, bytes), and their type. A data set may name any file of the machine as a row's
# sound: what does not begin like one is not shown.
BEGINNINGS = (
    (8, b"WAVE", "audio/wav"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"\xff\xf2", "audio/mpeg"),
    (4, b"ftyp", "audio/mp4"),
)


class Sounds:
    """The sounds of a data set's rows.

    Args:
        dataset: A `datasets.Dataset` with an ``Audio`` column, or any map-style data set whose rows hold, under a name
            such as ``audio``, a mapping with ``bytes`` or with ``array`` and ``sampling_rate``.
        is_from_hub: Whether the rows are somebody's on the Hub: then of the files that they name just those in caches
            are read.

    Attributes:
        any: Whether a column of sounds is known.
    """

    def __init__(self, dataset: Any, *, is_from_hub: bool = False) -> None:
        self._rows, self._name = _undecoded(dataset)
        self._may_read = is_cached if is_from_hub else _any_file
        self.any = self._name is not None

    def source(self, row: int) -> str | None:
        """The row's sound as a data URI; None where it has none that can be shown.

        Example:
            >>> tone = {"audio": {"array": [0.0, 0.5], "sampling_rate": 8000}}
            >>> Sounds([tone]).source(0)[:22]
            'data:audio/wav;base64,'
        """
        if self._rows is None:
            return None
        stored = self._rows[row]
        names = SOUND_NAMES if self._name is None else (self._name,)
        values = [stored[name] for name in names if isinstance(stored, Mapping) and name in stored]
        return next((source for value in values if (source := self._source(value)) is not None), None)

    def _source(self, value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return None
        if value.get("array") is not None and value.get("sampling_rate"):
            return _uri("audio/wav", _wav(np.asarray(value["array"], dtype=np.float64), int(value["sampling_rate"])))
        path = value.get("path")
        content = value.get("bytes") or (_read(path) if path and self._may_read(path) else None)
        kind = None if content is None else _kind(content)
        return None if kind is None or content is None else _uri(kind, content)


def _undecoded(dataset: Any) -> tuple[Any, str | None]:
    """The data set with its column of sounds alone, as stored; None where it has none."""
    from datasets import Audio, Dataset

    if not isinstance(dataset, Dataset):
        return dataset, None
    names = [name for name, feature in dataset.features.items() if isinstance(feature, Audio)]
    if names:
        name = next((name for name in SOUND_NAMES if name in names), names[0])
        stored = dataset.with_format(None).select_columns([name])
        return stored.cast_column(name, Audio(decode=False)), name
    arrays = [name for name in SOUND_NAMES if "sampling_rate" in _fields(dataset.features.get(name))]
    return (dataset.with_format(None).select_columns(arrays[:1]), arrays[0]) if arrays else (None, None)


def _fields(feature: Any) -> Mapping[str, Any]:
    return feature if isinstance(feature, Mapping) else {}


def _any_file(_: str) -> bool:
    return True


def _read(path: str) -> bytes | None:
    """A file that stands in the data set for a row's sound; None where it cannot be read or is too large."""
    if not Path(path).is_file():  # nor a device or a pipe, which may have no end
        return None
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    return content if len(content) <= MAX_BYTES else None


def _kind(content: bytes) -> str | None:
    if len(content) > MAX_BYTES:
        return None
    return next((kind for start, mark, kind in BEGINNINGS if content[start : start + len(mark)] == mark), None)


def _wav(samples: np.ndarray[Any, Any], rate: int) -> bytes:
    """Samples in -1..1, ``[time]`` or ``[channels, time]``, as a file of 16 bits each."""
    if samples.ndim == 2:
        samples = samples.mean(axis=0)
    whole = (32767 * np.nan_to_num(samples).clip(-1, 1)).round().astype("<i2")
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(whole.tobytes())
    return target.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
