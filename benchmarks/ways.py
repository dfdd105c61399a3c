"""Methods that give the same scores, and their baselines: functions of a workload and its states."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from workloads import BATCH, State, Workload

from vog_hf import VoGConfig, VoGScorer, VoGScores
from vog_hf.gradients.batchnorm_folding import Folding
from vog_hf.gradients.foldable_modules import find_folding
from vog_hf.gradients.targets import find_logits


def score(
    workload: Workload,
    snapshots: Sequence[Path],
    *,
    batch_size: int = BATCH,
    config: VoGConfig | None = None,
    memory_budget: int | None = None,
) -> VoGScores:
    """Score with `VoGScorer` from stored snapshots."""
    scorer = VoGScorer(
        workload.model, config=config, batch_size=batch_size, memory_budget=memory_budget, progress=False
    )
    return scorer.score(workload.rows, snapshots, collate_fn=workload.collate_fn)


def score_live(workload: Workload, states: Sequence[State]) -> VoGScores:
    """Score with live moments while the model changes its state."""
    scorer = VoGScorer(workload.model, batch_size=BATCH, progress=False)
    reader = scorer.reader(workload.rows, collate_fn=workload.collate_fn)
    live = scorer.live(reader, scorer.plan(reader), len(states))
    for number, state in enumerate(states):
        workload.model.load_state_dict(state)
        live.update(f"step-{number}", number)
    return live.finish()


class Clock(TrainerCallback):
    """A callback that records when training begins and ends."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()


class LastClock(Clock):
    """A separate class, because Trainer warns about two callbacks of the same class."""


def train(
    workload: Workload, *, epochs: int = 1, callbacks: Sequence[TrainerCallback] = (), device: str = "cpu"
) -> tuple[Clock, Clock]:
    """Train a copy of the model, steps only; returns the clocks before and after the callbacks."""
    before, behind = Clock(), LastClock()
    with TemporaryDirectory(prefix="vog-bench-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.startswith("cuda"),
            use_cpu=device == "cpu",
        )
        trainer = Trainer(
            copy.deepcopy(workload.model),
            arguments,
            train_dataset=workload.rows,
            data_collator=workload.collate_fn,
            callbacks=[before, *callbacks, behind],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return before, behind


def batches_in_memory(workload: Workload, batch_size: int = BATCH) -> list[dict[str, Tensor]]:
    """Collated batches of all rows of images on the model's device."""
    parameter = next(workload.model.parameters())
    batches = [workload.collate_fn(rows) for rows in in_batches(workload.rows, batch_size)]
    return [
        {"pixel_values": batch["pixel_values"].to(parameter), "labels": batch["labels"].to(parameter.device)}
        for batch in batches
    ]


def in_batches(rows: Sequence[Any], batch_size: int) -> Iterator[Sequence[Any]]:
    """Batches of rows."""
    return (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))


def bare_loop(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], states: Sequence[State], *, folded: bool = False
) -> None:
    """Run only the forward pass and `torch.autograd.grad` for every batch and state; the gradients are discarded."""
    model.eval()
    watched = batches[0]["pixel_values"][:1].clone().requires_grad_()
    folding = replace(find_folding(model, lambda: model(watched)), channels_last=True) if folded else Folding()
    with folding.installed() as folded_modules:
        for state in states:
            model.load_state_dict(state)
            folded_modules.refresh()
            for batch in batches:
                input_gradient(model, folding.to_memory_format(batch["pixel_values"]), batch["labels"])


def input_gradient(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each row's logit of its label."""
    device = next(model.parameters()).device
    pixels = pixels.to(device).detach().requires_grad_()
    logits = find_logits(model(pixels))
    (gradient,) = torch.autograd.grad(logits.gather(1, labels.to(device)[:, None]).sum(), pixels)
    return gradient


def one_by_one(workload: Workload, states: Sequence[State]) -> npt.NDArray[np.floating]:
    """The method of the reference code: one image at a time, storing all gradients, then numpy over the snapshots."""
    model = workload.model.eval()
    kept: list[list[np.ndarray]] = []
    for state in states:
        model.load_state_dict(state)
        gradients = []
        for row in workload.rows:
            pixels, labels = row["pixel_values"][None], torch.tensor([row["labels"]])
            gradients.append(input_gradient(model, pixels, labels)[0].mean(0).cpu().numpy())
        kept.append(gradients)
    return np.array(kept).std(0).mean((1, 2))


def in_lists(workload: Workload, states: Sequence[State], *, batch_size: int = BATCH) -> Tensor:
    """The method of H-CAT, from its description: a list of gradients per row, in memory until the last snapshot.

    The channels are averaged at the end, so that the results match the other methods.
    """
    model = workload.model.eval()
    kept: list[list[Tensor]] = [[] for _ in workload.rows]
    for state in states:
        model.load_state_dict(state)
        row = 0
        for batch in DataLoader(workload.rows, batch_size, collate_fn=workload.collate_fn):
            for gradient in input_gradient(model, batch["pixel_values"], batch["labels"]):
                kept[row].append(gradient)
                row += 1
    scores = []
    for gradients in kept:
        stacked = torch.stack(gradients).mean(1)
        deviation = ((stacked - stacked.mean(0)) ** 2).mean(0).sqrt()
        scores.append(deviation.mean())
    return torch.stack(scores)
