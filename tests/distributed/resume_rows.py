"""Program: a training that is observed by `collect="training"`: whole, cut within its second epoch, or resumed.

A third argument is the stage of DeepSpeed ZeRO.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from collect_rows import EVEN, GLOBAL_BATCH, MeanLoss, Zero
from collected import case_of, noted_training
from leaving import leave_together
from trainers import AtStep
from trainings import PowerCutError, cut
from zero_on_gloo import configure_state, trainer_options

from vog_hf import VoGCallback

SAVED, CUT = 4, 5  # steps; an epoch has three
PLAIN = {"trainer_class": MeanLoss, "max_grad_norm": 0.0}


def main(folder: Path, how: str, options: dict[str, Any]) -> None:
    """Train on all processes."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    vog = VoGCallback(collect="training", log=False)
    callbacks = [vog, AtStep(CUT, cut)] if how == "cut" else [vog]
    try:
        noted_training(
            folder,
            case_of("bert", EVEN),
            callbacks,
            per_device_train_batch_size=GLOBAL_BATCH // world,
            num_train_epochs=3,
            save_strategy="steps",
            save_steps=SAVED,
            resume=str(folder / f"checkpoint-{SAVED}") if how == "resumed" else None,
            **options,
        )
        assert how != "cut"
        print(vog.scores, flush=True)
    except PowerCutError:
        assert how == "cut"


if __name__ == "__main__":
    from accelerate import PartialState

    if sys.argv[3:]:
        configure_state()
        main(Path(sys.argv[1]), sys.argv[2], {"trainer_class": Zero, **trainer_options(int(sys.argv[3]))})
    else:
        PartialState(cpu=True)
        main(Path(sys.argv[1]), sys.argv[2], PLAIN)
    leave_together()
