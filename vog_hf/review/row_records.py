"""Rows as the page of the review takes them: pictures and sounds inside the text, numbers as words."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from vog_hf.metric.vocabulary import COLUMNS, title_of
from vog_hf.scores.formatting import number, printable
from vog_hf.scores.pictures import RowView, RowViews
from vog_hf.scores.pictures.unit_lines import UnitLine
from vog_hf.scores.pictures.words import beginning, words_markup
from vog_hf.scores.scored_rows import ScoredSplit

SIDE = 480  # pixels of a picture's longer side; smaller ones are enlarged with their pixels as squares
SMALL_SIDE = 104
QUALITY = 85  # of WebP
MAX_TEXT = 20_000  # characters of a row's text
SMALL_TEXT = 140


@dataclass(frozen=True)
class Trace:
    """The confidence in the given label over the snapshots, as places in a box of 100 x 100 (y down).

    Attributes:
        points: Place, value 0..1, and whether the model predicted the label (None: unknown), per snapshot.
        first: Name of the first snapshot.
        last: Name of the last one.
    """

    points: Sequence[tuple[float, float, float, bool | None]]
    first: str
    last: str


@dataclass(frozen=True)
class RowRecord:
    """Everything that the page shows of one row.

    Attributes:
        ident: The row's id; None for scores without ids.
        words: The text with the heat of its words, as HTML; then there is no other heat map.
        file: Name of the file that its picture or sound was read from.
        picture: The picture as a data URI; so are ``heat`` and ``sound``.
        heat: The heat map: over the picture, or by itself for a row without one.
        is_plane: Whether that is a map of two axes by itself, as of a spectrogram.
        label: Name of the given label, or the number of a row without classes.
        prediction: The last prediction, likewise.
        differs: Whether both are classes and differ.
        values: Names and values of the scores.
        units: The row's units in words.
    """

    row: int
    ident: str | None
    file: str | None
    picture: str | None
    heat: str | None
    is_plane: bool
    text: str | None
    words: Markup | None
    sound: str | None
    label: str | None
    prediction: str | None
    differs: bool
    values: Sequence[tuple[str, str]]
    units: Sequence[UnitLine]
    trace: Trace | None


@dataclass(frozen=True)
class SmallRecord:
    """A row as the page shows it next to other ones."""

    row: int
    picture: str | None
    text: str | None
    has_sound: bool
    label: str | None
    prediction: str | None
    differs: bool


class RowRecords:
    """Records of the rows of a split; the last ones are kept, since neighbors come again.

    Args:
        split: Scores with their rows; without rows, records have numbers alone.
        is_from_hub: Whether the rows are known to be from the Hub: see `vog_hf.data.referenced_files`.
    """

    def __init__(self, split: ScoredSplit, *, is_from_hub: bool = False) -> None:
        self._views = RowViews(split, SIDE, is_from_hub=is_from_hub, cache_size=0)
        self._small_views = RowViews(split, SMALL_SIDE, is_from_hub=is_from_hub, cache_size=0)
        scores = split.scores
        self._listed = [name for name in COLUMNS if name in scores.column_names + scores.text_column_names]
        self.record = lru_cache(maxsize=32)(self._record)
        self._small = lru_cache(maxsize=256)(self._small_record)

    def small_records(self, rows: Iterable[int]) -> list[SmallRecord]:
        """Small records of these rows, in this order."""
        return [self._small(int(row)) for row in rows]

    def sound(self, row: int) -> str | None:
        """The row's sound as a data URI; None for a row without one that can be played."""
        sound = self._views.view(row).sound
        return None if sound is None else sound.uri

    def _record(self, row: int) -> RowRecord:
        view = self._views.view(row)
        return RowRecord(
            row=row,
            ident=None if view.id is None else printable(view.id),
            file=None if view.file is None else printable(view.file),
            picture=_webp(view.boxed_picture),
            heat=_webp(view.heat_picture) if view.words is None else None,
            is_plane=view.picture is None and view.heat_map is not None and view.heat_map.ndim == 2,
            words=None if view.words is None else words_markup(beginning(view.words, MAX_TEXT)),
            text=_beginning(view.text, MAX_TEXT),
            sound=None if (sound := view.sound) is None else sound.uri,
            label=_class(view.label),
            prediction=_class(view.prediction),
            differs=view.is_misclassified,
            values=[(title_of(name), number(view.value(name))) for name in self._listed],
            units=view.unit_lines,
            trace=_trace(view),
        )

    def _small_record(self, row: int) -> SmallRecord:
        view = self._small_views.view(row)
        return SmallRecord(
            row=row,
            picture=_webp(view.boxed_picture),
            text=_beginning(view.text, SMALL_TEXT),
            has_sound=self._views.have_sounds,
            label=_class(view.label),
            prediction=_class(view.prediction),
            differs=view.is_misclassified,
        )


def _class(name: str | float | None) -> str | None:
    return None if name is None else printable(number(name))


def _trace(view: RowView) -> Trace | None:
    values, is_correct = view.confidence, view.is_correct
    if values is None:
        return None
    known = np.flatnonzero(np.isfinite(values))
    across = 100 * known / (len(values) - 1)
    names = [_snapshot_name(snapshot) for snapshot in view.scores.facts.snapshots] or ["first", "last"]
    points = [
        (
            round(float(x), 1),
            round(float(100 * (1 - values[at])), 1),
            float(values[at]),
            None if is_correct is None else bool(is_correct[at]),
        )
        for x, at in zip(across, known, strict=True)
    ]
    return Trace(points, printable(names[0]), printable(names[-1]))


def _snapshot_name(snapshot: Any) -> str:
    return str(snapshot["name"]) if snapshot.get("step") is None else f"step {snapshot['step']}"


def _webp(image: Image.Image | None) -> str | None:
    if image is None:
        return None
    target = io.BytesIO()
    image.save(target, "WEBP", quality=QUALITY, method=1)
    return f"data:image/webp;base64,{base64.b64encode(target.getvalue()).decode('ascii')}"


def _beginning(text: str | None, length: int) -> str | None:
    if text is None:
        return None
    text = printable(text.strip())
    return text if len(text) <= length else f"{text[: length - 1]}…"
