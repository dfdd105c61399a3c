"""From rows of a dataset to collated batches a model can be fed: reading, collating, labels, checks."""

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.bad_rows import BadRows, OnError, concerns_rows
from vog_hf.data.labels import LabelReader, label_tensor
from vog_hf.data.row_identity import by_split_name
from vog_hf.data.rows import AnyDataset
from vog_hf.data.streams import StreamRows, table_format
from vog_hf.errors import CollationError, DataError, ForwardError, NonFiniteError, VoGError, require_type
from vog_hf.gradients.input_leaf import find_leaf
from vog_hf.gradients.model_inputs import (
    LABEL_NAMES,
    MASK_NAMES,
    forward_inputs,
    forward_parameters,
    split_batch,
    takes_any_input,
)
from vog_hf.gradients.model_mode import preserved_rng, seed_global_streams

CollateFunction = Callable[[list[Any]], Any]
Trial = Callable[["Batch"], None]
TRANSFORM_CHECK_ROWS = 32
TABLE_FORMATS = ("arrow", "polars")
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
        return sum(value.nbytes for value in (*self.inputs.values(), *self.masks.values()) if isinstance(value, Tensor))


class BatchReader:
    """Reads rows of a dataset as batches for one model, always in the same order and always the same.

    Args:
        dataset: A `datasets.Dataset` or any map-style torch dataset (of mappings, pairs or tensors).
        model: Unwrapped; tells which keys of a batch are its inputs.
        collate_fn: From a list of rows to a batch. Default: transformers' ``default_data_collator`` for mappings (given
            only the columns that forward or the labels need), torch's ``default_collate`` otherwise.
        only_model_columns: Give ``collate_fn`` only those columns, as Trainer does under ``remove_unused_columns``.
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
        if collate_fn is not None:
            require_type("collate_fn", collate_fn, Callable, "pass a function from a list of rows to a batch")
        self._collate_fn = collate_fn
        self._kept = {*forward_parameters(model), *self.label_names}
        if collate_fn is None:
            self._kept.update(MASK_NAMES)
        self._only_model_columns = only_model_columns or (collate_fn is None and not takes_any_input(model))
        self.batch_size = batch_size
        self._num_workers = num_workers
        self.labels = LabelReader(dataset, self.label_names, label_column)
        self.bad_rows = BadRows(lambda rows: self._tried(self._read_together(rows)), on_error)
        self._trial: Trial | None = None

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The batches with these row numbers, in this order."""
        loader = DataLoader(
            self.dataset,
            batch_sampler=[list(self.bad_rows.replaced(rows)) for rows in batches],
            collate_fn=self._collate_rows,
            num_workers=min(self._num_workers, len(batches)),
            generator=torch.Generator(),  # the loader would draw a seed from the global stream
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*DataLoader will create.*")
            loaded = iter(loader)
        for rows in batches:
            try:
                batch = self._tried(self._checked(Batch(rows, *self._split(*next(loaded)))))
            except Exception as error:
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
            return ForwardError(f"the model's forward failed on {_named(rows)}: {type(error).__name__}: {error}")
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
        raise self._explained(rows, error, bad) from error

    def _read_together(self, rows: Sequence[int], numbers: Sequence[int] | None = None) -> Batch:
        """Rows as one batch, read by this process; ``numbers`` are what it calls them."""
        return self._checked(Batch(rows if numbers is None else numbers, *self._collate(self._fetched(rows))))

    def read_copies(self, row: int, times: int) -> Batch:
        """A batch of one row, repeated."""
        with preserved_rng():
            try:
                (rows,) = self._read_anew([range(row, row + 1)])
            except UNREADABLE as error:
                raise self._unreadable(row, error) from error
            inputs, labels, masks = self._collate(rows * times)
        return self._checked(Batch(range(row, row + times), inputs, labels, masks))

    def check_deterministic(self, batches: Sequence[Sequence[int]]) -> None:
        """Read the rows of batches twice under different random states.

        Raises:
            DataError: A column is missing, or they differ: the transform is random, and VoG would measure the crop
                instead of the model.
        """
        with preserved_rng():
            readings: list[list[dict[str, Any]]] = []
            read: list[tuple[Sequence[int], list[Any]]] = []
            for seed in (0, 1):
                seed_global_streams(seed)
                read = list(zip(batches, self._read_or_say(batches), strict=True))
                readings.append([self._collated(rows, several) for rows, several in read])
            for (rows, several), first, second in zip(read, *readings, strict=True):
                name = _differing(first, second)
                if name is not None:
                    seed_global_streams(0)
                    again = _differing(self._collated(rows, several), second)
                    raise DataError(_random(name, rows, in_collator=again is not None))

    def _read_or_say(self, batches: Sequence[Sequence[int]]) -> list[list[Any]]:
        read, reading = [], self._read_anew(batches)
        for rows in batches:
            try:
                read.append(next(reading))
            except Exception as error:
                if isinstance(error, VoGError) or not concerns_rows(error):
                    raise
                raise self._explained(rows, error, self.bad_rows.find(rows)) from error
        return read

    def _explained(self, rows: Sequence[int], error: Exception, bad: Mapping[int, Exception]) -> Exception:
        """The error of a batch in words that name the first bad row, or the rows where it is not a matter of one."""
        row, cause = next(iter(bad.items()), (None, error))
        if row is None and isinstance(error, KeyError):
            return DataError(
                f"reading rows {rows[0]}-{rows[-1]} of the dataset failed: {type(error).__name__}: {error}. "
                "A transform that reads a column which the model does not take (an image, a text) needs "
                "TrainingArguments(remove_unused_columns=False), because Trainer strips such columns before it"
            )
        if not isinstance(cause, VoGError):
            return self._unreadable(rows[0] if row is None else row, cause)
        text = str(cause)
        place = _named(rows) if row is None else f"row {row}"
        if row is None or not re.search(rf"\brow {row}\b", text):
            text = f"{text} ({place})"
        return type(cause)(text, argument=cause.arguments)

    def _unreadable(self, row: int, error: Exception) -> DataError:
        """The error that names a row that cannot be read alone, and its file."""
        return DataError(
            f"row {row} cannot be read{self._files_of(row)}: {type(error).__name__}: {error}; restore its "
            "file, leave the row out, or pass on_error='skip'"
        )

    def _files_of(self, row: int) -> str:
        """The files that a row of a `datasets.Dataset` names, for a message."""
        if not has_table(self.dataset):
            return ""
        from datasets import Audio, Image

        names = [name for name, feature in self.dataset.features.items() if isinstance(feature, (Audio, Image))]
        stored = self.dataset.with_format(None).select_columns(names)
        for name in names:
            stored = stored.cast_column(name, type(stored.features[name])(decode=False))
        files = [str(value["path"]) for value in (stored[row].values() if names else ()) if value and value.get("path")]
        return f" ({', '.join(files)})" if files else ""

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
        return [self.dataset[row] for row in rows] if together is None else together(list(rows))

    def _collated(self, rows: Sequence[int], read: list[Any]) -> dict[str, Any]:
        try:
            return self._collate(read)[0]
        except DataError as error:
            raise (CollationError if isinstance(error, CollationError) else DataError)(
                f"{error} (rows {rows[0]}-{rows[-1]})"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """What a worker that is not forked is sent: never the model, which may be large or not pickle."""
        return {**self.__dict__, "_model": None, "_trial": None, "bad_rows": None}

    def _collate(self, rows: list[Any]) -> tuple[dict[str, Any], Tensor | None, dict[str, Tensor]]:
        """Inputs, labels and masks that forward does not take."""
        return self._split(*self._collate_rows(rows))

    def _collate_rows(self, rows: list[Any]) -> tuple[Any, list[Any] | None, str | None, list[str] | str]:
        """The collated batch, labels of a column, what is wrong with labels of text, and the rows' keys: for `_split`.

        Workers run this, so it must do without the model.
        """
        column = text = None
        if rows and isinstance(rows[0], Mapping):
            rows = self.labels.with_nulls(rows)
            text = self.labels.text_fault(rows[0])
            column = None if text else self.labels.values(rows)
            missing = {name: self.labels.missing(name, rows) for name in self.label_names}
            rows = [self._model_row(row, missing) for row in rows]
        return self._batch(rows, text), column, text, _keys(rows)

    def _split(
        self, batch: object, column: Sequence[object] | None, text: str | None, keys: list[str] | str
    ) -> tuple[dict[str, Any], Tensor | None, dict[str, Tensor]]:
        """What `_collate_rows` gave, as `_collate` gives it."""
        names = (self.label_column, *self.label_names) if self.label_column else self.label_names
        inputs, labels = split_batch(batch, self._model, names)
        if column is not None:
            labels = column
        elif self.label_column and not (isinstance(batch, Mapping) and self.label_column in batch):
            msg = f"label_column {self.label_column!r} is neither a column of the rows ({keys}) nor of the batch"
            raise DataError(text or msg, argument=() if text else "label_column")
        labels = label_tensor(labels, text)
        fed = forward_inputs(self._model, inputs, labels, names)
        masks = {name: inputs[name] for name in MASK_NAMES if isinstance(inputs.get(name), Tensor) and name not in fed}
        return fed, labels, masks

    def _batch(self, rows: list[Any], text: str | None) -> Any:
        collate = self._collate_fn or _default_collator(rows)
        try:
            return self._filled(collate, rows)
        except Exception as error:
            if isinstance(error, KeyError) and isinstance(rows[0], Mapping) and error.args[0] not in rows[0]:
                raise DataError(
                    f"the collator expects {error.args[0]!r}, and the rows have {_keys(rows)}; pass the rows with the "
                    "evaluation transform that makes it: dataset.with_transform(eval_transform)"
                ) from error
            msg = (
                f"collating {len(rows)} rows with keys {_keys(rows)} failed: {type(error).__name__}: {error}. Rows "
                "must collate to tensors of one shape: resize images to one size, convert them to one mode (RGB), pad "
                "texts, and pass collate_fn= where the model needs its own, or batch_size= where the collator does"
            )
            whole = "; ".join(filter(None, [msg, text, self._uncollated_texts(rows)]))
            raise CollationError(whole, argument="batch_size=") from error

    def _filled(self, collate: CollateFunction, rows: list[Any]) -> Any:
        """The batch of a few rows, filled up while they are collated where the collator needs as many as in a batch."""
        try:
            return collate(rows)
        except Exception:
            if len(rows) >= self.batch_size:
                raise
            try:
                batch = collate([*rows, *[rows[-1]] * (self.batch_size - len(rows))])
            except Exception:  # noqa: BLE001 (whatever a collator raises; the first error is the one to explain)
                batch = None
            if batch is None:
                raise
        return _first_rows(batch, len(rows), self.batch_size)

    def _uncollated_texts(self, rows: Sequence[object]) -> str | None:
        """Text of the error for columns of text that came to the collator, which makes no tensors of them."""
        row = rows[0] if isinstance(rows[0], Mapping) else {}
        names = [name for name, value in row.items() if isinstance(value, str) and name not in self.label_names]
        if not names:
            return None
        return (
            f"the collator was given texts ({', '.join(map(repr, names))}) as they are stored: leave "
            "TrainingArguments(remove_unused_columns=True), under which Trainer drops them, or drop them yourself"
        )

    def _model_row(self, row: Mapping[str, Any], missing: Mapping[str, float]) -> dict[str, Any]:
        kept = {k: v for k, v in row.items() if k in self._kept} if self._only_model_columns else dict(row)
        if self._only_model_columns and not kept:
            msg = f"none of the row's columns {sorted(row)} is a parameter of the model's forward or a label; "
            raise DataError(msg + _what_makes_inputs(row, self._kept))
        for name in self.label_names:
            if name in kept and kept[name] is None:
                kept[name] = missing[name]  # collators cannot hold None
            if isinstance(kept.get(name), np.integer):
                kept[name] = int(kept[name])  # the collator of transformers 5.0 makes floats of numpy's whole numbers
        return kept

    def _checked(self, batch: Batch) -> Batch:
        leaf = find_leaf(self._model, batch.inputs)
        value = batch.inputs[leaf.name]
        if len(value) != len(batch):
            raise DataError(
                f"the collator made {len(value)} examples of {len(batch)} rows; VoG needs one example per row: score "
                "each of them (the texts of a pair, the two answers of a preference) as a row of its own"
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


def _differing(first: Mapping[str, object], second: Mapping[str, object]) -> str | None:
    """The first tensor that is another one in two readings."""
    return next((n for n, value in first.items() if isinstance(value, Tensor) and not _equal(value, second[n])), None)


def _random(name: str, rows: Sequence[int], *, in_collator: bool) -> str:
    """Text of the error for rows that differ between two readings."""
    differs = f"{name!r} of rows {rows[0]}-{rows[-1]} differs between two readings"
    if in_collator:
        return (
            f"{differs}: the collator is random (masks, noise), so VoG would measure its draws. Fix each row's draw: "
            "collate_fn=SeededPerRow(collator), from vog_hf.data, or pass a collator that draws nothing"
        )
    return (
        f"{differs}: the dataset's transform is random (crop, flip, dropout, masking), so VoG would measure the "
        "transform. Pass the rows with the evaluation transform: VoGCallback(dataset.with_transform(eval_transform))"
    )


def check_map_style(dataset: AnyDataset) -> None:
    """Raise DataError where a dataset is empty or has no rows by number."""
    if isinstance(dataset, (str, PurePath)):
        raise DataError(
            f"a dataset is expected, got the text {str(dataset)!r}; load its rows first: datasets.load_dataset(...), "
            "of a folder of images load_dataset('imagefolder', data_dir=...)"
        )
    if isinstance(dataset, Mapping):
        splits = sorted(by_split_name(dataset))
        raise DataError(f"one dataset is scored at a time, got a mapping of {splits}; pass one of its splits")
    if isinstance(dataset, IterableDataset) or not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"rows are scored by their number, and a {type(dataset).__name__} has none; pass a map-style dataset, "
            "e.g. datasets.Dataset.from_generator(...) or load_dataset(..., streaming=False)"
        )
    if has_table(dataset) and (kind := getattr(dataset, "format", {}).get("type")) in TABLE_FORMATS:
        raise DataError(table_format(kind))
    if len(dataset) == 0:
        raise DataError("the dataset is empty: there is no row to score; check the split or the filter that made it")


def _named(rows: Sequence[int]) -> str:
    """The rows of a batch for a message."""
    if isinstance(rows, range):
        return f"rows {rows[0]}-{rows[-1]}"
    return f"rows {', '.join(map(str, rows[:3]))}{f' and {len(rows) - 3} others' if len(rows) > 3 else ''}"


def _default_collator(rows: Sequence[object]) -> CollateFunction:
    if rows and isinstance(rows[0], Mapping):
        from transformers import default_data_collator

        return default_data_collator
    return default_collate


def _what_makes_inputs(row: Mapping[str, object], parameters: set[str]) -> str:
    """Text of the error for rows without an input of the model."""
    of_several = [name for name in row if any(name.endswith(f"_{parameter}") for parameter in parameters)]
    is_preference = {"chosen", "rejected"} <= row.keys()
    if is_preference or len(of_several) > 1:
        return (
            "each row holds several inputs (a preference, a pair or triplet of texts), and VoG needs one example per "
            "row: make each text a row of its own, with the model's inputs (input_ids, attention_mask) and a label"
        )
    return "set the transform that makes them, dataset.with_transform(...), or pass collate_fn="


def _equal(first: Tensor, second: object) -> bool:
    """Same values, NaN equal to NaN (a NaN input is another check's to name)."""
    if not isinstance(second, Tensor) or first.shape != second.shape:
        return False
    same = first == second
    return bool((same | (first.isnan() & second.isnan())).all() if first.is_floating_point() else same.all())


def _first_rows(value: object, n_rows: int, of: int) -> Any:
    """The first rows of everything in a batch that has an entry per row."""
    if isinstance(value, Mapping):
        return {name: _first_rows(item, n_rows, of) for name, item in value.items()}
    if isinstance(value, (Tensor, np.ndarray, list)) and len(value) == of:
        return value[:n_rows]
    return type(value)(_first_rows(item, n_rows, of) for item in value) if isinstance(value, (tuple, list)) else value


def _keys(rows: Sequence[object]) -> list[str] | str:
    return sorted(rows[0]) if rows and isinstance(rows[0], Mapping) else f"of type {type(rows[0]).__name__}"
