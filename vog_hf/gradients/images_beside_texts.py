"""Images beside a text (vision-language models): which belong to which row, and their part of the gradient.

Batches of these models hold the images of all rows one after another, whole (Llava, Gemma 3) or as flattened patches
(Qwen2-VL). `images_by_row` gives each row its own, padded to as many as the row with the most has; `fed_in_turn` puts
them one after another again, as forward gets them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vog_hf.errors import DataError, ModelError
from vog_hf.gradients.model_outputs import base_model
from vog_hf.gradients.preferences import TASK_ONLY
from vog_hf.metric.definition import squared_norm
from vog_hf.metric.input_parts import GRADIENT, MASK, PART, SHARE

IMAGES, GRID = "pixel_values", "image_grid_thw"
OF_IMAGES = (IMAGES, GRID, "image_sizes", "pixel_attention_mask")  # inputs with one entry per image
IMAGE_GRADIENT, IMAGE_MASK, IMAGE_SHARE = f"{GRADIENT}image", f"{MASK}image", f"{SHARE}image"
TEXT_TOKENS = f"{TASK_ONLY}text_tokens"  # [rows, tokens], false at padding and where the model puts an image
ENTRIES = f"{TASK_ONLY}entries_of/"  # begins the names of the numbers of entries that each row has of an input


def images_by_row(model: nn.Module, fed: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of forward with the images of each row in a row of their own; unchanged for other models.

    Raises:
        DataError: The places of images in the texts do not say which image belongs to which row.
    """
    token, ids = _image_token(model), fed.get("input_ids")
    if token is None or not isinstance(ids, Tensor) or ids.dim() != 2:
        return dict(fed)
    is_image, mask = ids == token, fed.get("attention_mask")
    is_text = ~is_image & mask.bool() if isinstance(mask, Tensor) and mask.shape == ids.shape else ~is_image
    rows = {**fed, TEXT_TOKENS: is_text}
    if isinstance(fed.get(IMAGES), Tensor):
        for name, counts in _entries(model, fed, is_image.sum(1)).items():
            rows[name] = pad_sequence(fed[name].split(counts.tolist()), batch_first=True)
            rows[ENTRIES + name] = counts
    return rows


def fed_in_turn(name: str, inputs: Mapping[str, Any]) -> Tensor | None:
    """An input by row as forward gets it, the entries of all rows in turn; None where no row has any."""
    value: Tensor = inputs[name]
    counts = inputs.get(ENTRIES + name)
    if counts is None:
        return value
    in_turn = value[_is_entry(counts, value.shape[1])]
    return in_turn if len(in_turn) else None


def require_no_entries(name: str, inputs: Mapping[str, object]) -> None:
    """Raise ModelError where an input that is to be the main one has another number of entries in each row."""
    if ENTRIES + name in inputs:
        raise ModelError(
            f"rows with several images, or none, cannot have {name!r} as the main input; set model.main_input_name = "
            "'input_ids', which gives the columns of the image as well"
        )


def image_leaf(inputs: Mapping[str, object]) -> Tensor | None:
    """The images beside the texts of a batch as a leaf; None without any."""
    pixels = inputs.get(IMAGES) if TEXT_TOKENS in inputs else None
    return pixels.detach().requires_grad_() if isinstance(pixels, Tensor) and pixels.is_floating_point() else None


def observed_images(
    inputs: Mapping[str, Any], x: Tensor, image: Tensor | None, *, reduce_channels: bool
) -> dict[str, Tensor]:
    """Quantities of image and text for `vog_hf.metric.input_parts`; none for other models.

    Args:
        inputs: By row.
        x: The leaf of the token embeddings, ``[rows, tokens, width]``, with the gradient of the first target in
            ``grad`` where there are images.
        image: The leaf of the images, with its gradient likewise; None: the batch has none.
        reduce_channels: Average the gradient of images over their colors.
    """
    is_text = inputs.get(TEXT_TOKENS)
    if is_text is None:
        return {}
    if image is None or x.grad is None:
        none = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        return {f"{PART}text": is_text, IMAGE_SHARE: none}
    gradient = torch.zeros_like(image) if image.grad is None else image.grad
    of_image, of_text = squared_norm(gradient), squared_norm(x.grad, is_text)
    seen = {f"{PART}text": is_text, IMAGE_SHARE: of_image / (of_image + of_text)}
    gradient = gradient.mean(-3) if reduce_channels and gradient.dim() >= 4 else gradient
    return seen | {IMAGE_GRADIENT: gradient, IMAGE_MASK: _image_mask(inputs, gradient)}


