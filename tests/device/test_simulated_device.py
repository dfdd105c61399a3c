"""Everything that a GPU would run, on a simulated device: the values of the CPU, no mixed devices, few waits.

A device cannot be removed from a process again, so the cases run in processes of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_device

FOLDER = Path(__file__).parent
FIGURES = {  # of benchmarks that run on an accelerator
    "epoch": 4,
    "loop": 3,
    "others": 4,
    "live": 2,
    "callback": 2,
    "observed": 12,
    "growth": 3,
    "companions": 1,
    "targets": 4,
    "gpu": 8,
}
pytestmark = pytest.mark.skipif(not simulated_device.is_supported(), reason=simulated_device.REASON)


def run(*command, folder=None, **variables):
    """The standard output of a Python program that must end well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "PYTEST"))}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def cases_pass(file, *options):
    """Run the cases of a file of this folder, which must all pass."""
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options, FOLDER / file)


def test_scores_on_a_device_are_those_on_the_cpu():
    """Images with folded BatchNorms, two targets, companions and heat maps, with the waits that they may have."""
    cases_pass("scoring_cases.py")


@pytest.mark.slow
def test_blocks_texts_live_scoring_and_lack_of_memory_are_the_same_on_a_device():
    """Everything else that scoring does on a device, of images and texts."""
    cases_pass("scoring_cases.py", "-m", "slow", "-k", "not every_kind")


@pytest.mark.slow
def test_every_kind_of_model_is_scored_on_a_device_as_on_the_cpu():
    """Images, texts, audio, adapters, encoder-decoders: no tensor is left on another device."""
    cases_pass("scoring_cases.py", "-m", "slow", "-k", "every_kind")


@pytest.mark.slow
def test_a_training_on_a_device_is_scored_and_not_disturbed():
    """The callback of a Trainer whose model is on the device."""
    cases_pass("trainer_cases.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_the_benchmarks_run_on_a_device(name, tmp_path):
    """``--device cuda`` measures on the accelerator of torch, whatever its name, and gives every figure."""
    path = os.pathsep.join(filter(None, [str(FOLDER.parent / "support"), os.environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": path, "ACCELERATE_TORCH_DEVICE": simulated_device.DEVICE}
    small = ("--scale", "0.002", "--pairs", "1", "--threads", "1")
    command = (FOLDER / "measure_on_device.py", "--device", "cuda", *small, "--only", name)
    printed = run(*command, folder=tmp_path, **variables)
    written = json.loads((tmp_path / "bench-results.json").read_text())
    assert written["options"]["device"].startswith(simulated_device.NAME)
    assert [figure["benchmark"] for figure in written["figures"]] == [name] * FIGURES[name]
    table = [line for line in printed.splitlines() if line.startswith("|")]  # DeepSpeed prints a line of its own
    assert len(table) == 2 + FIGURES[name]
