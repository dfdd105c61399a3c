"""Program: trainings with `Trainer` under data parallelism, with and without the callback, one after another."""

import hashlib
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import wandb
from accelerate import PartialState
from datasets import DatasetDict
from leaving import leave_together
from trainers import augmented, digits, plain, trained
from transformers import TrainerCallback

from vog_hf import VoGCallback, VoGError

ROWS = 53
SPLITS = {"train": (ROWS, 0), "test": (21, ROWS)}


def scored_rows():
    """What is scored: the training rows without their random transform."""
    return digits(ROWS).with_transform(plain)


def splits():
    """Rows of training, and others."""
    return DatasetDict({name: digits(n, start).with_transform(plain) for name, (n, start) in SPLITS.items()})


def other_rows():
    """Not the same on both processes."""
    return digits(ROWS, start=PartialState().process_index).with_transform(plain)


class BreakingRows:
    """The rows; that of a number cannot be read on process 1 once training has begun."""

    def __init__(self, row: int, *, at_once: bool = False) -> None:
        self.rows, self.row = scored_rows(), row
        self.breaks = at_once

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        if self.breaks and i == self.row and PartialState().process_index == 1:
            raise OSError(f"row {i} cannot be decoded")
        return self.rows[i]


class Breaks(TrainerCallback):
    """Lets rows break at a step."""

    def __init__(self, rows: BreakingRows) -> None:
        self.rows = rows

    def on_step_end(self, args, state, control, **kwargs):
        self.rows.breaks = state.global_step >= 6


class Digests(TrainerCallback):
    """What a training is made of, after every step: weights, buffers, losses and random states of this process."""

    def __init__(self) -> None:
        self.seen = []

    def on_step_end(self, args, state, control, *, model, optimizer, **kwargs):
        weights = [value.numpy().tobytes() for value in model.state_dict().values()]
        states = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
        moments = [torch.as_tensor(value).numpy().tobytes() for value in states]
        numbers = [torch.get_rng_state().numpy().tobytes(), repr(random.getstate()), repr(np.random.get_state())]
        parts = {"weights": weights, "optimizer": moments, "random": numbers, "mode": [repr(model.training)]}
        self.seen.append({name: digest(values) for name, values in parts.items()})

    def on_train_end(self, args, state, control, **kwargs):
        losses = [entry for entry in state.log_history if "loss" in entry]
        self.seen.append({"losses": json.dumps([{k: entry[k] for k in ("loss", "grad_norm")} for entry in losses])})


def digest(values: list) -> str:
    """Of bytes and texts."""
    found = hashlib.sha256()
    for value in values:
        found.update(value if isinstance(value, bytes) else value.encode())
    return found.hexdigest()


def trainings() -> dict[str, tuple[Callable, dict]]:
    """By name: what makes the callbacks, and the rows to train on."""
    random_rows = {"rows": digits(ROWS).with_transform(augmented)}
    one = {"batch_size": 1}

    def breaking(**options) -> list:
        rows = BreakingRows(41)
        return [Breaks(rows), VoGCallback(rows, **options)]

    return {
        "without": (list, random_rows),
        "replay": (lambda: [VoGCallback(scored_rows(), **one)], random_rows),
        "live": (lambda: [VoGCallback(scored_rows(), collect="live", **one)], random_rows),
        "live-logged": (
            lambda: [VoGCallback(scored_rows(), collect="live", top_k=3, **one)],
            {**random_rows, "report_to": "wandb"},
        ),
        "replay-splits": (lambda: [VoGCallback(splits())], random_rows),
        "live-splits": (lambda: [VoGCallback(splits(), collect="live")], random_rows),
        "replay-own-rows": (lambda: [VoGCallback()], {"rows": scored_rows()}),
        "live-own-rows": (lambda: [VoGCallback(collect="live")], {"rows": scored_rows()}),
        "replay-breaks": (breaking, random_rows),
        "live-breaks": (lambda: breaking(collect="live"), random_rows),
        "replay-other-rows": (lambda: [VoGCallback(other_rows())], random_rows),
        "live-other-rows": (lambda: [VoGCallback(other_rows(), collect="live")], random_rows),
        "breaks-at-once": (lambda: [VoGCallback(BreakingRows(1, at_once=True))], random_rows),
    }


def main(folder: Path, names: list[str]) -> None:
    """Every process leaves what it saw of each training, and the error it got instead of scores."""
    rank, n_processes = PartialState(cpu=True).process_index, PartialState().num_processes
    assert n_processes == 2
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(folder)}
    os.environ |= {f"WANDB_{name}_DIR": str(folder) for name in ("DATA", "CACHE", "CONFIG")}
    for name, (make, options) in trainings().items():
        if names and name not in names:
            continue
        callbacks, seen = make(), Digests()
        try:
            batch_size = {"per_device_train_batch_size": 8, "learning_rate": 1e-2}
            trainer = trained(folder / name, [*callbacks, seen], **options, **batch_size)
            assert trainer.accelerator.num_processes == n_processes
            assert trainer.state.global_step == 3 * 4
            error = None
            if name != "without":
                _ = callbacks[-1].scores
        except (VoGError, OSError) as raised:
            error = [type(raised).__name__, str(raised), type(raised.__cause__).__name__]
        if wandb.run is not None:
            wandb.finish()
        print(name, rank, error, flush=True)
        (folder / f"{name}-{rank}.json").write_text(json.dumps({"seen": seen.seen, "error": error}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    wandb.teardown()
    leave_together()
