"""Rows by the name that a person gives on a command line: one split of a dataset, and its labels as classes."""

from collections.abc import Mapping, Sequence
from glob import escape, has_magic
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
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

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.referenced_files import with_more_columns
from vog_hf.data.row_identity import by_split_name
from vog_hf.errors import ConfigError, DataError, LabelError, as_path, require_type, shown

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
        return load_dataset(_reader(path), data_files={"train": escape(str(path))}, split=split, keep_in_memory=False)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        # The message of a DatasetGenerationError says only that there was one.
        known = error.__cause__ if isinstance(error, DatasetGenerationError) else None
        reason = " ".join(str(known or error).split()).rstrip(".") or type(error).__name__
        reason = "it has no rows" if reason.endswith("corresponds to no data!") else reason
        raise DataError(f"{name} with split {split or 'train'!r} cannot be loaded: {reason:.400}") from error


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


def as_classes(rows: Dataset, column: str, names: Sequence[str] | None = None) -> Dataset:
    """The rows with their labels as a ``ClassLabel``, which a classifier is trained on.

    Args:
        rows: One split. Its format and its transform are kept, and no other column is decoded.
        column: Labels: classes, texts, whole numbers or booleans.
        names: Names of the classes in the order of their numbers, as of the rows that a model was trained on; default:
            those that the column has, texts in the order of the alphabet, numbers in the order of numbers.

    Returns:
        The same rows and columns, in the same order. Labels are matched with ``names`` by name, not by number.

    Raises:
        DataError: There is no such column, or it holds something else.
        LabelError: A row without a label, or with one that is not in ``names``.

    Example:
        >>> rows = Dataset.from_dict({"label": [10, 2, 2]})
        >>> as_classes(rows, "label").features["label"].names
        ['2', '10']
        >>> as_classes(rows, "label", names=["10", "2"])["label"][:]
        [0, 1, 1]
    """
    require_type("column", column, str, "pass the name of the column of labels")
    if not has_table(rows) or column not in rows.column_names:
        has = f"the dataset has {', '.join(rows.column_names)}" if has_table(rows) else "pass one split of a dataset"
        raise DataError(f"there is no label column {column!r}; {has}")
    require_type("names", names, (list, tuple, type(None)), "pass the names of the classes in order of their numbers")
    for name in names or ():
        require_type("a name of a class", name, str, "pass the names of the classes as texts")
    if len(set(names or ())) < len(names or ()):
        raise ConfigError(f"names of classes must differ, got {shown(names)}; name each class once")
    labels, known = _named(rows, column)
    of_split = f" of split {str(rows.split)!r}" if rows.split is not None else ""
    if labels.null_count:
        raise LabelError(
            f"{labels.null_count:,} of {len(labels):,} rows{of_split} have no label in column {column!r}; use a "
            "split where every row has one, or leave them out",
            pc.index(pc.is_null(labels), True).as_py(),
        )
    names = known if names is None else list(names)
    numbers = pc.index_in(labels, value_set=pa.array(names, pa.string()))
    if numbers.null_count:
        row = pc.index(pc.is_null(numbers), True).as_py()
        unknown = labels[row].as_py()
        raise LabelError(
            f"label column {column!r}{of_split} holds {unknown!r}, which is none of the classes "
            f"{', '.join(names[:20])}",
            row,
        )
    features = Features({column: ClassLabel(names=names)})
    if rows.features[column] == features[column]:
        return rows
    return with_columns(rows, pa.table([numbers.cast(pa.int64())], schema=features.arrow_schema))


def model_classes(config: Any) -> list[str] | None:
    """Names of a model's classes in the order of their numbers; None where its configuration has placeholders.

    Args:
        config: Configuration of a transformers model.

    Raises:
        DataError: ``id2label`` and ``label2id`` contradict each other, or numbers are missing.

    Example:
        >>> from transformers import PretrainedConfig
        >>> model_classes(PretrainedConfig(id2label={"0": "bird", "1": "cat"}, label2id={"bird": "0", "cat": "1"}))
        ['bird', 'cat']
        >>> model_classes(PretrainedConfig(num_labels=3)) is None
        True
    """
    by_number = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    by_name = {int(number): str(name) for name, number in (config.label2id or {}).items()}
    known = [names for names in (by_number, by_name) if names and not _are_placeholders(names)]
    if not known:
        return None
    if (len(known) == 2 and by_number != by_name) or sorted(known[0]) != list(range(len(known[0]))):
        raise DataError(
            "id2label and label2id of the model's configuration must name the classes 0, 1, 2 ... alike, got "
            f"{by_number} and {by_name}; correct them in its config.json"
        )
    return [known[0][number] for number in range(len(known[0]))]


def _are_placeholders(names: Mapping[int, str]) -> bool:
    return all(name == f"LABEL_{number}" for number, name in names.items())


