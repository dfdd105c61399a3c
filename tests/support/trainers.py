"""Small trainings with `transformers.Trainer`: handwritten digits, a network with BatchNorm and dropout, their pieces.

A model is built again, from its own seed, for each training. `arguments` must be called right before the Trainer is
made: a second ``TrainingArguments`` resets the Accelerator's state.
"""

import atexit
import gc
import random
from functools import cache

import models
import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from vog_hf.demo import load_digits_dataset

atexit.register(gc.unfreeze)

SIDE = 16
BATCH = 16
PADDING, UNKNOWN = "[PAD]", "[UNK]"


@cache
def _digits():
    return load_digits_dataset()


def digits(n=64, start=0):
    """``n`` handwritten digits: columns image and label, no transform."""
    return _digits().select(range(start, start + n))


def plain(rows):
    """The evaluation transform of a batch of rows."""
    return {"pixel_values": [_pixels(image) for image in rows["image"]], "labels": rows["label"]}


def augmented(rows):
    """The training transform: flips, shifts and noise, each drawn from another of the global generators."""
    pictures = []
    for image in rows["image"]:
        pixels = _pixels(image)
        if random.random() < 0.5:
            pixels = pixels.flip(-1)
        pixels = pixels.roll(int(np.random.randint(-2, 3)), -1)
        pictures.append(pixels + 0.1 * torch.randn(pixels.shape))
    return {"pixel_values": pictures, "labels": rows["label"]}


def _pixels(image):
    small = np.asarray(image.convert("L").resize((SIDE, SIDE)), dtype=np.float32)
    return torch.from_numpy(small / 127.5 - 1.0).unsqueeze(0)


def network(seed=0, n_labels=10):
    """A residual network with BatchNorm, and with dropout before its last layer."""
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=n_labels
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetForImageClassification(config)
        model.classifier.insert(1, nn.Dropout(0.3))
    return model


def tokenizer():
    """Words w4, w5, ... as tokens 4, 5, ... of the vocabulary of `models`; 0 is padding."""
    words = {PADDING: 0, UNKNOWN: 1, **{f"w{i}": i for i in range(2, models.VOCABULARY)}}
    made = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PADDING, unk_token=UNKNOWN)


def texts(n=40):
    """Tokenized texts of 3 to 9 words with their string column left in: text, label, input_ids, attention_mask."""
    rng = np.random.default_rng(0)
    words = [[f"w{i}" for i in rng.integers(4, models.VOCABULARY, rng.integers(3, 10))] for _ in range(n)]
    rows = Dataset.from_dict({"text": [" ".join(row) for row in words], "label": rng.integers(0, 3, n)})
    made = tokenizer()
    return rows.map(lambda row: {k: v for k, v in made(row["text"]).items() if k != "token_type_ids"})


def arguments(folder, **options):
    """TrainingArguments for a CPU: three epochs, every loss logged, nothing saved or reported."""
    gc.freeze()  # Trainer collects garbage several times per training: up to 0.5 s each over all that is imported
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": 3,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 20,
        "learning_rate": 3e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**{**defaults, **options})


def trained(folder, callbacks, *, rows=None, model=None, resume=None, trainer_class=Trainer, pieces=None, **options):
    """A Trainer after ``train()``; ``options`` are TrainingArguments', ``pieces`` the Trainer's own keywords."""
    trainer = trainer_class(
        model=model or network(),
        args=arguments(folder, **options),
        train_dataset=digits().with_transform(plain) if rows is None else rows,
        callbacks=callbacks,
        **(pieces or {}),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class WeightsByStep(TrainerCallback):
    """Keeps a copy of the weights as they are after every step."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, *, model, **kwargs):
        self.weights[state.global_step] = {name: value.clone() for name, value in model.state_dict().items()}


class AtStep(TrainerCallback):
    """Calls ``work(model, control)`` after one step."""

    def __init__(self, step, work):
        self.step, self.work = step, work

    def on_step_end(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.step:
            self.work(model, control)
