"""Program: live trainings that are killed at random moments and resumed; prints how many gave other scores.

Each training runs in a child that is forked after everything was imported, so that a kill hits the training and not
Python's start.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from trainers import digits, plain, trained

from vog_hf.callback import VoGCallback

STEPS = [2, 3, 5, 8, 11, 12]
OPTIONS = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3}


def train(folder: Path) -> None:
    """Train from the last whole checkpoint, if there is one, and keep the scores in a file."""
    rows = digits(64).with_transform(plain)
    vog = VoGCallback(rows, collect="live", snapshots=STEPS, batch_size=7)
    resume = last_checkpoint(folder)
    trained(folder, [vog], rows=rows, resume=resume and str(resume), **OPTIONS)
    scores = vog.scores
    values = {name: scores.column(name) for name in scores.column_names}
    np.savez(
        folder / "scores.npz", **values, **{f"trajectory {n}": scores.trajectory(n) for n in scores.trajectory_names}
    )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose last file is whole."""
    whole = []
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            whole.append((json.loads(path.read_text())["global_step"], path.parent))
        except ValueError:
            continue
    return max(whole, default=(0, None))[1]


def forked(folder: Path) -> int:
    """The process number of a child that trains; its output goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    log = os.open(folder / "log.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        train(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        os._exit(code)


def finished(folder: Path) -> dict[str, np.ndarray]:
    """The scores of a training that is let to end."""
    _, status = os.waitpid(forked(folder), 0)
    assert status == 0, (folder / "log.txt").read_text()[-5000:]
    with np.load(folder / "scores.npz") as stored:
        return dict(stored)


def main(folder: Path, kills: int) -> None:
    """Compare ``kills`` trainings that were killed and resumed with one that was not."""
    chance = random.Random(0)
    (folder / "whole").mkdir()
    began = time.monotonic()
    expected = finished(folder / "whole")
    duration = time.monotonic() - began
    resumed_at, differing, in_time = [], 0, 0
    while in_time < kills:
        attempt = folder / f"attempt-{in_time}"
        shutil.rmtree(attempt, ignore_errors=True)
        attempt.mkdir()
        pid = forked(attempt)
        time.sleep(chance.uniform(0.05, 1.0) * duration)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if status != signal.SIGKILL:
            continue  # it had ended before
        in_time += 1
        checkpoint = last_checkpoint(attempt)
        resumed_at.append(int(checkpoint.name.split("-")[1]) if checkpoint else 0)
        found = finished(attempt)
        differing += set(found) != set(expected) or any(not np.array_equal(found[k], expected[k]) for k in expected)
        shutil.rmtree(attempt)
    print(f"kills {kills}, differing {differing}, resumed at steps {sorted(resumed_at)}")
    assert differing == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
