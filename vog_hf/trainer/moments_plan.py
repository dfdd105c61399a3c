"""MomentsPlan: whether `collect="training"` keeps the moments of the gradients, and how much memory they take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vog_hf.data.batch_reader import TRANSFORM_CHECK_ROWS
from vog_hf.data.numbered_rows import INSTEAD, LABELS_KEY, ROWS_KEY, NumberedLoader
from vog_hf.errors import DataError, MemoryBudgetError
from vog_hf.gradients.input_leaf import InputLeaf, averaged_axis, find_leaf
from vog_hf.gradients.model_inputs import split_batch
from vog_hf.metric.moments import GradientMoments
from vog_hf.metric.windows import MIN_SNAPSHOTS
from vog_hf.runtime.files import format_bytes
from vog_hf.runtime.memory import free_memory
from vog_hf.scoring.memory_budget import FREE_MEMORY_SHARE

ONE_EPOCH = f"each row needs at least {MIN_SNAPSHOTS} visits, and the training has one epoch"
RANDOM = "the training rows are not the same in each epoch: their transform, or the collator, is random"
UNKNOWN_WIDTH = "the width of the model's embedding is unknown"


@dataclass(frozen=True)
class MomentsPlan:
    """The moments of all rows.

    Attributes:
        units: Expected number of units: rows, or tokens of all rows.
        nbytes: Memory of the moments on each process; 0 without moments.
        limit: Maximum of that.
        why_not: Reason for which there will be no moments; None: there will be.
    """

    units: int = 0
    nbytes: int = 0
    limit: int = 0
    why_not: str | None = None

    def in_words(self) -> str:
        """The memory of the moments, or why there are none."""
        if self.why_not is not None:
            return f"no vog_loss, since {self.why_not}"
        return f"{format_bytes(self.nbytes)} more for vog_loss"


def plan_moments(
    model: nn.Module,
    loader: NumberedLoader,
    label_names: Sequence[str],
    *,
    n_epochs: int,
    n_processes: int,
    budget: int | None,
    reduce_channels: bool | str,
) -> MomentsPlan:
    """Plan the moments of a training's rows, from the first of them.

    Args:
        model: Model that trains, unwrapped.
        loader: Loader of the training.
        label_names: Keys under which a batch holds its labels.
        n_epochs: Number of epochs.
        n_processes: Number of processes that train together.
        budget: Bytes for the moments that were asked for; None: a share of the free memory, or no moments.
        reduce_channels: Average gradients over the channels (see `VoGConfig`).

    Raises:
        MemoryBudgetError: They do not fit into ``budget``; names both numbers.
    """
    if n_epochs < MIN_SNAPSHOTS:
        return MomentsPlan(why_not=ONE_EPOCH)
    try:
        loader.check_deterministic(TRANSFORM_CHECK_ROWS)
    except DataError:
        return MomentsPlan(why_not=RANDOM)
    inputs, _ = split_batch(loader.first_batch(TRANSFORM_CHECK_ROWS), model, label_names)
    inputs = {name: value for name, value in inputs.items() if name not in (ROWS_KEY, LABELS_KEY)}
    leaf, n_rows = find_leaf(model, inputs), len(loader.dataset)
    n_elements, units_per_row = _sizes(leaf, inputs, reduce_channels)
    if not n_elements:
        return MomentsPlan(why_not=UNKNOWN_WIDTH)
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    units = math.ceil(n_rows * units_per_row)
    of_all = GradientMoments.nbytes(units, [n_elements], dtype)
    needed = of_all + (of_all // (2 * n_processes) if n_processes > 1 else 0)  # with the gradients of an epoch
    limit = budget or int(FREE_MEMORY_SHARE * free_memory(torch.device("cpu")))
    if needed <= limit:
        return MomentsPlan(units, needed, limit)
    if budget is not None:
        raise MemoryBudgetError(
            f"collect='training' keeps the moments of {n_rows:,} rows, {format_bytes(needed)}, and memory_budget= is "
            f"{format_bytes(budget)}; pass more, leave it out (moments that do not fit are then left out, with "
            f"vog_loss), or {INSTEAD}, whose memory does not grow with the rows"
        )
    return MomentsPlan(
        why_not=f"the moments of {n_rows:,} rows take {format_bytes(needed)}, and {format_bytes(limit)} may be used "
        f"({100 * FREE_MEMORY_SHARE:.0f} % of the free memory)"
    )


def _sizes(leaf: InputLeaf, inputs: Mapping[str, Any], reduce_channels: bool | str) -> tuple[int, float]:  # noqa: FBT001 (an option's value, not a switch)
    """Number of elements of a unit (0: unknown), and mean number of units of a row."""
    shape = list(inputs[leaf.name].shape)
    if leaf.embedding is not None:
        mask = leaf.element_mask(inputs, shape)
        width = int(getattr(leaf.embedding, "embedding_dim", 0))
        return width, float(math.prod(shape[1:]) if mask is None else mask.sum() / shape[0])
    axis = averaged_axis(reduce_channels, leaf, shape)
    return math.prod(size for at, size in enumerate(shape) if at not in (0, axis)), 1.0
