"""(c) The scorer against the methods of the reference code and of H-CAT, which give the same numbers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from measuring import Figure, Options, Target, compared, in_turns, timed
from ways import in_lists, one_by_one, score
from workloads import State, Workload, perturbed_states, small_resnet, stored, tiny_resnet

SNAPSHOTS = 10


def measure(options: Options) -> list[Figure]:
    """Ratios of the times of the other methods, also for a model with little computation per image."""
    return [
        *compare(small_resnet(options.rows(512)).to(options.device), options),
        *compare(tiny_resnet(options.rows(2_048)).to(options.device), options),
    ]


def compare(workload: Workload, options: Options) -> list[Figure]:
    """The figures of one model."""
    states = perturbed_states(workload.model, SNAPSHOTS)
    with TemporaryDirectory() as folder:
        snapshots = stored(states, Path(folder))
        check_equal(workload.head(32), states, snapshots)  # warm-up, too
        seconds = in_turns(sides(workload, states, snapshots), options.pairs)
    what = f"{workload}, {SNAPSHOTS} snapshots"
    return [
        compared("others", what, seconds, ("one by one", "scorer"), target=Target(at_least=10)),
        compared("others", what, seconds, ("lists", "scorer"), target=Target(at_least=2)),
    ]


def sides(workload: Workload, states: list[State], snapshots: list[Path]) -> dict[str, Callable[[], float]]:
    """Functions that measure the seconds of each method."""
    ways = {
        "scorer": partial(score, workload, snapshots),
        "lists": partial(in_lists, workload, states),
        "one by one": partial(one_by_one, workload, states),
    }
    return {name: partial(timed, way) for name, way in ways.items()}


def check_equal(workload: Workload, states: list[State], snapshots: list[Path]) -> None:
    """Raise if the methods do not give the same scores, which would make their times meaningless."""
    ours = score(workload, snapshots).column("vog")
    for theirs in (one_by_one(workload, states), in_lists(workload, states).cpu().numpy()):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3)
