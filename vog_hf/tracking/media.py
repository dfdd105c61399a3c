"""Media types independent of any tracker: tables, line and bar charts, pictures, histograms and plain values."""

import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vog_hf.scores.audio import Sound
from vog_hf.scores.pictures.boxes import Box, with_boxes

NO_CLASS = 255  # of masks in 8 bits


@dataclass(frozen=True)
class Table:
    """Columns of equal length, each of one type: number, text, picture, `Sound`, `Page`, or None.

    A picture may be a `MaskedPicture` or a `BoxedPicture`.
    """

    columns: Mapping[str, Sequence[Any]]
    caption: str = ""

    @property
    def rows(self) -> list[list[Any]]:
        """The same line by line."""
        return [list(row) for row in zip(*self.columns.values(), strict=True)]


@dataclass(frozen=True)
class Page:
    """A small HTML document."""

    html: str


@dataclass(frozen=True, eq=False)
class MaskedPicture:
    """A picture with masks over it.

    Attributes:
        masks: Class of each place of a grid over the picture, ``[height, width]``, by name; negative: none.
        class_names: Names of classes by number.
    """

    image: Image.Image
    masks: Mapping[str, npt.NDArray[Any]]
    class_names: Mapping[int, str]

    @property
    def masks_of_pixels(self) -> dict[str, npt.NDArray[np.uint8]]:
        """The masks in the size of the picture, `NO_CLASS` where a place has no class, or one with a larger number."""
        return {name: self._of_pixels(mask) for name, mask in self.masks.items()}

    def _of_pixels(self, mask: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        known = np.where((mask < 0) | (mask > NO_CLASS), NO_CLASS, mask).astype(np.uint8)
        return np.asarray(Image.fromarray(known).resize(self.image.size, Image.Resampling.NEAREST))


@dataclass(frozen=True)
class BoxedPicture:
    """A picture with the boxes of its objects, which a tracker may draw itself, and the names of all classes."""

    image: Image.Image
    boxes: Sequence[Box]
    classes: Mapping[int, str]

    @property
    def drawn(self) -> Image.Image:
        """The picture with its boxes in it."""
        return with_boxes(self.image, self.boxes)


@dataclass(frozen=True)
class LineChart:
    """Lines over one axis; a value is None where a line has none."""

    title: str
    x_name: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class BarChart:
    """A bar per label."""

    title: str
    label_name: str
    value_name: str
    bars: Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """A drawing."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Histogram:
    """Histogram of values, ``[rows]``."""

    values: npt.NDArray[np.floating]


Record = Table | LineChart | BarChart | Picture | Histogram | float | int


def audio(make: Callable[..., Any], sound: Sound, caption: str | None = None) -> Any:
    """A tracker's own object of a sound, made from a file, which lies in the temporary folder as long as the object.

    Args:
        make: Class of the tracker, which takes a path and ``caption``; arrays would be written as files again.
        sound: The sound.
        caption: Words next to the player.
    """
    with tempfile.NamedTemporaryFile(prefix="vog-sound-", suffix=sound.suffix, delete=False) as file:
        file.write(sound.content)
    made = make(file.name, caption=caption)
    weakref.finalize(made, Path(file.name).unlink, missing_ok=True)
    return made
