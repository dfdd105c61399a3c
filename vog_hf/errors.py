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

Each message has three parts: what was expected, what came, and what to do.
"""


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