def class_numbers(rows: Dataset, column: str, config: Any) -> dict[Any, int] | None:
    """The number that a model has for the class of each label: by name where both have names.

    Args:
        rows: One split.
        column: Labels. Missing ones, and -1 and -100, are left out.
        config: Configuration of the model.

    Returns:
        Numbers by stored value; None where stored values are what the model takes: numbers of classes without names,
        values of a regression, lists of several labels.

    Raises:
        LabelError: A row with a class that the model does not have.
        DataError: Labels that no class can be told from.
    """
    feature, names = rows.features[column], model_classes(config)
    values = rows.select_columns([column]).with_format("arrow")[:].column(column).combine_chunks()
    if config.problem_type == "regression" or config.num_labels == 1:
        _require_numbers(column, values)
        return None
    if not isinstance(feature, (ClassLabel, Value)):
        _require_whole_lists(column, values, config)
        return None
    stored = [value for value in values.unique().drop_null().to_pylist() if value == value and value not in (-1, -100)]  # noqa: PLR0124 (NaN)
    if isinstance(feature, ClassLabel):
        numbers = _numbers_of_classes(feature, column, names, config.num_labels)
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        numbers = {name: number for number, name in enumerate(names or _placeholders(config.num_labels))}
    else:
        numbers = _numbers_of_numbers(stored, names)
    unknown = next((value for value in stored if numbers is not None and value not in numbers), None)
    if unknown is not None:
        row = pc.index(values, pa.scalar(unknown, values.type)).as_py()
        shown = feature.int2str(unknown) if isinstance(feature, ClassLabel) else unknown
        classes = ", ".join((names or _placeholders(config.num_labels))[:20])
        raise LabelError(
            f"row {row:,}: label column {column!r} holds {shown!r}, which is not a class of the model ({classes}); "
            "score the data that it was trained on, or give the classes the model's names",
            row,
        )
    return numbers


def _placeholders(count: int) -> list[str]:
    return [f"LABEL_{number}" for number in range(count)]


def _numbers_of_classes(
    feature: ClassLabel, column: str, names: list[str] | None, n_classes: int
) -> dict[Any, int] | None:
    has_names = feature.names != list(map(str, range(feature.num_classes)))
    if names is not None and (has_names or set(feature.names) <= set(names)):
        number = {name: place for place, name in enumerate(names)}
        found = {place: number[name] for place, name in enumerate(feature.names) if name in number}
        return None if found == {place: place for place in range(feature.num_classes)} else found
    if feature.num_classes != n_classes:
        raise DataError(
            f"label column {column!r} has the {feature.num_classes} classes {', '.join(feature.names[:20])}, and the "
            f"model {n_classes} classes without names; name them in id2label and label2id of its config.json"
        )
    return None


def _numbers_of_numbers(stored: Sequence[Any], names: list[str] | None) -> dict[Any, int] | None:
    """Of labels that are numbers: the model's own, unless its names are other numbers (1 to 5, say)."""
    if names is not None and names != list(map(str, range(len(names)))) and all(map(_is_whole, names)):
        number = {float(name): place for place, name in enumerate(names)}
        return {value: number[value] for value in stored if value in number}
    if any(isinstance(value, float) for value in stored):
        return {value: int(value) for value in stored if value.is_integer()}
    return None


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _require_numbers(column: str, values: pa.Array) -> None:
    """Raise DataError where a regression is given names."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raise DataError(
            f"label column {column!r} holds texts, and the model is a regression, which takes numbers; cast it"
        )


def _require_whole_lists(column: str, values: pa.Array, config: Any) -> None:
    """Raise where lists of labels are not a value for each class of a multi-label model."""
    if config.problem_type != "multi_label_classification":
        raise DataError(
            f"label column {column!r} holds lists, and the model takes one class for each row; name another with "
            "label_column=, or set problem_type to 'multi_label_classification' in its config.json",
            argument="label_column=",
        )
    differing = pc.not_equal(pc.list_value_length(values), config.num_labels)
    row = pc.index(differing, True).as_py()
    if row >= 0:
        raise LabelError(
            f"row {row:,}: label column {column!r} holds {values[row].as_py()}, expected {config.num_labels} values, "
            "1 for each class that the row has and 0 for the others; numbers of classes are not read",
            row,
        )


def _named(rows: Dataset, column: str) -> tuple[pa.Array, list[str]]:
    """The name of every row's class (null: it has none), and the names there are, in order."""
    feature = rows.features[column]
    values = rows.select_columns([column]).with_format("arrow")[:].column(column)
    if isinstance(feature, ClassLabel):
        numbers = pc.if_else(pc.less(values, 0), pa.scalar(None, values.type), values)
        return pa.array(feature.names, pa.string()).take(numbers), list(feature.names)
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if not (dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint"))):
        raise DataError(f"label column {column!r} holds {feature}, expected classes: texts or whole numbers")
    labels = values.cast(pa.string())
    known = sorted(values.unique().drop_null().to_pylist())
    return labels, pa.array(known, values.type).cast(pa.string()).to_pylist()


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
