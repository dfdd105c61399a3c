"""Program: trainings whose scoring is thinned by ``max_cost``, on two processes: what each of them scores."""

import json
import sys
from pathlib import Path

import models
import torch
from collect_rows import Sharded
from collected import Noting, case_of, noted_training
from leaving import leave_together

from vog_hf import VoGCallback, VoGScorer
from vog_hf.trainer import training_run

ROWS = 18
TRAININGS = {"whole": ("vit", Noting), "sharded": ("bert", Sharded)}


def measured_elsewhere(*_):
    """What the main process alone may ask for."""
    raise AssertionError("the cost is measured on the main process alone")


class Scored:
    """Notes the steps of the snapshots that this process is to score."""

    def __init__(self):
        self.steps = []
        self._score_rows = VoGScorer.score_rows

    def __call__(self, scorer, reader, snapshots, **options):
        self.steps += [snapshot.step for snapshot in snapshots.snapshots]
        return self._score_rows(scorer, reader, snapshots, **options)


def main(folder: Path) -> None:
    """Leave what each process scored."""
    rank = torch.distributed.get_rank()
    if rank:
        training_run.row_seconds = measured_elsewhere
    for name, (case_name, trainer_class) in TRAININGS.items():
        case, scored = case_of(case_name, ROWS), Scored()
        VoGScorer.score_rows = lambda *given, scored=scored, **options: scored(*given, **options)
        vog = VoGCallback(snapshots=1, max_cost=0.001, log=False, batch_size=4)
        noted_training(
            folder / name,
            case,
            [vog],
            trainer_class=trainer_class,
            per_device_train_batch_size=3,
            optim="adamw_torch",
            max_grad_norm=0.0,
            pieces={"data_collator": models.collate},
        )
        found = {"steps": scored.steps, "thinned": vog.scores.manifest["thinned"]}
        (folder / f"{name}-{rank}.json").write_text(json.dumps(found))
        VoGScorer.score_rows = scored._score_rows


if __name__ == "__main__":
    from accelerate import PartialState

    PartialState(cpu=True)
    main(Path(sys.argv[1]))
    leave_together()
