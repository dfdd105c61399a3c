"""The audio of a row as a browser plays it; nothing is decoded, so no codec is needed here."""

import base64
import io
import logging
import wave
from collections.abc import Mapping
from typing import Any

import numpy as np

from vog_hf.data.referenced_files import HiddenFileError, NamedFiles
from vog_hf.data.rows import AnyDataset

logger = logging.getLogger(__name__)

MAX_BYTES = 20 * 2**20  # of one row's audio; it travels inside the page
MAX_STORED = 4 * MAX_BYTES  # of one row's sound as samples: 64 bits each become 16
SOUND_NAMES = ("audio", "sound", "speech", "file")
# How audio files begin (offset, bytes), and their type. A dataset can reference any file of the machine as a row's
# audio: a file that does not begin like one is not played.
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
    """The audio of the rows of a dataset.

    Args:
        dataset: A `datasets.Dataset` with an ``Audio`` column, or any map-style dataset with rows that hold, under a
            name such as ``audio``, a mapping with ``bytes`` or with ``array`` and ``sampling_rate``.
        is_from_hub: Whether the rows are known to be from the Hub: see `vog_hf.data.referenced_files`.

    Attributes:
        any: Whether the dataset has a known column of audio.
    """

    def __init__(self, dataset: AnyDataset, *, is_from_hub: bool = False) -> None:
        self._rows, self._name = _undecoded(dataset)
        self._files = NamedFiles(self._rows, is_from_hub=is_from_hub)
        self._cells = None if self._name is None else self._rows.with_format("arrow")
        self.any = self._name is not None

    def source(self, row: int) -> str | None:
        """The row's audio as a data URI; None for a row without audio that can be played.

        Example:
            >>> tone = {"audio": {"array": [0.0, 0.5], "sampling_rate": 8000}}
            >>> Sounds([tone]).source(0)[:22]
            'data:audio/wav;base64,'
        """
        if self._rows is None or (self._cells is not None and self._cells[row].nbytes > MAX_STORED):
            return None
        stored = self._rows[row]
        names = SOUND_NAMES if self._name is None else (self._name,)
        values = {name: stored[name] for name in names if isinstance(stored, Mapping) and name in stored}
        return next((s for name, value in values.items() if (s := self._source(name, value)) is not None), None)

    def _source(self, column: str, value: object) -> str | None:
        if not isinstance(value, Mapping):
            return None
        if value.get("array") is not None and value.get("sampling_rate"):
            samples = _wav(value["array"], value["sampling_rate"])
            return None if samples is None else _uri("audio/wav", samples)
        path = value.get("path")
        content = value.get("bytes") or (self._read(path, column) if path else None)
        kind = None if content is None else _kind(content)
        return None if kind is None or content is None else _uri(kind, content)

    def _read(self, path: str, column: str) -> bytes | None:
        """Read a file that a row references; None for one that may not be shown, cannot be read or is too large."""
        try:
            with self._files.open(path, column) as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            if isinstance(error, HiddenFileError):
                logger.warning("a sound is not played: %s", error)
            return None
        return content if len(content) <= MAX_BYTES else None


def _undecoded(dataset: AnyDataset) -> tuple[Any, str | None]:
    """The dataset with its audio column alone, as stored, and the name of the column; None without one."""
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


def _fields(feature: object) -> Mapping[str, Any]:
    return feature if isinstance(feature, Mapping) else {}


def _kind(content: bytes) -> str | None:
    if len(content) > MAX_BYTES:
        return None
    return next((kind for start, mark, kind in BEGINNINGS if content[start : start + len(mark)] == mark), None)


def _wav(values: object, rate: Any) -> bytes | None:
    """Samples in -1..1, ``[time]`` or ``[channels, time]``, as a 16-bit WAV file; None if there are too many."""
    try:
        samples, rate = np.asarray(values, dtype=np.float64), int(rate)
    except (ValueError, TypeError, OverflowError):  # texts, or channels of several lengths
        return None
    if samples.ndim not in (1, 2) or samples.size > MAX_STORED // 8 or not 0 < rate < 2**31:
        return None
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
