"""VisitLog: what a training observed of its rows, one line per visit, on disk after each epoch and each checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vog_hf.errors import OutputFolderError
from vog_hf.runtime.files import read_json, write_atomically, write_json

Visits = dict[str, npt.NDArray[Any]]

FLUSHED_VISITS = 2**18  # in memory at most: some ten megabytes
VISIT_BYTES = 44  # of a line: row, epoch, step and eight values
PART = "epoch-{epoch:05d}-step-{step:09d}-process-{process:05d}-{count:05d}.parquet"


class VisitLog:
    """The visits of this process's rows, in memory until they are written as parts of a folder.

    Args:
        folder: Folder of all processes' parts.
        process: Number of this process.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self.folder = folder
        self._process = process
        self._pending: list[tuple[int, Tensor, dict[str, Tensor]]] = []
        self._n_pending = 0
        self._count = 0
        self.epoch = 0

    def add(self, step: int, rows: Tensor, values: dict[str, Tensor]) -> None:
        """Note the visits of a batch.

        Args:
            step: Number of the optimizer step that trains on it, from 1.
            rows: Number of each row, ``[batch]``.
            values: Observed values, ``[batch]`` each; an empty mapping may be filled in until `flush`.
        """
        self._pending.append((step, rows, values))
        self._n_pending += len(rows)

    @property
    def is_full(self) -> bool:
        """True if it is time to `flush`."""
        return self._n_pending >= FLUSHED_VISITS

    def flush(self, step: int) -> None:
        """Write the visits in memory; durable when this returns.

        Args:
            step: Number of steps that are finished.

        Raises:
            OutputFolderError: The disk is full or cannot be written to.
        """
        if not self._pending:
            return
        sizes = [len(rows) for _, rows, _ in self._pending]
        columns = {
            "row": _to_numpy([rows for _, rows, _ in self._pending]),
            "epoch": np.full(sum(sizes), self.epoch, dtype=np.int32),
            "step": np.repeat([step for step, _, _ in self._pending], sizes).astype(np.int64),
        }
        for name in self._pending[0][2]:
            columns[name] = _to_numpy([values[name] for _, _, values in self._pending])
        name = PART.format(epoch=self.epoch, step=step, process=self._process, count=self._count)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / name, partial(pq.write_table, pa.table(columns), write_page_checksum=True))
        self._pending, self._n_pending = [], 0
        self._count += 1

    def mark(self, step: int, n_processes: int) -> None:
        """Note that all visits up to a step of a checkpoint are written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._marker(step, self._process), {"step": step, "processes": n_processes})

    def _marker(self, step: int, process: int) -> Path:
        return self.folder / f"saved-step-{step:09d}-process-{process:05d}.json"

    def continue_from(self, step: int) -> None:
        """Drop the visits after a step, from which training is resumed. For one process only.

        Raises:
            OutputFolderError: The visits up to this step are not all there.
        """
        first = self._marker(step, 0)
        n_processes = int(read_json(first)["processes"]) if first.is_file() else 0
        if not n_processes or not all(self._marker(step, process).is_file() for process in range(n_processes)):
            steps = sorted({_number(path, "step") for path in self.folder.glob("saved-step-*.json")})
            raise OutputFolderError(
                f"collect='training' cannot resume at step {step}: {self.folder} has not all visits of rows up to it, "
                f"only up to the steps {steps}; resume from one of these checkpoints, train again, or use "
                "collect='replay'"
            )
        for path in self.folder.glob("epoch-*.parquet"):
            if _number(path, "step") > step:
                path.unlink()
        for path in self.folder.glob("saved-step-*.json"):
            if _number(path, "step") > step:
                path.unlink()


def epochs_of(folder: Path) -> list[int]:
    """Epochs with visits, ascending."""
    return sorted({_number(path, "epoch") for path in folder.glob("epoch-*.parquet")})


def visits_of(folder: Path, epoch: int) -> Visits:
    """All visits of an epoch by all processes, in the order of their steps.

    Raises:
        OutputFolderError: A part is damaged.
    """
    parts = [_read(path) for path in sorted(folder.glob(f"epoch-{epoch:05d}-*.parquet"), key=_order)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["step"], kind="stable")
    return {name: values[order] for name, values in joined.items()}


def first_visits(visits: Visits) -> Visits:
    """The first visit of each row among those of an epoch.

    Later ones are left out: copies of rows with which the last batches of several processes are filled up, and what a
    sampler drew more than once.
    """
    _, first = np.unique(visits["row"], return_index=True)
    return {name: values[first] for name, values in visits.items()}


def _read(path: Path) -> Visits:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise OutputFolderError(
            f"the visits of rows in {path} are damaged ({error}); resume from an earlier checkpoint, or train again"
        ) from error
    return {name: table[name].to_numpy() for name in table.column_names}


def _number(path: Path, what: str) -> int:
    """The epoch or the step in the name of a part."""
    words = path.stem.split("-")
    return int(words[words.index(what) + 1])


def _order(path: Path) -> tuple[int, int]:
    """Process and count of a part: within a process in the order of visits."""
    words = path.stem.split("-")
    return int(words[-2]), int(words[-1])


def _to_numpy(parts: list[Tensor]) -> npt.NDArray[Any]:
    """Values of batches, in one copy from the device: float64 stays, other floats are float32, whole numbers int32."""
    values = torch.cat([part.detach() for part in parts])
    if not values.is_floating_point():
        return values.to(torch.int32).cpu().numpy()
    return (values if values.dtype == torch.float64 else values.float()).cpu().numpy()
