"""Pictures that cannot be decoded: skipped with the name of their file, which is closed."""

import gc
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch import nn

from vog_hf import VoGScorer
from vog_hf.errors import DataError


class Pixels(nn.Module):
    """A linear classifier of 4 x 4 pixels."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Linear(48, 2)

    def forward(self, pixel_values):
        return {"logits": self.classes(pixel_values.flatten(1))}


def pixels(rows):
    """The pixels of pictures, and their labels."""
    values = [torch.from_numpy(np.array(picture)).float() / 255 for picture in rows["image"]]
    return {"pixel_values": values, "labels": rows["label"]}


@pytest.fixture
def pictures(tmp_path):
    """Twelve files with pictures; one is cut off, one holds no picture."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(12)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(file)
    files[3].write_bytes(files[3].read_bytes()[:-30])
    files[7].write_bytes(b"no picture")
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    rows = Dataset.from_dict({"image": list(map(str, files)), "label": [0, 1] * 6}, features=features)
    return rows.with_transform(pixels)


def score(rows, **options):
    """Scores from three random snapshots."""
    torch.manual_seed(0)
    model = Pixels()
    states = [(f"s{k}", {n: torch.randn_like(p) for n, p in model.state_dict().items()}) for k in range(3)]
    return VoGScorer(model, batch_size=5, progress=False, **options).score(rows, states)


def test_files_that_cannot_be_decoded_are_named_and_closed(pictures):
    """Skipped pictures are listed with their file and its error; no file stays open, nor where the error is raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        skipped = score(pictures, on_error="skip").manifest["skipped"]["rows"]
        with pytest.raises(DataError, match=r"row 3 cannot be read \(.*3\.png\)"):
            score(pictures)
        gc.collect()
    assert not [str(warning.message) for warning in caught if "unclosed file" in str(warning.message)]
    assert skipped == [
        {"row": 3, "reason": "3.png: OSError: image file is truncated"},
        {"row": 7, "reason": "UnidentifiedImageError: cannot identify image file '7.png'"},
    ]
