"""Blocks of rows on disk: which rows each process scores, finished blocks, and their assembly into one folder."""

import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vog_hf.data.row_identity import RowIdentity
from vog_hf.errors import OutputFolderError
from vog_hf.metric.batch_accumulator import RowResults
from vog_hf.runtime.files import (
    file_checksum,
    foreign_names,
    inside,
    read_json,
    remove_half_written,
    write_atomically,
    write_json,
)
from vog_hf.scores.storage import HEAT_MAP_FILES, MANIFEST_NAME, require_undamaged
from vog_hf.scoring.unit_blocks import PIXELS, stored_units

PLAN_NAME = "plan.json"
BLOCKS_NAME = "blocks"
CHECKSUM = "crc32"
IDS = "crc32 of ids"
BATCH_DIGEST = "note"  # the key in files since the first version
SKIPPED = "skipped rows"

Rows = TypeVar("Rows", range, Sequence[int])


@dataclass(frozen=True)
class BlockPlan:
    """The rows of each process and their order: rows ``rank::n_processes``, in blocks of batches, never padded."""

    n_rows: int
    n_processes: int
    batch_size: int
    block_rows: int  # of one process; a multiple of batch_size

    @classmethod
    def read(cls, folder: Path) -> "BlockPlan":
        """The plan that a folder was filled by."""
        return _read_plan(folder)[1]

    def require_sound(self, n_rows: int | None) -> None:
        """Raise ValueError where the numbers are not those of a plan for a number of rows."""
        numbers = (self.n_processes, self.batch_size, self.block_rows)
        if (
            any(type(number) is not int or number < 1 for number in numbers)
            or self.n_rows != n_rows
            or (self.block_rows % self.batch_size and self.block_rows < self.n_rows)
        ):
            raise ValueError(f"{self} is not a plan")

    def blocks(self, rank: int) -> list[list[range]]:
        """The blocks of a process, each a list of batches, each a range of row numbers."""
        n_blocks = -(-len(range(self.n_rows)[rank :: self.n_processes]) // self.block_rows)
        return [self.block(rank, number) for number in range(n_blocks)]

    def block(self, rank: int, number: int) -> list[range]:
        """One block of a process, as `blocks` has it; empty behind its last one."""
        rows = range(self.n_rows)[rank :: self.n_processes]
        return batches(rows[number * self.block_rows : (number + 1) * self.block_rows], self.batch_size)

    @property
    def n_blocks(self) -> int:
        """Blocks of the process that has most of them."""
        return -(-len(range(self.n_rows)[:: self.n_processes]) // self.block_rows)


def _read_plan(folder: Path) -> tuple[dict[str, Any], BlockPlan]:
    """The fingerprint and the plan of a folder that was begun.

    Raises:
        OutputFolderError: The file is damaged: its numbers do not agree.
    """
    path = folder / PLAN_NAME
    begun = read_json(path)
    try:
        fingerprint, plan = begun["fingerprint"], BlockPlan(**begun["plan"])
        known = RowIdentity.is_fingerprint(fingerprint)
        plan.require_sound(fingerprint.get("rows", plan.n_rows) if known else None)
    except (TypeError, KeyError, ValueError) as error:
        raise OutputFolderError(
            f"{path} is damaged: its numbers are not those of a plan; delete the folder and score again"
        ) from error
    return dict(fingerprint), plan


def batches(rows: Rows, batch_size: int) -> list[Rows]:
    """Rows cut into batches, the last one as short as it comes."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def _other_scores(folder: Path, differing: Sequence[str]) -> OutputFolderError:
    return OutputFolderError(
        f"{folder} holds scores from a different run (it differs in {', '.join(differing)}); choose another "
        "output_dir, or delete the folder to score again",
        argument="output_dir",
    )


class BlockFolder:
    """A folder that is being filled with finished blocks. Each is written whole or not at all.

    `prepare` it on the main process, which alone writes to the folder itself; then `open` it on every process.

    Args:
        folder: Folder of a scoring.
        fingerprint: What the scores depend on, JSON-ready.
        plan: Plan of the blocks.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, object], plan: BlockPlan) -> None:
        self.folder = folder
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.plan = plan
        self._blocks = inside(folder / BLOCKS_NAME)

    @classmethod
    def prepare(cls, folder: Path, fingerprint: Mapping[str, object], plan: BlockPlan) -> "BlockFolder":
        """Begin a folder or take up an interrupted run: write the plan, remove what a kill left half-written.

        Args:
            folder: Empty, missing, or an interrupted run of the same fingerprint.
            fingerprint: What the scores depend on; a folder with blocks or scores of another one is refused, and one
                in which nothing was scored yet is taken over.
            plan: Used if the folder is new; an interrupted run keeps its own, so that a restart is bit-equal.

        Raises:
            OutputFolderError: Files that are not ours, or blocks or scores of another fingerprint.
        """
        blocks = cls(folder, fingerprint, plan)
        cls.require_own(folder)
        existing = (folder / PLAN_NAME).is_file()
        if existing:
            begun, kept = _read_plan(folder)
            differing = blocks._differing(begun)
            if differing and blocks._holds_scores():
                raise _other_scores(folder, differing)
            if not differing and kept.n_processes == plan.n_processes:
                blocks.plan = kept
            else:  # blocks of different plans must never meet, not even after a third run with the first number
                blocks.remove_blocks()
        folder.mkdir(parents=True, exist_ok=True)
        written = {"fingerprint": blocks.fingerprint, "plan": asdict(blocks.plan)}
        if not existing or read_json(folder / PLAN_NAME) != written:
            write_json(folder / PLAN_NAME, written)  # first: it marks the folder as ours
        blocks._blocks.mkdir(exist_ok=True)
        remove_half_written(folder)
        remove_half_written(blocks._blocks)
        return blocks

    @classmethod
    def open(cls, folder: Path, fingerprint: Mapping[str, object]) -> "BlockFolder":
        """Open a prepared folder. Nothing is written.

        Raises:
            OutputFolderError: The folder was prepared for another fingerprint, or its plan is damaged.
        """
        begun, plan = _read_plan(folder)
        blocks = cls(folder, fingerprint, plan)
        differing = blocks._differing(begun)
        if differing:
            raise _other_scores(folder, differing)
        return blocks

    def _differing(self, begun: Mapping[str, object]) -> list[str]:
        return [key for key in self.fingerprint if begun.get(key) != self.fingerprint[key]]

    def _holds_scores(self) -> bool:
        """Tell whether a block of rows, or all of them, were scored here."""
        return (self.folder / MANIFEST_NAME).is_file() or any(self._blocks.glob("*.safetensors"))

    @staticmethod
    def require_own(folder: Path) -> None:
        """Raise OutputFolderError where a folder holds files of somebody else; nothing is written."""
        foreign = foreign_names(folder)
        if PLAN_NAME in foreign:
            plan = read_json(folder / PLAN_NAME)
            foreign = [] if isinstance(plan, dict) and {"fingerprint", "plan"} <= set(plan) else [PLAN_NAME]
        if foreign:
            raise OutputFolderError(
                f"{folder} holds files that vog_hf did not write ({foreign[0]}); choose another output_dir",
                argument="output_dir",
            )

    @staticmethod
    def is_finished(folder: Path, fingerprint: Mapping[str, object]) -> bool:
        """Tell whether the folder already holds the scores of this fingerprint.

        Raises:
            OutputFolderError: It does, and a file is missing or damaged.
        """
        finished = (folder / MANIFEST_NAME).is_file() and BlockFolder.is_of(folder, fingerprint)
        if finished:
            require_undamaged(folder)
        return finished

    @staticmethod
    def is_of(folder: Path, fingerprint: Mapping[str, object]) -> bool:
        """Tell whether the folder holds scores, or blocks of them, of this fingerprint."""
        if not (folder / PLAN_NAME).is_file():
            return False
        return _read_plan(folder)[0] == json.loads(json.dumps(fingerprint))

    @staticmethod
    def identity(folder: Path) -> RowIdentity | None:
        """The rows that a folder was begun for, without a hash of each; None where it is not a folder of ours."""
        plan = read_json(folder / PLAN_NAME) if (folder / PLAN_NAME).is_file() else None
        if not isinstance(plan, dict) or not RowIdentity.is_fingerprint(plan.get("fingerprint")):
            return None
        return RowIdentity.of_fingerprint(plan["fingerprint"])

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the folder, its plan first: what a kill leaves of it is not taken up again."""
        (folder / PLAN_NAME).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def path(self, rank: int, block: int) -> Path:
        """Path of a finished block."""
        return self._blocks / f"process-{rank:05d}-of-{self.plan.n_processes:05d}-block-{block:06d}.safetensors"

    def end_at(self, n_rows: int) -> None:
        """Give the plan of a stream its number of rows, once its end was seen; every process must call this."""
        self.plan = replace(self.plan, n_rows=n_rows)

    def write(
        self,
        rank: int,
        block: int,
        rows: npt.NDArray[np.int64],
        results: Sequence[RowResults],
        *,
        batch_digest: str = "",
        skipped: Mapping[int, str] | None = None,
    ) -> None:
        """Make a finished block durable, with the digest of its batches as they were read and the rows skipped."""
        stored: dict[str, npt.NDArray[Any]] = {"rows": rows}
        for kind in ("columns", "trajectories"):
            for name in getattr(results[0], kind):
                parts = [getattr(result, kind)[name] for result in results]
                stored[f"{kind}/{name}"] = np.ascontiguousarray(np.concatenate(parts))
        maps = [result.heat_maps for result in results if result.heat_maps is not None]
        if maps:
            for part in HEAT_MAP_FILES:
                stored[f"heat_maps/{part}"] = np.concatenate([getattr(m, part) for m in maps])
        stored |= stored_units([result.units for result in results if result.units is not None])
        stored |= stored_units([result.pixels for result in results if result.pixels is not None], PIXELS)
        metadata = {
            CHECKSUM: _checksum(stored, batch_digest),
            IDS: self._ids_checksum(rank, block),
            BATCH_DIGEST: batch_digest,
            SKIPPED: json.dumps(skipped or {}),
        }
        write_atomically(self.path(rank, block), partial(save_file, stored, metadata=metadata))

    def read(self, rank: int, block: int) -> dict[str, npt.NDArray[Any]] | None:
        """A finished block; None where there is none yet, or it or its ids are damaged (it is to be scored again)."""
        path = self.path(rank, block)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                metadata = file.metadata() or {}
        except (SafetensorError, OSError):
            return None
        expected = metadata.get(CHECKSUM), metadata.get(IDS)
        found = _checksum(stored, metadata.get(BATCH_DIGEST, "")), self._ids_checksum(rank, block)
        return stored if found == expected else None

    def batch_digest(self, rank: int, block: int) -> str:
        """The digest of a finished block's batches, as `write` was given it."""
        with safe_open(self.path(rank, block), framework="np") as file:
            return (file.metadata() or {})[BATCH_DIGEST]

    def skipped(self, rank: int, block: int) -> dict[int, str]:
        """The rows of a finished block that were skipped, with their reasons."""
        with safe_open(self.path(rank, block), framework="np") as file:
            stored = json.loads((file.metadata() or {}).get(SKIPPED, "{}"))
        return {int(row): str(reason) for row, reason in stored.items()}

    def write_ids(self, rank: int, block: int, ids: pa.Table) -> None:
        """Make the ids of a block's rows durable; to be called before its `write`."""
        write_atomically(self._ids_path(rank, block), partial(pq.write_table, ids))

    def _ids_path(self, rank: int, block: int) -> Path:
        return self.path(rank, block).with_suffix(".ids.parquet")

    def _ids_checksum(self, rank: int, block: int) -> str:
        path = self._ids_path(rank, block)
        return file_checksum(path) if path.is_file() else ""

    def id_type(self, rank: int, block: int) -> pa.DataType | None:
        """The type of the ids of a block's rows; None where there are none."""
        path = self._ids_path(rank, block)
        return pq.read_schema(path).field("id").type if path.is_file() else None

    def ids(self) -> pa.Array | pa.ChunkedArray | None:
        """The ids of all rows, in row order; None where there are none."""
        files = sorted(self._blocks.glob("*.ids.parquet"))
        if not files:
            return None
        table = pa.concat_tables(pq.read_table(file) for file in files)
        if pa.types.is_string(table["id"].type):  # sorted, they are one array, and may be more than 2 GiB
            table = table.set_column(1, "id", table["id"].cast(pa.large_string()))
        return table.sort_by("row")["id"]

    @property
    def block_bytes(self) -> int:
        """Bytes of the blocks that are finished."""
        return sum(path.stat().st_size for path in self._blocks.iterdir())

    def finished(self, rank: int, block: int) -> bool:
        """Tell whether a block need not be scored again."""
        return self.read(rank, block) is not None

    def remove_blocks(self) -> None:
        """Delete the block files, once the folder holds their contents, and what killed runs left half-written."""
        remove_half_written(self.folder)
        shutil.rmtree(self._blocks, ignore_errors=True)


def _checksum(stored: Mapping[str, npt.NDArray[np.generic]], batch_digest: str) -> str:
    checksum = zlib.crc32(batch_digest.encode())
    for name in sorted(stored):
        checksum = zlib.crc32(np.ascontiguousarray(stored[name]).data.cast("B"), zlib.crc32(name.encode(), checksum))
    return f"{checksum:08x}"
