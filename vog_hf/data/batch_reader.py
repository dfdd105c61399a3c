"""BatchReader: the rows of a dataset as batches for one model, always in the same order and always the same."""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vog_hf.data.bad_rows import BadRows, OnError, close_images, concerns_rows
from vog_hf.data.batch_collator import BatchCollator, CollateFunction
from vog_hf.data.map_style import check_map_style
from vog_hf.data.random_transforms import require_deterministic
from vog_hf.data.row_errors import explained, files_of, named, unreadable
from vog_hf.data.rows import AnyDataset
from vog_hf.data.streams import StreamRows
from vog_hf.errors import CollationError, DataError, ForwardError, NonFiniteError, VoGError
from vog_hf.gradients.input_leaf import find_leaf
from vog_hf.gradients.model_inputs import (
    LABEL_NAMES,
)
from vog_hf.gradients.model_mode import preserved_rng

Trial = Callable[["Batch"], None]
TRANSFORM_CHECK_ROWS = 32
UNREADABLE = (OSError, EOFError, SyntaxError, struct.error, zlib.error)  # of files that are cut off or damaged


@dataclass(frozen=True)
class Batch:
    """Collated rows: their numbers, what forward takes, and their labels (None: the data has none).

    ``masks`` are those that say what is padding and that forward does not take.
    """

    rows: Sequence[int]
    inputs: dict[str, Any]
    labels: Tensor | None
    masks: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        tensors = (*self.inputs.values(), *self.masks.values(), self.labels)
        return sum(value.nbytes for value in tensors if isinstance(value, Tensor))


