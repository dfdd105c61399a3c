"""Collators that draw random numbers (masks, noise), with each row's draw fixed by the row itself."""

import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from vog_hf.errors import DataError
from vog_hf.gradients.model_mode import preserved_rng
from vog_hf.gradients.task import IGNORED_TOKEN

MAX_DRAWS = 100


class SeededPerRow:
    """A collator with each row's random draw fixed: the same in every batch, whatever rows share it.

    Each row is collated alone under a seed made of its values, then put into the batch that the collator pads. For
    collators that mask or add noise row by row (masked language models, masked image models), not for those that mix
    rows.

    Args:
        collator: From a list of rows to a mapping of tensors ``[rows, ...]``, padded on the right or on the left.
        seed: Another seed gives other draws.

    Example:
        >>> noisy = SeededPerRow(lambda rows: {"x": torch.tensor(rows) + torch.rand(len(rows))})
        >>> together, alone = noisy([1.0, 2.0, 3.0])["x"], noisy([2.0])["x"]
        >>> bool(together[1] == alone[0])
        True
    """

    def __init__(self, collator: Callable[[list[object]], Mapping[str, object]], *, seed: int = 0) -> None:
        self.collator = collator
        self.seed = seed

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """The batch of some rows.

        Raises:
            DataError: The collator gives something else than a mapping, or a row another shape alone than in a batch.
        """
        with preserved_rng():
            batch = self._seeded(rows, self.seed)
            for at, row in enumerate(rows):
                alone = self._alone(row)
                start = _padding_on_the_left(batch, alone, at)
                for name, value in alone.items():
                    if isinstance(value, Tensor):
                        _put(batch, name, at, value, start)
        return batch

    def _alone(self, row: object) -> dict[str, Any]:
        """A row as its own seed makes it; drawn again where the collator has masked nothing of it."""
        values = pickle.dumps(_plain(row))
        alone: dict[str, Any] = {}
        for draw in range(MAX_DRAWS):
            alone = self._seeded([row], xxhash.xxh3_64_intdigest(values, self.seed + draw))
            labels = alone.get("labels")
            if not isinstance(labels, Tensor) or bool((labels != IGNORED_TOKEN).any()):
                break
        return alone

    def _seeded(self, rows: list[Any], seed: int) -> dict[str, Any]:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (the global stream is what a collator may draw from)
        torch.manual_seed(seed % 2**63)
        batch = self.collator(rows)
        if not isinstance(batch, Mapping):
            raise DataError(
                f"SeededPerRow needs a collator that returns a mapping of tensors, got {type(batch).__name__}"
            )
        return dict(batch)


def _put(batch: Mapping[str, object], name: str, at: int, alone: Tensor, start: int) -> None:
    """Put what a row has alone into its place, behind ``start`` elements of padding where it is shorter there."""
    whole = batch.get(name)
    if not isinstance(whole, Tensor) or whole.dim() != alone.dim() or len(alone) != 1:
        raise DataError(
            f"{name!r} of one row is {tuple(alone.shape)} and has no place in its batch; SeededPerRow cannot fix it"
        )
    if any(n > m for n, m in zip(alone.shape[1:], whole.shape[1:], strict=True)):
        raise DataError(
            f"{name!r} of one row is {tuple(alone.shape)}, in its batch {tuple(whole.shape)}: pad to one length"
        )
    place = whole[at]
    for axis, n in enumerate(alone.shape[1:]):
        shift = start if axis == 0 and n < place.shape[0] else 0
        place = place.narrow(axis, shift, n)
    place.copy_(alone[0])


def _padding_on_the_left(batch: Mapping[str, object], alone: Mapping[str, object], at: int) -> int:
    """Number of padding elements before a row in its batch but not before it alone, by the attention mask."""
    whole, single = batch.get("attention_mask"), alone.get("attention_mask")
    if not isinstance(whole, Tensor) or not isinstance(single, Tensor) or whole.dim() != 2 or single.dim() != 2:
        return 0
    is_left = bool(single[0, 0] > 0) and not bool(whole[at, 0] > 0)
    return whole.shape[1] - single.shape[1] if is_left else 0


def _plain(value: object) -> Any:
    """A value that pickles to the same bytes whenever it is equal."""
    if isinstance(value, Mapping):
        return [(name, _plain(value[name])) for name in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return _plain(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return value.tobytes() if hasattr(value, "tobytes") else value
