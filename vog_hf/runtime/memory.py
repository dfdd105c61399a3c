"""What fits: free memory of a device, and as many rows at a time as it can hold."""

import logging
import os
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from vog_hf.errors import MemoryBudgetError

logger = logging.getLogger(__name__)
T = TypeVar("T")


def free_memory(device: torch.device) -> int:
    """Free bytes of the device that scores are computed on; of a machine's memory, the share of this process."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets it


class AdaptiveBatchSize:
    """How many rows are computed at a time: all of a batch, halved for good whenever the device runs out of memory.

    As `accelerate.utils.find_executable_batch_size`, which collects garbage at every call: too slow for every batch.
    """

    def __init__(self) -> None:
        self.limit: int | None = None

    def run(self, n_rows: int, work: Callable[[slice], T]) -> list[T]:
        """What ``work`` returns for the parts of a batch of so many rows, in their order.

        Raises:
            MemoryBudgetError: Not even one row fits.
        """
        while True:
            size = n_rows if self.limit is None else min(self.limit, n_rows)
            try:
                return [work(slice(start, start + size)) for start in range(0, n_rows, size)]
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if size == 1:
                    raise MemoryBudgetError(
                        f"the gradient of a single row does not fit into memory ({error}); use a larger device"
                    ) from error
            self.limit = size // 2
            clear_device_cache(garbage_collection=True)  # after the exception, whose traceback holds tensors
            logger.warning("VoG: out of memory with %d rows at a time, going on with %d", size, self.limit)
