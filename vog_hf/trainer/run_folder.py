"""RunFolder: what one training keeps on disk (snapshots, live moments, visits, scores), and the lock of it."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState

from vog_hf.errors import OutputFolderError
from vog_hf.runtime.files import foreign_names, locked, read_json, remove_half_written, require_free, write_json
from vog_hf.scoring.live_checkpoint import STATE_NAME

MARKER_NAME = "vog.json"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training.

    Attributes:
        path: Where it is.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshots."""
        return self.path / "snapshots"

    @property
    def live(self) -> Path:
        """Folder of live moments: a folder per step, with one per split in it."""
        return self.path / "live"

    @property
    def visits(self) -> Path:
        """Folder of the visits of rows, as the training's own passes observed them."""
        return self.path / "visits"

    @property
    def thinning(self) -> Path:
        """File with the snapshots that ``max_cost`` lets be scored."""
        return self.path / "thinning.json"

    @property
    def scores(self) -> Path:
        """Folder of the scores, with one per split in it."""
        return self.path / "scores"

    def planned_steps(self) -> list[int]:
        """The steps that the training in this folder planned; empty if there is none, or its record is damaged."""
        try:
            steps = read_json(self.path / MARKER_NAME)["planned steps"]
        except (OutputFolderError, LookupError, TypeError):  # `prepare` writes it again
            return []
        return steps if isinstance(steps, list) and all(type(step) is int for step in steps) else []

    def prepare(self, state: TrainerState, plan: Sequence[int], needed_bytes: int, *, is_live: bool) -> None:
        """Check, lock and empty the folder; keep what a resumed training continues.

        Raises:
            OutputFolderError: The folder is foreign, in use, or too small.
        """
        folder, resumed = self.path, state.global_step > 0
        if folder.exists() and not folder.is_dir():
            raise OutputFolderError(f"output_dir {folder} is a file; pass a folder", argument="output_dir")
        if foreign_names(folder) and not (folder / MARKER_NAME).is_file():
            raise OutputFolderError(
                f"{folder} holds files that vog_hf did not write; pass another output_dir (a separate folder)",
                argument="output_dir",
            )
        require_free(folder, needed_bytes, "storing snapshots and scores")
        _hold(folder, state)
        remove_half_written(folder)
        write_json(folder / MARKER_NAME, {"format": 1, "planned steps": list(plan)})
        if not resumed or is_live:  # `TrainingRun.finish` continues an interrupted replay
            shutil.rmtree(self.scores, ignore_errors=True)
        if not resumed:
            shutil.rmtree(self.snapshots, ignore_errors=True)
            shutil.rmtree(self.live, ignore_errors=True)
            shutil.rmtree(self.visits, ignore_errors=True)
            self.thinning.unlink(missing_ok=True)

    def release(self) -> None:
        """Release the lock that `prepare` took."""
        _release(self.path)

    def newest_moments(self, step: int, splits: Sequence[str]) -> tuple[Path | None, list[int]]:
        """The newest complete folder of moments of a step, and all steps with moments."""
        folders = sorted(self.live.glob("step-*"), reverse=True)
        of_step = [folder for folder in folders if _step_of(folder) == step]
        whole = [folder for folder in of_step if all((folder / s / STATE_NAME).is_file() for s in splits)]
        return next(iter(whole), None), sorted({_step_of(folder) for folder in folders})

    def drop_moments(self, output_dir: Path, step: int) -> None:
        """Delete live moments of deleted checkpoints; ``step`` still has one."""
        patterns = ("checkpoint-*", "run-*/checkpoint-*")  # of a hyper-parameter search
        checkpoints = {path.name for pattern in patterns for path in output_dir.glob(pattern)}
        checkpoints.add(f"checkpoint-{step}")
        for folder in self.live.glob("step-*"):
            if f"checkpoint-{_step_of(folder)}" not in checkpoints:
                shutil.rmtree(folder, ignore_errors=True)


_locks: dict[Path, tuple[ExitStack, TrainerState]] = {}


def _hold(folder: Path, state: TrainerState) -> None:
    """Hold the lock of a folder until `_release`, or until the next training in it (the last one may have crashed).

    Callbacks of one training get the same ``state``, and each needs a separate folder.
    """
    _, holder = _locks.get(folder.resolve(), (None, None))
    if holder is state:
        raise OutputFolderError(
            f"{folder} is in use by another VoGCallback of this training; pass output_dir=, a separate folder, to "
            "one of them, or compute several targets with one callback: VoGConfig(target=('logit', 'loss'))",
            argument="output_dir=",
        )
    _release(folder)
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        _locks[folder.resolve()] = (stack.pop_all(), state)


def _release(folder: Path) -> None:
    stack, _ = _locks.pop(folder.resolve(), (ExitStack(), None))
    stack.close()


def _step_of(folder: Path) -> int:
    """The step of a folder of moments."""
    return int(folder.name.split("-")[1])
