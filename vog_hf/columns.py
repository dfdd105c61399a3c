"""Scores onto a data set as typed columns, after the proof that its rows are the ones that were scored."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets

from vog_hf.errors import ConfigError, DataError, RowMismatchError
from vog_hf.gradients import LABEL_NAMES
from vog_hf.rows import has_table, identify_rows, integer_column
from vog_hf.scores import VoGScores

logger = logging.getLogger(__name__)


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
    if isinstance(dataset, Mapping):
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
    taken = [name for name in names if name in dataset.column_names]
    if taken:
        msg = f"the data set has columns {taken} already; drop the old ones first: dataset.remove_columns({taken})"
        raise ConfigError(msg)
    verify_rows(dataset, scores)
    features = Features({name: _feature(dataset, scores, name) for name in names})
    added = Dataset.from_dict({name: _values(scores, name) for name in names}, features=features, split=dataset.split)
    return concatenate_datasets([dataset.with_format(None), added], axis=1, info=None, split=dataset.split)


def verify_rows(dataset: Dataset, scores: VoGScores) -> None:
    """Raise RowMismatchError where the rows of a data set are not those of the scores, in their order."""
    if scores.identity.verify(identify_rows(dataset)):
        return
    labels = integer_column(dataset, LABEL_NAMES)
    if labels is not None and "label" in scores.column_names:
        differing = np.flatnonzero(np.where(labels < 0, -1, labels) != scores.column("label"))
        if len(differing):
            row = int(differing[0])
            msg = (
                f"row {row} has label {labels[row]} in the data set and {scores.column('label')[row]} in the scores "
                f"({len(differing)} rows differ); pass the data set that was scored, in its order"
            )
            raise RowMismatchError(msg)
    logger.warning(
        "the data set shares no column with the one that was scored, so only the number of rows%s could be compared",
        "" if labels is None else " and the labels",
    )


def _chosen(scores: VoGScores, columns: str | Sequence[str]) -> list[str]:
    available = [name for name in scores.column_names if name != "label"]
    if columns == "all":
        return available
    if columns == "core":
        endings = ("", "_class_normalized", "_normalized", "_percentile")
        bases = [n.removesuffix("_percentile") for n in available if n.endswith("_percentile")] or ["vog"]
        return [name for name in available if name in {base + ending for base in bases for ending in endings}]
    if isinstance(columns, str):
        msg = f"columns must be 'core', 'all' or a list of names, got {columns!r}"
        raise ConfigError(msg)
    unknown = [name for name in columns if name not in available]
    if unknown or not columns:
        msg = f"the scores have no columns {unknown}; they have {', '.join(available)}"
        raise ConfigError(msg)
    return list(columns)


def _feature(dataset: Dataset, scores: VoGScores, name: str) -> Any:
    values = scores.column(name)
    if not np.issubdtype(values.dtype, np.integer):
        return Value("float32")
    if name == "prediction":
        for label in LABEL_NAMES:
            feature = dataset.features.get(label)
            if isinstance(feature, ClassLabel) and int(values.max()) < feature.num_classes:
                return feature
    return Value("int32")


def _values(scores: VoGScores, name: str) -> Any:
    values = scores.column(name)
    return values.astype(np.float32) if np.issubdtype(values.dtype, np.floating) else values
