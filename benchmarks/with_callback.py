"""(e) Training with VoGCallback (replay, a snapshot every epoch) against training without; scoring is not counted."""

import statistics

from measuring import Figure, Options, Seconds, Target, compared, in_turns
from ways import train
from workloads import BATCH, Workload, small_resnet

from vog_hf import VoGCallback

EPOCHS = 5


def measure(options: Options) -> list[Figure]:
    """Compare the steps alone, and the steps with the checks before the first one."""
    workload = small_resnet(options.rows(2_000)).to(options.device)
    run(workload.head(BATCH), options, 1)  # warm-up
    steps, checks = run(workload, options, options.pairs)
    whole = {**steps, "with": [a + b for a, b in zip(steps["with"], checks, strict=True)]}
    what = f"{workload}, {EPOCHS} epochs"
    before = f"{statistics.median(checks):.2f} s before the first step"
    return [
        compared("callback", what, steps, ("with", "without"), target=Target(at_most=1.02)),
        compared("callback", f"{what}, and the checks before them", whole, ("with", "without"), note=before),
    ]


def run(workload: Workload, options: Options, rounds: int) -> tuple[Seconds, list[float]]:
    """Seconds of the steps with and without the callback, and of its checks before the first step."""
    checks: list[float] = []

    def steps(*, callbacks: bool) -> float:
        added = [VoGCallback(snapshots="epoch", log=False)] if callbacks else []
        before, behind = train(workload, epochs=EPOCHS, callbacks=added, device=options.device)
        if callbacks:
            checks.append(behind.begun - before.begun)
            len(added[0].scores)  # raises what went wrong
        return before.ended - behind.begun

    seconds = in_turns({"with": lambda: steps(callbacks=True), "without": lambda: steps(callbacks=False)}, rounds)
    return seconds, checks
