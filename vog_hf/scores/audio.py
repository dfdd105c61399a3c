"""The sound of a row as a file that a browser plays; nothing is decoded, so no codec is needed here."""

import base64
import io
import logging
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Audio, Dataset

from vog_hf.data.referenced_files import HiddenFileError, NamedFiles
from vog_hf.data.rows import AnyDataset

logger = logging.getLogger(__name__)

MAX_BYTES = 20 * 2**20  # of one row's audio; it travels inside the page
MAX_STORED = 4 * MAX_BYTES  # of one row's sound as samples: 64 bits each become 16
SUFFIXES = {
    "audio/wav": ".wav",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
}
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


@dataclass(frozen=True)
class Sound:
    """A row's sound as a file.

    Attributes:
        kind: Media type, one of `SUFFIXES`.
        content: Bytes of the file.
    """

    kind: str
    content: bytes

    @property
    def uri(self) -> str:
        """The file as a data URI."""
        return f"data:{self.kind};base64,{base64.b64encode(self.content).decode('ascii')}"

    @property
    def suffix(self) -> str:
        """The ending of a name for the file, with its dot."""
        return SUFFIXES[self.kind]


class Sounds:
    """The sounds of the rows of a dataset.

    Args:
        dataset: A `datasets.Dataset`, or any map-style dataset with rows that hold, under one of the names, a mapping
            with ``bytes`` or ``path``, or with ``array`` and ``sampling_rate``.
        names: Columns of sounds, of which a row's first one counts.
        is_from_hub: Whether the rows are known to be from the Hub: see `vog_hf.data.referenced_files`.
        budget: Bytes of the sounds that are given out in all, those of a row once; None: no bound.

    Attributes:
        any: Whether the dataset has a known column of sounds.
        n_over_budget: Number of rows with a sound that was not given out.
    """

    def __init__(
        self, dataset: AnyDataset, names: Sequence[str], *, is_from_hub: bool = False, budget: int | None = None
    ) -> None:
        self._rows, self._names = _undecoded(dataset, names), names
        self._files = NamedFiles(self._rows, is_from_hub=is_from_hub)
        self.any = isinstance(self._rows, Dataset)
        self._cells: Any = self._rows.with_format("arrow") if self.any else None
        self._left = budget
        self._given: dict[int, bool] = {}

    @property
    def n_over_budget(self) -> int:
        """Rows left out."""
        return sum(not is_given for is_given in self._given.values())

    def sound(self, row: int) -> Sound | None:
        """The row's sound; None for a row without one that can be played, or over the budget.

        Example:
            >>> tone = {"audio": {"array": [0.0, 0.5], "sampling_rate": 8000}}
            >>> Sounds([tone], ["audio"]).sound(0).uri[:22]
            'data:audio/wav;base64,'
        """
        sound = self._read(row)
        if sound is None or self._left is None:
            return sound
        if row not in self._given:
            self._given[row] = len(sound.content) <= self._left
            self._left -= len(sound.content) if self._given[row] else 0
        return sound if self._given[row] else None

    def _read(self, row: int) -> Sound | None:
        if self._rows is None or (self._cells is not None and self._cells[row].nbytes > MAX_STORED):
            return None
        stored = self._rows[row]
        values = {name: stored[name] for name in self._names if isinstance(stored, Mapping) and name in stored}
        return next((s for name, value in values.items() if (s := self._sound_of(name, value)) is not None), None)

    def _sound_of(self, column: str, value: object) -> Sound | None:
        if not isinstance(value, Mapping):
            return None
        if value.get("array") is not None and value.get("sampling_rate"):
            samples = _wav(value["array"], value["sampling_rate"])
            return None if samples is None else Sound("audio/wav", samples)
        path, content = value.get("path"), value.get("bytes")
        content = content or (self._content_of(path, column) if path else None)
        if not isinstance(content, bytes) or len(content) > MAX_BYTES:
            return None
        kind = media_type(content)
        return None if kind is None else Sound(kind, content)

    def _content_of(self, path: str, column: str) -> bytes | None:
        """Read a file that a row references; None for one that may not be shown, cannot be read or is too large."""
        try:
            with self._files.open(path, column) as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            if isinstance(error, HiddenFileError):
                logger.warning("a sound is not played: %s", error)
            return None
        return content if len(content) <= MAX_BYTES else None


def media_type(content: bytes) -> str | None:
    """The media type of a sound, by how its file begins; None for anything else.

    Example:
        >>> media_type(b"fLaC"), media_type(b"password")
        ('audio/flac', None)
    """
    return next((kind for start, mark, kind in BEGINNINGS if content[start : start + len(mark)] == mark), None)


def _undecoded(dataset: AnyDataset, names: Sequence[str]) -> Any:
    """The columns of sounds as stored; None where a `datasets.Dataset` has none of them."""
    if not isinstance(dataset, Dataset):
        return dataset
    known = [name for name in names if name in dataset.features]
    if not known:
        return None
    stored = dataset.with_format(None).select_columns(known)
    for name in known:
        if isinstance(stored.features[name], Audio):
            stored = stored.cast_column(name, Audio(decode=False))
    return stored


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
