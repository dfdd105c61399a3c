"""Memory: free bytes of a device, and batch sizes that adapt to it."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from vog_hf.errors import MemoryBudgetError

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEVICE_ERRORS = ("CUDA error", "device-side assert", "HIP error")  # after one of these a device computes nothing more
# CUDA reports a kernel's lack of memory at a later call, and its libraries have words of their own; accelerate knows
# those of torch's allocators.
OUT_OF_MEMORY = ("CUDA error: out of memory", "HIP error: out of memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a device, or the CPU, had too little memory, whoever asked for it.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
        True
        >>> is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
        False
    """
    if not isinstance(error, RuntimeError):
        return False
    is_named = any(text in str(error) for text in OUT_OF_MEMORY)
    return is_named or isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def free_memory(device: torch.device) -> int:
    """Free bytes of the device; for the CPU, and for a device that does not report it, this process's share of RAM."""
    module: Any = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        return int(module.mem_get_info(device)[0])
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets it


class SavedBytes:
    """The memory that forward passes of a model keep for their gradient, besides its weights.

    Args:
        model: The model.

    Attributes:
        total: Bytes counted so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._known = {_address(tensor) for tensor in chain(model.parameters(), model.buffers())}

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is kept meanwhile, each piece of memory once."""
        with torch.autograd.graph.saved_tensors_hooks(self._count, lambda saved: saved):
            yield

    def _count(self, tensor: Tensor) -> Tensor:
        if (address := _address(tensor)) not in self._known:
            self._known.add(address)
            self.total += tensor.nbytes
        return tensor.detach()  # an output that kept itself would never be freed


def _address(tensor: Tensor) -> int:
    """The place of a tensor's memory; a tensor without memory of its own has only itself."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return id(tensor)


class AdaptiveBatchSize:
    """The number of rows per pass: the whole batch, permanently halved whenever the device runs out of memory.

    Unlike `accelerate.utils.find_executable_batch_size`, it does not collect garbage at every call, which is slow.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self._is_full = False

    def slices(self, n_rows: int) -> list[slice]:
        """The parts of a batch of ``n_rows`` for one pass each, in order."""
        if self._is_full:  # cleared here, after the exception with its tensors is gone
            clear_device_cache(garbage_collection=True)
            self._is_full = False
        size = self._size(n_rows)
        return [slice(start, start + size) for start in range(0, n_rows, size)]

    @contextmanager
    def halved_when_full(self, n_rows: int) -> Iterator[None]:
        """Suppress an out-of-memory error and halve the `slices` of a batch, with which the caller tries again.

        Raises:
            MemoryBudgetError: Not even one row fits.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = self._size(n_rows)
            if size == 1:
                raise MemoryBudgetError(
                    f"the gradient of a single row does not fit into memory ({error}); use a larger device"
                ) from error
            self.limit, self._is_full = size // 2, True
            logger.warning("VoG: out of memory with %d rows per pass; retrying with %d", size, self.limit)

    def run(self, n_rows: int, work: Callable[[slice], T]) -> list[T]:
        """Results of ``work`` for the `slices` of a batch, in order, with as many rows per pass as fit."""
        results: list[T] | None = None
        while results is None:
            with self.halved_when_full(n_rows):
                results = list(map(work, self.slices(n_rows)))
        return results

    def _size(self, n_rows: int) -> int:
        return n_rows if self.limit is None else min(self.limit, n_rows)
