"""Rows per batch: as many as collator and model take, of the sizes that are tried in turn."""

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from vog_hf.data.batch_reader import BatchReader
from vog_hf.errors import CollationError, ForwardError

logger = logging.getLogger(__name__)

T = TypeVar("T")


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


def _warn(failure: BaseException, first_size: int, size: int) -> None:
    while failure.__cause__ is not None:
        failure = failure.__cause__
    logger.warning(
        "VoG: scoring in batches of %d rows, because batches of %d fail (%s: %s)",
        *(size, first_size, type(failure).__name__, failure),
    )
