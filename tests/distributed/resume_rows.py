"""Program: a training that is observed by `collect="training"`: whole, cut within its second epoch, or resumed."""

import sys
from pathlib import Path

import torch
from collect_rows import EVEN, GLOBAL_BATCH, MeanLoss
from collected import case_of, noted_training
from leaving import leave_together
from trainers import AtStep
from trainings import PowerCutError, cut

from vog_hf import VoGCallback

SAVED, CUT = 4, 5  # steps; an epoch has three


def main(folder: Path, how: str) -> None:
    """Train on all processes."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    vog = VoGCallback(collect="training", log=False)
    callbacks = [vog, AtStep(CUT, cut)] if how == "cut" else [vog]
    try:
        noted_training(
            folder,
            case_of("bert", EVEN),
            callbacks,
            trainer_class=MeanLoss,
            per_device_train_batch_size=GLOBAL_BATCH // world,
            num_train_epochs=3,
            save_strategy="steps",
            save_steps=SAVED,
            max_grad_norm=0.0,
            resume=str(folder / f"checkpoint-{SAVED}") if how == "resumed" else None,
        )
        assert how != "cut"
        print(vog.scores, flush=True)
    except PowerCutError:
        assert how == "cut"


if __name__ == "__main__":
    from accelerate import PartialState

    PartialState(cpu=True)
    main(Path(sys.argv[1]), sys.argv[2])
    leave_together()
