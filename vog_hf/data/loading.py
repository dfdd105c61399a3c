"""Rows by the name that a person gives on a command line: one split of a dataset, and its labels as classes."""

from collections.abc import Mapping
from glob import escape, has_magic
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    Features,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetsError

from vog_hf.data.referenced_files import with_more_columns
from vog_hf.data.row_identity import by_split_name
from vog_hf.errors import DataError, as_path, require_type

READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes


def load_rows(
    name: str, split: str | None = None, *, config: str | None = None, revision: str | None = None
) -> Dataset:
    """One split of a dataset, from wherever it is.

    Args:
        name: Id on the Hub, folder of `save_to_disk`, folder that `load_dataset` reads (of images, of sounds, of
            parquet files), or a parquet, csv or json file.
        split: As `load_dataset` names it, also a part (``"train[:10%]"``). A file is the split ``train``, and so is a
            dataset that was saved alone, unless it was another one when it was saved. Default: that one, else
            ``train``.
        config: Configuration, of a dataset on the Hub or of a folder that `load_dataset` reads.
        revision: Branch, tag or commit of a dataset on the Hub.

    Raises:
        DataError: There is no such dataset, configuration or split, or it cannot be read; says which and why.
    """
    path = as_path("name", name).expanduser()
    name = str(name)
    for option, value in (("split", split), ("config", config), ("revision", revision)):
        require_type(option, value, (str, type(None)), "pass its name, or leave it out")
    _refuse_idle(path, config, revision)
    try:
        if is_saved(path):
            return part_of(load_from_disk(str(path), keep_in_memory=False), split)
        split = split or "train"  # not in memory: next to its file on disk stands who wrote the rows
        if path.is_dir():
            return _load_folder(path, config, split)
        if not path.is_file():
            return load_dataset(name, config, split=split, revision=revision, keep_in_memory=False)
        return _load_file(path, split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        # The message of a DatasetGenerationError says only that there was one.
        known = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        reason = " ".join(str(known or error).split()).rstrip(".") or type(error).__name__
        reason = "it has no rows" if reason.endswith("corresponds to no data!") else reason
        raise DataError(f"{name} with split {split or 'train'!r} cannot be loaded: {reason:.400}") from error


def _load_file(path: Path, split: str) -> Dataset:
    """The split of a file, under the file's name instead of its reader's."""
    rows = load_dataset(_reader(path), data_files={"train": escape(str(path))}, split=split, keep_in_memory=False)
    rows.info.dataset_name = path.name
    return rows


def _load_folder(path: Path, config: str | None, split: str) -> Dataset:
    """The split of a folder; refused where `datasets` would read its name (``data[1]``) as a pattern."""
    path = path.resolve()
    if has_magic(str(path)):
        raise ValueError(f"datasets reads the [, *, or ? in {path} as a pattern, not as a name; rename the folder")
    if any(path.glob("*/*.wav")) and config is None and find_spec("torchcodec") is None:
        return part_of(_folder_of_sounds(path), split)
    return load_dataset(str(path), config, split=split, keep_in_memory=False)


def _folder_of_sounds(path: Path) -> Dataset:
    """Undecoded WAV files of a folder with a subfolder per class; `datasets` itself reads them only with torchcodec."""
    files = sorted(path.glob("*/*.wav"))
    stored = {"bytes": Value("binary"), "path": Value("string")}
    classes = ClassLabel(names=sorted({file.parent.name for file in files}))
    sounds = [{"bytes": None, "path": str(file)} for file in files]
    columns = {"audio": sounds, "label": [file.parent.name for file in files]}
    rows = Dataset.from_dict(columns, features=Features({"audio": stored, "label": classes}))
    return rows.cast_column("audio", Audio(decode=False))


def _refuse_idle(path: Path, config: str | None, revision: str | None) -> None:
    """Raise where an option would be ignored."""
    if revision is not None and path.exists():
        raise DataError(
            f"a revision ({revision}) is of a dataset on the Hub, and {path} is on this machine; leave it out"
        )
    if config is not None and (path.is_file() or is_saved(path)):
        what = "a file" if path.is_file() else "a folder of save_to_disk"
        raise DataError(f"{path} is {what}, which has no configurations ({config}); leave it out")


def _reader(file: Path) -> str:
    if file.suffix not in READERS:
        raise ValueError(f"a file must be one of {', '.join('*' + suffix for suffix in READERS)}")
    return READERS[file.suffix]


def is_saved(folder: Path) -> bool:
    """True if `save_to_disk` has written it."""
    return folder.is_dir() and any((folder / name).is_file() for name in SAVED)


def part_of(saved: Dataset | Mapping[str, Dataset], split: str | None = None) -> Dataset:
    """A split, or a part of one, of what is in memory already.

    Args:
        saved: Splits by name, or one dataset.
        split: As for `load_rows`.

    Raises:
        ValueError: There is no such split.
    """
    if not isinstance(saved, Mapping):
        only = str(saved.split or "train").partition("[")[0].partition("+")[0]  # "train[:10%]": of train
        saved, split = {only: saved}, split or only
    splits: dict[str, Dataset] = by_split_name(saved)
    parts = ReadInstruction.from_spec(split or "train").to_absolute({name: len(rows) for name, rows in splits.items()})
    taken = [splits[part.splitname].select(range(part.from_ or 0, _end(part, splits))) for part in parts]
    return concatenate_datasets(taken) if len(taken) > 1 else taken[0]


def _end(part: Any, splits: Mapping[str, Dataset]) -> int:
    return len(splits[part.splitname]) if part.to is None else part.to


def with_columns(dataset: Dataset, columns: pa.Table) -> Dataset:
    """The dataset with these columns instead of those of the same name, or behind the others.

    Args:
        dataset: One split; its format and its transform are kept, and nothing in it is decoded.
        columns: A value per row, with the features in the schema's metadata (`Features.arrow_schema`).
    """
    stored, added = dataset.with_format(None), Dataset(columns)
    others = stored.remove_columns([name for name in added.column_names if name in stored.column_names])
    joined = with_more_columns(others, added) if others.column_names else added
    new = [name for name in added.column_names if name not in stored.column_names]
    ordered: Any = joined.select_columns([*stored.column_names, *new])
    return ordered.with_format(**_format(dataset))


def _format(dataset: Dataset) -> dict[str, Any]:
    """The format of a dataset for ``with_format``; one of all columns is one of the new columns, too."""
    kept = dict(dataset.format)
    columns = kept.pop("columns")
    return {
        "type": kept["type"],
        "columns": None if set(columns) == set(dataset.column_names) else columns,
        "output_all_columns": kept["output_all_columns"],
        **kept["format_kwargs"],
    }
