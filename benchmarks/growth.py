"""(g) Growth of the time with rows, snapshots and pixels per image: slopes on a log-log scale."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from measuring import Figure, Options, Seconds, Target, in_turns, timed
from ways import score
from workloads import BATCH, Workload, perturbed_states, small_resnet, stored

LINEAR = Target(at_least=0.95, at_most=1.05)
ROWS, SNAPSHOTS, SIDES = (1_000, 2_000, 4_000, 8_000), (4, 8, 16, 32), (16, 32, 64)
Case = tuple[Workload, list[Path]]


def measure(options: Options) -> list[Figure]:
    """Slopes of the whole time; 1 is linear growth."""
    rows = {n: small_resnet(options.rows(n)).to(options.device) for n in ROWS}
    with TemporaryDirectory() as folder:
        files = stored(perturbed_states(rows[ROWS[0]].model, max(SNAPSHOTS)), Path(folder))
        score(rows[ROWS[0]].head(BATCH), files[:2])  # warm-up
        by_rows = {len(workload.rows): (workload, files[:4]) for workload in rows.values()}
        by_snapshots = {n: (rows[1_000], files[:n]) for n in SNAPSHOTS}
        by_pixels = {
            side * side: (small_resnet(options.rows(500), side=side).to(options.device), files[:4]) for side in SIDES
        }
        return [
            slope("rows", by_rows, options, LINEAR),
            slope("snapshots", by_snapshots, options, LINEAR),
            slope("pixels", by_pixels, options),
        ]


def slope(what: str, cases: Mapping[int, Case], options: Options, target: Target | None = None) -> Figure:
    """The slope of each round, and the fixed cost from a straight line through the medians."""
    sides = {f"{n} {what}": partial(timed, partial(score, *case)) for n, case in cases.items()}
    seconds = in_turns(sides, options.pairs)
    sizes = np.array(list(cases), dtype=float)
    values = [float(np.polyfit(np.log(sizes), np.log(times), 1)[0]) for times in by_round(seconds)]
    per_unit, fixed = np.polyfit(sizes, np.median(by_round(seconds), axis=0), 1)
    heading = f"seconds over {', '.join(map(str, cases))} {what}"
    note = f"{fixed:.2f} s + {1000 * per_unit:.3g} ms each"
    return Figure("growth", heading, values, unit="slope", target=target, seconds=seconds, note=note)


def by_round(seconds: Seconds) -> np.ndarray:
    """``[rounds, sides]``."""
    return np.array(list(seconds.values())).T
