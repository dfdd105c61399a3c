"""The length of a training, as the Trainer's arguments and state have it: steps, rows and checkpoints."""

import math
from typing import Any

from transformers import TrainerState, TrainingArguments


def checkpoints_kept(args: TrainingArguments, state: TrainerState) -> int:
    """Maximum number of checkpoints on disk at a time (one more while the oldest still exists)."""
    if args.save_strategy == "no":
        return 0
    saves = -(-state.max_steps // max(int(state.save_steps or args.save_steps), 1))
    if args.save_strategy == "epoch":
        saves = math.ceil(args.num_train_epochs)
    return min(saves, (args.save_total_limit or saves) + 1)


def steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int | None:
    """Number of optimizer steps in an epoch; None for training data without a length."""
    try:
        batches = len(train_dataloader)
    except TypeError:
        return None
    return max(-(-batches // args.gradient_accumulation_steps), 1)


def trained_rows(args: TrainingArguments, state: TrainerState) -> int:
    """Number of rows in all training steps of all processes, if each batch is a full one."""
    rows_per_pass = (state.train_batch_size or args.train_batch_size) * args.world_size
    return state.max_steps * args.gradient_accumulation_steps * rows_per_pass
