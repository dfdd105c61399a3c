"""The errors this library raises.

::

    VoGError
    |-- ConfigError        (ValueError)    an option, or a combination of options, that cannot be carried out
    |-- DataError          (ValueError)    rows, labels, transforms or collated batches that cannot be scored
    |   |-- CollationError                 rows that the collator makes no batch of
    |   |-- LabelError                     a label that its task cannot have
    |   `-- RowMismatchError               a data set whose rows are not the rows that were scored
    |-- ModelError         (ValueError)    a model whose gradient with respect to its input cannot be taken
    |   `-- ForwardError                   a forward pass that failed on a batch
    |-- NonFiniteError     (ValueError)    NaN or infinite inputs or gradients; names the row and the snapshot
    |-- SnapshotError      (ValueError)    stored weights that are missing, damaged or belong to another model
    |-- JournalError       (ValueError)    a journal of review decisions that is damaged, or is something else
    |-- CoverageError      (RuntimeError)  a row was not seen exactly once per snapshot
    |-- ProcessError       (RuntimeError)  the work failed on another process; says which and what
    |-- NotScoredError     (RuntimeError)  scores were asked for before there are any, or scoring had failed
    |-- HubError           (OSError)       what the Hugging Face Hub refused, or could not do after several tries
    |-- OutputFolderError  (OSError)       a folder that is foreign, in use, or holds another run's scores
    `-- MemoryBudgetError  (MemoryError)   what was asked for needs more memory than there is

Each message has three parts: what was expected, what came, and what to do. The functions at the end check what a caller
passes, so that a wrong value is a ConfigError here and no error of a library further down.
"""

import math
import os
from pathlib import Path
from typing import Any

MAX_NAME_BYTES = 240  # of a file or folder: disks take 255, and unfinished files have longer names


class VoGError(Exception):
    """Base class of every error that vog_hf raises on purpose."""


class ConfigError(VoGError, ValueError):
    """An option, or a combination of options, that cannot be carried out."""


class DataError(VoGError, ValueError):
    """Rows, labels, transforms or collated batches that cannot be scored."""


class CollationError(DataError):
    """Rows that the collator makes no batch of; fewer of them, or as many as in training, may do."""


class LabelError(DataError):
    """A label that its task cannot have; ``position`` is its place in the batch, so that a caller can name the row."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class RowMismatchError(DataError):
    """The rows of a data set are not the rows that were scored."""


class ModelError(VoGError, ValueError):
    """The gradient of this model with respect to its input cannot be taken."""


class ForwardError(ModelError):
    """A forward pass that failed on a batch; fewer rows, or as many as in training, may do."""


class NonFiniteError(VoGError, ValueError):
    """NaN or infinite inputs or gradients."""


class SnapshotError(VoGError, ValueError):
    """Stored weights that are missing, damaged or belong to another model."""


class JournalError(VoGError, ValueError):
    """A journal of review decisions that is damaged, or a file that is none."""


class CoverageError(VoGError, RuntimeError):
    """A row was not seen exactly once per snapshot; nothing was written."""


class ProcessError(VoGError, RuntimeError):
    """The work failed on another process, or processes hold different things."""


class NotScoredError(VoGError, RuntimeError):
    """There are no scores: training has not ended, or scoring failed (then the cause is chained)."""


class HubError(VoGError, OSError):
    """The Hugging Face Hub refused something, or could not be reached; says what is left there."""


class OutputFolderError(VoGError, OSError):
    """A folder that is foreign, in use by another run, or holds the scores of something else."""


class MemoryBudgetError(VoGError, MemoryError):
    """What was asked for needs more memory than there is."""


# --- what callers pass ----------------------------------------------------------------------------------------------


def whole_number(option: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An option as Python's own int, which JSON can hold, from numpy and torch as well.

    Raises:
        ConfigError: It is not a whole number, or out of range.

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
        raise ConfigError(f"{option} must {_range(least, most)}, got {shown(value)}; pass a whole number")
    return number


def real_number(option: str, value: Any, least: float, most: float) -> float:
    """An option as a float within a range, both ends included.

    Raises:
        ConfigError: It is not a number, not finite, or out of range.

    Example:
        >>> real_number("fraction", 1, 0, 1)
        1.0
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not least <= number <= most:
        raise ConfigError(f"{option} must {_range(least, most)}, got {shown(value)}; pass a number")
    return number


def require_type(option: str, value: Any, kinds: Any, advice: str) -> None:
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
        raise ConfigError(f"{option} must be {names}, got {shown(value)}; {advice}")


def as_path(option: str, value: Any) -> Path:
    """An option as a path that a disk can have.

    Raises:
        ConfigError: It is neither text nor a path, or a name in it is too long or holds a null character.

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
            f"{shown(value)}; pass a shorter path"
        )
    return Path(text)


def shown(value: Any) -> str:
    """A value in an error message, with its type, in a few words.

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
