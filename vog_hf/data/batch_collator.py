"""BatchCollator: from rows to what forward takes of them, and their labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate

from vog_hf.data.flattened_batches import one_example_per_row
from vog_hf.data.labels import LabelReader, label_tensor
from vog_hf.data.packed_rows import require_one_document
from vog_hf.data.rows import AnyDataset
from vog_hf.errors import CollationError, DataError, require_type
from vog_hf.gradients.images_beside_texts import images_by_row
from vog_hf.gradients.model_inputs import (
    MASK_NAMES,
    forward_inputs,
    forward_parameters,
    split_batch,
    takes_any_input,
)
from vog_hf.gradients.preferences import CHOSEN, REJECTED, chosen_come_first, paired
from vog_hf.gradients.preferences import COLUMNS as PREFERENCE_COLUMNS
from vog_hf.gradients.sentence_encoders import is_sentence_model

CollateFunction = Callable[[list[Any]], Any]
NOT_TOKENIZED = (
    "the rows are texts, and a model reads their tokens: pass tokenized rows with their labels, "
    "datasets.Dataset.from_dict({'text': ..., 'label': ...}).map(lambda row: tokenizer(row['text'])), or collate_fn="
)


class BatchCollator:
    """Collates rows of a dataset for one model; options as for `BatchReader`.

    Attributes:
        batch_size: Rows per batch, to which fewer rows that do not collate are filled up.
        labels: Reader of the labels of rows.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        model: nn.Module,
        collate_fn: CollateFunction | None,
        *,
        only_model_columns: bool,
        trainer_columns: Sequence[str],
        label_names: Sequence[str],
        label_column: str | None,
        batch_size: int,
    ) -> None:
        if collate_fn is not None:
            require_type("collate_fn", collate_fn, Callable, "pass a function from a list of rows to a batch")
        self.batch_size = batch_size
        self.label_column = label_column
        self.label_names = label_names
        self.labels = LabelReader(dataset, label_names, label_column)
        self._label_keys = {*label_names, *filter(None, [label_column])}
        self._model = model
        self._collate_fn = collate_fn
        self._kept = {*forward_parameters(model), *label_names, *(MASK_NAMES if collate_fn is None else ())}
        if collate_fn is not None:
            self._kept |= {*PREFERENCE_COLUMNS, *trainer_columns}
        only_model_columns = only_model_columns or (collate_fn is None and not takes_any_input(model))
        self._only_model_columns = only_model_columns and not is_sentence_model(model)  # collators tokenize any column

    def __getstate__(self) -> dict[str, Any]:
        """State for a worker that is not forked: never the model, which may be large or not pickle."""
        return {**self.__dict__, "_model": None}

    def collate(self, rows: list[Any]) -> tuple[dict[str, Any], Tensor | None, dict[str, Tensor]]:
        """Inputs, labels and masks that forward does not take."""
        return self.split(*self.collate_rows(rows))

    def collate_rows(self, rows: list[Any]) -> tuple[Any, list[Any] | None, str | None, list[str] | str]:
        """The collated batch, labels of a column, what is wrong with labels of text, and the rows' keys: for `split`.

        Workers run this, so it must do without the model.
        """
        column = text = None
        if rows and isinstance(rows[0], Mapping):
            rows = self.labels.with_nulls(rows)
            text = self.labels.text_fault(rows[0])
            column = None if text else self.labels.values(rows)
            require_one_document(rows)
            missing = {name: self.labels.missing(name, rows) for name in self.label_names}
            rows = [self._model_row(row, missing) for row in rows]
        batch = one_example_per_row(rows, self._batch(rows, text), self._label_keys)
        _require_chosen_first(rows, batch)
        return batch, column, text, _keys(rows)

    def split(
        self, batch: object, column: Sequence[object] | None, text: str | None, keys: list[str] | str
    ) -> tuple[dict[str, Any], Tensor | None, dict[str, Tensor]]:
        """Split what `collate_rows` gave, as `collate` does."""
        names = (self.label_column, *self.label_names) if self.label_column else self.label_names
        inputs, labels = split_batch(batch, self._model, names)
        if column is not None:
            labels = column
        elif self.label_column and not (isinstance(batch, Mapping) and self.label_column in batch):
            msg = f"label_column {self.label_column!r} is neither a column of the rows ({keys}) nor of the batch"
            raise DataError(text or msg, argument=() if text else "label_column")
        labels = label_tensor(labels, text)
        fed = forward_inputs(self._model, inputs, labels, names)
        if {CHOSEN, REJECTED} <= set(keys) and isinstance(fed.get("input_ids"), Tensor):
            fed = paired(inputs, fed)
        else:
            fed = images_by_row(self._model, fed)
        masks = {name: inputs[name] for name in MASK_NAMES if isinstance(inputs.get(name), Tensor) and name not in fed}
        return fed, labels, masks

    def _batch(self, rows: list[Any], text: str | None) -> Any:
        if self._collate_fn is None and rows and isinstance(rows[0], str):
            raise DataError(NOT_TOKENIZED)  # torch's own collator leaves them as they are
        collate = self._collate_fn or _default_collator(rows)
        try:
            return self._filled(collate, rows)
        except Exception as error:
            if isinstance(error, KeyError) and isinstance(rows[0], Mapping) and error.args[0] not in rows[0]:
                raise DataError(
                    f"the collator expects {error.args[0]!r}, and the rows have {_keys(rows)}; pass the rows with the "
                    "evaluation transform that makes it: dataset.with_transform(eval_transform)"
                ) from error
            if isinstance(rows[0], str):
                raise DataError(f"{NOT_TOKENIZED} ({type(error).__name__}: {error})") from error
            with_keys = "with keys " if isinstance(rows[0], Mapping) else ""
            msg = (
                f"collating {len(rows)} rows {with_keys}{_keys(rows)} failed: {type(error).__name__}: {error}. Rows "
                "must collate to tensors of one shape: resize images to one size, convert them to one mode (RGB), pad "
                "texts, and pass collate_fn= where the model needs its own, or batch_size= where the collator does"
            )
            whole = "; ".join(filter(None, [msg, text, self._uncollated(rows)]))
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

    def _uncollated(self, rows: Sequence[object]) -> str | None:
        """Text of the error for images or texts that came to the collator, which makes no tensors of them."""
        row = rows[0] if isinstance(rows[0], Mapping) else {}
        images = [name for name, value in row.items() if isinstance(value, Image.Image)]
        if images:
            return (
                f"the collator was given images ({', '.join(map(repr, images))}) as they are stored: pass the rows "
                "with the transform that makes the model's inputs, dataset.with_transform(eval_transform)"
            )
        names = [name for name, value in row.items() if isinstance(value, str) and name not in self.label_names]
        if not names:
            return None
        return (
            f"the collator was given texts ({', '.join(map(repr, names))}) as they are stored: leave "
            "TrainingArguments(remove_unused_columns=True), under which Trainer drops them, or drop them yourself"
        )

    def _model_row(self, row: Mapping[str, Any], missing: Mapping[str, float]) -> dict[str, Any]:
        kept = {k: v for k, v in row.items() if k in self._kept} if self._only_model_columns else dict(row)
        if self._only_model_columns and not kept.keys() - set(self.label_names):
            msg = f"none of the row's columns {sorted(row)} is an input of the model's forward; "
            raise DataError(msg + _what_makes_inputs(row, self._kept))
        for name in self.label_names:
            if name in kept and kept[name] is None:
                kept[name] = missing[name]  # collators cannot hold None
            if isinstance(kept.get(name), np.integer):
                kept[name] = int(kept[name])  # the collator of transformers 5.0 makes floats of numpy's whole numbers
        return kept


