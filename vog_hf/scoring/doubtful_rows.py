"""Rows that only fail late in a scoring: found by their Arrow table, and refused before the long work."""

from vog_hf.data.arrow_columns import doubtful_rows
from vog_hf.data.batch_reader import BatchReader
from vog_hf.errors import DataError, LabelError, NonFiniteError
from vog_hf.gradients.model_inputs import MASK_NAMES
from vog_hf.scoring.plan import ScoringPlan

DOUBTFUL_ROWS = 32  # of each column that are read
NAMED_ROWS = 8


def require_good_rows(reader: BatchReader, plan: ScoringPlan) -> None:
    """Read the rows that look bad in the table, since a transform or a collator may have fixed them.

    Raises:
        DataError: Some of them cannot be scored; names these rows, their column and the reason of the first one.
        NonFiniteError: The same, where an input is NaN or infinite.
    """
    good: set[int] = set()
    for column, rows in doubtful_rows(reader.dataset, MASK_NAMES, DOUBTFUL_ROWS):
        failures: dict[int, Exception] = {}
        for row in rows:
            failure = None if row in good else _failure(reader, plan, row)
            if failure is None:
                good.add(row)
            else:
                failures[row] = failure
        if failures:
            row, first = next(iter(failures.items()))
            msg = _explained(column, failures, is_all=len(rows) < DOUBTFUL_ROWS)
            if isinstance(first, LabelError):
                raise LabelError(msg, row) from first
            raise (NonFiniteError if isinstance(first, NonFiniteError) else DataError)(msg) from first


def _failure(reader: BatchReader, plan: ScoringPlan, row: int) -> Exception | None:
    try:
        batch = reader.read_copies(row, 1)
        plan.check_labels(batch)
        plan.require_elements(batch)
    except Exception as error:  # noqa: BLE001 (whatever a transform or a collator raises)
        return error
    return None


def _explained(column: str, failures: dict[int, Exception], *, is_all: bool) -> str:
    rows = sorted(failures)
    shown = ", ".join(map(str, rows[:NAMED_ROWS]))
    more = f" and {len(rows) - NAMED_ROWS} others" if len(rows) > NAMED_ROWS else ""
    count = f"{'' if is_all else 'at least '}{len(rows)} row{'s' if len(rows) > 1 else ''}"
    row, error = next(iter(failures.items()))
    reason = str(error) if isinstance(error, (DataError, NonFiniteError)) else f"{type(error).__name__}: {error}"
    return (
        f"{count} cannot be scored because of column {column!r}: row {shown}{more}. Reading row {row} alone gives: "
        f"{reason}. Fix these rows, or leave them out with dataset.filter(...) or dataset.select(...)"
    )
