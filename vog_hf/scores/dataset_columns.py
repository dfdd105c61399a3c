"""Scores as typed columns of a dataset, after its rows were verified to be the ones that were scored."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features

from vog_hf.data.arrow_columns import has_table, integer_column
from vog_hf.data.referenced_files import with_more_columns
from vog_hf.data.row_identity import by_split_name, identify_rows
from vog_hf.data.rows import AnyDataset
from vog_hf.errors import ConfigError, DataError, require_type, shown
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.metric.definition import percentile
from vog_hf.metric.unit_kinds import UnitKind, core_unit_columns
from vog_hf.metric.vocabulary import CSG, LEARNING_PATTERN, core_endings
from vog_hf.scores.column_features import feature_values, score_feature
from vog_hf.scores.consistency import class_count
from vog_hf.scores.scored_rows import ScoredSplit, remember_scores, require_scores
from vog_hf.scores.unit_columns import unit_column_names, unit_kind, units_from_columns
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)

# The `id` of a feature, which Arrow, parquet, `save_to_disk` and cards on the Hub keep: it declares a score column,
# with the prefix and the name among the scores. A name alone proves nothing: rows can have their own `loss`.
DECLARATION = re.compile(r"vog_hf:(?P<prefix>\w*):(?P<name>.+)")
TARGET_NAME = re.compile(r"vog(_\w+)?")
WITHOUT_VOG = ("loss", CSG)  # core columns of scores without VoG


def add_vog_columns(
    dataset: Dataset | DatasetDict,
    scores: VoGScores | Mapping[str, VoGScores],
    columns: str | Sequence[str] = "core",
    *,
    prefix: str = "",
) -> Any:
    """Add scores to a dataset as columns; every other column and its feature stay as they are.

    The result has the stored rows: a transform or format of ``dataset`` is dropped, because it was written for the old
    columns (set it again with ``with_transform``).

    Args:
        dataset: The dataset that was scored, with or without a transform, raw or tokenized; or a `DatasetDict`.
        scores: Its scores; for a `DatasetDict` those of each split (splits without scores are left out).
        columns: ``"core"``: ``vog``, ``vog_class_normalized`` (``vog_normalized`` for rows without classes) and
            ``vog_percentile`` of every target, and for rows with units (tokens) lists of their VoG, loss and
            confidence; ``"all"``: every column of the scores; or a list of names.
        prefix: Prefix of every name, for a dataset that has columns with these names: ``"run2_"`` adds ``run2_vog``.

    Returns:
        A `Dataset` (or `DatasetDict`): numbers as float32, counts as int32, ``prediction`` as ``ClassLabel`` if the
        label is one, ``learning_pattern`` as text, units as lists with an entry for each label of the row (see
        `vog_hf.scores.unit_columns.label_lists`), null for words that were cut off. The ``id`` of each added feature
        declares the column, so that `scores_from_columns` finds it.

    Raises:
        RowMismatchError: The rows are not the ones that were scored, or not in that order.
        ConfigError: An unknown column, or one that the dataset has already.

    Example:
        >>> dataset = Dataset.from_dict({"text": ["a", "b"]})
        >>> scored = add_vog_columns(dataset, VoGScores({"vog": np.array([0.5, 0.25])}, {}), ["vog"])
        >>> scored["vog"][:], scored.features["vog"]
        ([0.5, 0.25], Value('float32'))
    """
    require_scores(scores)
    require_type("prefix", prefix, str, "pass prefix='run2_', for example")
    if not re.fullmatch(r"\w*", prefix, re.ASCII):
        raise ConfigError(
            f"prefix must be letters, digits and _, got {prefix!r}; pass prefix='run2_', for example",
            argument="prefix='run2_'",
        )
    scores = by_split_name(scores) if isinstance(scores, Mapping) else scores
    if isinstance(dataset, Mapping):
        dataset = by_split_name(dataset)
        if not isinstance(scores, Mapping) or not set(scores) <= set(dataset):
            got = sorted(scores) if isinstance(scores, Mapping) else type(scores).__name__
            raise ConfigError(f"a DatasetDict needs a mapping from its splits {sorted(dataset)} to scores, got {got}")
        return DatasetDict({s: add_vog_columns(dataset[s], scores[s], columns, prefix=prefix) for s in scores})
    if not has_table(dataset):
        raise DataError(
            f"columns can be added to a datasets.Dataset, got a {type(dataset).__name__}; read the scores with "
            ".to_pandas() or .column(name) instead, in row order"
        )
    if isinstance(scores, Mapping):
        raise ConfigError(f"one Dataset needs one VoGScores, got a mapping of {sorted(scores)}; pass scores[split]")
    names = _chosen(scores, columns)
    check_column_names(dataset, [prefix + name for name in names])
    return _with_columns(ScoredSplit("", scores, dataset), names, prefix)


def core_column_names(names: Iterable[str], *, has_classes: bool, unit: UnitKind | None = None) -> list[str]:
    """Names of the columns that ``columns="core"`` adds, which are known before there are scores.

    Args:
        names: The column of each target's VoG, as `VoGConfig.column_names` gives them.
        has_classes: Whether each row has one class, within which scores are normalized.
        unit: What the units of rows are; None for rows without.

    Example:
        >>> core_column_names(["vog"], has_classes=True)
        ['vog', 'vog_class_normalized', 'vog_percentile']
    """
    names = list(names)
    of_rows = [name + ending for name in names for ending in core_endings(has_classes=has_classes)]
    return of_rows + (core_unit_columns(names, unit) if unit is not None else [])


def check_column_names(dataset: AnyDataset, names: Iterable[str]) -> None:
    """Raise ConfigError if a dataset already has a column that is to be added; a torch dataset has no columns.

    Args:
        dataset: One split: a `Dataset`, or any map-style torch dataset.
        names: Columns to add, e.g. `core_column_names`.

    Raises:
        ConfigError: At least one of the names is taken; none is replaced silently.
    """
    names = list(names)
    taken = taken_columns(dataset, names)
    if not taken:
        return
    features: Features = getattr(dataset, "features", {})
    if set(taken) <= {column for columns in _declared(features).values() for column in columns.values()}:
        advice = f"or drop the scores of the earlier run first: dataset.remove_columns({taken})"
    else:
        advice = (
            f"or rename your own columns first, e.g. dataset.rename_column({taken[0]!r}, 'my_{taken[0]}'), or drop "
            f"them: dataset.remove_columns({taken})"
        )
    raise ConfigError(
        f"the scores add the columns {names}, and the dataset has {taken} already; pass prefix= for other names, "
        f"e.g. 'run2_', {advice}",
        argument="prefix=",
    )


def taken_columns(dataset: AnyDataset, names: Iterable[str]) -> list[str]:
    """Names among these that are columns of a dataset; a torch dataset has no columns.

    Example:
        >>> taken_columns(Dataset.from_dict({"loss": [1.0]}), ["vog", "loss"])
        ['loss']
    """
    existing = dataset.column_names if has_table(dataset) else []
    return [name for name in names if name in existing]


def score_columns(dataset: Dataset, prefix: str | None = None) -> dict[str, str]:
    """Columns of a dataset that hold scores, by their names among the scores.

    These are the columns that `add_vog_columns` declared. If nothing is declared (after a conversion to CSV or pandas),
    they are VoG, normalized score and percentile of each target, if the percentile is that of the normalized score;
    every other column is the user's own, whatever its name.

    Args:
        dataset: One split.
        prefix: Prefix of the names, for a dataset that was scored more than once; default: the only one.

    Raises:
        ConfigError: There are scores with several prefixes, and none was chosen.

    Example:
        >>> rows = Dataset.from_dict({"loss": [400.0, 20.0]})  # a claim
        >>> score_columns(add_vog_columns(rows, VoGScores({"vog": np.array([0.5, 0.25])}, {}), prefix="my_"))
        {'vog': 'my_vog'}
    """
    declared = _declared(dataset.features)
    if prefix is not None:
        return declared.get(prefix, {})
    if len(declared) > 1:
        raise ConfigError(
            f"the dataset has scores with the prefixes {sorted(declared)}; choose one with prefix=, or drop the "
            "columns of the others",
            argument="prefix=",
        )
    return next(iter(declared.values())) if declared else _consistent(dataset)


def has_scores(names: Iterable[str]) -> bool:
    """Return whether columns of these names, among scores, rank rows: ``vog``, or ``loss`` in scores without VoG."""
    return not {"vog", "loss"}.isdisjoint(names)


def is_declared(feature: object) -> bool:
    """Return whether a feature belongs to a column that `add_vog_columns` added."""
    return _declaration(feature) is not None


def _declaration(feature: object) -> re.Match[str] | None:
    """The declaration of a feature, which a list has in its entries."""
    return DECLARATION.fullmatch(str(getattr(getattr(feature, "feature", feature), "id", None)))


def _declared(features: Features) -> dict[str, dict[str, str]]:
    """Columns by their names among the scores, for each prefix."""
    by_prefix: dict[str, dict[str, str]] = {}
    for column, feature in features.items():
        match = _declaration(feature)
        if match is not None:
            by_prefix.setdefault(match["prefix"], {})[match["name"]] = column
    return by_prefix


def _consistent(dataset: Dataset) -> dict[str, str]:
    """Columns that can only be scores: those of targets with the percentile of their normalized score."""
    columns: dict[str, str] = {}
    for name in filter(TARGET_NAME.fullmatch, dataset.column_names):
        for has_classes in (True, False):
            group = core_column_names([name], has_classes=has_classes)
            if not all(column in dataset.features and _is_number(dataset.features[column]) for column in group):
                continue
            table = dataset.select_columns(group).with_format("arrow")[:]
            _, normalized, given = (table.column(column).to_numpy().astype(np.float32) for column in group)
            if not len(given) or not np.isfinite(normalized).all():
                continue
            if np.allclose(percentile(torch.from_numpy(normalized)).numpy(), given, rtol=0, atol=1e-3):
                columns |= {column: column for column in group}
    return columns if "vog" in columns else {}


def scores_from_columns(dataset: Dataset, *, label_column: str | None = None, prefix: str | None = None) -> VoGScores:
    """Read the scores that `add_vog_columns` added to a dataset; without trajectories and heat maps.

    Args:
        dataset: One split with score columns (see `score_columns`), loaded from disk or the Hub.
        label_column: Column of the labels that were scored; default: the column with the classes of the scores'
            ``prediction``, or ``labels``, ``label``, ``label_ids`` for a prediction without classes.
        prefix: Prefix of the columns, for a dataset that was scored more than once; default: the only one.

    Raises:
        DataError: The dataset has no VoG among its columns.
        ConfigError: There is no such label column, or there are several prefixes and none was chosen.

    Example:
        >>> dataset = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]})
        >>> scored = add_vog_columns(dataset, VoGScores({"vog": np.array([0.5, 0.25])}, {}), ["vog"])
        >>> scores_from_columns(scored)
        VoGScores(2 rows, columns label, vog)
    """
    if not has_table(dataset):
        raise DataError(f"scores are read from the columns of a datasets.Dataset, got {shown(dataset)}; pass one split")
    features, columns_of = dataset.features, score_columns(dataset, prefix)
    names = sorted(columns_of, key=lambda name: name != "prediction")  # first, as in scores that were computed
    if not has_scores(names):
        raise DataError(
            f"the dataset has no score column 'vog', but {', '.join(dataset.column_names)}; add its scores with "
            "add_vog_columns, or open the folder of its scores (a score column is recognized by its feature, which CSV "
            "and pandas drop, not by its name)"
        )
    label, labels = _integers(dataset, _label_columns(dataset, columns_of) if label_column is None else [label_column])
    if label_column is not None and label is None:
        raise ConfigError(
            f"label_column must name a column of whole numbers or classes, got {label_column!r}; the dataset has "
            f"{', '.join(dataset.column_names)}",
            argument="label_column",
        )
    of_units = [name for name in names if hasattr(features[columns_of[name]], "feature")]
    names = [name for name in names if name not in of_units]
    table = dataset.select_columns([columns_of[name] for name in names]).with_format("arrow")[:]
    columns = {name: _stored(table.column(columns_of[name]), name) for name in names}
    units = units_from_columns(dataset, ((name, columns_of[name]) for name in of_units)) if of_units else None
    if labels is not None:
        columns = {"label": np.maximum(labels, -1).astype(np.int32), **columns}
    classes = [getattr(features.get(name), "names", None) for name in (label, columns_of.get("prediction"))]
    identity = identify_rows(dataset)
    manifest = {"class_names": next(filter(None, classes), None), "data": {"columns": identity.columns}}
    if label not in (None, _integers(dataset, LABEL_NAMES)[0]):
        manifest["config"] = {"label_column": label}
    scores = VoGScores(columns, manifest, units=units, row_hash=identity.row_hash)
    if manifest["class_names"]:
        class_count(scores)  # raises where a label is none of the classes
    return scores


def _integers(dataset: Dataset, names: Iterable[str]) -> tuple[str, npt.NDArray[np.int64]] | tuple[None, None]:
    """Name and values of the first of these columns that holds whole numbers; None, None without one."""
    columns = ((name, integer_column(dataset, [name])) for name in names)
    return next(((name, values) for name, values in columns if values is not None), (None, None))


def _label_columns(dataset: Dataset, columns_of: Mapping[str, str]) -> list[str]:
    """Columns that may hold the labels by which a dataset with these score columns was scored."""
    predicted = dataset.features.get(columns_of.get("prediction"))
    if not isinstance(predicted, ClassLabel):
        return [*LABEL_NAMES]
    names = [name for name in dict.fromkeys([*LABEL_NAMES, *dataset.features]) if name not in columns_of.values()]
    same = [name for name in names if getattr(dataset.features.get(name), "names", None) == predicted.names]
    return [name for name in same if name != "prediction"]  # of another model


def _is_number(feature: object) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("float", "int", "uint"))


def _stored(column: pa.ChunkedArray, name: str) -> Any:
    """A score column as `VoGScores` holds it: whole numbers as they are, others as float32, with NaN for null."""
    if name == LEARNING_PATTERN:
        return column.to_numpy(zero_copy_only=False)
    if name == "prediction" and pa.types.is_integer(column.type):
        return column.fill_null(-1).to_numpy().astype(np.int32)
    if pa.types.is_integer(column.type) and not column.null_count:
        return np.array(column.to_numpy())
    return column.to_numpy().astype(np.float32)


def _chosen(scores: VoGScores, columns: str | Sequence[str]) -> list[str]:
    of_rows, of_units = (*scores.column_names, *scores.text_column_names), unit_column_names(scores)
    available = [name for name in (*of_rows, *of_units) if name != "label"]
    require_type("columns", columns, (str, Sequence), "pass 'core', 'all' or a list of names")
    if columns == "all":
        return available
    if columns == "core":
        vogs = [n.removesuffix("_percentile") for n in available if n.endswith("_percentile")] or ["vog"]
        core = {
            name
            for has_classes in (True, False)
            for name in core_column_names(vogs, has_classes=has_classes, unit=unit_kind(scores))
        }
        return [name for name in available if name in core] or [name for name in WITHOUT_VOG if name in available]
    if isinstance(columns, str):
        raise ConfigError(f"columns must be 'core', 'all' or a list of names, got {columns!r}")
    unknown = [name for name in columns if name not in available]
    if LEARNING_PATTERN in unknown:
        scores.column(LEARNING_PATTERN)  # raises, with the reason
    if unknown or not columns:
        raise ConfigError(f"the scores have no columns {unknown}; they have {', '.join(available)}")
    return list(columns)


def _with_columns(split: ScoredSplit, names: Sequence[str], prefix: str) -> Dataset:
    """Add columns of the scores to the rows as stored."""
    features = Features({prefix + name: score_feature(split, name, prefix) for name in names})
    values = {prefix + name: feature_values(split, name) for name in names}
    added = Dataset.from_dict(values, features=features, split=split.rows.split)
    scored = with_more_columns(split.rows.with_format(None), added)
    remember_scores(scored, split.scores)
    return scored
