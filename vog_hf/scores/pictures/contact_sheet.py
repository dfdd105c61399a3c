"""Contact sheets: the rows at both ends of a ranking as images, with captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vog_hf.data.rows import AnyDataset
from vog_hf.errors import DataError, whole_number
from vog_hf.metric.vocabulary import target_of_column
from vog_hf.scores.formatting import printable, shortened
from vog_hf.scores.pictures.charts import GRAY, INK, drawn, figure_of
from vog_hf.scores.pictures.heat_maps import row_overlay
from vog_hf.scores.pictures.row_columns import PICTURE_NAMES
from vog_hf.scores.pictures.row_view import RowView, RowViews
from vog_hf.scores.ranking import has_classes, most_extreme, ranking_column
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores

RED = "#b3261e"


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels of a contact sheet: two grids of tiles, each an image without and with its heat map."""

    side: int
    columns: int
    lines: int
    has_pairs: bool

    margin = 24
    header = 74
    gap = 14

    @property
    def tile(self) -> tuple[int, int]:
        width = 2 * self.side + 2 if self.has_pairs else self.side
        return width, self.side + 40

    @property
    def grid_width(self) -> int:
        return self.columns * (self.tile[0] + self.gap) - self.gap

    @property
    def size(self) -> tuple[int, int]:
        height = self.header + self.lines * (self.tile[1] + self.gap) + self.margin // 2
        return 2 * self.grid_width + 4 * self.margin, height

    def corner(self, grid: int, place: int) -> tuple[int, int]:
        """Upper left corner of a tile."""
        line, column = divmod(place, self.columns)
        width, height = self.tile
        return self.grid_left(grid) + column * (width + self.gap), self.header + line * (height + self.gap)

    def grid_left(self, grid: int) -> int:
        return self.margin + grid * (self.grid_width + 2 * self.margin)


def contact_sheet(
    scores: VoGScores, dataset: AnyDataset, *, column: str | None = None, count: int = 25, side: int = 96
) -> Image.Image:
    """Two grids side by side: the rows with the highest and those with the lowest value of a column.

    Each picture is drawn twice, the second time with its heat map over it (if there are heat maps); below, the row's
    number and value, and its label, followed by the prediction if the two differ. Which of the grids holds the hard
    rows is for the run to show: see `vog_hf.evaluation`.

    Args:
        scores: Scores of this dataset.
        dataset: Dataset with pictures, stored or made by its rows.
        column: Column to rank by; default: `ranking_column`.
        count: Pictures per grid; 25 = 5 x 5.
        side: Longer side of each picture, in pixels.

    Raises:
        DataError: None of these rows has a picture.
        RowMismatchError: The rows are not the ones that were scored.
        ConfigError: There is no such column, or ``count`` or ``side`` is below 1.
    """
    whole_number("side", side, 1)
    return draw_contact_sheet(RowViews(ScoredSplit("", scores, dataset), side), column=column, count=count)


