"""Program: kills scorings at random moments or before given operations on files, starts them again, compares scores.

Each attempt is a process of its own (or two, that meet as torchrun lets them), forked from one that has imported the
libraries and computed nothing, which saves the seconds that importing takes.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every attempt would import it again
from scorings import Scoring

from vog_hf.config import VoGConfig
from vog_hf.snapshots import SnapshotWriter

LONG = Scoring("images", 400, 8, VoGConfig(target=("logit", "loss")))  # 50 blocks, for random moments
SHORT = Scoring("images", 53, 16, VoGConfig(target=("logit", "loss")))  # 4 blocks, for every operation
SCORINGS = {"long": LONG, "short": SHORT}
LIMIT = 60  # seconds
MOST_TRIES = 3  # per kill
PATIENCE = 10.0  # seconds; gloo notices within one that a connection is gone
Before = Callable[[int], None]


# --- in a process that scores ---------------------------------------------------------------------------------------


def score(scoring: Scoring, folder: Path, snapshots: Path) -> None:
    """Scores in blocks of one batch."""
    torch.set_num_threads(1)
    scoring.score(snapshots=snapshots, output_dir=folder, memory_budget=1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def store_snapshots(scoring: Scoring, folder: Path) -> None:
    """As a training leaves them."""
    model = scoring.model()
    writer = SnapshotWriter(folder, model)
    for step, (_, state) in enumerate(scoring.states()):
        model.load_state_dict(state)
        writer.take(model, step)


def watch_operations(folder: Path, act: Callable[[], None]) -> None:
    """Call ``act`` before each making, opening for writing, renaming and removing of files in a folder."""

    def watch(event: str, arguments: tuple) -> None:
        writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
        if event == "open" and isinstance(arguments[2], int):
            writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and str(arguments[0]).startswith(str(folder)):
            act()

    sys.addaudithook(watch)


def kill_before(folder: Path, number: int) -> None:
    """SIGKILL to this process before its operation of this number, from 0."""
    numbers = iter(range(10**6))
    watch_operations(folder, lambda: os.kill(os.getpid(), signal.SIGKILL) if next(numbers) == number else None)


def count_operations(folder: Path, counted: Path) -> None:
    """Leave a byte per operation in a file that lies elsewhere."""
    handle = os.open(counted, os.O_WRONLY | os.O_CREAT)
    watch_operations(folder, lambda: os.write(handle, b"."))


# --- in the process that forks --------------------------------------------------------------------------------------


class Attempt:
    """Processes that do ``work``, each after ``before(rank)``."""

    def __init__(self, n_processes: int, work: Callable[[], None], before: Before | None = None) -> None:
        threads = Path("/proc/self/task")  # Linux
        assert not threads.exists() or len(list(threads.iterdir())) <= 2, "more threads than this one and Arrow's"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.codes: dict[int, int] = {}
        self.pids: list[int] = []
        for rank in range(n_processes):
            pid = os.fork()
            if not pid:
                _run(work, before, rank, n_processes, port)
            self.pids.append(pid)

    def kill(self, ranks: list[int]) -> None:
        """SIGKILL."""
        for rank in ranks:
            os.kill(self.pids[rank], signal.SIGKILL)  # a zombie until `wait`

    def wait(self) -> list[int]:
        """Exit codes (negative: a signal); processes that hang are killed, and the program fails.

        Where one was killed, the others are killed a little later if they have not noticed, as torchrun does: a process
        that still looks for the others in the store would wait for half an hour.
        """
        deadline = time.monotonic() + LIMIT
        patience: float | None = None
        while len(self.codes) < len(self.pids):
            if any(code < 0 for code in self.codes.values()):
                patience = patience or time.monotonic() + PATIENCE
                if time.monotonic() > patience:
                    self.kill([rank for rank in range(len(self.pids)) if rank not in self.codes])
            for rank, pid in enumerate(self.pids):
                if rank not in self.codes:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        self.codes[rank] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                hanging = [rank for rank in range(len(self.pids)) if rank not in self.codes]
                self.kill(hanging)
                raise AssertionError(f"processes {hanging} hang")
            time.sleep(0.002)
        return [self.codes[rank] for rank in range(len(self.pids))]


def _run(work: Callable[[], None], before: Before | None, rank: int, n_processes: int, port: int) -> None:
    try:
        if n_processes > 1:
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_processes, "LOCAL_WORLD_SIZE": n_processes}
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in variables.items()})
        if before is not None:
            before(rank)
        work()
    except BaseException:  # noqa: BLE001 (this process ends here, whatever it was)
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder of scores; of the manifest all but the time, and its checksum."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["manifest.json"] = {**json.loads(files["manifest.json"]), "created": None, "checksum": None}
    return files


def stage(folder: Path) -> str:
    """How far a scoring has come."""
    if (folder / "manifest.json").exists():
        return "manifest written"
    if list(folder.glob("*trajectory-*.npy")):
        return "putting together"
    blocks = len(list((folder / "blocks").glob("process-*")))
    return f"{blocks} blocks" if blocks else "before the first block"


def hit(kill: dict[str, Any]) -> bool:
    """Whether a process was still there to be killed."""
    return -signal.SIGKILL in kill["codes"]


class Trial:
    """A scoring that is not interrupted, and others that are."""

    def __init__(self, name: str, folder: Path, n_processes: int) -> None:
        self.scoring, self.folder, self.n_processes = SCORINGS[name], folder, n_processes
        folder.mkdir()
        Attempt(1, lambda: store_snapshots(self.scoring, folder / "snapshots")).wait()
        started = time.monotonic()
        assert self.attempt("whole").wait() == [0] * n_processes
        self.seconds = time.monotonic() - started
        self.whole = contents(folder / "whole")

    def attempt(self, name: str, before: Before | None = None) -> Attempt:
        """A scoring into a folder of this name."""
        work = partial(score, self.scoring, self.folder / name, self.folder / "snapshots")
        return Attempt(self.n_processes, work, before)

    def again(self, name: str) -> dict[str, Any]:
        """What comes out when an interrupted scoring is started once more."""
        assert self.attempt(name).wait() == [0] * self.n_processes
        files = contents(self.folder / name)
        shutil.rmtree(self.folder / name)
        same = {file: files.get(file) == value for file, value in self.whole.items()}
        return {"different": [file for file in same if not same[file]], "left over": sorted(set(files) - set(same))}

    def at_moment(self, number: int, rng: random.Random, *, in_blocks: bool) -> dict[str, Any]:
        """Kill all processes, or one of several: at any moment, or at one when some of the blocks are there."""
        name = f"moment-{number}"
        attempt = self.attempt(name)
        if in_blocks:
            self.wait_for_blocks(name, rng.randint(1, 20))
            time.sleep(rng.uniform(0, self.seconds / 50))
        else:
            time.sleep(rng.uniform(0, self.seconds))
        everyone = list(range(self.n_processes))
        ranks = everyone if number % 3 else [rng.choice(everyone)]
        attempt.kill(ranks)
        codes = attempt.wait()
        return {"stage": stage(self.folder / name), "ranks": ranks, "codes": codes, **self.again(name)}

    def wait_for_blocks(self, name: str, count: int) -> None:
        """Until a given number of blocks of the 50 are finished."""
        deadline = time.monotonic() + LIMIT
        while len(list((self.folder / name / "blocks").glob("process-*"))) < count:
            assert time.monotonic() < deadline, f"fewer than {count} blocks after {LIMIT} s"
            time.sleep(0.001)

    def before_operation(self, number: int, rank: int) -> dict[str, Any]:
        """Kill one process right before an operation on a file."""
        name = f"operation-{number}-{rank}"
        folder = self.folder / name

        def before(own: int) -> None:
            if own == rank:
                kill_before(folder, number)

        codes = self.attempt(name, before).wait()
        return {"stage": stage(folder), "ranks": [rank], "codes": codes, **self.again(name)}

    def operations(self, rank: int) -> int:
        """How many operations on files one process does."""
        counted = self.folder / f"counted-{rank}"

        def before(own: int) -> None:
            if own == rank:
                count_operations(self.folder / "counted", counted)

        assert self.attempt("counted", before).wait() == [0] * self.n_processes
        shutil.rmtree(self.folder / "counted")
        return counted.stat().st_size


def main(folder: Path, n_processes: int, moments: int, in_blocks: int, every: int) -> None:
    """So many kills at random moments (or when blocks are there), and one before each so-manieth operation."""
    rng = random.Random(20220601)
    started = time.monotonic()
    found: dict[str, Any] = {"moments": [], "operations": []}
    if moments:
        trial = Trial("long", folder / "long", n_processes)
        found["seconds of one"] = trial.seconds
        kills = (trial.at_moment(number, rng, in_blocks=bool(in_blocks)) for number in range(MOST_TRIES * moments))
        while sum(map(hit, found["moments"])) < moments:  # some come too late
            found["moments"].append(next(kills))
    if every:
        trial = Trial("short", folder / "short", n_processes)
        for rank in range(n_processes):
            numbers = range(0, trial.operations(rank), every)
            found["operations"] += [trial.before_operation(number, rank) for number in numbers]
    found["seconds"] = time.monotonic() - started
    (folder / "kills.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
