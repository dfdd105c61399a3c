"""Rows per batch: as many as collator and model take, of the sizes that are tried in turn, or as memory allows."""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from vog_hf.data.arrow_columns import list_lengths
from vog_hf.data.batch_reader import BatchReader
from vog_hf.errors import CollationError, ForwardError
from vog_hf.scoring.plan import ScoringPlan

logger = logging.getLogger(__name__)

T = TypeVar("T")

ROOMY = 64  # rows
GRADIENT_SHARE = 2  # the backward pass needs about as much again


def with_working_size(
    reader: BatchReader, sizes: Iterable[int], dry_run: Callable[[], T], *, trained_singly: bool, warns: bool
) -> T:
    """Run a dry run with the first batch size that works, which the reader keeps.

    Args:
        reader: Reader over all rows.
        sizes: Batch sizes to try, in order.
        dry_run: Work with the reader's batch size.
        trained_singly: Whether training took one row at a time.
        warns: Whether this process warns of another size than the first.

    Raises:
        CollationError: No more than one row collates, and training did not take one at a time: such rows are as a rule
            badly prepared.
        ForwardError: No size works with the model.
    """
    first_size, failures = reader.batch_size, list[CollationError | ForwardError]()
    for size in dict.fromkeys(sizes):
        reader.batch_size = size
        try:
            result = dry_run()
        except (CollationError, ForwardError) as error:
            failures.append(error)
            continue
        if failures:
            if size == 1 and isinstance(failures[0], CollationError) and not trained_singly:
                raise CollationError(
                    f"{failures[0]}; rows can also be scored one at a time: pass batch_size=1", argument="batch_size=1"
                ) from failures[0]
            if warns:
                _warn(failures[0], first_size, size)
        return result
    reader.batch_size = first_size
    raise failures[0]


def roomier(
    reader: BatchReader, plan: ScoringPlan, block_bytes: int, dry_run: Callable[[], ScoringPlan]
) -> ScoringPlan:
    """The plan with the batches that memory allows, up to `ROOMY` rows, which the reader keeps.

    The given plan where no larger batches fit, where later rows may be longer than the first ones by an unknown factor,
    or where collator or model do not take larger batches.

    Args:
        reader: Reader over all rows.
        plan: Plan of batches of the reader's size.
        block_bytes: Memory for a block (see `MemoryBudget`).
        dry_run: Plan again, with the reader's batch size.
    """
    size_before = reader.batch_size
    reader.batch_size = max(size_before, _fitting_size(plan, reader, block_bytes))
    if reader.batch_size == size_before:
        return plan
    try:
        return dry_run()
    except (CollationError, ForwardError):
        reader.batch_size = size_before
        return plan


def _fitting_size(plan: ScoringPlan, reader: BatchReader, block_bytes: int) -> int:
    """`ROOMY` rows, or as many halves of it as it takes until their gradients fit."""
    longer = _longest_to_first(plan, reader)
    if longer is None or plan.saved_bytes is None:
        return 1
    row_bytes = GRADIENT_SHARE * longer * plan.saved_bytes / plan.dry_run_rows
    size = ROOMY
    while size > 1 and size * row_bytes > block_bytes:
        size //= 2
    return size


def _longest_to_first(plan: ScoringPlan, reader: BatchReader) -> float | None:
    """By how much the longest row is longer than the rows of the first batch; None if nothing tells."""
    if not plan.has_padding_mask:
        return 1.0
    lengths = list_lengths(reader.dataset, plan.leaf.name)
    longest = None if lengths is None else int(lengths.max())
    if longest is None and plan.leaf.embedding is not None:
        longest = getattr(getattr(plan.module, "config", None), "max_position_embeddings", None)
    return None if longest is None else max(1.0, longest / plan.element_shape[0])


def _warn(failure: BaseException, first_size: int, size: int) -> None:
    while failure.__cause__ is not None:
        failure = failure.__cause__
    logger.warning(
        "VoG: scoring in batches of %d rows, because batches of %d fail (%s: %s)",
        *(size, first_size, type(failure).__name__, failure),
    )
