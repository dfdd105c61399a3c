"""Made images of shapes with their masks, of which some are those of other images, and a small SegFormer."""

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, Features, Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from vog_hf.cli.demos.planted import PlantedTask, Row, Rows

N_ROWS, N_FAULTY, SIDE = 200, 20, 32
CLASSES = ("background", "square", "disk", "cross")


def masked_shapes(seed: int) -> PlantedTask:
    """Semantic segmentation of shapes; the faults are masks of other images."""
    draw = np.random.default_rng(seed)
    pictures, masks = zip(*(drawn_shapes(draw) for _ in range(N_ROWS)), strict=True)
    swapped = draw.choice(N_ROWS, N_FAULTY, replace=False)
    given = list(masks)
    for row, other in zip(swapped, np.roll(swapped, 1), strict=True):
        given[row] = masks[other]
    is_faulty = np.zeros(N_ROWS, dtype=bool)
    is_faulty[swapped] = True
    features = Features({"image": Image(), "annotation": Image()})
    return PlantedTask(
        title=f"Semantic segmentation: a small SegFormer, {N_ROWS} made images",
        faults="images with the mask of another one",
        rows=Dataset.from_dict({"image": list(pictures), "annotation": given}, features=features),
        is_faulty=is_faulty,
        transform=to_pixels_and_masks,
        collate_fn=None,
        make_model=small_segformer,
        n_epochs=10,
        learning_rate=3e-3,
    )


def drawn_shapes(draw: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """One to three shapes on noise: the picture ``[side, side, 3]`` and class numbers ``[side, side]``."""
    picture = draw.normal(90, 25, (SIDE, SIDE, 3))
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(draw.integers(1, 4)):
        kind, size = draw.integers(1, len(CLASSES)), draw.integers(4, 8)
        down, right = (y - draw.integers(SIDE), x - draw.integers(SIDE))
        inside = {
            1: np.maximum(abs(down), abs(right)) < size,
            2: down**2 + right**2 < size**2,
            3: (np.minimum(abs(down), abs(right)) < 2) & (np.maximum(abs(down), abs(right)) < size),
        }[int(kind)]
        picture[inside] += draw.normal(90, 15, 3)
        mask[inside] = kind
    return picture.clip(0, 255).astype(np.uint8), mask


def to_pixels_and_masks(rows: Rows) -> Row:
    """Pixels in -1..1, and class numbers."""
    pixels = [
        torch.from_numpy(np.array(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1) for image in rows["image"]
    ]
    masks = [torch.from_numpy(np.array(mask, dtype=np.int64)) for mask in rows["annotation"]]
    return {"pixel_values": pixels, "labels": masks}


def small_segformer() -> SegformerForSemanticSegmentation:
    """A SegFormer of two stages, with logits at half of the image's side."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[5, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=32,
            id2label=dict(enumerate(CLASSES)),
        )
    )
