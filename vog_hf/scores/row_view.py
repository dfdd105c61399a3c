"""What the review shows of a row: one record, made without any knowledge of the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from vog_hf.scores.audio import Sounds
from vog_hf.scores.formatting import number, printable
from vog_hf.scores.pictures import ShownRows, row_heat, thumbnail
from vog_hf.scores.ranking import has_classes, row_values
from vog_hf.scores.vog_scores import COMPANIONS, VoGScores

SIDE = 480  # pixels of a picture's longer side; smaller ones are enlarged with their pixels as squares
SMALL_SIDE = 104
STRIP_SIDE = 480
QUALITY = 85  # of WebP
MAX_TEXT = 20_000  # characters of a row's text
SMALL_TEXT = 140
TITLES = {
    "vog_class_normalized": "VoG, class-normalised",
    "vog_normalized": "VoG, normalised",
    "vog": "VoG, raw",
    "vog_early": "VoG, early snapshots",
    "vog_late": "VoG, late snapshots",
    "vog_percentile": "VoG percentile",
    "gradient_magnitude": "mean |gradient|",
    "el2n": "EL2N",
}
LISTED = (*(name for name in TITLES if name.startswith("vog")), *COMPANIONS)


@dataclass(frozen=True)
class Spark:
    """The confidence in the given label over the snapshots, as places in a box of 100 x 100 (y down).

    Attributes:
        points: Place, value 0..1 and whether the model predicted the label there (None: not known) of each snapshot.
        first: Name of the first snapshot.
        last: Name of the last one.
    """

    points: Sequence[tuple[float, float, float, bool | None]]
    first: str
    last: str


@dataclass(frozen=True)
class RowView:
    """Everything that is shown of one row.

    Attributes:
        ident: The row's id, where the scores have ids.
        picture: The picture as a data URI; so are ``heat`` and ``sound``.
        heat: The heat map: over the picture where there is one, else by itself.
        label: The given label's name, or the number of a row without classes.
        prediction: The last prediction, likewise.
        differs: Whether both are classes and not the same.
        values: Names and values of the scores.
    """

    row: int
    ident: str | None
    picture: str | None
    heat: str | None
    text: str | None
    sound: str | None
    label: str | None
    prediction: str | None
    differs: bool
    values: Sequence[tuple[str, str]]
    spark: Spark | None


@dataclass(frozen=True)
class SmallView:
    """What is shown of a row beside another one."""

    row: int
    picture: str | None
    text: str | None
    has_sound: bool
    label: str | None
    prediction: str | None
    differs: bool


class RowMaker:
    """Records of the rows of a data set; the last ones are kept, since neighbours come again.

    Args:
        scores: Of the data set.
        dataset: Its rows; None = records of the numbers alone.
        is_from_hub: Whether they are known to be from the Hub: see `vog_hf.data.referenced_files`.
    """

    def __init__(self, scores: VoGScores, dataset: Any, *, is_from_hub: bool = False) -> None:
        self._scores = scores
        self._shown = None if dataset is None else ShownRows(dataset, is_from_hub=is_from_hub)
        self._sounds = Sounds(dataset, is_from_hub=is_from_hub)
        self._has_classes = has_classes(scores)
        self._listed = [name for name in LISTED if name in scores.column_names]
        self.view = lru_cache(maxsize=32)(self._view)
        self._small = lru_cache(maxsize=256)(self._small_view)

    def small_views(self, rows: Sequence[int]) -> list[SmallView]:
        """Small records of these rows, in this order."""
        return [self._small(int(row)) for row in rows]

    def sound(self, row: int) -> str | None:
        """The row's sound as a data URI; None where it has none that can be shown."""
        return self._sounds.source(row)

    def _content(self, row: int, side: int) -> Image.Image | str | None:
        return None if self._shown is None else self._shown.show(row, side)

    def _view(self, row: int) -> RowView:
        content = self._content(row, SIDE)
        picture = thumbnail(content, SIDE) if isinstance(content, Image.Image) else None
        heat = row_heat(self._scores, row, picture)
        label, prediction = (self._class(name, row) for name in ("label", "prediction"))
        return RowView(
            row=row,
            ident=None if self._scores.ids is None else printable(str(self._scores.ids[row])),
            picture=None if picture is None else _webp(picture),
            heat=None if heat is None else _webp(heat),
            text=_cut(content, MAX_TEXT) if isinstance(content, str) else None,
            sound=self._sounds.source(row),
            label=label,
            prediction=prediction,
            differs=self._differs(label, prediction),
            values=[(TITLES.get(name, name), number(self._scores.column(name)[row])) for name in self._listed],
            spark=self._spark(row),
        )

    def _small_view(self, row: int) -> SmallView:
        content = self._content(row, SMALL_SIDE)
        label, prediction = (self._class(name, row) for name in ("label", "prediction"))
        return SmallView(
            row=row,
            picture=_webp(thumbnail(content, SMALL_SIDE)) if isinstance(content, Image.Image) else None,
            text=_cut(content, SMALL_TEXT) if isinstance(content, str) else None,
            has_sound=self._sounds.any,
            label=label,
            prediction=prediction,
            differs=self._differs(label, prediction),
        )

    def _class(self, column: str, row: int) -> str | None:
        if column not in self._scores.column_names:
            return None
        value = row_values(self._scores, column, [row])[0]
        return None if value is None else printable(number(value))

    def _differs(self, label: str | None, prediction: str | None) -> bool:
        return self._has_classes and None not in (label, prediction) and label != prediction

    def _spark(self, row: int) -> Spark | None:
        scores = self._scores
        if "confidence" not in scores.trajectory_names:
            return None
        values = np.asarray(scores.trajectory("confidence")[row], dtype=np.float64)
        known = np.flatnonzero(np.isfinite(values))
        if len(known) < 2:
            return None
        right = self._right(row, len(values))
        across = 100 * known / (len(values) - 1)
        names = [_snapshot_name(snapshot) for snapshot in scores.manifest.get("snapshots", [])] or ["first", "last"]
        points = [
            (round(float(x), 1), round(float(100 * (1 - values[at])), 1), float(values[at]), right[at])
            for x, at in zip(across, known, strict=True)
        ]
        return Spark(points, printable(names[0]), printable(names[-1]))

    def _right(self, row: int, count: int) -> list[bool | None]:
        """Whether the model predicted the given label, snapshot by snapshot."""
        scores = self._scores
        if not self._has_classes or "prediction" not in scores.trajectory_names or "label" not in scores.column_names:
            return [None] * count
        label = scores.column("label")[row]
        return [None] * count if label < 0 else [bool(p == label) for p in scores.trajectory("prediction")[row]]


def _snapshot_name(snapshot: Any) -> str:
    return str(snapshot["name"]) if snapshot.get("step") is None else f"step {snapshot['step']}"


def _webp(image: Image.Image) -> str:
    target = io.BytesIO()
    image.save(target, "WEBP", quality=QUALITY, method=1)
    return f"data:image/webp;base64,{base64.b64encode(target.getvalue()).decode('ascii')}"


def _cut(text: str, length: int) -> str:
    text = printable(text.strip())
    return text if len(text) <= length else f"{text[: length - 1]}…"
