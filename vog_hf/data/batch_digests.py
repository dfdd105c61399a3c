"""Digests of collated batches: the same rows, read again, give the same ones."""

from collections.abc import Iterable

import torch
import xxhash
from torch import Tensor

from vog_hf.data.batch_reader import Batch


def batch_digest(batch: Batch) -> int:
    """64 bits that tell a batch from another one: its row numbers, inputs, masks and labels, as they were read."""
    digest = xxhash.xxh3_64(str(batch.rows).encode())
    for name, value in sorted({**batch.masks, **batch.inputs, "": batch.labels}.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.intdigest()


def joined_digest(digests: Iterable[int]) -> str:
    """Digest of several batches, in whatever order."""
    return f"{sum(digests) % 2**64:016x}"
