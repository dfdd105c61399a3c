"""The errors of this library, and checks of the values that callers pass.

::

    VoGError
    |-- ConfigError        (ValueError)    an option, or a combination of options, that is not supported
    |-- DataError          (ValueError)    rows, labels, transforms or collated batches that cannot be scored
    |   |-- CollationError                 rows that the collator cannot combine into a batch
    |   |-- LabelError                     a label that is invalid for the task
    |   `-- RowMismatchError               rows of the dataset differ from the scored rows
    |-- ModelError         (ValueError)    a model without a gradient with respect to its input
    |   `-- ForwardError                   a forward pass that failed on a batch
    |-- NonFiniteError     (ValueError)    NaN or infinite inputs or gradients; names the row and the snapshot
    |-- SnapshotError      (ValueError)    stored weights that are missing, damaged or belong to another model
    |-- JournalError       (ValueError)    a file that is not a review journal, or a damaged one
    |-- CoverageError      (RuntimeError)  a row was not seen exactly once per snapshot
    |-- ProcessError       (RuntimeError)  a failure on another process; names the process and the error
    |-- NotScoredError     (RuntimeError)  scores requested before they exist, or after scoring failed
    |-- HubError           (OSError)       the Hugging Face Hub refused a request, or failed after several tries
    |-- OutputFolderError  (OSError)       a foreign folder, one in use, or one with scores of another run
    `-- MemoryBudgetError  (MemoryError)   more memory is needed than available

Each message has three parts: what was expected, what came, and what to do. The functions at the end check what a caller
passes, so that a wrong value is a ConfigError here and no error of a library further down.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_NAME_BYTES = 240  # of a file or folder: disks allow 255, and temporary files have longer names


class VoGError(Exception):
    """Base class of every error that vog_hf raises on purpose.

    Args:
        args: Message, as for any exception.
        argument: The arguments of the caller that the message names, as it names them: ``"batch_size"``,
            ``"split='train'"``. A command line shows its own options there.
    """

    def __init__(self, *args: object, argument: str | Iterable[str] = ()) -> None:
        super().__init__(*args)
        self.arguments = (argument,) if isinstance(argument, str) else tuple(argument)


class ConfigError(VoGError, ValueError):
    """An option, or a combination of options, that is not supported."""


class DataError(VoGError, ValueError):
    """Rows, labels, transforms or collated batches that cannot be scored."""


class CollationError(DataError):
    """Rows that the collator cannot combine into a batch; fewer rows, or the training batch size, may work."""


class LabelError(DataError):
    """A label that is invalid for the task; ``position`` in the batch lets a caller name the row."""

    def __init__(self, message: str, position: int = 0, *, argument: str | Iterable[str] = ()) -> None:
        super().__init__(message, argument=argument)
        self.position = position


class RowMismatchError(DataError):
    """Rows of a dataset that differ from the scored rows."""


class ModelError(VoGError, ValueError):
    """A model without a gradient with respect to its input."""


class ForwardError(ModelError):
    """A forward pass that failed on a batch; fewer rows, or the training batch size, may work."""


class NonFiniteError(VoGError, ValueError):
    """NaN or infinite inputs or gradients."""


class SnapshotError(VoGError, ValueError):
    """Stored weights that are missing, damaged or belong to another model."""


class JournalError(VoGError, ValueError):
    """A damaged review journal, or a file that is not one."""


class CoverageError(VoGError, RuntimeError):
    """A row was not seen exactly once per snapshot; nothing was written."""


class ProcessError(VoGError, RuntimeError):
    """A failure on another process, or processes with different data."""


class NotScoredError(VoGError, RuntimeError):
    """No scores: training has not ended, or scoring failed (then the cause is chained)."""


class HubError(VoGError, OSError):
    """A request that the Hugging Face Hub refused, or a Hub that cannot be reached."""


class OutputFolderError(VoGError, OSError):
    """A foreign folder, one in use by another run, or one with different scores."""


class MemoryBudgetError(VoGError, MemoryError):
    """A request that needs more memory than available."""


# --- checks of arguments ----------------------------------------------------------------------------------------------


def whole_number(option: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An option as a Python int, also from numpy and torch numbers.

    Raises:
        ConfigError: Not a whole number, or out of range.

    Example:
        >>> whole_number("batch_size", 8.0, 1)
        8
    """
    try:
        number = int(value) if value == int(value) else None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor of several numbers raises the last
        number = None
    is_in_range = number is not None and (least is None or number >= least) and (most is None or number <= most)
    if number is None or not is_in_range or isinstance(value, str | bytes | bool):
        raise ConfigError(
            f"{option} must {_range(least, most)}, got {shown(value)}; pass a whole number", argument=option
        )
    return number


def real_number(option: str, value: Any, least: float, most: float) -> float:
    """An option as a float within a range, both ends included.

    Raises:
        ConfigError: Not a finite number, or out of range.

    Example:
        >>> real_number("fraction", 1, 0, 1)
        1.0
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not least <= number <= most:
        raise ConfigError(f"{option} must {_range(least, most)}, got {shown(value)}; pass a number", argument=option)
    return number


def require_type(option: str, value: object, kinds: Any, advice: str) -> None:
    """Raise ConfigError where a value is of none of some kinds.

    Example:
        >>> require_type("texts", 1, list, "pass one text per row")
        Traceback (most recent call last):
        ...
        vog_hf.errors.ConfigError: texts must be list, got 1 (int); pass one text per row
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ConfigError(f"{option} must be {names}, got {shown(value)}; {advice}", argument=option)


def as_path(option: str, value: Any) -> Path:
    """An option as a valid path.

    Raises:
        ConfigError: Neither text nor a path, or a part of it is too long or contains a null character.

    Example:
        >>> as_path("folder", "scores/train").name
        'train'
    """
    require_type(option, value, (str, os.PathLike), "pass the path of a file or folder")
    text = os.fspath(value)
    longest = max((os.fsencode(name) for name in Path(os.fsdecode(text)).parts), key=len, default=b"")
    if isinstance(text, bytes) or "\0" in text or len(longest) > MAX_NAME_BYTES:
        raise ConfigError(
            f"{option} must be text without null characters and names of at most {MAX_NAME_BYTES} bytes, got "
            f"{shown(value)}; pass a shorter path",
            argument=option,
        )
    return Path(text)


def shown(value: object) -> str:
    """A short text of a value and its type for an error message.

    Example:
        >>> shown([1, 2])
        '[1, 2] (list)'
    """
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _range(least: float | None, most: float | None) -> str:
    if least is None:
        return "be a number" if most is None else f"be at most {most:,}"
    return f"be at least {least:,}" if most is None else f"lie in {least:,}..{most:,}"


def without_tracebacks(error: Exception) -> Exception:
    """The error without frames, which would keep tensors alive, for an error whose traceback is in the log."""
    behind: BaseException | None = error
    while behind is not None:
        behind.__traceback__ = None
        behind = behind.__cause__ or behind.__context__
    return error
