"""Checks of the rows of an observed training, before it starts."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.column_kinds import columns_of_kind
from vog_hf.data.numbered_rows import INSTEAD, LABELS_KEY, ROWS_KEY
from vog_hf.data.row_identity import identify_rows
from vog_hf.errors import ConfigError, RowMismatchError
from vog_hf.gradients.input_leaf import find_leaf
from vog_hf.gradients.model_inputs import split_batch


def require_one_example_per_row(
    model: nn.Module, batch: Mapping[str, object], n_rows: int, label_names: Sequence[str]
) -> None:
    """Raise ConfigError where the collator does not make one example of each row of a numbered batch."""
    inputs, _ = split_batch(batch, model, label_names)
    inputs = {name: value for name, value in inputs.items() if name not in (ROWS_KEY, LABELS_KEY)}
    n_examples = len(inputs[find_leaf(model, inputs).name])
    if n_examples != n_rows:
        raise ConfigError(
            f"collect='training' needs one example per row, and the collator makes {n_examples} examples of "
            f"{n_rows} rows; pad rows instead of packing or splitting them, or {INSTEAD}"
        )


def require_same_rows(shown: Any, trained: Any) -> None:
    """Raise RowMismatchError unless the rows passed to the callback are those of the training, as far as is known."""
    if len(shown) != len(trained):
        raise RowMismatchError(
            f"collect='training' scores the rows of the training, {len(trained):,}, and VoGCallback was given "
            f"{len(shown):,}; pass the training dataset, leave it out, or {INSTEAD}, which scores any rows"
        )
    if not has_table(shown) or not has_table(trained):
        return
    common = [name for name in trained.column_names if name in shown.column_names]
    media = {*columns_of_kind(trained, "image"), *columns_of_kind(trained, "audio")}  # slow to digest
    cheap = [name for name in common if name not in media]
    differing = identify_rows(trained.select_columns(cheap)).differing(identify_rows(shown.select_columns(cheap)))
    if differing:
        raise RowMismatchError(
            f"collect='training' scores the rows of the training, and column {differing[0]!r} of the dataset that "
            f"VoGCallback was given differs from the training's; pass the training dataset in its order, leave it out, "
            f"or {INSTEAD}, which scores any rows"
        )
