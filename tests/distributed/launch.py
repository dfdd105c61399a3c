"""Programs on one or several processes, started as a user starts them, and ended with everything that they started.

The workers of torchrun have sessions of their own, so a process group does not hold them: what a launch has started is
known by a mark in its environment.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

FOLDER = Path(__file__).parent
LIMIT = 240  # seconds; below the limit of a test, so that the output of a program that hangs is seen
MARK = "VOG_TEST_LAUNCH"


class Launch:
    """A program that was started; use it as ``with launched(...) as launch``."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        self._printed = tempfile.TemporaryFile("w+")  # noqa: SIM115 (read while the program runs; a full pipe would stop it)
        self.process = subprocess.Popen(
            command,
            env={**environment, MARK: self._mark},
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        """What all processes have printed up to now."""
        self._printed.seek(0)
        return self._printed.read()

    def wait(self, limit: float = LIMIT) -> int:
        """The exit code; a program that is not done within the limit is killed, and the test fails."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not done after {limit} s:\n{self.output}") from None

    def succeed(self, limit: float = LIMIT) -> str:
        """What a program has printed that must end well."""
        code = self.wait(limit)
        assert code == 0, f"exit code {code}:\n{self.output}"
        return self.output

    def alive(self) -> list[psutil.Process]:
        """The processes of this launch, whoever their parents are by now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # gone meanwhile, or somebody else's
                continue
        return found

    def kill(self) -> int:
        """SIGKILL to every process; how many there were."""
        killed = set()
        while processes := self.alive():
            for process in processes:
                killed.add(process.pid)
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.01)
        self.process.wait(10)
        return len(killed)


@contextmanager
def launched(program: str, *arguments: object, processes: int | None = None, **variables: str) -> Iterator[Launch]:
    """A program of this folder: under torchrun on a given number of CPU processes, or (None) by itself."""
    command = [sys.executable, str(FOLDER / program), *map(str, arguments)]
    if processes is not None:
        options = ["--standalone", "--nproc_per_node", str(processes)]
        command[1:1] = ["-m", "torch.distributed.run", *options]
    path = os.pathsep.join(filter(None, [str(FOLDER.parent / "support"), os.environ.get("PYTHONPATH")]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        **variables,
    }
    launch = Launch(command, environment)
    try:
        yield launch
    finally:
        launch.kill()


def run(program: str, *arguments: object, processes: int | None = None, limit: float = LIMIT) -> str:
    """What a program printed that must end well, and leave no process behind."""
    with launched(program, *arguments, processes=processes) as launch:
        printed = launch.succeed(limit)
        assert launch.alive() == []
    return printed
