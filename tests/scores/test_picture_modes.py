"""Images of every mode of Pillow, as outputs show them and as `vog-hf score` gives them to a processor."""

import numpy as np
import pytest
from PIL import Image, ImageCms
from transformers import ViTImageProcessor

from vog_hf.cli.model_inputs import Preparation
from vog_hf.errors import DataError
from vog_hf.scores import VoGScores
from vog_hf.scores.pictures import RowViews
from vog_hf.scores.scored_rows import ScoredSplit

COLORS = ["P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
GRAYS = ["1", "L", "LA", "La"]
NUMBERS = {"I": np.int32, "F": np.float32, "I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2"}
LEFT, RIGHT = np.array([250, 10, 10]), np.array([10, 10, 250])


def halves(mode, size, *, top=255):
    """An image of a mode: red and blue halves, or dark and bright ones; numbers end at ``top``."""
    if mode in NUMBERS:
        values = np.zeros((size, size), dtype=NUMBERS[mode])
        values[:, size // 2 :] = top
        return Image.frombytes(mode, (size, size), values.tobytes())
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    left, right = (LEFT, RIGHT) if mode in COLORS else (0 * LEFT, 255)
    pixels[:, : size // 2], pixels[:, size // 2 :] = left, right
    image = Image.fromarray(pixels)
    if mode == "LAB":
        profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
        return ImageCms.profileToProfile(image, *profiles, outputMode=mode)
    for step in {"PA": ["P"], "La": ["LA"], "RGBa": ["RGBA"]}.get(mode, []):
        image = image.convert(step)
    return image.convert(mode)


@pytest.mark.parametrize("size", [16, 700])
@pytest.mark.parametrize("mode", [*COLORS, *GRAYS, *NUMBERS])
def test_every_mode_is_shown_in_its_colors(mode, size):
    """The one view of a row that all outputs share has the colors of its image, also after it is reduced."""
    split = ScoredSplit("", VoGScores({"vog": np.array([0.1])}, {}), [{"image": halves(mode, size)}])
    shown = np.asarray(RowViews(split, side=40).view(0).picture).astype(int)
    assert shown.shape == (40, 40, 3)
    left, right = (LEFT, RIGHT) if mode in COLORS else (0 * LEFT, 255)
    near = {"P": 55, "PA": 55, "LAB": 25}.get(mode, 12)  # Pillow's palette, and a conversion there and back
    assert abs(shown[:, :18] - left).max() <= near
    assert abs(shown[:, 22:] - right).max() <= near


def test_reducing_takes_no_mean_of_hues_or_signs():
    """Two near shades of red whose hues lie at both ends of the circle stay red."""
    pixels = np.full((700, 700, 3), (250, 30, 10), dtype=np.uint8)
    pixels[::2] = (250, 10, 30)
    split = ScoredSplit("", VoGScores({"vog": np.array([0.1])}, {}), [Image.fromarray(pixels).convert("HSV")])
    shown = np.asarray(RowViews(split, side=40).view(0).picture).astype(int)
    assert abs(shown - (250, 20, 20)).max() <= 12


@pytest.mark.parametrize("channels", ["RGB", "L"])
@pytest.mark.parametrize("mode", [*COLORS, *GRAYS, *NUMBERS])
def test_every_mode_is_scored_as_it_was_trained_or_refused(mode, channels):
    """Inputs equal those of a training that converts its images; what Pillow does not convert is refused."""
    means = {"image_mean": [0.5] * len(channels), "image_std": [0.5] * len(channels)}
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, **means)
    prepare = Preparation(processor, "image", ("image",), None, mode=channels)
    image = halves(mode, 8)
    if mode in ("F", "La") or (mode, channels) == ("LAB", "L"):
        with pytest.raises(DataError, match=rf"an image of mode '{mode}' .*; store the images"):
            prepare({"image": [image]})
        return
    trained = [image.convert(channels)]
    options = {}
    if channels == "L":
        trained, options = [np.array(trained[0])[..., None]], {"input_data_format": "channels_last"}
    wanted = processor(trained, return_tensors="pt", **options)["pixel_values"]
    np.testing.assert_array_equal(prepare({"image": [image]})["pixel_values"][0], wanted[0])


@pytest.mark.parametrize("mode", NUMBERS)
def test_numbers_beyond_8_bits_are_refused(mode):
    """Whatever their bytes, numbers that conversion would clip are refused with mode and range."""
    prepare = Preparation(ViTImageProcessor(), "image", ("image",), None)
    with pytest.raises(DataError, match=rf"an image of mode '{mode}' has values from 0 to 300, expected 0 to 255"):
        prepare({"image": [halves(mode, 8, top=300)]})
