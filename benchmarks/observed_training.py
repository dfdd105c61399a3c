"""(l) An epoch of training whose passes are observed (collect="training") against one that is not, in CPU time."""

import time
from functools import partial
from typing import Any

from measuring import Figure, Options, Target, compared, in_turns
from transformers import TrainerCallback
from ways import train
from workloads import BATCH, Workload, bert_mini, llama_lora, small_resnet, vit_tiny

from vog_hf import VoGCallback

OBSERVED = "observed"
SIDES = (OBSERVED, "not")
WORKLOADS = ((small_resnet, 2_000), (vit_tiny, 384), (bert_mini, 512), (llama_lora, 512))


def measure(options: Options) -> list[Figure]:
    """Compare an epoch of each model."""
    return [compare(make(options.rows(n_rows)), options) for make, n_rows in WORKLOADS]


def compare(workload: Workload, options: Options) -> Figure:
    """The figure for one model."""
    workload = workload.to(options.device)
    of_head = {side: partial(epoch_seconds, workload.head(BATCH), options, observed=side == OBSERVED) for side in SIDES}
    in_turns(of_head, 1)  # warm-up
    sides = {side: partial(epoch_seconds, workload, options, observed=side == OBSERVED) for side in SIDES}
    seconds = in_turns(sides, options.pairs)
    what = f"{workload}, an epoch, CPU time"
    return compared("observed", what, seconds, SIDES, target=Target(at_most=1.03))


def epoch_seconds(workload: Workload, options: Options, *, observed: bool) -> float:
    """CPU seconds of all threads for the steps of an epoch, with what the callback does in it and at its end."""
    clock = EpochClock()
    added = [VoGCallback(collect="training", log=False)] if observed else []
    train(workload, callbacks=[*added, clock], device=options.device)
    if observed:
        len(added[0].scores)  # raises what went wrong
    return clock.seconds


class EpochClock(TrainerCallback):
    """Measures the CPU time of an epoch; placed behind other callbacks, so that their work in it counts."""

    seconds = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._begun = time.process_time()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds = time.process_time() - self._begun