def draw_contact_sheet(views: RowViews, *, column: str | None = None, count: int = 25) -> Image.Image:
    """The sheet of `contact_sheet`, from views of the rows.

    Raises:
        DataError: None of these rows has a picture.
        ConfigError: There is no such column, or ``count`` is below 1.
    """
    scores = views.scores
    column = column or ranking_column(scores)
    grids = [views.views(rows) for rows in most_extreme(scores, column, count)]
    if all(view.picture is None for grid in grids for view in grid):
        raise DataError(
            f"a contact sheet needs pictures, and rows {[view.row for view in grids[0][:3]]} of the dataset have none "
            f"(a column of images, or an array called {', '.join(PICTURE_NAMES)}); pass the dataset with its pictures"
        )
    n_tiles = len(grids[0])
    columns = int(np.ceil(np.sqrt(n_tiles)))
    has_pairs = scores.has_heat_maps and scores.heat_map(grids[0][0].row).ndim == 2
    layout = _Layout(views.side, columns, -(-n_tiles // columns), has_pairs)
    sheet = Image.new("RGB", layout.size, "white")
    for grid, tiles in enumerate(grids):
        for place, view in enumerate(tiles):
            sheet.paste(_tile(view, layout), layout.corner(grid, place))
    return _lettered(sheet, scores, column, grids, layout)


def _tile(view: RowView, layout: _Layout) -> Image.Image:
    """A picture, and next to it the same with its heat map, each centered on light gray."""
    square = (layout.side, layout.side)
    tile = Image.new("RGB", (layout.tile[0], layout.side), "white")
    small = view.picture or Image.new("RGB", square, "#d8dee4")
    tile.paste(ImageOps.pad(small, square, color="#f0f2f4"), (0, 0))
    if layout.has_pairs:
        heated = row_overlay(view.scores, view.row, small)
        tile.paste(ImageOps.pad(heated, square, color="#f0f2f4"), (layout.side + 2, 0))
    return tile


def _lettered(
    sheet: Image.Image, scores: VoGScores, column: str, grids: Sequence[Sequence[RowView]], layout: _Layout
) -> Image.Image:
    """The sheet with its titles and captions."""
    figure, canvas = figure_of(sheet.size)
    figure.figimage(np.asarray(sheet), origin="upper")

    def write(x: int, y: int, text: str, *, color: str = INK, size: float, weight: str = "normal") -> None:
        style: dict[str, Any] = {"va": "top", "parse_math": False, "usetex": False}
        figure.text(
            x / sheet.width, 1 - y / sheet.height, printable(text), color=color, size=size, weight=weight, **style
        )

    width = layout.tile[0] // 7  # characters that fit, at 7 pixels each; 12 in the titles
    for grid, (name, views) in enumerate(zip(("highest", "lowest"), grids, strict=True)):
        title = shortened(f"{name} {column}", max(8, layout.grid_width // 12))
        write(layout.grid_left(grid), 16, title, size=14, weight="bold")
        for place, view in enumerate(views):
            x, y = layout.corner(grid, place)
            names, differ = _caption(view, width)
            value = _number(view.value(column), signed=column.endswith("normalized"))
            write(x, y + layout.side + 4, names, color=RED if differ else INK, size=8.5)
            write(x, y + layout.side + 20, shortened(f"row {view.row}   {value}", width), color=GRAY, size=8)
    subtitle = shortened(_subtitle(scores, column, layout), sheet.width // 7)
    write(layout.margin, 46, subtitle, color=GRAY, size=8.5)
    return drawn(canvas)


def _caption(view: RowView, width: int) -> tuple[str, bool]:
    """Label, followed by the prediction if it differs; and whether it does."""
    label, prediction = view.label, view.prediction
    if not has_classes(view.scores) or prediction is None or label == prediction:
        return ("" if label is None else shortened(_number(label), width)), False
    if label is None:
        return f"no label → {shortened(prediction, max(4, width - 11))}", False
    first = max(4, (width - 3) // 2, width - 3 - len(str(prediction)))  # what the shorter name leaves to the longer
    label = shortened(label, first)
    return f"{label} → {shortened(prediction, max(4, width - 3 - len(label)))}", True


def _subtitle(scores: VoGScores, column: str, layout: _Layout) -> str:
    """Words about how the column was computed (with several targets, from its own) and what the second images show."""
    parts = [f"{len(scores):,} rows"]
    if scores.facts.snapshots:
        parts.append(f"{len(scores.facts.snapshots)} snapshots")
    targets = scores.facts.targets
    target = target_of_column(column, targets)
    if target:
        parts.append(f"target {shortened(target, 40)}")
    if has_classes(scores):
        parts.append("label → prediction if they differ")
    if layout.has_pairs:
        # whatever the sheet is ranked by, the heat maps are the first target's
        of = f" of the {shortened(targets[0], 40)}" if targets and target != targets[0] else ""
        parts.append(f"second picture: where the gradient{of} changed most between snapshots (bright; smoothed)")
    return " · ".join(parts)


def _number(value: str | float | None, *, signed: bool = False) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return (f"{value:+.2f}" if signed else f"{value:.3g}").replace("-", "\N{MINUS SIGN}")