def _image_token(model: nn.Module) -> int | None:
    """The token in whose places a decoder of text puts an image; None for other models."""
    config: Any = getattr(base_model(model), "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return None
    names = ("image_token_id", "image_token_index")
    return next((token for name in names if isinstance(token := getattr(config, name, None), int)), None)


def _entries(model: nn.Module, fed: Mapping[str, Any], n_tokens: Tensor) -> dict[str, Tensor]:
    """The number of entries of each row, ``[rows]``, by input; {} where each row has one entry of each.

    Args:
        model: Model that gets them.
        fed: A batch.
        n_tokens: Number of places of images in each row.
    """
    pixels, grid = fed[IMAGES], fed.get(GRID)
    if isinstance(grid, Tensor):
        vision: Any = getattr(getattr(base_model(model), "config", None), "vision_config", None)
        patches = grid.prod(-1)
        images = _images_of_rows(patches // getattr(vision, "spatial_merge_size", 1) ** 2, n_tokens)
        counts = torch.stack([part.sum() for part in patches.split(images.tolist())])
        if int(counts.sum()) != len(pixels):
            raise _unassigned(fed, n_tokens)
        return {IMAGES: counts, GRID: images}
    tokens_per_image = int(n_tokens.sum()) // max(1, len(pixels))
    if pixels.dim() == 4 and tokens_per_image and int((n_tokens // tokens_per_image).sum()) == len(pixels):
        counts = n_tokens // tokens_per_image
        if bool((counts * tokens_per_image == n_tokens).all()):
            per_image = [name for name in OF_IMAGES if isinstance(fed.get(name), Tensor)]
            return {} if bool((counts == 1).all()) else dict.fromkeys(per_image, counts)
    if len(pixels) != len(n_tokens) or (pixels.dim() == 4 and not bool((n_tokens > 0).all())):
        raise _unassigned(fed, n_tokens)
    return {}


def _images_of_rows(tokens: Tensor, n_tokens: Tensor) -> Tensor:
    """Number of images of each row, from the tokens of each image and those of each row."""
    ends, row_ends = tokens.cumsum(0), n_tokens.cumsum(0)
    before = torch.searchsorted(ends, row_ends, right=True)
    if not torch.equal(torch.cat([ends.new_zeros(1), ends])[before], row_ends) or int(before[-1]) != len(ends):
        raise DataError(
            f"the texts have places for {n_tokens.tolist()} image tokens row by row, and the images have "
            f"{tokens.tolist()}: {_ADVICE}"
        )
    return before.diff(prepend=before.new_zeros(1))


_ADVICE = "a text may have been cut off within an image; do not truncate rows with images, or leave them out"


def _unassigned(fed: Mapping[str, Any], n_tokens: Tensor) -> DataError:
    return DataError(
        f"which image belongs to which row cannot be told: pixel_values {tuple(fed[IMAGES].shape)} came for texts with "
        f"places for {n_tokens.tolist()} image tokens; {_ADVICE}"
    )


def _is_entry(counts: Tensor, most: int) -> Tensor:
    """Mask ``[rows, most]`` of the entries that are not padding."""
    return torch.arange(most, device=counts.device) < counts.unsqueeze(1)


def _image_mask(inputs: Mapping[str, Any], gradient: Tensor) -> Tensor:
    """Mask of the elements of the images' gradient that count, over its first axes."""
    counts, mask, pixels = (inputs.get(name) for name in (ENTRIES + IMAGES, "pixel_attention_mask", IMAGES))
    if isinstance(counts, Tensor):
        return _is_entry(counts, gradient.shape[1])
    if isinstance(mask, Tensor) and mask.shape == gradient.shape[: mask.dim()]:
        return mask.bool()
    if isinstance(pixels, Tensor) and pixels.dim() == 5:  # images of zeros fill up the rows with fewer
        return (pixels != 0).flatten(2).any(2)
    return torch.ones(len(gradient), dtype=torch.bool, device=gradient.device)
