"""Charts as pictures: errors by decile, and the data map of Swayamdipta et al. 2020 (arXiv 2009.10795)."""

import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import rankdata

from vog_hf.scores.formatting import printable, shortened

INK, GRAY = "#1f2328", "#656d76"


def figure_of(size: tuple[int, int]) -> tuple[Figure, FigureCanvasAgg]:
    """An empty white figure of a size in pixels."""
    dpi = 100
    figure = Figure(figsize=((size[0] + 0.5) / dpi, (size[1] + 0.5) / dpi), dpi=dpi, facecolor="white")  # rounded down
    return figure, FigureCanvasAgg(figure)


def drawn(canvas: FigureCanvasAgg) -> Image.Image:
    """Draw the canvas as an image."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a script that the font does not have
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


MAX_POINTS = 10_000


def decile_plot(deciles: pd.DataFrame, *, column: str = "VoG", width: int = 640) -> Image.Image:
    """Bars of the error rate by decile of a score, lowest scores left.

    Args:
        deciles: As `vog_hf.evaluation.error_by_decile` returns it.
        column: Name of the score, for the axis.
        width: Image width in pixels; the height is 0.6 of it.
    """
    figure, canvas = figure_of((width, round(0.6 * width)))
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.75))
    axes.bar(deciles["decile"], deciles["error"], color="#3b6ea5", width=0.8)
    overall = float(np.average(deciles["error"], weights=deciles["rows"]))
    axes.axhline(overall, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xticks(deciles["decile"])
    axes.set_ylim(0, max(1e-3, 1.15 * float(deciles["error"].max())))
    axes.set_xlabel(f"decile of {printable(shortened(column, 40))} (1 = lowest)", color=INK, parse_math=False)
    axes.set_ylabel("error rate", color=INK)
    axes.set_title(f"dashed: all rows, {overall:.3f}", color=GRAY, fontsize=9, loc="right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    return drawn(canvas)


def draw_data_map(
    axes: Axes,
    variability: npt.NDArray[np.generic],
    confidence: npt.NDArray[np.generic],
    vog: npt.NDArray[np.generic],
    *,
    colors: str | Colormap = "cividis",
    max_points: int = MAX_POINTS,
    name: str = "VoG",
) -> str:
    """Draw a point per row, as pixels; returns which rows, in words.

    Args:
        axes: Where to draw.
        variability: ``[rows]``, standard deviation of the label's probability over the snapshots; to the right.
        confidence: ``[rows]``, its mean, 0..1; upwards.
        vog: ``[rows]``; its percentile among these rows is the color.
        colors: From low to high VoG.
        max_points: Maximum number of rows that are drawn, chosen at random.
        name: Name of the values that the color shows, if they are not VoG.
    """
    n_rows = len(confidence)
    percentile = 100 * (rankdata(vog) - 0.5) / n_rows
    shown = np.arange(n_rows)
    if n_rows > max_points:
        shown = np.random.default_rng(0).choice(n_rows, max_points, replace=False)
    points = axes.scatter(
        variability[shown],
        confidence[shown],
        c=percentile[shown],
        s=9,
        alpha=0.75,
        linewidths=0,
        cmap=colors,
        vmin=0,
        vmax=100,
        rasterized=True,
    )
    axes.set_xlabel("variability of the confidence")
    axes.set_ylabel("mean confidence")
    bar = axes.figure.colorbar(points, ax=axes, aspect=30, pad=0.02)
    bar.set_label(f"percentile of {name}")
    bar.outline.set_visible(False)
    return f"{len(shown):,} of {n_rows:,} rows, drawn at random" if len(shown) < n_rows else f"all {n_rows:,} rows"


def data_map(
    variability: npt.NDArray[np.generic],
    confidence: npt.NDArray[np.generic],
    vog: npt.NDArray[np.generic],
    *,
    name: str = "VoG",
) -> tuple[Image.Image, str]:
    """The data map as a separate image, with a caption.

    Args:
        variability: ``[rows]``, as for `draw_data_map`.
        confidence: ``[rows]``, likewise.
        vog: ``[rows]``, likewise.
        name: As for `draw_data_map`.

    Example:
        >>> picture, caption = data_map(np.array([0.1, 0.3]), np.array([0.9, 0.5]), np.array([0.2, 1.5]))
        >>> picture.size, caption
        ((800, 560), 'Each point is a row (all 2 rows); dark rows have low VoG, bright rows high VoG.')
    """
    figure, canvas = figure_of((800, 560))
    figure.set_layout_engine("constrained")
    which = draw_data_map(figure.add_subplot(), variability, confidence, vog, name=name)
    return drawn(canvas), f"Each point is a row ({which}); dark rows have low {name}, bright rows high {name}."
