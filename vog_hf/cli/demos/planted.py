"""A demo with known faults: train on them with one added line, score, and say which columns find them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn
from transformers import BertConfig, Trainer, TrainingArguments, set_seed

from vog_hf.cli.demos.offline import offline_wandb
from vog_hf.config import VoGConfig
from vog_hf.evaluation import detection_table
from vog_hf.metric.row_units import RowUnits
from vog_hf.metric.unit_kinds import BOX_COLUMNS, LABEL, POSITION, PREDICTION, UNIT_KINDS, unit_column
from vog_hf.report import write_report
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.trainer.callback import VoGCallback

Rows = Mapping[str, list[Any]]  # columns of some rows
Row = dict[str, Any]  # a row, or a batch
PLACES = (*BOX_COLUMNS, *(f"predicted_{name}" for name in BOX_COLUMNS))  # of boxes
OF_UNITS = [unit_column(name, kind) for kind in UNIT_KINDS for name in (LABEL, POSITION, PREDICTION, *PLACES)]
NOT_RANKINGS = {"row", LABEL, PREDICTION, *OF_UNITS}


@dataclass(frozen=True, kw_only=True)
class PlantedTask:
    """A small training whose faults are known.

    Attributes:
        title: What is trained on what, in words.
        faults: What is faulty, in words: ``"words with a wrong tag"``.
        rows: Rows as they are shown.
        is_faulty: ``[rows]``, or ``[units]`` of all rows, one after another, where ``of_units``.
        transform: From rows to the model's inputs and labels, one list each.
        collate_fn: Collator of transformed rows; None: Trainer's own.
        make_model: Makes the model, freshly initialized.
        n_epochs: Epochs of the training.
        learning_rate: Its learning rate.
        of_units: Whether parts of rows are faulty, not rows.
    """

    title: str
    faults: str
    rows: Dataset
    is_faulty: npt.NDArray[np.bool_]
    transform: Callable[[Rows], Row]
    collate_fn: Callable[[list[Row]], Row] | None
    make_model: Callable[[], nn.Module]
    n_epochs: int
    learning_rate: float
    of_units: bool = False


def run_planted(task: PlantedTask, output: Path, *, seed: int = 0, console: Console | None = None) -> VoGScores:
    """Train on faulty rows, score all of them, print which columns find the faults, write everything to ``output``.

    Returns:
        The scores. ``output`` holds ``report.html``, the scored dataset (``scored`` for ``load_from_disk``), the
        offline W&B run and the trainer's folder.

    Raises:
        NotScoredError: Scoring failed (the cause is chained).
    """
    console = console or Console()
    output.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    args = TrainingArguments(
        output_dir=str(output / "trainer"),
        num_train_epochs=task.n_epochs,
        per_device_train_batch_size=16,
        learning_rate=task.learning_rate,
        save_strategy="no",
        logging_steps=50,
        report_to="wandb",
        run_name="vog-hf-demo",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),  # elsewhere it causes a warning
        seed=seed,
        disable_tqdm=not console.is_terminal,
    )
    n_faulty = int(task.is_faulty.sum())
    console.print(f"{task.title}; {n_faulty:,} {task.faults} among {len(task.is_faulty):,}")
    with offline_wandb(output):
        callback = VoGCallback(config=VoGConfig(target=("logit", "loss")))  # the only added line
        Trainer(
            task.make_model(),
            args,
            train_dataset=task.rows.with_transform(task.transform),
            data_collator=task.collate_fn,
            callbacks=[callback],
        ).train()
    scores = callback.scores
    if not isinstance(scores, VoGScores):  # a DatasetDict would give one per split
        raise TypeError(f"expected the scores of one dataset, got {type(scores).__name__}")
    callback.scored_dataset("all").save_to_disk(str(output / "scored"))
    write_report(scores, task.rows, output / "report.html")
    console.print(fault_table(scores, task))
    console.print(f"Everything is in [bold]{escape(str(output))}[/bold]: report.html, scored/, wandb/, trainer/")
    return scores


def small_bert(n_words: int, id2label: dict[int, str] | None = None) -> BertConfig:
    """A BERT of two layers, for texts of up to 64 words; 0 is padding."""
    return BertConfig(
        vocab_size=n_words + 1,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        id2label=id2label,
    )


def fault_table(scores: VoGScores, task: PlantedTask) -> Table:
    """Each column of the scores with the share of the faults that it finds, the best one first."""
    columns = _rankings(scores.units if task.of_units else None, scores)
    n_faulty = int(task.is_faulty.sum())
    found = detection_table(columns, task.is_faulty, ks=[n_faulty]).sort_values("auroc", ascending=False)
    table = Table(title=f"Which column finds the {task.faults}")
    for heading in ("column", "faults have", "AUROC", f"found among the first {n_faulty:,}"):
        table.add_column(heading, justify="left" if heading == "column" else "right")
    for line in found.to_dict("records"):
        ends = {"high": "high values", "low": "low values"}
        end = "" if line["column"] == "random" else ends[line["direction"]]
        table.add_row(line["column"], end, f"{line['auroc']:.2f}", f"{line[f'recall_at_{n_faulty}']:.0%}")
    return table


def _rankings(units: RowUnits | None, scores: VoGScores) -> dict[str, npt.NDArray[np.float64]]:
    """The columns that rank rows, or units."""
    columns = {name: scores.column(name) for name in scores.column_names} if units is None else units.columns
    values = {name: np.asarray(value, dtype=float) for name, value in columns.items() if name not in NOT_RANKINGS}
    return {name: value for name, value in values.items() if np.isfinite(value).all() and np.ptp(value) > 0}
