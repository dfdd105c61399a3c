"""Program: live trainings that are killed at random moments and resumed; prints how many gave other scores.

Each training runs in a child (or two, that meet as torchrun lets them) that is forked after everything was imported, so
that a kill hits the training and not Python's start.
"""

import json
import os
import random
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from kill_scoring import Attempt
from trainers import digits, plain, trained

from vog_hf.trainer.callback import VoGCallback

STEPS = [2, 3, 5, 8, 11, 12]
OPTIONS = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3, "max_steps": STEPS[-1]}


def train(folder: Path, n_processes: int) -> None:
    """Train from the last whole checkpoint, if there is one, and keep the scores in a file."""
    log = os.open(folder / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if os.environ.get("RANK") == "1":
        list_no_moments()
    rows = digits(64).with_transform(plain)
    vog = VoGCallback(rows, collect="live", snapshots=STEPS, batch_size=7)
    resume = last_checkpoint(folder, n_processes)
    trainer = trained(folder, [vog], rows=rows, resume=resume and str(resume), **OPTIONS)
    assert trainer.accelerator.num_processes == n_processes
    scores = vog.scores
    values = {name: scores.column(name) for name in scores.column_names}
    values |= {f"trajectory {name}": scores.trajectory(name) for name in scores.trajectory_names}
    if trainer.is_world_process_zero():
        np.savez(folder / "scores.npz", **values)
    sys.stdout.flush()
    sys.stderr.flush()


def list_no_moments() -> None:
    """As on a machine that sees a shared folder late: what is there is for the main process to say."""
    glob = Path.glob
    Path.glob = lambda path, pattern: iter(()) if path.name == "live" else glob(path, pattern)


def last_checkpoint(folder: Path, n_processes: int) -> Path | None:
    """The newest checkpoint whose last files, of each process, are whole."""
    random_states = ["rng_state.pth"] if n_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(n_processes)]
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            for name in random_states:
                torch.load(path / name, weights_only=False)
            whole.append((json.loads((path / "trainer_state.json").read_text())["global_step"], path))
        except (ValueError, OSError, RuntimeError, EOFError, UnpicklingError):
            continue
    return max(whole, default=(0, None))[1]


def finished(folder: Path, n_processes: int) -> dict[str, np.ndarray]:
    """The scores of a training that is let to end."""
    codes = Attempt(n_processes, partial(train, folder, n_processes)).wait()
    assert codes == [0] * n_processes, (folder / "log.txt").read_text()[-5000:]
    with np.load(folder / "scores.npz") as stored:
        return dict(stored)


def killed(folder: Path, n_processes: int, step: int, delay: float, ranks: list[int]) -> bool:
    """Kill processes some seconds after the checkpoint of a step is begun; whether they had not ended before."""
    attempt = Attempt(n_processes, partial(train, folder, n_processes))
    while step and not (folder / f"checkpoint-{step}").exists():
        assert not (folder / "scores.npz").exists(), "it ended without this checkpoint"
        time.sleep(0.001)
    time.sleep(delay)
    attempt.kill(ranks)
    return any(attempt.wait())


def main(folder: Path, n_processes: int, kills: int) -> None:
    """Compare ``kills`` trainings that were killed and resumed with one that was not."""
    chance = random.Random(0)
    (folder / "whole").mkdir()
    began = time.monotonic()
    expected = finished(folder / "whole", n_processes)
    duration = time.monotonic() - began
    resumed_at, differing, in_time = [], 0, 0
    while in_time < kills:
        attempt = folder / f"attempt-{in_time}"
        shutil.rmtree(attempt, ignore_errors=True)
        attempt.mkdir()
        step, delay = chance.randrange(STEPS[-1]), chance.uniform(0, duration / STEPS[-1])
        one = [chance.randrange(n_processes)]
        if not killed(attempt, n_processes, step, delay, one if in_time % 2 else list(range(n_processes))):
            continue  # it had ended before
        in_time += 1
        checkpoint = last_checkpoint(attempt, n_processes)
        resumed_at.append(int(checkpoint.name.split("-")[1]) if checkpoint else 0)
        found = finished(attempt, n_processes)
        differing += set(found) != set(expected) or any(not np.array_equal(found[k], expected[k]) for k in expected)
        shutil.rmtree(attempt)
    print(f"kills {kills}, differing {differing}, resumed at steps {sorted(resumed_at)}")
    assert differing == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
