"""(a) One snapshot pass of the scorer against one epoch of Trainer: same model, rows and batch size."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import Figure, Options, Target, compared, in_turns, timed
from ways import score, train
from workloads import BATCH, Workload, bert_mini, perturbed_states, resnet18, small_resnet, stored, vit_tiny

SNAPSHOTS = 5
CASES: tuple[tuple[Callable[[int], Workload], int, float], ...] = (  # workload, number of rows, target
    (small_resnet, 2_000, 0.70),
    (resnet18, 384, 0.70),
    (vit_tiny, 384, 0.55),
    (bert_mini, 512, 0.55),
)


def measure(options: Options) -> list[Figure]:
    """Compare the whole time of scoring, divided by the number of snapshots, with the steps of an epoch."""
    figures = []
    for make, n_rows, at_most in CASES:
        workload = make(options.rows(n_rows)).to(options.device)
        with TemporaryDirectory() as folder:
            snapshots = stored(perturbed_states(workload.model, SNAPSHOTS), Path(folder))
            in_turns(sides(workload.head(BATCH), snapshots, options), 1)  # warm-up
            seconds = in_turns(sides(workload, snapshots, options), options.pairs)
        figures.append(compared("epoch", str(workload), seconds, ("pass", "epoch"), target=Target(at_most=at_most)))
    return figures


def sides(workload: Workload, snapshots: list[Path], options: Options) -> dict[str, Callable[[], float]]:
    """Functions that measure the seconds of a pass and of an epoch."""

    def one_pass() -> float:
        return timed(partial(score, workload, snapshots)) / len(snapshots)

    def one_epoch() -> float:
        clock, _ = train(workload, device=options.device)
        return clock.ended - clock.begun

    return {"pass": one_pass, "epoch": one_epoch}