def _default_collator(rows: Sequence[object]) -> CollateFunction:
    if rows and isinstance(rows[0], Mapping):
        from transformers import default_data_collator

        return default_data_collator
    return default_collate


def _require_chosen_first(rows: Sequence[Any], batch: Any) -> None:
    """Raise DataError where rows of a chosen and a rejected text are not collated as TRL does; looks at two rows."""
    if not rows or not isinstance(rows[0], Mapping) or not {CHOSEN, REJECTED} <= rows[0].keys():
        return
    ids, mask = (batch.get(name) if isinstance(batch, Mapping) else None for name in ("input_ids", "attention_mask"))
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or len(ids) != 2 * len(rows):
        return
    for at in {0, len(rows) - 1}:
        texts = [ids[i][mask[i].bool()].tolist() for i in (at, len(rows) + at)]
        if not chosen_come_first(rows[at], *texts):
            raise DataError(
                f"rows with {CHOSEN} and {REJECTED} must be collated as TRL does: all chosen texts, then all rejected "
                "ones, each with its row's tokens; pass such a collator (collate_fn=)",
                argument="collate_fn=",
            )


def _what_makes_inputs(row: Mapping[str, object], parameters: set[str]) -> str:
    """Text of the error for rows without an input of the model."""
    of_several = [name for name in row if any(name.endswith(f"_{parameter}") for parameter in parameters)]
    is_preference = {"chosen", "rejected"} <= row.keys()
    if is_preference or len(of_several) > 1:
        prepared = (
            f"pass the rows of a preference as TRL prepares them, with {CHOSEN} and {REJECTED}: "
            "VoGCallback(trainer.train_dataset); or "
        )
        return (
            "each row holds several inputs (a preference, a pair or triplet of texts), and VoG needs one example per "
            f"row: {prepared if is_preference else ''}make each text a row of its own, with the model's inputs "
            "(input_ids, attention_mask) and a label"
        )
    texts = [name for name, value in row.items() if isinstance(value, str)]
    if texts and "input_ids" in parameters:
        return f"make tokens of the texts first: dataset.map(lambda row: tokenizer(row[{texts[0]!r}], truncation=True))"
    return "set the transform that makes them, dataset.with_transform(...), or pass collate_fn="


def _first_rows(value: object, n_rows: int, of: int) -> Any:
    """The first rows of everything in a batch that has an entry per row."""
    if isinstance(value, Mapping):
        return {name: _first_rows(item, n_rows, of) for name, item in value.items()}
    if isinstance(value, (Tensor, np.ndarray, list)) and len(value) == of:
        return value[:n_rows]
    return type(value)(_first_rows(item, n_rows, of) for item in value) if isinstance(value, (tuple, list)) else value


def _keys(rows: Sequence[object]) -> list[str] | str:
    return sorted(rows[0]) if rows and isinstance(rows[0], Mapping) else f"of type {type(rows[0]).__name__}"
