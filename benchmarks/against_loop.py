"""(b) The scorer against a bare loop of forward and autograd.grad over batches already in memory."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import Figure, Options, Target, compared, in_turns, timed
from ways import bare_loop, batches_in_memory, score
from workloads import BATCH, State, Workload, perturbed_states, small_resnet, stored, vit_tiny

TARGET = Target(at_most=1.10)


def measure(options: Options) -> list[Figure]:
    """Compare with the same forward pass (folded for the ResNet) and with the unfolded one."""
    return [
        *compare(small_resnet(options.rows(2_000)), 5, options, folded=True),
        *compare(vit_tiny(options.rows(256)), 3, options, folded=False),
    ]


def compare(workload: Workload, n_snapshots: int, options: Options, *, folded: bool) -> list[Figure]:
    """The figures of one model."""
    workload = workload.to(options.device)
    states = perturbed_states(workload.model, n_snapshots)
    with TemporaryDirectory() as folder:
        snapshots = stored(states, Path(folder))
        in_turns(sides(workload.head(BATCH), states, snapshots, folded=folded), 1)  # warm-up
        seconds = in_turns(sides(workload, states, snapshots, folded=folded), options.pairs)
    what = f"{workload}, {n_snapshots} snapshots"
    if not folded:
        return [compared("loop", what, seconds, ("scorer", "plain loop"), target=TARGET)]
    return [
        compared("loop", what, seconds, ("scorer", "folded loop"), target=TARGET),
        compared("loop", what, seconds, ("scorer", "plain loop")),
    ]


def sides(
    workload: Workload, states: list[State], snapshots: list[Path], *, folded: bool
) -> dict[str, Callable[[], float]]:
    """Functions that measure the seconds of the scorer and of the loops, which have batches and states in memory."""
    loop = partial(bare_loop, workload.model, batches_in_memory(workload), states)
    loops = {"folded loop": partial(loop, folded=True)} if folded else {}
    ways = {"scorer": partial(score, workload, snapshots), **loops, "plain loop": loop}
    return {name: partial(timed, way) for name, way in ways.items()}
