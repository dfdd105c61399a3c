"""Trainings whose folders the command line is given, and the command line: in this process, or in one of its own.

A process of its own takes seconds to import everything, so most cases call `main` here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import models
import numpy as np
import trainers
from transformers import (
    DataCollatorWithPadding,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
    set_seed,
)

from vog_hf.cli import main
from vog_hf.trainer.callback import VoGCallback

SIDE = 16
MODULE = [sys.executable, "-m", "vog_hf"]
SCRIPT = [str(Path(sys.executable).with_name("vog-hf"))]


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def values(self):
        """The one JSON document on stdout."""
        return json.loads(self.stdout)


def run(capfd, *arguments):
    """The command line in this process, through its entry point."""
    capfd.readouterr()
    before = sys.argv
    sys.argv = ["vog-hf", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as ending:
        code = ending.code or 0
    finally:
        sys.argv = before
    printed = capfd.readouterr()
    return Done(code, printed.out, printed.err)


def launch(command, *arguments, cwd=None, **variables):
    """The command line in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        encoding=variables.get("PYTHONIOENCODING"),
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Trained(NamedTuple):
    """A training: its folder with checkpoint-* and a callback's scores of the same steps, and the rows as a file."""

    folder: Path
    data: Path
    scores: object


def train_on_images(folder):
    """Digits through an image processor: three epochs with a checkpoint each."""
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5], image_std=[0.5])

    def transform(rows):
        images = [np.array(image.convert("L"))[..., None] for image in rows["image"]]
        made = processor(images, return_tensors="pt", input_data_format="channels_last")
        return {"pixel_values": made["pixel_values"], "labels": rows["label"]}

    rows = trainers.digits(64)
    callback = VoGCallback(snapshots="epoch", log=False)
    set_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=10
    )
    trainers.trained(
        folder / "run",
        [callback],
        rows=rows.with_transform(transform),
        model=ResNetForImageClassification(config),
        save_strategy="epoch",
        pieces={"processing_class": processor},
    )
    rows.save_to_disk(str(folder / "digits"))
    return Trained(folder / "run", folder / "digits", callback.scores)


def train_on_texts(folder):
    """Texts through a tokenizer, with names of classes as labels in the file: three epochs with a checkpoint each."""
    names = ["bad", "fair", "good"]
    model = models.bert(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}).model
    tokenizer = trainers.tokenizer()
    rows = trainers.texts(40)
    callback = VoGCallback(snapshots="epoch", log=False)
    set_seed(0)
    trainers.trained(
        folder / "run",
        [callback],
        rows=rows,
        model=model.train(),
        save_strategy="epoch",
        remove_unused_columns=True,
        pieces={"processing_class": tokenizer, "data_collator": DataCollatorWithPadding(tokenizer)},
    )
    named = rows.select_columns(["text"]).add_column("label", [names[label] for label in rows["label"]])
    named.to_csv(folder / "texts.csv")
    return Trained(folder / "run", folder / "texts.csv", callback.scores)
