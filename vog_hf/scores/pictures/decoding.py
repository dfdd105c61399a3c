"""Images and texts of data, read within bounds of memory: a file of a few kilobytes can decode to gigabytes."""

import threading
import warnings
from typing import IO, Any

import pyarrow as pa
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from vog_hf.errors import DataError
from vog_hf.runtime.files import format_bytes

MAX_DECODED = 512 * 2**20  # bytes of a picture at full size; larger ones are not decoded
MAX_ARRAY = 32 * 2**20  # bytes of a picture that is stored as numbers, which Python's lists make many times larger
MAX_TEXT = 2**15  # characters of a row's text
GAP = 3  # a picture is reduced to no less than this many times the side that it is shown with
SMALL_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # bytes per pixel; others: 4
# Modes whose numbers have a mean: not those of palettes, of hues on a circle, or of colors with a sign.
AVERAGED_MODES = ("L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I", "F")
_OPENING = threading.Lock()  # the filters of warnings are the process's


def decoded(file: IO[bytes], side: int) -> Image.Image:
    """Decode the image in a file, upright and at most about ``2 * GAP * side`` pixels long.

    Args:
        file: Image file, from any source.
        side: Longer side with which it will be shown, in pixels.

    Raises:
        DataError: It would take more than `MAX_DECODED` bytes.
    """
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound is ours
        image = Image.open(file)
    needed = image.width * image.height * SMALL_MODES.get(image.mode, 4)
    if needed > MAX_DECODED:
        raise DataError(
            f"an image of {image.width:,} x {image.height:,} pixels takes {format_bytes(needed)}, and at most "
            f"{format_bytes(MAX_DECODED)} are decoded to show one; store it smaller"
        )
    image.draft(None, (GAP * side, GAP * side))  # a JPEG can be decoded at a smaller size
    image.load()
    orientation = image.getexif().get(Base.Orientation)
    small = reduced(image, side)
    if orientation in (None, 1):
        return small
    small.getexif()[Base.Orientation] = orientation
    return ImageOps.exif_transpose(small)


def reduced(image: Image.Image, side: int) -> Image.Image:
    """Reduce an image to a fraction of its size, before anything else is computed from all its pixels.

    Example:
        >>> reduced(Image.new("I;16", (1000, 400)), 96).size, reduced(Image.new("L", (400, 4)), 96).size
        ((334, 134), (400, 4))
    """
    factor = max(image.size) // (GAP * side)
    if factor < 2:
        return image
    if image.mode in AVERAGED_MODES:
        return image.reduce(factor)
    size = -(-image.width // factor), -(-image.height // factor)
    return image.resize(size, Image.Resampling.NEAREST)


def text_of(cell: Any) -> str | None:
    """Read the beginning of a text in an Arrow column, or of a list of words; nothing else is copied.

    Bytes that are not UTF-8 become replacement characters.

    Example:
        >>> text_of(pa.scalar("abc")), text_of(pa.scalar(["a", "b"])), text_of(pa.scalar(None, pa.string()))
        ('abc', 'a b', None)
    """
    if not cell.is_valid:
        return None
    if hasattr(cell, "as_buffer"):
        buffer = cell.as_buffer()
        return buffer.slice(0, min(buffer.size, 4 * MAX_TEXT)).to_pybytes().decode("utf-8", "replace")[:MAX_TEXT]
    if not isinstance(cell, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return None
    words: list[str] = []
    left = MAX_TEXT
    for word in cell.values[:MAX_TEXT]:
        text = text_of(word)
        if text is None or left <= 0:
            break
        words.append(text)
        left -= len(text) + 1
    return " ".join(words)[:MAX_TEXT] if words else None


def require_small_array(cells: pa.Table) -> None:
    """Raise DataError for an array of a row that is too large for an image."""
    if cells.nbytes > MAX_ARRAY:
        needed, most = format_bytes(cells.nbytes), format_bytes(MAX_ARRAY)
        raise DataError(
            f"the array of an image takes {needed}, and at most {most} are read to show one; store it smaller"
        )
