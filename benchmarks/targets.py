"""(i) Scoring two targets against one, and against two without the Cumulative Sample Gradient, in CPU time."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import Figure, Options, Target, compared, in_turns, synchronize
from ways import score
from workloads import BATCH, Workload, bert_mini, perturbed_states, small_resnet, stored

from vog_hf import VoGConfig

SNAPSHOTS = 5
BOTH = ("logit", "loss")


class WithoutCsg(VoGConfig):
    """A configuration of two targets that leaves the column csg out."""

    @property
    def loss_target(self) -> int | None:
        """No target has one."""
        return None


def measure(options: Options) -> list[Figure]:
    """Compare logit and loss with logit alone, with and without csg."""
    workloads = (small_resnet(options.rows(1_000)), bert_mini(options.rows(512)))
    return [figure for workload in workloads for figure in _measured(workload.to(options.device), options)]


def _measured(workload: Workload, options: Options) -> list[Figure]:
    configs = {"two targets": VoGConfig(target=BOTH), "without csg": WithoutCsg(target=BOTH), "one target": VoGConfig()}
    with TemporaryDirectory() as folder:
        snapshots = stored(perturbed_states(workload.model, SNAPSHOTS), Path(folder))
        score(workload.head(BATCH), snapshots, config=configs["two targets"])  # warm-up
        sides = {
            side: partial(cpu_time, partial(score, workload, snapshots, config=config))
            for side, config in configs.items()
        }
        seconds = in_turns(sides, options.pairs)
    what = f"{workload}, {SNAPSHOTS} snapshots, CPU time"
    return [
        compared("targets", what, seconds, ("two targets", "one target")),
        compared("targets", what, seconds, ("two targets", "without csg"), target=Target(at_most=1.05)),
    ]


def cpu_time(work: Callable[[], object]) -> float:
    """Seconds of CPU that this process spends on the work, which other programs lengthen less than its time."""
    synchronize()
    began = time.process_time()
    work()
    synchronize()
    return time.process_time() - began
