"""Labels as classes: of a dataset, by name, and of a model, by number."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    ClassLabel,
    Dataset,
    Features,
    Value,
)

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.loading import with_columns
from vog_hf.errors import ConfigError, DataError, LabelError, require_type, shown


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
        ConfigError: Arguments of another type, or the same name twice.

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
    elif pa.types.is_boolean(values.type):
        numbers = _numbers_of_booleans(names, config.num_labels)
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


def _numbers_of_booleans(names: list[str] | None, n_classes: int) -> dict[Any, int]:
    """Of labels that are true or false: those of the classes with these names, else 0 and 1 of two classes."""
    number = {name.lower(): place for place, name in enumerate(names or ())}
    if not {"false", "true"} & number.keys() and n_classes == 2:
        return {False: 0, True: 1}
    return {value: number[name] for value, name in ((False, "false"), (True, "true")) if name in number}


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
