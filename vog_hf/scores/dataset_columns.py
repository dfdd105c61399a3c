"""Scores onto a data set as typed columns, after the proof that its rows are the ones that were scored."""

import logging
import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from vog_hf.data.arrow_columns import has_table, integer_column
from vog_hf.data.referenced_files import with_more_columns
from vog_hf.data.row_identity import by_split_name, identify_rows
from vog_hf.errors import ConfigError, DataError
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.scores.scored_rows import given_label_names, verify_rows
from vog_hf.scores.vog_scores import COMPANIONS, VoGScores, class_count

logger = logging.getLogger(__name__)

SCORE_NAME = re.compile(rf"vog(_\w+)?|prediction|{'|'.join(COMPANIONS)}")
CORE_ENDINGS = {True: ("", "_class_normalized", "_percentile"), False: ("", "_normalized", "_percentile")}

# The scores that were put onto a data set, for as long as that very object lives.
_SCORES_OF: weakref.WeakKeyDictionary[Dataset, VoGScores] = weakref.WeakKeyDictionary()


def add_vog_columns(
    dataset: Dataset | DatasetDict,
    scores: VoGScores | Mapping[str, VoGScores],
    columns: str | Sequence[str] = "core",
) -> Any:
    """The data set with its scores as columns; every other column and its feature stay as they are.

    The result shows stored rows: a transform or format of ``dataset`` is not kept, because it was made for the old
    columns (set it again with ``with_transform``).

    Args:
        dataset: The data set that was scored, with or without a transform, raw or tokenised; or a `DatasetDict`.
        scores: Its scores; for a `DatasetDict` those of each split (splits without scores are left out).
        columns: ``"core"``: ``vog``, ``vog_class_normalized`` (``vog_normalized`` where rows have no class) and
            ``vog_percentile`` of every target; ``"all"``: every column of the scores; or a list of names.

    Returns:
        A `Dataset` (or `DatasetDict`): numbers as float32, counts as int32, ``prediction`` as ``ClassLabel`` where the
        label is one.

    Raises:
        RowMismatchError: The rows are not the ones that were scored, or not in that order.
        ConfigError: An unknown column, or one that the data set has already.

    Example:
        >>> dataset = Dataset.from_dict({"text": ["a", "b"]})
        >>> scored = add_vog_columns(dataset, VoGScores({"vog": np.array([0.5, 0.25])}, {}), ["vog"])
        >>> scored["vog"][:], scored.features["vog"]
        ([0.5, 0.25], Value('float32'))
    """
    scores = by_split_name(scores) if isinstance(scores, Mapping) else scores
    if isinstance(dataset, Mapping):
        dataset = by_split_name(dataset)
        if not isinstance(scores, Mapping) or not set(scores) <= set(dataset):
            got = sorted(scores) if isinstance(scores, Mapping) else type(scores).__name__
            msg = f"a DatasetDict needs a mapping from its splits {sorted(dataset)} to scores, got {got}"
            raise ConfigError(msg)
        return DatasetDict({split: add_vog_columns(dataset[split], part, columns) for split, part in scores.items()})
    if not has_table(dataset):
        msg = (
            f"columns can be added to a datasets.Dataset, got a {type(dataset).__name__}; read the scores with "
            ".to_pandas() or .column(name) instead, in row order"
        )
        raise DataError(msg)
    if isinstance(scores, Mapping):
        msg = f"one Dataset needs one VoGScores, got a mapping of {sorted(scores)}; pass scores[split]"
        raise ConfigError(msg)
    names = _chosen(scores, columns)
    check_column_names(dataset, names)
    verify_rows(dataset, scores)
    features = Features({name: _feature(dataset, scores, name) for name in names})
    added = Dataset.from_dict({name: _values(scores, name) for name in names}, features=features, split=dataset.split)
    scored = with_more_columns(dataset.with_format(None), added)
    _SCORES_OF[scored] = scores
    return scored


