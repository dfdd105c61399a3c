"""ObservedGradients: VoG of the loss over the visits of each row, from the gradients of the passes that train it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vog_hf.errors import VoGError
from vog_hf.gradients.observed_passes import ObservedPass
from vog_hf.metric.visit_moments import VisitMoments
from vog_hf.runtime.files import write_atomically
from vog_hf.runtime.processes import Processes, gathered

PENDING_BYTES = 2**26  # on a device, before they are copied to the host, for which the host waits
PENDING_BYTES_ON_CPU = 2**22
PART = "moments-process-{rank:05d}-of-{world:05d}.safetensors"
MOMENTS, EPOCH = "moments/", "epoch/"  # of the keys in such a file
NO_MOMENTS = "the training was resumed at a step without moments of its rows"

Rows: TypeAlias = npt.NDArray[np.int64]
Claims: TypeAlias = tuple[Rows, Rows] | str  # visited rows and their steps; or why there are no moments


@dataclass(frozen=True)
class Noted:
    """The gradients of a batch, as the backward pass gives them.

    Attributes:
        step: Number of the optimizer step that trains on it.
        rows: Number of each row, ``[batch]``.
        gradients: Gradient of each row, ``[batch, *input]``; not finite where it is unknown.
        mask: ``[batch, *first axes]``, true for elements that count; None: all.
        by_unit: True if each place of the mask is a unit: rows of tokens, padded to the longest of their batch.
        divisor: The pass whose weights divide the gradients, and which is settled before they are read; None: the
            gradients are those of each row's own mean loss already.
    """

    step: int
    rows: Tensor
    gradients: Tensor
    mask: Tensor | None
    by_unit: bool
    divisor: ObservedPass | None = None

    def on_host(self) -> "Visited":
        """The same on the CPU, without padding."""
        gradients = self.gradients if self.divisor is None else self.divisor.of_own_losses(self.gradients)
        rows, gradients = self.rows.cpu().numpy().astype(np.int64), gradients.cpu()
        mask = None if self.mask is None else self.mask.cpu()
        known = torch.isfinite(gradients.reshape(len(rows), -1).sum(1)).numpy()  # faster than of each element
        if not self.by_unit or mask is None:
            return Visited(self.step, rows, np.ones_like(rows), known, gradients, mask)
        sizes = mask.reshape(len(rows), -1).sum(1).numpy().astype(np.int64)
        return Visited(self.step, rows, sizes, known, gradients[mask], None)


@dataclass(frozen=True)
class Visited:
    """The gradients of a batch on the CPU, row by row.

    Attributes:
        step: Number of the optimizer step.
        rows: Number of each row, ``[batch]``.
        sizes: Number of units of each row.
        known: False for a row whose gradient is not known.
        units: Gradients of all units in turn.
        mask: Mask of these; None: all elements count.
    """

    step: int
    rows: Rows
    sizes: Rows
    known: npt.NDArray[np.bool_]
    units: Tensor
    mask: Tensor | None

    def only(self, keep: npt.NDArray[np.bool_]) -> "Visited":
        """Some of the rows."""
        if keep.all():
            return self
        units = torch.from_numpy(np.repeat(keep, self.sizes))
        mask = None if self.mask is None else self.mask[units]
        return Visited(self.step, self.rows[keep], self.sizes[keep], self.known[keep], self.units[units], mask)

    def tensors(self) -> dict[str, Tensor]:
        """The values by name."""
        arrays = {"rows": self.rows, "sizes": self.sizes, "known": self.known, "step": np.array(self.step)}
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()} | {"units": self.units}
        return tensors if self.mask is None else {**tensors, "mask": self.mask}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Visited":
        """The values that `tensors` gave."""
        rows, sizes, known = (tensors[name].numpy() for name in ("rows", "sizes", "known"))
        return cls(int(tensors["step"]), rows, sizes, known, tensors["units"], tensors.get("mask"))


class ObservedGradients:
    """Moments of each row's gradient of its own mean loss, over its first visit in each epoch.

    On several processes a row may come to more than one in an epoch (copies fill up the last batches). So each process
    keeps the gradients of an epoch until its end, where all agree on the first visit.

    Args:
        n_rows: Number of all rows.
        units: Expected number of units of all rows.
        limit: Maximum size of the moments in bytes.
        processes: Processes that train together.
        why_not: Reason for which there will be no moments; None: there will be.

    Attributes:
        why_not: Reason for which there are no moments; None: there are.
    """

    def __init__(self, n_rows: int, *, units: int, limit: int, processes: Processes, why_not: str | None) -> None:
        self._moments = VisitMoments(n_rows, units=units, limit=limit)
        self._processes = processes
        self._noted: list[Noted] = []
        self._noted_bytes = 0
        self._of_epoch: list[Visited] = []
        self._is_visited = np.zeros(n_rows, dtype=bool)  # in this epoch, and added to the moments
        self._epoch: int | None = None
        self.why_not = why_not

    def add(self, noted: Noted) -> None:
        """Note the gradients of a batch; they stay on the device for now."""
        if self.why_not is None:
            self._noted.append(noted)
            self._noted_bytes += noted.gradients.nbytes

    @property
    def is_full(self) -> bool:
        """True if it is time to `flush`."""
        on_cpu = bool(self._noted) and self._noted[0].gradients.device.type == "cpu"
        return self._noted_bytes >= (PENDING_BYTES_ON_CPU if on_cpu else PENDING_BYTES)

    def flush(self) -> None:
        """Copy what was noted to the host, and add it to the moments if no other process has visited the rows."""
        noted, self._noted, self._noted_bytes = self._noted, [], 0
        self._of_epoch += [of_batch.on_host() for of_batch in noted]
        if self._processes.num_processes == 1:
            self._add_first_visits([self._claims()])

    def begin_epoch(self, epoch: int) -> None:
        """Close the epoch before, if it was another one. All processes must call this."""
        if self._epoch not in (None, epoch):
            self.close_epoch()
        self._epoch = epoch

    def close_epoch(self) -> None:
        """Add an epoch's visits to the moments. All processes must call this."""
        self.flush()
        self._add_first_visits(gathered(self._processes, self._claims()))
        self._is_visited[:] = False

    def _claims(self) -> Claims:
        if self.why_not is not None:
            return self.why_not
        visited = np.flatnonzero(self._is_visited)
        steps = [np.full(len(batch.rows), batch.step) for batch in self._of_epoch]
        rows = np.concatenate([visited, *(batch.rows for batch in self._of_epoch)])
        return rows, np.concatenate([np.zeros_like(visited), *steps])

    def _add_first_visits(self, claims: Sequence[Claims]) -> None:
        """Add the visits of this process that are the first ones by what all processes claim."""
        self.why_not = next((claim for claim in claims if isinstance(claim, str)), None)
        best = np.full(len(self._is_visited), np.iinfo(np.int64).max)
        for rank, claim in enumerate(claims):
            if not isinstance(claim, str):
                np.minimum.at(best, claim[0], claim[1] * len(claims) + rank)
        rank = self._processes.process_index if len(claims) > 1 else 0
        batches, self._of_epoch = self._of_epoch, []
        for batch in batches if self.why_not is None else ():
            is_first = np.zeros(len(batch.rows), dtype=bool)
            is_first[np.unique(batch.rows, return_index=True)[1]] = True
            is_first &= (best[batch.rows] == batch.step * len(claims) + rank) & ~self._is_visited[batch.rows]
            self._is_visited[batch.rows] = True
            self._add_to_moments(batch.only(is_first & batch.known))

    def _add_to_moments(self, batch: Visited) -> None:
        """Add visits to the moments, or give up where that is not possible."""
        if self.why_not is not None:
            return
        try:
            self._moments.add(batch.rows, batch.sizes, batch.units, batch.mask)
        except VoGError as error:
            self._give_up(str(error))

    def _give_up(self, why_not: str) -> None:
        """Keep no moments from now on."""
        self.why_not = why_not
        self._moments = VisitMoments(0, units=0, limit=0)

    # --- on disk ---

    def save(self, folder: Path) -> None:
        """Write what this process holds, for `restore` and `merge`; durable when this returns.

        Raises:
            OutputFolderError: The disk is full or cannot be written to.
        """
        self.flush()
        if self.why_not is not None:
            return
        tensors = {f"{MOMENTS}{name}": values for name, values in self._moments.state().items()}
        for number, batch in enumerate(self._of_epoch):
            tensors |= {f"{EPOCH}{number:06d}/{name}": values for name, values in batch.tensors().items()}
        tensors |= {
            "visited": torch.from_numpy(self._is_visited),
            "current": torch.tensor(-1 if self._epoch is None else self._epoch),
        }
        folder.mkdir(parents=True, exist_ok=True)
        name = PART.format(rank=self._processes.process_index, world=self._processes.num_processes)
        whole = {key: values.contiguous() for key, values in tensors.items()}
        write_atomically(folder / name, partial(save_file, whole))

    def restore(self, folder: Path) -> None:
        """Continue from what `save` wrote on as many processes as there were. All processes must call this."""
        current = -1
        if self.why_not is None:
            try:
                parts = _parts(folder)
                for path in parts[self._processes.process_index :: self._processes.num_processes]:
                    self._take_over(load_file(path))
                current = int(load_file(parts[0])["current"])
            except (OSError, SafetensorError, KeyError, IndexError):
                self.why_not = NO_MOMENTS
        found = gathered(self._processes, (self.why_not, current))
        self.why_not = next((why_not for why_not, _ in found if why_not is not None), None)
        current = max(current for _, current in found)
        self._epoch = None if current < 0 else current

    def merge(self, folder: Path) -> None:
        """Add what the other processes saved; for the main process."""
        for path in _parts(folder)[1:]:
            self._take_over(load_file(path))

    def _take_over(self, tensors: dict[str, Tensor]) -> None:
        try:
            self._moments.merge(_under(MOMENTS, tensors))
        except VoGError as error:
            self._give_up(str(error))
        self._is_visited |= tensors["visited"].numpy()
        of_epoch = _under(EPOCH, tensors)
        for number in sorted({name.partition("/")[0] for name in of_epoch}):
            self._of_epoch.append(Visited.of(_under(f"{number}/", of_epoch)))

    def scores(self) -> npt.NDArray[np.floating] | str:
        """VoG of the loss of each row, ``[rows]``, NaN with fewer than two visits; or why there is none."""
        return self._moments.scores() if self.why_not is None else self.why_not


def _parts(folder: Path) -> list[Path]:
    """The files of all processes, by rank; empty if one is missing."""
    worlds = {int(path.stem.rpartition("-")[2]) for path in folder.glob("moments-process-*.safetensors")}
    for world in sorted(worlds):
        paths = [folder / PART.format(rank=rank, world=world) for rank in range(world)]
        if all(path.is_file() for path in paths):
            return paths
    return []


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
