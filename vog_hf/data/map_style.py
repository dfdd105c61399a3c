"""The check that a dataset has rows by number."""

from collections.abc import Mapping, Sized
from pathlib import PurePath

from torch.utils.data import IterableDataset

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.row_identity import by_split_name
from vog_hf.data.rows import AnyDataset
from vog_hf.data.streams import table_format
from vog_hf.errors import DataError

TABLE_FORMATS = ("arrow", "polars")


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
    if hasattr(dataset, "iloc"):
        raise DataError(
            f"a dataset is expected, got a {type(dataset).__name__}, whose rows have no number; pass "
            "datasets.Dataset.from_pandas(frame) with the model's inputs"
        )
    if isinstance(dataset, IterableDataset) or not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"rows are scored by their number, and a {type(dataset).__name__} has none; pass a map-style dataset, "
            "e.g. datasets.Dataset.from_generator(...) or load_dataset(..., streaming=False)"
        )
    if has_table(dataset) and (kind := getattr(dataset, "format", {}).get("type")) in TABLE_FORMATS:
        raise DataError(table_format(kind))
    if len(dataset) == 0:
        raise DataError("the dataset is empty: there is no row to score; check the split or the filter that made it")