class BatchReader:
    """Reads rows of a dataset as batches for one model, always in the same order and always the same.

    Args:
        dataset: A `datasets.Dataset` or any map-style torch dataset (of mappings, pairs or tensors).
        model: Unwrapped; tells which keys of a batch are its inputs.
        collate_fn: From a list of rows to a batch. Default: transformers' ``default_data_collator`` for mappings (given
            only the columns that forward or the labels need), torch's ``default_collate`` otherwise.
        only_model_columns: Give ``collate_fn`` only those columns, as Trainer does under ``remove_unused_columns``.
        trainer_columns: Columns that Trainer left in its dataset, which ``collate_fn`` also gets.
        label_names: Keys under which a batch holds its labels.
        label_column: Column (or batch key) of the labels, over ``label_names``.
        num_workers: Processes that read ahead; 0 = none.
        batch_size: Rows per batch. Fewer rows that do not collate are filled up to it with copies of the last one, of
            which nothing is kept: some collators need a fixed number.
        on_error: ``"skip"`` to read a good row instead of one that fails (see `BadRows`).

    Attributes:
        bad_rows: Rows that are skipped.

    Raises:
        DataError: An empty dataset, or one that cannot be read by row number.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        model: nn.Module,
        *,
        collate_fn: CollateFunction | None = None,
        only_model_columns: bool = False,
        trainer_columns: Sequence[str] = (),
        label_names: Sequence[str] | None = None,
        label_column: str | None = None,
        num_workers: int = 0,
        batch_size: int = 64,
        on_error: OnError = "raise",
    ) -> None:
        check_map_style(dataset)
        self.dataset: Any = dataset
        self.label_column = label_column
        self.label_names = tuple(dict.fromkeys([*(label_names or ()), *LABEL_NAMES]))
        self._model = model
        self._num_workers = num_workers
        self._collator = BatchCollator(
            dataset,
            model,
            collate_fn,
            only_model_columns=only_model_columns,
            trainer_columns=trainer_columns,
            label_names=self.label_names,
            label_column=label_column,
            batch_size=batch_size,
        )
        self.labels = self._collator.labels
        self.bad_rows = BadRows(
            lambda rows: self._tried(self._read_together(rows)), on_error, partial(files_of, self.dataset)
        )
        self._trial: Trial | None = None

    @property
    def batch_size(self) -> int:
        """Rows per batch."""
        return self._collator.batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self._collator.batch_size = batch_size

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The batches with these row numbers, in this order."""
        loader = DataLoader(
            self.dataset,
            batch_sampler=[list(self.bad_rows.replaced(rows)) for rows in batches],
            collate_fn=self._collator.collate_rows,
            num_workers=min(self._num_workers, len(batches)),
            generator=torch.Generator(),  # the loader would draw a seed from the global stream
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*DataLoader will create.*")
            loaded = iter(loader)
        for rows in batches:
            try:
                batch = self._tried(self._checked(Batch(rows, *self._collator.split(*next(loaded)))))
            except Exception as error:
                close_images(error)
                if not concerns_rows(error):
                    raise
                batch = self._recovered(rows, error)
            yield batch

    def read_singly(self, rows: Sequence[int]) -> Iterator[Batch | None]:
        """Each row as a batch of its own; None for one that cannot be read, if such rows are skipped."""
        singles = [range(row, row + 1) for row in rows]
        if self.bad_rows.on_error == "raise":
            yield from self.read(singles)
            return
        for single in singles:
            try:
                yield self._read_together(single)
            except Exception as error:
                if not concerns_rows(error):
                    raise
                yield None

    @contextmanager
    def trying(self, trial: Trial) -> Iterator[None]:
        """Let a function try each batch that is read, if bad rows are skipped: rows with which it fails are bad."""
        with self._tried_by(trial if self.bad_rows.on_error == "skip" else None):
            yield

    @contextmanager
    def _tried_by(self, trial: Trial | None) -> Iterator[None]:
        before, self._trial = self._trial, trial
        try:
            yield
        finally:
            self._trial = before

    def good_rows(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows of the first batch, which are held, without the bad ones, if such rows are skipped."""
        if self.bad_rows.on_error == "raise":
            return rows
        good = self.bad_rows.good(rows)
        if isinstance(self.dataset, StreamRows) and self.bad_rows.reference is not None:
            self.dataset.pin(self.bad_rows.reference)
        return good

    def forward_error(self, rows: Sequence[int], error: Exception, trial: Trial) -> VoGError:
        """The error of a model that failed on a batch: DataError, naming the first row with which a trial of it fails.

        ForwardError where it is not a matter of single rows.
        """
        if isinstance(self.dataset, StreamRows):
            self.dataset.hold_again(rows)
        with self._tried_by(trial):
            row, cause = next(iter(self.bad_rows.find(rows).items()), (None, error))
        if row is None:
            return ForwardError(f"the model's forward failed on {named(rows)}: {type(error).__name__}: {error}")
        return DataError(
            f"the model's forward failed on row {row}: {type(cause).__name__}: {cause}. Prepare the row as for "
            "evaluation, leave it out, or pass on_error='skip'"
        )

    def _recovered(self, rows: Sequence[int], error: Exception) -> Batch:
        """A batch that failed, with its bad rows replaced; raises an error that names the row if none is skipped."""
        bad = self.bad_rows.find(rows)
        if self.bad_rows.on_error == "skip" and self.bad_rows.reference is not None:
            self.bad_rows.skip(bad)
            try:
                return self._tried(self._read_together(self.bad_rows.replaced(rows), rows))
            except Exception as again:
                if not concerns_rows(again):
                    raise
                error = again
        raise explained(self.dataset, rows, error, bad) from error

    def _read_together(self, rows: Sequence[int], numbers: Sequence[int] | None = None) -> Batch:
        """Rows as one batch, read by this process; ``numbers`` are what it calls them."""
        return self._checked(Batch(rows if numbers is None else numbers, *self._collator.collate(self._fetched(rows))))

    def read_copies(self, row: int, times: int) -> Batch:
        """A batch of one row, repeated."""
        with preserved_rng():
            try:
                (rows,) = self._read_anew([range(row, row + 1)])
            except UNREADABLE as error:
                raise unreadable(self.dataset, row, error) from error
            inputs, labels, masks = self._collator.collate(rows * times)
        return self._checked(Batch(range(row, row + times), inputs, labels, masks))

    def check_deterministic(self, batches: Sequence[Sequence[int]]) -> None:
        """Read the rows of batches twice under different random states.

        Raises:
            DataError: A column is missing, or they differ: the transform is random, and VoG would measure the crop
                instead of the model.
        """
        require_deterministic(batches, self._read_or_say, self._collated)

    def _read_or_say(self, batches: Sequence[Sequence[int]]) -> list[list[Any]]:
        read, reading = [], self._read_anew(batches)
        for rows in batches:
            try:
                read.append(next(reading))
            except Exception as error:
                if isinstance(error, VoGError) or not concerns_rows(error):
                    raise
                raise explained(self.dataset, rows, error, self.bad_rows.find(rows)) from error
        return read

    def _read_anew(self, batches: Sequence[Sequence[int]]) -> Iterator[list[Any]]:
        """The rows of each batch, not collated, read as the loader reads them."""
        reread = getattr(self.dataset, "reread", None)  # of a stream, which holds rows that were transformed already
        if reread is not None:
            read = iter(reread([row for rows in batches for row in rows]))
            yield from ([next(read) for _ in rows] for rows in batches)
            return
        yield from map(self._fetched, batches)

    def _fetched(self, rows: Sequence[int]) -> list[Any]:
        """Rows as the loader fetches them: together if possible, since a transform may pad them to one length."""
        together = getattr(self.dataset, "__getitems__", None)
        try:
            return [self.dataset[row] for row in rows] if together is None else together(list(rows))
        except Exception as error:
            close_images(error)
            raise

    def _collated(self, rows: Sequence[int], read: list[Any]) -> dict[str, Any]:
        try:
            return self._collator.collate(read)[0]
        except DataError as error:
            raise (CollationError if isinstance(error, CollationError) else DataError)(
                f"{error} (rows {rows[0]}-{rows[-1]})"
            ) from error

    def _checked(self, batch: Batch) -> Batch:
        leaf = find_leaf(self._model, batch.inputs)
        value = batch.inputs[leaf.name]
        if len(value) != len(batch):
            advice = (
                "pass a collator that pads rows instead of packing them (collate_fn=)"
                if len(value) < len(batch)
                else "score each of them (the texts of a pair, the two answers of a preference) as a row of its own"
            )
            raise DataError(
                f"the collator made {len(value)} examples of {len(batch)} rows; VoG needs one example per row: {advice}"
            )
        if value.is_floating_point():
            bad = ~torch.isfinite(value).reshape(len(value), -1).all(1)
            if bool(bad.any()):
                row = batch.rows[int(bad.nonzero()[0])]
                raise NonFiniteError(f"input {leaf.name!r} of row {row} holds NaN or infinity; fix or drop the row")
        if batch.labels is not None and len(batch.labels) != len(batch):
            raise DataError(f"{len(batch.labels)} labels came for {len(batch)} rows; VoG needs one label per row")
        return batch

    def _tried(self, batch: Batch) -> Batch:
        """A batch that the trial, if there is one, has passed."""
        if self._trial is not None:
            self._trial(batch)
        return batch
