"""Small pictures, and heat maps over them or by themselves."""

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import gaussian_filter

from vog_hf.errors import ConfigError
from vog_hf.scores.pictures.decoding import reduced
from vog_hf.scores.pictures.rgb_pictures import rgb
from vog_hf.scores.vog_scores import VoGScores

HEAT_COLORS = "inferno"
SMOOTHING = 1 / 32  # standard deviation, as a share of the map's longer side
THUMBNAIL = 96  # pixels of a thumbnail's longer side
MAX_STRIP = 128  # cells of a map of one axis
CELL = (8, 24)  # width and height of such a cell, in pixels


def thumbnail(image: Image.Image, side: int = THUMBNAIL) -> Image.Image:
    """Resize an image to ``side`` pixels on its longer side, in RGB, with its proportions.

    Small images (8 x 8, 32 x 32) are enlarged with their pixels as squares, without interpolation.

    Raises:
        ConfigError: ``side`` is below 1.

    Example:
        >>> thumbnail(Image.new("L", (400, 100)), side=96).size
        (96, 24)
    """
    if side < 1:
        raise ConfigError(f"side must be at least 1 pixel, got {side}")
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale >= 1:
        return rgb(image).resize(size, Image.Resampling.NEAREST)
    return rgb(reduced(image, side)).resize(size, Image.Resampling.LANCZOS)


def overlay(image: Image.Image, heat_map: npt.ArrayLike, *, alpha: float = 0.75) -> Image.Image:
    """Draw a heat map over an image: brighter means larger; the image is unchanged where the map is 0.

    The map is smoothed by 1/32 of its side, so that regions show instead of single pixels, and divided by its own
    largest value: colors compare places within one image, not between images. It is stretched over the whole image: if
    the model's transform crops, places are approximate.

    Args:
        image: Image; the result has its size.
        heat_map: ``[height, width]``, >= 0, as `VoGScores.heat_map` gives it for pictures.
        alpha: Opacity of the map at its largest value, 0..1.

    Raises:
        ConfigError: The map has another number of axes (that of a text has one), or alpha is outside 0..1.

    Example:
        >>> corner = overlay(Image.new("RGB", (4, 4)), [[1.0, 0.0], [0.0, 0.0]], alpha=1.0)
        >>> corner.getpixel((0, 0)), corner.getpixel((3, 3))
        ((252, 255, 164), (0, 0, 0))
    """
    heat = np.asarray(heat_map, dtype=np.float32)
    if heat.ndim != 2 or not heat.size or not 0 <= alpha <= 1:
        raise ConfigError(
            f"overlay needs a map [height, width] and alpha in 0..1, got shape {heat.shape} and alpha {alpha}"
        )
    heat = gaussian_filter(finite_heat(heat), sigma=SMOOTHING * max(heat.shape))
    share = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    stretched = Image.fromarray(share).resize(image.size, Image.Resampling.BILINEAR)
    share = np.asarray(stretched)[..., None]
    colors = 255 * colormaps[HEAT_COLORS](share[..., 0])[..., :3]
    picture = np.asarray(rgb(image), dtype=np.float32)
    opacity = alpha * share
    return Image.fromarray((picture * (1 - opacity) + colors * opacity).round().astype(np.uint8))


def row_overlay(scores: VoGScores, row: int, image: Image.Image) -> Image.Image:
    """Draw the row's heat map over its image; without a map of two axes, return the image itself.

    Args:
        scores: Scores with heat maps.
        row: Number of the row.
        image: Image of the row; the result has its size.
    """
    if not scores.has_heat_maps:
        return image
    heat = scores.heat_map(row)
    return overlay(image, heat) if heat.ndim == 2 and heat.size else image


def heat_by_itself(heat_map: npt.ArrayLike, *, side: int = 96) -> Image.Image:
    """Draw a heat map alone: brighter means larger, divided by its own largest value.

    Args:
        heat_map: ``[height, width]``, smoothed as in `overlay`; or ``[positions]``, then a strip with a cell for each
            (of more than 128 positions, a cell for the largest of its neighbors).
        side: Longer side of a map of two axes, in pixels.

    Example:
        >>> heat_by_itself([0.0, 1.0, 0.5]).size
        (24, 24)
    """
    heat = finite_heat(heat_map)
    heat = strip(heat)[0][None] if heat.ndim == 1 else gaussian_filter(heat, sigma=SMOOTHING * max(heat.shape))
    share = np.asarray(heat) / max(float(heat.max()), np.finfo(np.float32).tiny)
    cells = Image.fromarray((255 * colormaps[HEAT_COLORS](share)[..., :3]).round().astype(np.uint8))
    if len(heat) == 1:
        return cells.resize((CELL[0] * heat.shape[1], CELL[1]), Image.Resampling.NEAREST)
    return thumbnail(cells, side)


def strip(heat: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """Shorten a map of one axis to at most 128 cells, each the largest of its neighbors.

    Args:
        heat: ``[positions]``.

    Returns:
        ``[cells]``, and the number of positions that the largest cell covers.
    """
    if len(heat) <= MAX_STRIP:
        return heat, 1
    parts = np.array_split(heat, MAX_STRIP)
    return np.array([part.max() for part in parts], dtype=np.float32), max(map(len, parts))


def finite_heat(heat_map: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """A heat map with its values finite and >= 0."""
    return np.nan_to_num(np.asarray(heat_map, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0)
