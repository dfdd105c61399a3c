"""(i) Peak memory of each method, in a separate process.

Run as a program, this is one of these processes: it prints its memory before the work and its peak, in bytes.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measuring import Figure, Options, Target
from ways import bare_loop, batches_in_memory, in_lists, one_by_one, score, score_live, train
from workloads import SIDE, State, Workload, perturbed_states, small_resnet, stored

from vog_hf import VoGCallback

ROWS, SNAPSHOTS = 2_000, 10
SMALL_BUDGET = 16 * 2**20
MIB = 2**20
CIFAR_ROWS = 50_000

ONLY_TRAINED, OBSERVED = "training, two epochs", 'training, two epochs with collect="training"'

Way = Callable[[Workload, list[State]], object]


def score_stored(workload: Workload, states: list[State], *, memory_budget: int | None = None) -> None:
    """`score` with states stored on disk."""
    with TemporaryDirectory() as folder:
        score(workload, stored(states, Path(folder)), memory_budget=memory_budget)


WAYS: dict[str, Way] = {
    "training, an epoch": lambda workload, _: train(workload),
    "training, two epochs with the callback": lambda workload, _: train(
        workload, epochs=2, callbacks=[VoGCallback(snapshots="epoch", log=False)]
    ),
    ONLY_TRAINED: lambda workload, _: train(workload, epochs=2),
    OBSERVED: lambda workload, _: train(workload, epochs=2, callbacks=[VoGCallback(collect="training", log=False)]),
    "scorer (replay)": score_stored,
    "scorer (replay), memory_budget=16 MiB": partial(score_stored, memory_budget=SMALL_BUDGET),
    "scorer (live)": score_live,
    "bare loop": lambda workload, states: bare_loop(workload.model, batches_in_memory(workload), states),
    "lists (H-CAT)": in_lists,
    "one by one (reference)": one_by_one,
}


def measure(options: Options) -> list[Figure]:
    """Measure the peaks, and compute the bytes of gradients in lists."""
    n_rows = options.rows(ROWS)
    figures, peaks = [], {}
    for way in WAYS:
        print(f"  {way}", file=sys.stderr, flush=True)
        before, peaks[way] = in_own_process(way, options)
        peak = peaks[way]
        what = f"{way}, {n_rows:,} rows, {SNAPSHOTS} snapshots"
        note = f"{(peak - before) / MIB:,.0f} MiB more than before"
        figures.append(Figure("memory", what, [peak / MIB], unit="MiB", note=note))
    what = f'training, two epochs, {n_rows:,} rows: with collect="training" / without'
    ratio = Figure("memory", what, [peaks[OBSERVED] / peaks[ONLY_TRAINED]], target=Target(at_most=1.05))
    return [*figures, ratio, *held_in_lists(n_rows), *held_in_lists(CIFAR_ROWS)]


def held_in_lists(n_rows: int) -> list[Figure]:
    """Rows x snapshots x elements x 4 bytes, computed."""
    held = n_rows * SNAPSHOTS * 3 * SIDE * SIDE * 4
    what = f"gradients in lists, {n_rows:,} rows, {SNAPSHOTS} snapshots"
    return [Figure("memory", what, [held / MIB], unit="MiB", note="computed; the scorer holds one block")]


def in_own_process(way: str, options: Options) -> tuple[int, int]:
    """Memory before the work and peak memory, in bytes."""
    ended = subprocess.run(
        [sys.executable, __file__, way, json.dumps(asdict(options))], stdout=subprocess.PIPE, text=True, check=True
    )
    before, peak = json.loads(ended.stdout.splitlines()[-1])
    return before, peak


def peak_bytes() -> int:
    """Peak memory of this process in bytes.

    Not from `getrusage` on Linux: there a process inherits the peak of its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def work(way: str, options: Options) -> None:
    """Run one method with model and rows in memory."""
    torch.set_num_threads(options.threads)
    workload = small_resnet(options.rows(ROWS))
    states = perturbed_states(workload.model, SNAPSHOTS)
    before = peak_bytes()
    WAYS[way](workload, states)
    print(json.dumps([before, peak_bytes()]), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("options", type=json.loads)
    given = parser.parse_args()
    work(given.way, Options(**given.options))
