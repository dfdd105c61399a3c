"""Rows to score by split: what a user passed to the callback, or the trainer's own."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.map_style import check_map_style
from vog_hf.data.row_identity import by_split_name
from vog_hf.data.rows import AnyDataset
from vog_hf.data.streams import is_stream
from vog_hf.errors import ConfigError, DataError

ONLY_SPLIT = ""
CELLS = (str, bytes, bool, int, float, list)  # of columns; a row is a mapping, a tuple, an object

T = TypeVar("T")


def splits_of(dataset: AnyDataset) -> dict[str, Any]:
    """Datasets by split; a single dataset under `ONLY_SPLIT`."""
    if isinstance(dataset, Mapping) and not has_table(dataset):
        if not dataset:
            raise DataError("the DatasetDict is empty: there is no split to score")
        splits = by_split_name(dataset)
        unsafe = [name for name in splits if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII)]
        if unsafe:
            raise DataError(f"split names become file names: A-Z, a-z, 0-9, '_', then also '.' and '-', got {unsafe}")
        return splits
    return {ONLY_SPLIT: dataset}


def require_rows(dataset: AnyDataset) -> None:
    """Raise DataError for a dictionary of columns, whose texts or numbers no collator of ours makes a batch of."""
    if not isinstance(dataset, Mapping) or has_table(dataset) or not dataset:
        return
    if all(isinstance(values, (list, tuple)) and isinstance((*values, None)[0], CELLS) for values in dataset.values()):
        raise DataError(
            f"rows are expected, got a dictionary with the columns {sorted(map(str, dataset))}; pass "
            "datasets.Dataset.from_dict(columns) with the model's inputs, or a dictionary of datasets by split"
        )


def training_rows(train_dataloader: Any) -> Any:
    """The trainer's own rows, if they have numbers."""
    rows = getattr(train_dataloader, "dataset", None)
    if is_stream(rows):
        raise DataError(
            f"the training data is a stream ({type(rows).__name__}), which Trainer shuffles and shards its own way; "
            "pass the rows to score: VoGCallback(dataset=...), a map-style dataset or a stream with a fixed order"
        )
    return rows


def without_streams(splits: Mapping[str, object]) -> dict[str, Any]:
    """Datasets that can show rows, by split; None for streams, which are read only once."""
    return {name: None if is_stream(rows) else rows for name, rows in splits.items()}


def only_or_all(splits: dict[str, T]) -> T | dict[str, T]:
    """The value of the only split, or all values by split name."""
    return splits.get(ONLY_SPLIT, splits)


def check_split(split: Any, collect: str, id_column: str | None, max_cost: float | None = None) -> None:
    """Raise if a split does not match the other options; None: the Trainer's own dataset."""
    if is_stream(split) and collect == "live":
        raise ConfigError(
            "collect='live' keeps moments by row number, which a stream does not have; use collect='replay'"
        )
    if is_stream(split) and collect == "training":
        raise ConfigError(
            "collect='training' observes training rows by their number, which a stream does not have; use "
            "collect='replay'"
        )
    if is_stream(split) and max_cost is not None:
        raise ConfigError(
            "max_cost= needs the number of rows to score, which a stream does not tell; pass max_snapshots= instead",
            argument="max_cost=",
        )
    if id_column is not None and not is_stream(split):
        raise ConfigError("id_column is only for streams, since other rows have numbers; leave it out")
    if split is not None and not is_stream(split):
        check_map_style(split)
