"""Media types independent of any tracker: tables, line and bar charts, pictures, histograms and plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


@dataclass(frozen=True)
class Table:
    """Columns of equal length; each cell a number, a text, a picture or None, one type per column."""

    columns: Mapping[str, Sequence[Any]]
    caption: str = ""

    @property
    def rows(self) -> list[list[Any]]:
        """The same line by line."""
        return [list(row) for row in zip(*self.columns.values(), strict=True)]


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
