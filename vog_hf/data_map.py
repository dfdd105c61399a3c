"""The data map of Swayamdipta et al. 2020 (arXiv 2009.10795), coloured by VoG."""

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import rankdata

MAX_POINTS = 10_000


def draw_data_map(
    axes: Axes,
    variability: npt.NDArray[Any],
    confidence: npt.NDArray[Any],
    vog: npt.NDArray[Any],
    *,
    colors: str | Colormap = "cividis",
    max_points: int = MAX_POINTS,
) -> str:
    """Draw a point per row, as pixels; returns which rows, in words.

    Args:
        axes: Where to draw.
        variability: ``[rows]``, standard deviation of the label's probability over the snapshots; to the right.
        confidence: ``[rows]``, its mean, 0..1; upwards.
        vog: ``[rows]``; its percentile among these rows is the colour.
        colors: From low to high VoG.
        max_points: Of more rows, so many are drawn, chosen at random.
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
    bar.set_label("percentile of VoG")
    bar.outline.set_visible(False)
    return f"{len(shown):,} of {n_rows:,} rows, drawn at random" if len(shown) < n_rows else f"all {n_rows:,} rows"


def data_map(
    variability: npt.NDArray[Any], confidence: npt.NDArray[Any], vog: npt.NDArray[Any]
) -> tuple[Image.Image, str]:
    """The same as a picture of its own, with a caption.

    Example:
        >>> picture, caption = data_map(np.array([0.1, 0.3]), np.array([0.9, 0.5]), np.array([0.2, 1.5]))
        >>> picture.size, caption
        ((800, 560), 'Each point is a row (all 2 rows); dark rows have low VoG, bright rows high VoG.')
    """
    figure = Figure(figsize=(8, 5.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    which = draw_data_map(figure.add_subplot(), variability, confidence, vog)
    canvas.draw()
    picture = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    return picture, f"Each point is a row ({which}); dark rows have low VoG, bright rows high VoG."
