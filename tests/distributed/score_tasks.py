"""Program: the rows of every task with a head of its own, scored into a folder for each."""

import sys
from pathlib import Path

import models
import torch
from accelerate import Accelerator
from detection_cases import DETECTION_CASES
from leaving import leave_together
from scorings import ROWS_PER_BLOCK
from task_cases import TASK_CASES
from unlabeled_cases import UNLABELED_CASES

from vog_hf import VoGConfig, VoGScorer

DETECTORS = ("object_detection/yolos", "object_detection/conditional_detr")  # a softmax, and a sigmoid of each class
CASES = TASK_CASES | UNLABELED_CASES | {name: DETECTION_CASES[name] for name in DETECTORS}
BATCH_SIZE = 7


def folder_name(task: str) -> str:
    """The folder of a task."""
    return task.replace("/", "-").replace(" ", "-")


def main(folder: Path, n_processes: int) -> None:
    """Score every target of every task in float64, in blocks of a few rows."""
    torch.set_num_threads(1)
    assert Accelerator().num_processes == n_processes
    for task, case in CASES.items():
        model, rows = case.model().double(), case.rows()
        states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, 2))]
        options = {"config": VoGConfig(target=case.targets), "batch_size": BATCH_SIZE, "progress": False}
        scorer = VoGScorer(model, **options)
        bytes_per_row = scorer.plan(scorer.reader(rows, collate_fn=case.collate_fn)).bytes_per_row
        scorer = VoGScorer(model, memory_budget=ROWS_PER_BLOCK * bytes_per_row, **options)
        scores = scorer.score(rows, states, collate_fn=case.collate_fn, output_dir=folder / folder_name(task))
        assert scores.manifest["n_processes"] == n_processes


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    leave_together()
