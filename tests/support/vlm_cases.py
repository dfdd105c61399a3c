"""Tiny models of images and text, 53 rows each with no, one or two images, and their columns by plain loops.

`VLM_CASES` maps a family to its `VlmCase`. The oracle sees one row alone: its own images and its own text, without
padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as T
from models import _made
from reference import _scalar, _snapshots, reference_vog
from torch.nn.utils.rnn import pad_sequence

N_ROWS = 53
SIDE, PATCH, IMAGE_TOKEN, VOCABULARY = 8, 4, 31, 32
WIDTH = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {
    **WIDTH,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {**WIDTH, "image_size": SIDE, "patch_size": PATCH}
TOKEN = {"image_token_id": IMAGE_TOKEN, "image_token_index": IMAGE_TOKEN}


@dataclass(frozen=True)
class VlmCase:
    """A family of models, and rows of its kind.

    Attributes:
        model: Makes the model, the same in every call.
        rows: Makes the rows, with labels, without padding.
        collate_fn: Makes a batch as the family's processor does.
        channels: Whether the gradient of images is averaged over colors.
    """

    model: Callable[[], Any]
    rows: Callable[[], list[dict[str, torch.Tensor]]]
    collate_fn: Callable[[list[dict[str, torch.Tensor]]], dict[str, torch.Tensor]]
    channels: bool = True

    def expected(self, states: list[dict[str, torch.Tensor]], n_rows: int = N_ROWS) -> dict[str, np.ndarray]:
        """The columns, ``[rows]``: one row and one snapshot at a time."""
        seen = [[] for _ in range(n_rows)]
        for snapshot in _snapshots(self.model(), states):
            for of_row, row in zip(seen, self.rows()[:n_rows], strict=True):
                of_row.append(self._of_row(snapshot, row))
        found: dict[str, list[float]] = {name: [] for name in ("vog", "vog_text", "vog_image", "image_share", "loss")}
        for of_row, row in zip(seen, self.rows()[:n_rows], strict=True):
            text = np.stack([gradient for gradient, _, _ in of_row])
            found["vog"] += reference_vog([text]).tolist()
            found["vog_text"] += reference_vog([text[:, row["input_ids"] != IMAGE_TOKEN]]).tolist()
            found["loss"].append(np.mean([loss for _, _, loss in of_row]))
            if "pixel_values" not in row:
                found["vog_image"].append(np.nan)
                found["image_share"].append(0.0)
                continue
            image = np.stack([gradient for _, gradient, _ in of_row])
            of_image, of_text = (image**2).reshape(len(image), -1).sum(1), (text**2).reshape(len(text), -1).sum(1)
            found["image_share"].append(np.mean(of_image / (of_image + of_text)))
            image = image.mean(-3) if self.channels else image
            found["vog_image"] += reference_vog([image]).tolist()
        return {name: np.array(values) for name, values in found.items()}

    def _of_row(self, snapshot: Any, row: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Gradients of the mean logit of a row's labels for its text and its images, and its loss."""
        leaves: list[torch.Tensor] = []

        def cut(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            leaves.append(output.detach().requires_grad_())
            return leaves[0].clone()

        batch = self.collate_fn([row])
        labels = batch.pop("labels")[0]
        if "pixel_values" in batch:
            batch["pixel_values"] = pixels = batch["pixel_values"].double().requires_grad_()
        handle = snapshot.get_input_embeddings().register_forward_hook(cut)
        logits = snapshot(**batch).logits[0]
        handle.remove()
        scalar = _scalar(logits, labels, "logit", "causal_language_model")
        loss = float(_scalar(logits, labels, "loss", "causal_language_model").detach())
        if "pixel_values" not in batch:
            return torch.autograd.grad(scalar, leaves[0])[0][0].numpy(), None, loss
        text, image = torch.autograd.grad(scalar, (leaves[0], pixels))
        return text[0].numpy(), image.numpy(), loss


def _texts(places: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    """Texts of several lengths with places for a row's images; the answer is labeled, and not all of it."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i, images in enumerate(places):
        parts = [torch.tensor([3])]
        for n_tokens in images:
            parts += [torch.full((n_tokens,), IMAGE_TOKEN), torch.randint(4, 28, (1,), generator=generator)]
        prompt = torch.cat([*parts, torch.randint(4, 28, (1 + i % 3,), generator=generator)])
        answer = torch.randint(4, 28, (1 + i % 4,), generator=generator)
        labels = torch.cat([torch.full_like(prompt, -100), answer])
        if len(answer) > 2:
            labels[len(prompt)] = -100
        rows.append({"input_ids": torch.cat([prompt, answer]), "labels": labels})
    return rows


def _collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Texts padded on the right, and the images of all rows in turn, if there are any."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True)
    labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    for name in ("pixel_values", "image_grid_thw"):
        values = [row[name] for row in rows if name in row]
        batch |= {name: torch.cat(values)} if values else {}
    return batch


def _collate_padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As SmolVLM's processor: images ``[rows, images, 3, height, width]``, filled up with zeros, and their mask."""
    batch = _collate([{k: v for k, v in row.items() if k != "pixel_values"} for row in rows])
    most = max(len(row.get("pixel_values", ())) for row in rows)
    if most:
        pixels = torch.zeros(len(rows), most, 3, SIDE, SIDE)
        mask = torch.zeros(len(rows), most, SIDE, SIDE, dtype=torch.int64)
        for i, row in enumerate(rows):
            images = row.get("pixel_values", ())
            for k, image in enumerate(images):
                pixels[i, k], mask[i, k] = image, 1
        batch |= {"pixel_values": pixels, "pixel_attention_mask": mask}
    return batch


def _collate_typed(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As the processors of Gemma 3 and PaliGemma: with the places of images as token types."""
    batch = _collate(rows)
    return batch | {"token_type_ids": (batch["input_ids"] == IMAGE_TOKEN).long()}


def _collate_patches(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """As Qwen's processor: flattened patches of all images in turn."""
    batch = _collate(rows)
    return batch | {"mm_token_type_ids": (batch["input_ids"] == IMAGE_TOKEN).long()}


def _image_rows(n_tokens: int, *, one_each: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    numbers = [1 if one_each else (1, 2, 0)[i % 3] for i in range(N_ROWS)]
    rows = _texts([[n_tokens] * n for n in numbers])
    for row, n in zip(rows, numbers, strict=True):
        if n:
            row["pixel_values"] = torch.randn(n, 3, SIDE, SIDE, generator=generator)
    return rows


def _patch_rows() -> list[dict[str, torch.Tensor]]:
    """Images of 2 x 2 and 2 x 4 patches, four of which are one token."""
    generator = torch.Generator().manual_seed(4)
    grids = [[[1, 2, 2]], [[1, 2, 4], [1, 2, 2]], []]
    rows = _texts([[h * w // 4 for _, h, w in grids[i % 3]] for i in range(N_ROWS)])
    for i, row in enumerate(rows):
        if grid := grids[i % 3]:
            n_patches = sum(h * w for _, h, w in grid)
            row |= {
                "pixel_values": torch.randn(n_patches, 3 * 2 * PATCH**2, generator=generator),
                "image_grid_thw": torch.tensor(grid),
            }
    return rows


def llava() -> Any:
    """CLIP's vision tower and Llama."""
    config = T.LlavaConfig(
        vision_config=T.CLIPVisionConfig(**VISION), text_config=T.LlamaConfig(**TEXT), vision_feature_layer=-1, **TOKEN
    )
    return _made(lambda: T.LlavaForConditionalGeneration(config), 0)


def smolvlm() -> Any:
    """Four patches of an image are one token."""
    config = T.SmolVLMConfig(
        text_config=T.LlamaConfig(**TEXT), vision_config=dict(VISION), scale_factor=2, pad_token_id=0, **TOKEN
    )
    return _made(lambda: T.SmolVLMForConditionalGeneration(config), 0)


def _qwen_config(make: Any, **vision: Any) -> Any:
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    special = {"video_token_id": 30, "vision_start_token_id": 29, "vision_end_token_id": 28}
    return make(text_config=text, vision_config={**vision, "patch_size": PATCH}, image_token_id=IMAGE_TOKEN, **special)


def qwen2() -> Any:
    """Flattened patches of images of several sizes."""
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "mlp_ratio": 1, "in_channels": 3}
    return _made(lambda: T.Qwen2VLForConditionalGeneration(_qwen_config(T.Qwen2VLConfig, **vision)), 0)


def qwen25() -> Any:
    """As `qwen2`, with windows of attention in the vision tower."""
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
    vision |= {"window_size": 16, "fullatt_block_indexes": [0], "in_channels": 3}
    return _made(lambda: T.Qwen2_5_VLForConditionalGeneration(_qwen_config(T.Qwen2_5_VLConfig, **vision)), 0)


def gemma3() -> Any:
    """SigLIP's vision tower and Gemma 3."""
    text, vision = {**TEXT, "head_dim": 8}, T.SiglipVisionConfig(**VISION)
    config = T.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **TOKEN)
    return _made(lambda: T.Gemma3ForConditionalGeneration(config), 0)


def paligemma() -> Any:
    """SigLIP's vision tower and Gemma."""
    vision = {**VISION, "projection_dim": 16, "model_type": "siglip_vision_model", "vision_use_head": False}
    text = {**TEXT, "head_dim": 8, "model_type": "gemma"}
    config = T.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=16, **TOKEN)
    return _made(lambda: T.PaliGemmaForConditionalGeneration(config), 0)


VLM_CASES = {
    "llava": VlmCase(llava, lambda: _image_rows(4), _collate),
    "llava, one image each": VlmCase(llava, lambda: _image_rows(4, one_each=True), _collate),
    "smolvlm": VlmCase(smolvlm, lambda: _image_rows(1), _collate_padded),
    "qwen2-vl": VlmCase(qwen2, _patch_rows, _collate_patches, channels=False),
}
OTHER_VLM_CASES = {
    "qwen2.5-vl": VlmCase(qwen25, _patch_rows, _collate_patches, channels=False),
    "gemma 3": VlmCase(gemma3, lambda: _image_rows(4), _collate_typed),
    "paligemma": VlmCase(paligemma, lambda: _image_rows(4, one_each=True), _collate_typed),
}
