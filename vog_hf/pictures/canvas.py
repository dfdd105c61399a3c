"""Figures as pictures.

Everything is drawn through matplotlib's objects (a figure and its canvas), never through pyplot, whose figures are
shared by the whole process. Titles and names come from data, so none of them is read as mathematics (``$``).
"""

import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

INK, GREY = "#1f2328", "#656d76"


def figure_of(size: tuple[int, int]) -> tuple[Figure, FigureCanvasAgg]:
    """An empty white figure of so many pixels."""
    dpi = 100
    figure = Figure(figsize=((size[0] + 0.5) / dpi, (size[1] + 0.5) / dpi), dpi=dpi, facecolor="white")  # rounded down
    return figure, FigureCanvasAgg(figure)


def drawn(canvas: FigureCanvasAgg) -> Image.Image:
    """What is on the canvas."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script the font has not
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
