"""(f) Two processes against one process, each with one thread; only the scoring is timed, not the start.

Run as a program under torchrun, this is one of these processes.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import PartialState
from measuring import Figure, Options, Target, compared, in_turns, timed
from ways import score
from workloads import BATCH, perturbed_states, small_resnet, stored

SNAPSHOTS = 5
LIMIT = 600  # seconds


def measure(options: Options) -> list[Figure]:
    """Measure the ratio of the times of one and two processes."""
    n_rows = options.rows(2_000)
    with TemporaryDirectory() as folder:
        workload = small_resnet(n_rows)
        stored(perturbed_states(workload.model, SNAPSHOTS), Path(folder))
        sides = {
            "one process": partial(launch, 1, n_rows, folder),
            "two processes": partial(launch, 2, n_rows, folder),
        }
        seconds = in_turns(sides, options.pairs)  # each launch warms itself up
    what = f"{workload}, {SNAPSHOTS} snapshots, one thread each"
    return [compared("processes", what, seconds, ("one process", "two processes"), target=Target(at_least=1.8))]


def launch(processes: int, n_rows: int, folder: str) -> float:
    """Seconds of scoring on a number of processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*command, __file__, str(n_rows), folder],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    measured = json.loads(ended.stdout.splitlines()[-1])
    if measured["processes"] != processes:
        raise RuntimeError(f"expected {processes} processes, torchrun gave {measured['processes']}")
    return measured["seconds"]


def score_in_step(n_rows: int, folder: Path) -> None:
    """Score on all processes; the main process prints the time between two barriers."""
    torch.set_num_threads(1)
    processes = PartialState(cpu=True)
    workload, snapshots = small_resnet(n_rows), sorted(folder.glob("*.safetensors"))
    score(workload.head(BATCH), snapshots)  # warm-up

    def scoring() -> None:
        score(workload, snapshots)
        processes.wait_for_everyone()

    processes.wait_for_everyone()
    seconds = timed(scoring)
    if processes.is_main_process:
        print(json.dumps({"seconds": seconds, "processes": processes.num_processes}), flush=True)
    processes.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_rows", type=int)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    score_in_step(given.n_rows, given.folder)
