"""The batch script for several machines, with stand-ins for Slurm's two commands, which are not to be had here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes" / "slurm" / "multi_node.sbatch"

# srun starts the command once per machine, here all on this one, each with its own SLURM_NODEID.
SRUN = """#!/usr/bin/env bash
set -u
while [[ "$1" == --* ]]; do shift; done
pids=()
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames $SLURM_JOB_NODELIST" ] && echo 127.0.0.1 && echo 127.0.0.2
"""
ACCELERATE = """#!/usr/bin/env bash
printf '%s\\n' "$SLURM_NODEID|$*" >> "$SAID"
"""
PROGRAM = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
accelerator = Accelerator()
seen = accelerator.gather(torch.tensor([accelerator.process_index], device=accelerator.device)).tolist()
Path(sys.argv[1], f"rank-{accelerator.process_index}").write_text(f"{accelerator.num_processes} {seen}")
accelerator.end_training()  # leaves the group: a process that ends in it may abort
"""


@pytest.fixture
def batch(tmp_path):
    """Runs the script as Slurm would, as job 7 on two machines; other programs may be put before the real ones."""

    def run(*arguments, programs=None, **variables):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **(programs or {})}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", str(SCRIPT), *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **slurm, "PATH": path, **variables},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


def test_each_machine_launches_with_its_own_rank(batch, tmp_path):
    """Both machines get the same number of processes, address and arguments, spaces included, and different ranks."""
    said = tmp_path / "said"
    done = batch("recipes/x.py", "--train_split", "train[:1 0%]", programs={"accelerate": ACCELERATE}, SAID=str(said))
    assert done.returncode == 0, done.stderr
    lines = sorted(said.read_text().splitlines())
    expected = (
        "{rank}|launch --config_file recipes/accelerate_configs/multi_node.yaml --num_machines 2 --num_processes 16 "
        "--machine_rank {rank} --main_process_ip 127.0.0.1 --main_process_port 20007 recipes/x.py "
        "--train_split train[:1 0%]"
    )
    assert lines == [expected.format(rank=rank) for rank in (0, 1)]


def test_without_a_recipe_it_says_so(batch):
    """An empty command line ends with what is missing."""
    done = batch()
    assert done.returncode == 2
    assert "name the recipe and its arguments" in done.stderr


def test_a_machine_that_fails_fails_the_job(batch):
    """The exit code of the launcher is that of the job."""
    failing = '#!/usr/bin/env bash\n[ "$SLURM_NODEID" = 0 ]\n'
    assert batch("recipes/x.py", programs={"accelerate": failing}).returncode == 1


@pytest.mark.slow
def test_two_launchers_make_one_group(batch, tmp_path):
    """With the real launcher, two machines of one process each meet and count each other (on CPUs)."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = batch(program, tmp_path, GPUS_PER_NODE="1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["2 [0, 1]", "2 [0, 1]"]
