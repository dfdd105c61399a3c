"""Make the folders of `data`: what the commit f24542b wrote, before its modules moved into folders.

They are kept as data, so that later versions are tested on files that an earlier one wrote. To make them again::

    git worktree add ../old f24542b
    PYTHONPATH=../old python tests/support/old_layout/make.py
"""

import shutil
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Image, load_from_disk
from PIL import Image as Pillow
from torch import nn
from torchvision.transforms.functional import pil_to_tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from vog_hf import VoGCallback, VoGConfig, VoGScorer, add_vog_columns
from vog_hf.review import Journal

DATA = Path(__file__).with_name("data")
ROWS = 20
NAMES = ["dark", "bright"]
BLOCKS_BEFORE_THE_BREAK = 3  # of five, with four rows each
CONFIG = VoGConfig(target=("logit", "loss"))


class Network(nn.Module):
    """Images of 4 x 4 pixels to two classes, with the loss that Trainer needs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))

    def forward(self, pixel_values, labels=None):
        logits = self.layers(pixel_values)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def make_rows():
    """Images in two classes."""
    colors = [(11 * i % 256, 90 + 7 * i, 255 - 9 * i) for i in range(ROWS)]
    columns = {"image": [Pillow.new("RGB", (4, 4), color) for color in colors], "label": [i % 2 for i in range(ROWS)]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=NAMES)}))


def collate(rows):
    """Rows as a batch for `Network`."""
    pixels = torch.stack([pil_to_tensor(row["image"]) for row in rows]) / 127.5 - 1
    return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}


def train(rows, vog, folder, *, resume=None, callbacks=()):
    """Train a network for four epochs of five steps and save a checkpoint after each epoch."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="epoch",
        report_to="none",
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )
    torch.manual_seed(0)
    model = Network()
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[vog, *callbacks]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def live_callback(rows):
    """Make a callback that scores while the network trains."""
    return VoGCallback(rows, config=CONFIG, collate_fn=collate, collect="live", snapshots="epoch")


def score(rows, snapshots, folder, collate_fn=collate):
    """Score the rows in five blocks."""
    scorer = VoGScorer(Network(), config=CONFIG, batch_size=4, memory_budget=1)
    return scorer.score(rows, snapshots, collate_fn=collate_fn, output_dir=folder)


class StopAfter(TrainerCallback):
    """End the training at a step, as a crash does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupt_scoring(rows, snapshots, folder):
    """Score until some blocks are finished."""

    def interrupting(batch):
        if len(list((folder / "blocks").glob("*"))) > BLOCKS_BEFORE_THE_BREAK:
            raise KeyboardInterrupt
        return collate(batch)

    try:
        score(rows, snapshots, folder, interrupting)
    except KeyboardInterrupt:
        return
    raise AssertionError("the scoring was not interrupted")


def main():
    """Make all folders."""
    shutil.rmtree(DATA, ignore_errors=True)
    make_rows().save_to_disk(DATA / "rows")
    rows = load_from_disk(DATA / "rows")
    train(rows, VoGCallback(rows, config=CONFIG, collate_fn=collate, snapshots="epoch"), DATA / "training")
    for checkpoint in (DATA / "training").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    snapshots = DATA / "training" / "_vog"
    scores = score(rows, snapshots, DATA / "scores")
    interrupt_scoring(rows, snapshots, DATA / "interrupted")
    try:
        train(rows, live_callback(rows), DATA / "live", callbacks=[StopAfter(13)])
    except KeyboardInterrupt:
        for first in (DATA / "live" / "checkpoint-5", *(DATA / "live" / "_vog" / "live").glob("step-000000005-*")):
            shutil.rmtree(first)
    journal = Journal.open(DATA / "review.jsonl", scores)
    journal.decide(3, "relabel", reviewer="Ada", label=0, note="dark")
    journal.decide(5, "drop", reviewer="Ada")
    journal.decide(6, "keep", reviewer="Bob")
    add_vog_columns(rows, scores, columns="all").save_to_disk(DATA / "scored")
    for unneeded in (*DATA.rglob(".lock"), *DATA.rglob("training_args.bin")):
        unneeded.unlink()


if __name__ == "__main__":
    main()