def scores_of(dataset: Dataset) -> VoGScores | None:
    """The scores that `add_vog_columns` put onto this very data set; None for any other, and for what was made of it.

    Example:
        >>> scores = VoGScores({"vog": np.array([0.5, 0.25])}, {})
        >>> scored = add_vog_columns(Dataset.from_dict({"text": ["a", "b"]}), scores, ["vog"])
        >>> scores_of(scored) is scores, scores_of(scored.select([0])) is None
        (True, True)
    """
    return _SCORES_OF.get(dataset)


def core_column_names(names: Iterable[str], *, has_classes: bool) -> list[str]:
    """What ``columns="core"`` adds, which is known before there are scores.

    Args:
        names: The column of each target's VoG, as `VoGConfig.column_names` gives them.
        has_classes: Whether each row has one class, within which scores are normalised.

    Example:
        >>> core_column_names(["vog"], has_classes=True)
        ['vog', 'vog_class_normalized', 'vog_percentile']
    """
    return [name + ending for name in names for ending in CORE_ENDINGS[has_classes]]


def check_column_names(dataset: Any, names: Iterable[str]) -> None:
    """Raise where a data set has a column that is to be added; a torch data set has no columns.

    Args:
        dataset: One split: a `Dataset`, or any map-style torch data set.
        names: Columns to be added, e.g. `core_column_names`.

    Raises:
        ConfigError: At least one of the names is taken; none is replaced silently.
    """
    existing = dataset.column_names if has_table(dataset) else []
    names = list(names)
    taken = [name for name in names if name in existing]
    if not taken:
        return
    if {"vog", "vog_percentile"} <= set(existing):  # every earlier scoring adds both
        advice = f"drop the scores of the earlier run first: dataset.remove_columns({taken})"
    else:
        advice = (
            f"rename your own first, e.g. dataset.rename_column({taken[0]!r}, 'my_{taken[0]}'), or drop them: "
            f"dataset.remove_columns({taken})"
        )
    msg = f"the scores add the columns {names}, and the data set has {taken} already; {advice}"
    raise ConfigError(msg)


def is_score_name(name: str) -> bool:
    """Whether a column of this name holds scores, where a data set has any.

    Example:
        >>> [name for name in ("vog", "vog_late", "loss", "vogue", "label") if is_score_name(name)]
        ['vog', 'vog_late', 'loss']
    """
    return SCORE_NAME.fullmatch(name) is not None


def scores_from_columns(dataset: Dataset, *, label_column: str | None = None) -> VoGScores:
    """The scores that `add_vog_columns` has added to a data set; without trajectories and heat maps.

    Args:
        dataset: One split with a column ``vog``, loaded from disk or the Hub.
        label_column: The labels that were scored; default: the column with the classes of the column ``prediction``,
            or ``labels``, ``label``, ``label_ids`` where that has none.

    Raises:
        DataError: The data set has no column ``vog``.
        ConfigError: There is no such column of labels.

    Example:
        >>> dataset = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]})
        >>> scored = add_vog_columns(dataset, VoGScores({"vog": np.array([0.5, 0.25])}, {}), ["vog"])
        >>> scores_from_columns(scored)
        VoGScores(2 rows, columns label, vog)
    """
    features = dataset.features
    names = [name for name, feature in features.items() if is_score_name(name) and _is_number(feature)]
    names.sort(key=lambda name: name != "prediction")  # which comes first, as in scores that were computed
    if "vog" not in names:
        msg = (
            f"the data set has no column 'vog', but {', '.join(dataset.column_names)}; add its scores with "
            "add_vog_columns, or open the folder of its scores"
        )
        raise DataError(msg)
    label, labels = _integers(dataset, _label_columns(dataset) if label_column is None else [label_column])
    if label_column is not None and label is None:
        msg = (
            f"label_column must name a column of whole numbers or classes, got {label_column!r}; the data set has "
            f"{', '.join(dataset.column_names)}"
        )
        raise ConfigError(msg)
    table = dataset.select_columns(names).with_format("arrow")[:]
    columns = {name: _stored(table.column(name), name) for name in names}
    if labels is not None:
        columns = {"label": np.maximum(labels, -1).astype(np.int32), **columns}
    classes = [getattr(features.get(name), "names", None) for name in (label, "prediction")]
    identity = identify_rows(dataset)
    manifest = {"class_names": next(filter(None, classes), None), "data": {"columns": identity.columns}}
    if label not in (None, _integers(dataset, LABEL_NAMES)[0]):
        manifest["config"] = {"label_column": label}
    scores = VoGScores(columns, manifest, row_hash=identity.row_hash)
    if manifest["class_names"]:
        class_count(scores)  # raises where a label is none of the classes
    return scores


