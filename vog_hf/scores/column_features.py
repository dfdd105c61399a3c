"""Features of score columns in a dataset, which declare that they are scores, and the values that go with them."""

from typing import Any

import numpy as np
from datasets import ClassLabel, List, Value

from vog_hf.metric.vocabulary import LEARNING_PATTERN
from vog_hf.scores.scored_rows import ScoredSplit, given_label_names
from vog_hf.scores.unit_columns import unit_column_names, unit_feature, unit_values


def class_feature(split: ScoredSplit, name: str) -> ClassLabel | None:
    """The classes of a score column: those of the labels that were scored, if all values are among them."""
    if name not in ("label", "prediction"):
        return None
    scores = split.scores
    features = (split.rows.features.get(label) for label in given_label_names(scores))
    feature = next((f for f in features if isinstance(f, ClassLabel)), None)
    names = scores.facts.class_names
    if feature is not None and names and feature.names != names:  # the model numbers the same classes differently
        feature = ClassLabel(names=names)
    return None if feature is None or int(scores.column(name).max()) >= feature.num_classes else feature


def score_feature(split: ScoredSplit, name: str, prefix: str = "") -> ClassLabel | Value | List:
    """The feature of a score column, which declares that it is one."""
    declaration = f"vog_hf:{prefix}:{name}"
    if name in unit_column_names(split.scores):
        return unit_feature(split, name, declaration)
    if name == LEARNING_PATTERN:
        return Value("string", id=declaration)
    if not np.issubdtype(split.scores.column(name).dtype, np.integer):
        return Value("float32", id=declaration)
    classes = class_feature(split, name)
    return Value("int32", id=declaration) if classes is None else ClassLabel(names=classes.names, id=declaration)


def feature_values(split: ScoredSplit, name: str) -> Any:
    """Values of a score column for its feature: texts, whole numbers, float32, or lists of units."""
    scores = split.scores
    if name in unit_column_names(scores):
        return unit_values(split, name)
    values = scores.column(name)
    if name == LEARNING_PATTERN:
        return values.tolist()
    return values.astype(np.float32) if np.issubdtype(values.dtype, np.floating) else values
