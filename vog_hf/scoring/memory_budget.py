"""MemoryBudget: how many rows a block holds, by memory and by time, and what may stay on the device."""

from dataclasses import dataclass

import torch

from vog_hf.data.streams import UNKNOWN_LENGTH
from vog_hf.runtime.memory import free_memory
from vog_hf.scoring.block_folder import BlockPlan
from vog_hf.scoring.plan import ScoringPlan

MAX_BLOCK_SECONDS = 120  # processes wait for one another's blocks, and a kill loses what is not written yet
FREE_MEMORY_SHARE = 0.25  # for a block of rows
RESIDENT_MEMORY_SHARE = 0.125  # for snapshots that stay on the device


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that scoring may take.

    Attributes:
        device: Device of the model.
        given: Bytes for a block's rows and moments; None: a share of what is free.
    """

    device: torch.device
    given: int | None

    @property
    def block_bytes(self) -> int:
        """Bytes for a block's rows and moments."""
        return self.given or int(FREE_MEMORY_SHARE * free_memory(self.device))

    @property
    def resident_bytes(self) -> int:
        """Bytes of snapshots that may stay on a device; a CPU has the files in its page cache anyway."""
        return 0 if self.device.type == "cpu" else int(RESIDENT_MEMORY_SHARE * free_memory(self.device))

    def bytes_of(self, blocks: BlockPlan, plan: ScoringPlan) -> int:
        """Bytes for the blocks of a plan, which an earlier run with other memory may have made."""
        return self.given or min(blocks.block_rows * plan.bytes_per_row, self.block_bytes)

    def block_plan(self, plan: ScoringPlan, n_rows: int, n_snapshots: int, n_processes: int) -> BlockPlan:
        """Plan blocks that fit into memory and are done soon, of at least one batch."""
        by_memory = self.block_bytes // (plan.bytes_per_row * plan.batch_size)
        by_time = int(MAX_BLOCK_SECONDS / max(1e-9, n_snapshots * plan.row_seconds * plan.batch_size))
        in_batches = max(1, min(by_memory, by_time))
        return BlockPlan(n_rows, n_processes, plan.batch_size, in_batches * plan.batch_size)

    def estimate(
        self, plan: ScoringPlan, n_rows: int | None, n_snapshots: int, n_processes: int, *, in_one_block: bool
    ) -> str:
        """One line for a person: what scoring this many rows (None: a stream) takes, on each process."""
        if n_rows is None:
            block_rows = self.block_plan(plan, UNKNOWN_LENGTH, n_snapshots, 1).block_rows
            return f"a stream in blocks; each takes {plan.estimate(block_rows, n_snapshots, block_rows)}"
        own = len(range(n_rows)[::n_processes])
        blocks = self.block_plan(plan, n_rows, n_snapshots, n_processes)
        line = plan.estimate(own, n_snapshots, own if in_one_block else blocks.block_rows)
        return f"{line} on each of {n_processes} processes" if n_processes > 1 else line