def _integers(dataset: Dataset, names: Iterable[str]) -> tuple[str, npt.NDArray[np.int64]] | tuple[None, None]:
    """The first of these columns that holds whole numbers, and these; None, None without one."""
    found = ((name, integer_column(dataset, [name])) for name in names)
    return next(((name, values) for name, values in found if values is not None), (None, None))


def _label_columns(dataset: Dataset) -> list[str]:
    """Where the labels may stand that a data set with columns of scores was scored by."""
    features = dataset.features
    predicted = features.get("prediction")
    if not isinstance(predicted, ClassLabel):
        return [*LABEL_NAMES]
    names = dict.fromkeys([*LABEL_NAMES, *features])
    return [name for name in names if features.get(name) == predicted and name != "prediction"]


def _is_number(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("float", "int", "uint"))


def _stored(column: pa.ChunkedArray, name: str) -> Any:
    """A column of scores as `VoGScores` has it: whole numbers as they are, others as float32, NaN for what is null."""
    if name == "prediction" and pa.types.is_integer(column.type):
        return column.fill_null(-1).to_numpy().astype(np.int32)
    if pa.types.is_integer(column.type) and not column.null_count:
        return np.array(column.to_numpy())
    return column.to_numpy().astype(np.float32)


def _chosen(scores: VoGScores, columns: str | Sequence[str]) -> list[str]:
    available = [name for name in scores.column_names if name != "label"]
    if columns == "all":
        return available
    if columns == "core":
        vogs = [n.removesuffix("_percentile") for n in available if n.endswith("_percentile")] or ["vog"]
        core = {name for has_classes in (True, False) for name in core_column_names(vogs, has_classes=has_classes)}
        return [name for name in available if name in core]
    if isinstance(columns, str):
        msg = f"columns must be 'core', 'all' or a list of names, got {columns!r}"
        raise ConfigError(msg)
    unknown = [name for name in columns if name not in available]
    if unknown or not columns:
        msg = f"the scores have no columns {unknown}; they have {', '.join(available)}"
        raise ConfigError(msg)
    return list(columns)


def class_feature(dataset: Dataset, scores: VoGScores, name: str) -> ClassLabel | None:
    """The classes that a column of scores holds: those of the labels that were scored, where all values are of them."""
    if name not in ("label", "prediction"):
        return None
    features = (dataset.features.get(label) for label in given_label_names(scores))
    feature = next((f for f in features if isinstance(f, ClassLabel)), None)
    names = scores.manifest.get("class_names")
    if feature is not None and names and feature.names != names:  # the model numbers the same classes otherwise
        feature = ClassLabel(names=names)
    return None if feature is None or int(scores.column(name).max()) >= feature.num_classes else feature


def _feature(dataset: Dataset, scores: VoGScores, name: str) -> Any:
    if not np.issubdtype(scores.column(name).dtype, np.integer):
        return Value("float32")
    return class_feature(dataset, scores, name) or Value("int32")


def _values(scores: VoGScores, name: str) -> Any:
    values = scores.column(name)
    return values.astype(np.float32) if np.issubdtype(values.dtype, np.floating) else values
