"""The benchmarks, very small, through their real command line: they run and write what they measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
FIGURES = {
    "epoch": 4,
    "loop": 3,
    "others": 4,
    "live": 2,
    "callback": 2,
    "observed": 12,
    "growth": 3,
    "companions": 1,
    "targets": 4,
}
SLOW_FIGURES = {"processes": 1, "memory": 13}
QUICK = ("loop", "others", "live", "callback", "growth", "companions", "targets")


def start(folder, *arguments):
    """The program, once it has ended."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = [sys.executable, str(PROGRAM), "--scale", "0.002", "--threads", "1", *arguments]
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


def run(folder, *arguments):
    """The program's standard output and the JSON that it wrote."""
    ended = start(folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, json.loads((folder / "bench-results.json").read_text())


def check(folder, figures, *, pairs):
    """Every benchmark gives its figures, each with its rounds and seconds, and its line in the table."""
    printed, written = run(folder, "--only", *figures, "--pairs", str(pairs))
    names = [figure["benchmark"] for figure in written["figures"]]
    assert {name: names.count(name) for name in names} == figures
    assert written["options"] == {"pairs": pairs, "scale": 0.002, "threads": 1, "device": "cpu"}
    assert {"torch", "transformers", "python"} <= written["versions"].keys()
    assert written["machine"]["cores"] == os.cpu_count()
    lines = [line for line in printed.splitlines() if line.startswith("|")]  # DeepSpeed prints a line of its own
    assert len(lines) == 2 + len(names)
    for line, figure in zip(lines[2:], written["figures"], strict=True):
        assert line.startswith(f"| {figure['benchmark']} | {figure['what']} | ")
        assert figure["min"] <= figure["median"] <= figure["max"]
        assert (figure["verdict"] in ("met", "missed")) == (figure["target"] is not None)
        assert all(len(seconds) == pairs and min(seconds) > 0 for seconds in figure["seconds"].values())
    return written["figures"]


@pytest.mark.slow
def test_quick_benchmarks_run(tmp_path):
    """Each gives its figures, from as many rounds as were asked for; a missed target is a word, not a failure."""
    figures = check(tmp_path, {name: FIGURES[name] for name in QUICK}, pairs=2)
    assert all(len(figure["values"]) == 2 for figure in figures)
    assert "missed" in {figure["verdict"] for figure in figures if figure["benchmark"] == "growth"}


@pytest.mark.slow
def test_epochs_of_all_models_run(tmp_path):
    """So do those of the larger models."""
    check(tmp_path, {name: FIGURES[name] for name in ("epoch", "observed")}, pairs=1)


@pytest.mark.slow
def test_benchmarks_in_processes_of_their_own_run(tmp_path):
    """So do those that start others; a peak is more than what was there before."""
    figures = check(tmp_path, SLOW_FIGURES, pairs=1)
    peaks = [figure for figure in figures if "more than before" in figure["note"]]
    assert len(peaks) == 10
    for figure in peaks:
        assert figure["median"] > int(re.match(r"[\d,]+", figure["note"])[0].replace(",", "")) >= 0


def test_wrong_arguments_are_named(tmp_path):
    """What can be asked for is said before anything is measured."""
    ended = start(tmp_path, "--only", "speed")
    assert ended.returncode == 2
    assert "epoch" in ended.stderr
