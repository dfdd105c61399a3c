"""Moments of a live run on disk: whole or absent, and dealt out again to any number of processes."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vog_hf.data.row_identity import RowIdentity
from vog_hf.errors import OutputFolderError
from vog_hf.metric.batch_accumulator import BatchAccumulator
from vog_hf.runtime.files import file_digest, read_json, write_atomically, write_json
from vog_hf.runtime.processes import Processes, from_main, gathered, run_together
from vog_hf.scores.manifest import fault_in

STATE_NAME = "state.json"  # written last: a folder without it is not whole
PART_BYTES = 256 * 2**20
FORMAT_KEY = "state format"  # the header has a "format" of its own: that of the scores
FORMAT = 1


@dataclass(frozen=True)
class LiveBatch:
    """A batch of rows with their moments: row numbers, labels (of rows with a single one) and accumulator."""

    rows: range
    labels: Tensor | None
    accumulator: BatchAccumulator

    def __len__(self) -> int:
        return len(self.rows)


def save_state(folder: Path, processes: Processes, held: Sequence[LiveBatch], header: Mapping[str, object]) -> None:
    """Write the moments of all processes and a header; durable when this returns.

    Raises:
        OutputFolderError: The disk is full or cannot be written to; the folder then does not count.
    """
    from_main(processes, f"preparing {folder}", _emptied, folder)
    prefix = f"process-{processes.process_index:05d}-of-{processes.num_processes:05d}"
    mine = run_together(processes, "saving the moments", _write_parts, folder, prefix, held)
    everything = gathered(processes, mine)
    whole = {
        **header,
        FORMAT_KEY: FORMAT,
        "batches": sorted(batch for batches, _ in everything for batch in batches),
        "digests": {name: digest for _, digests in everything for name, digest in digests.items()},
    }
    from_main(processes, "saving the moments", write_json, folder / STATE_NAME, whole)


def read_header(folder: Path) -> dict[str, Any]:
    """The header that `save_state` wrote, with ``batches``.

    Raises:
        OutputFolderError: The folder is not whole, or another version wrote it.
    """
    if not (folder / STATE_NAME).is_file():
        raise OutputFolderError(f"{folder} holds no moments (no {STATE_NAME}); resume from an earlier checkpoint")
    header = read_json(folder / STATE_NAME)
    if not _is_header(header):
        raise OutputFolderError(
            f"{folder / STATE_NAME} is damaged: it names no moments; resume from an earlier checkpoint"
        )
    if header[FORMAT_KEY] != FORMAT:
        raise OutputFolderError(f"{folder} has format {header[FORMAT_KEY]!r}, this version reads {FORMAT}; train again")
    return dict(header)


def _is_header(header: object) -> bool:
    """Tell whether this is what `save_state` writes: every batch in a file that has a digest, and named snapshots."""
    if not isinstance(header, dict) or not {FORMAT_KEY, "batches", "digests", "snapshots"} <= set(header):
        return False
    batches, digests, snapshots = header["batches"], header["digests"], header["snapshots"]
    return (
        isinstance(digests, dict)
        and all(Path(name).name == name and isinstance(digest, str) for name, digest in digests.items())
        and isinstance(batches, list)
        and all(_is_batch(batch) and batch[3] in digests for batch in batches)
        and fault_in({"format": FORMAT, "snapshots": snapshots}) is None
        and RowIdentity.is_fingerprint(header)
    )


def _is_batch(batch: object) -> bool:
    """Tell whether this is start, stop and step of a batch of rows, and the name of its file."""
    if not isinstance(batch, list) or len(batch) != 4 or any(type(number) is not int for number in batch[:3]):
        return False
    start, stop, step, name = batch
    return 0 <= start < stop and step > 0 and isinstance(name, str)


def load_batches(
    folder: Path, processes: Processes, make: Callable[[], BatchAccumulator], n_snapshots: int, device: torch.device
) -> list[LiveBatch]:
    """This process's share of the batches that `save_state` wrote, however many processes there were.

    Batches stay what they were, so that moments continue bit by bit.

    Args:
        folder: Of the state.
        processes: Among which the batches are dealt out.
        make: A new accumulator, as the batches had.
        n_snapshots: Seen when the state was saved.
        device: For the moments.

    Raises:
        OutputFolderError: A file is missing or damaged.
    """
    header = read_header(folder)
    by_file = defaultdict(list)
    for start, stop, step, name in header["batches"][processes.process_index :: processes.num_processes]:
        by_file[name].append(range(start, stop, step))
    held = []
    for name, several in by_file.items():
        _check_digest(folder / name, header["digests"][name])
        for rows, state in _read_part(folder / name, several, device):
            labels = state.pop("labels", None)
            accumulator = make()
            accumulator.restore(state, n_snapshots)
            held.append(LiveBatch(rows, None if labels is None else labels.cpu(), accumulator))
    return held


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_parts(folder: Path, prefix: str, held: Sequence[LiveBatch]) -> tuple[list[list[Any]], dict[str, str]]:
    """Write parts, small ones (each is copied while it is written): the place of each batch, and each file's digest."""
    batches: list[list[Any]] = []
    digests: dict[str, str] = {}
    part: dict[str, Tensor] = {}
    size = 0
    for i, batch in enumerate(held):
        name = f"{prefix}-part-{len(digests):05d}.safetensors"
        state = batch.accumulator.state() | ({} if batch.labels is None else {"labels": batch.labels})
        for key, values in state.items():
            part[f"{_key(batch.rows)}/{key}"] = values.detach().cpu().clone().contiguous()
            size += values.nbytes
        batches.append([batch.rows.start, batch.rows.stop, batch.rows.step, name])
        if i == len(held) - 1 or size >= PART_BYTES:
            write_atomically(folder / name, partial(save_file, part))
            digests[name] = file_digest(folder / name)
            part, size = {}, 0
    return batches, digests


def _check_digest(path: Path, digest: str) -> None:
    if not path.is_file() or file_digest(path) != digest:
        raise OutputFolderError(
            f"the file of moments {path} is missing or damaged: resume from an earlier checkpoint, or train again"
        )


def _read_part(path: Path, batches: Sequence[range], device: torch.device) -> Iterator[tuple[range, dict[str, Tensor]]]:
    with safe_open(path, framework="pt") as file:  # on the CPU: safetensors does not know every device
        names = defaultdict(list)
        for name in file.keys():  # noqa: SIM118 (not a dict)
            key, _, rest = name.partition("/")
            names[key].append(rest)
        for rows in batches:
            key = _key(rows)
            yield rows, {name: file.get_tensor(f"{key}/{name}").to(device) for name in names[key]}


def _key(rows: range) -> str:
    return f"{rows.start}-{rows.stop}-{rows.step}"
