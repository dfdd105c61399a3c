"""Workloads: models from configurations, generated rows in memory, and perturbed snapshots."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from vog_hf.demo import small_resnet as gray_resnet

BATCH = 64
CLASSES = 10
TOKENS = 64
SIDE = 32  # of an image

State = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """A model with its rows, which are tensors in memory so that reading is cheap."""

    name: str
    model: nn.Module
    rows: Any
    collate_fn: Callable[[list[Any]], dict[str, Tensor]] = default_data_collator

    def __str__(self) -> str:
        return f"{self.name}, {len(self.rows):,} rows"

    def head(self, n: int) -> "Workload":
        """The workload with only the first ``n`` rows."""
        rows = self.rows
        return replace(self, rows=rows.select(range(min(n, len(rows)))) if isinstance(rows, Dataset) else rows[:n])

    def to(self, device: str) -> "Workload":
        """The workload with the model on a device."""
        return replace(self, model=self.model.to(device))


def small_resnet(n_rows: int, *, side: int = SIDE) -> Workload:
    """Three basic blocks of 32, 64 and 128 channels after the CIFAR stem."""
    return Workload("small ResNet", cifar_resnet([32, 64, 128], depth=1), images(n_rows, side))


def tiny_resnet(n_rows: int) -> Workload:
    """The demo's ResNet for color images; its stem halves them twice, so there is little computation per image."""
    torch.manual_seed(0)
    config = ResNetConfig.from_dict({**gray_resnet().config.to_dict(), "num_channels": 3})
    return Workload("ResNet of the demo", ResNetForImageClassification(config), images(n_rows, SIDE))


def resnet18(n_rows: int) -> Workload:
    """ResNet-18 with the CIFAR stem."""
    return Workload("ResNet-18", cifar_resnet([64, 128, 256, 512], depth=2), images(n_rows, SIDE))


def cifar_resnet(widths: list[int], *, depth: int) -> nn.Module:
    """A ResNet with a 3 x 3 stem without stride and pooling, which no configuration offers."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=widths[0],
        hidden_sizes=widths,
        depths=[depth] * len(widths),
        layer_type="basic",
        num_labels=CLASSES,
    )
    model = ResNetForImageClassification(config)
    stem = model.resnet.embedder
    stem.embedder, stem.pooler = ResNetConvLayer(3, widths[0], kernel_size=3), nn.Identity()
    return model


def vit_tiny(n_rows: int) -> Workload:
    """ViT-tiny for 32 x 32: 64 patches of 4 x 4."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=SIDE,
        patch_size=4,
        num_labels=CLASSES,
    )
    return Workload("ViT-tiny", ViTForImageClassification(config), images(n_rows, SIDE))


def bert_mini(n_rows: int) -> Workload:
    """BERT-mini as a classifier of texts with 16 to 64 tokens."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, num_labels=CLASSES
    )
    return Workload("BERT-mini", BertForSequenceClassification(config), texts(n_rows, config.vocab_size), padded)


def llama_lora(n_rows: int) -> Workload:
    """A Llama of SmolLM-135M's width with 4 layers and 8,192 tokens; LoRA of rank 8 in all attention."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=8_192,
        max_position_embeddings=TOKENS,
    )
    adapter = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model = get_peft_model(LlamaForCausalLM(config), adapter)
    return Workload("Llama with LoRA", model, texts(n_rows, config.vocab_size), padded_language)


def texts(n_rows: int, vocabulary: int) -> Dataset:
    """Rows of random token ids, 16 to 64 each."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(TOKENS // 4, TOKENS + 1, (n_rows,), generator=generator).tolist()
    ids = [torch.randint(1, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "labels": [i % CLASSES for i in range(n_rows)]})


def padded_language(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate texts for a language model, whose labels are the tokens."""
    batch = padded(rows)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def images(n_rows: int, side: int, *, classes: int = CLASSES) -> list[dict[str, Any]]:
    """Rows of random pixels."""
    pixels = torch.randn((n_rows, 3, side, side), generator=torch.Generator().manual_seed(1))
    return [{"pixel_values": pixels[i], "labels": i % classes} for i in range(n_rows)]


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate texts, padded to the longest."""
    ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([r["labels"] for r in rows])}


def jpeg_rows(n_rows: int, side: int) -> Dataset:
    """A dataset of JPEG files, decoded and normalized on reading."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(n_rows):
        coarse = Pictures.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))  # smooth, like photographs
        file = io.BytesIO()
        coarse.resize((side, side), Pictures.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append({"bytes": file.getvalue(), "path": None})
    features = Features({"image": Image(), "labels": Value("int64")})
    rows = {"image": files, "labels": [i % CLASSES for i in range(n_rows)]}
    return Dataset.from_dict(rows, features=features).with_transform(to_pixels)


def to_pixels(rows: dict[str, list[Any]]) -> dict[str, Any]:
    """Convert images to pixels in -1..1."""
    pixels = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1 for picture in rows["image"]]
    return {"pixel_values": pixels, "labels": rows["labels"]}


def perturbed_states(model: nn.Module, n: int) -> list[State]:
    """``n`` copies of the model's weights, each with 10 % noise."""
    generator = torch.Generator().manual_seed(2)
    return [{name: with_noise(value, generator) for name, value in model.state_dict().items()} for _ in range(n)]


def with_noise(value: Tensor, generator: torch.Generator) -> Tensor:
    """A copy on the CPU with noise of 10 % of the mean magnitude; integers are unchanged."""
    value = value.detach().cpu().clone()
    if not value.is_floating_point():
        return value
    noise = torch.randn(value.shape, generator=generator).clamp(-5, 5).to(value)  # a variance stays positive
    return value.add_(noise, alpha=0.1 * float(value.abs().mean()))


def stored(states: Sequence[State], folder: Path) -> list[Path]:
    """Write one safetensors file per state."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"step-{number:03d}.safetensors" for number in range(len(states))]
    for file, state in zip(files, states, strict=True):
        save_file({name: value.contiguous() for name, value in state.items()}, file)
    return files
