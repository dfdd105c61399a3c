"""Numbered rows: the number of each row travels with it through the training's loader, in a key of the batch."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from vog_hf.data.random_transforms import require_deterministic
from vog_hf.errors import ConfigError, VoGError, shown
from vog_hf.gradients.detection import objects_as_tensor

ROWS_KEY = "vog_rows"  # in a batch: the number of each row
LABELS_KEY = "vog_labels"  # in a batch: its labels, which a trainer may take out before forward
INSTEAD = "use collect='replay'"


class NumberedRow(NamedTuple):
    """A row with its number."""

    number: int
    row: Any


class NumberedRows:
    """A map-style dataset whose rows come with their numbers; it has all other attributes of that dataset.

    Args:
        dataset: Rows of the training.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> NumberedRow:
        return NumberedRow(int(number), self.dataset[number])

    def __getitems__(self, numbers: Sequence[int]) -> list[NumberedRow]:
        together = getattr(self.dataset, "__getitems__", None)
        rows = [self.dataset[number] for number in numbers] if together is None else together(list(numbers))
        if not isinstance(rows, (list, tuple)) or len(rows) != len(numbers):
            raise ConfigError(
                f"collect='training' needs one row per number from __getitems__ of {type(self.dataset).__name__}, got "
                f"{shown(rows)} for {len(numbers)} numbers; return a list of rows, or {INSTEAD}"
            )
        return [NumberedRow(int(number), row) for number, row in zip(numbers, rows, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet, while a worker unpickles this
            raise AttributeError(name)
        return getattr(self.dataset, name)


class NumberedCollator:
    """Collates rows without their numbers, and adds numbers and labels to the batch.

    Args:
        collate: The loader's own collator.
        label_names: Keys under which a batch holds its labels.
        label_column: Column of the rows, or key of the batch, with the labels; takes precedence over these names.
    """

    def __init__(
        self, collate: Callable[[list[Any]], Any], label_names: Sequence[str], label_column: str | None
    ) -> None:
        self.collate = collate
        self._names = label_names if label_column is None else (label_column,)

    def __call__(self, numbered: list[NumberedRow]) -> MutableMapping[str, Any]:
        """Collate a batch.

        Raises:
            ConfigError: The batch is not a mapping.
        """
        rows = [row for _, row in numbered]
        of_rows = self._of_rows(rows)
        batch = self.collate(rows)
        if not isinstance(batch, MutableMapping):
            raise ConfigError(
                f"collect='training' needs a collator that returns a mapping, got {type(batch).__name__}: the numbers "
                f"of the rows travel under a key of the batch; return a dict, or {INSTEAD}"
            )
        labels = next((batch[name] for name in self._names if batch.get(name) is not None), of_rows)
        if labels is not None:
            batch[LABELS_KEY] = torch.as_tensor(objects_as_tensor(labels))
        batch[ROWS_KEY] = torch.tensor([number for number, _ in numbered])
        return batch

    def _of_rows(self, rows: list[Any]) -> list[Any] | None:
        """Labels of rows whose collator may drop them."""
        first = rows[0] if rows and isinstance(rows[0], Mapping) else {}
        name = next((name for name in self._names if isinstance(first.get(name), (int, float))), None)
        return None if name is None else [-1 if row[name] is None else row[name] for row in rows]


class NumberedLoader:
    """The training's loader with numbered rows, until `restore`.

    Args:
        loader: Loader of the training, as Accelerate prepared it.
        label_names: Keys under which a batch holds its labels.
        label_column: Column of the labels, over these names.

    Attributes:
        dataset: Rows of the training, not numbered.

    Raises:
        ConfigError: The loader's rows have no numbers, or the numbers cannot travel with them.
    """

    def __init__(self, loader: object, label_names: Sequence[str], label_column: str | None) -> None:
        base: Any = getattr(loader, "base_dataloader", loader)  # Accelerate wraps the loader that fetches
        _check(base)
        self._base = base
        self.dataset = base.dataset
        self._collate = base.collate_fn
        self._rows = NumberedRows(self.dataset)
        self._collator = NumberedCollator(base.collate_fn, label_names, label_column)

    def first_batch(self, n_rows: int) -> MutableMapping[str, Any]:
        """The first rows of the dataset as a numbered batch.

        Raises:
            ConfigError: They do not collate; the message has the cause.
        """
        numbers = range(min(n_rows, len(self._rows)))
        try:
            return self._collator(self._rows.__getitems__(numbers))
        except VoGError:
            raise
        except Exception as error:
            raise ConfigError(
                f"collect='training' could not collate the first {len(numbers)} training rows: {type(error).__name__}: "
                f"{error}; fix the rows or the collator, or {INSTEAD}"
            ) from error

    def check_deterministic(self, n_rows: int) -> None:
        """Read the first rows of the dataset twice under different random states.

        Raises:
            DataError: They differ: their transform or the collator is random.
        """
        require_deterministic([range(min(n_rows, len(self._rows)))], self._fetched, self._collated)

    def _fetched(self, batches: Sequence[Sequence[int]]) -> list[list[Any]]:
        return [[row for _, row in self._rows.__getitems__(numbers)] for numbers in batches]

    def _collated(self, _numbers: Sequence[int], rows: list[Any]) -> Mapping[str, object]:
        batch: Mapping[str, object] = self._collate(rows)
        return batch

    def install(self) -> None:
        """Let the loader fetch numbered rows."""
        self._set(self._rows, self._collator)

    def restore(self) -> None:
        """Let it fetch what it fetched before."""
        self._set(self.dataset, self._collate)
        self._base._iterator = None  # noqa: SLF001 (persistent workers hold the numbered rows)

    def _set(self, dataset: object, collate: object) -> None:
        self._base.__dict__["dataset"] = dataset  # a DataLoader refuses this as an attribute, to keep its sampler
        self._base.collate_fn = collate


def _check(base: Any) -> None:
    """Raise ConfigError unless a loader fetches rows by number."""
    name = type(base).__name__
    if not isinstance(base, DataLoader):
        raise ConfigError(
            f"collect='training' numbers the rows that a torch DataLoader fetches, and the training's loader is a "
            f"{name}; return a DataLoader from get_train_dataloader, or {INSTEAD}"
        )
    rows = base.dataset
    if isinstance(rows, torch.utils.data.IterableDataset) or not hasattr(rows, "__len__"):
        raise ConfigError(
            f"collect='training' needs training rows with numbers, and {type(rows).__name__} is a stream; train on a "
            f"map-style dataset, or {INSTEAD} with the rows to score"
        )
    if base.batch_sampler is None:
        raise ConfigError(
            f"collect='training' needs a loader that makes batches of rows, and this one has batch_size=None, so that "
            f"{type(rows).__name__} makes them itself; give the loader a batch size, or {INSTEAD}"
        )
