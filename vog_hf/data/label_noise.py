"""Wrong labels planted on purpose, so that it is known which rows a ranking ought to find."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Value

from vog_hf.data.arrow_columns import has_table, integer_column
from vog_hf.data.column_kinds import CORRUPTED, ORIGINAL
from vog_hf.data.loading import with_columns
from vog_hf.errors import ConfigError, LabelError, real_number, require_type, whole_number
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.gradients.task import IGNORED_TOKEN

NO_LABEL = (-1, IGNORED_TOKEN)


def plant_label_noise(
    dataset: Dataset,
    fraction: float,
    seed: int = 0,
    *,
    kind: Literal["uniform", "pairs"] = "uniform",
    label_column: str | None = None,
) -> Dataset:
    """The same rows in the same order, a share of them with the label of another class.

    Args:
        dataset: One split. Its features, its format and its transform are kept, and nothing in it is decoded.
        fraction: Share 0..1 of the labeled rows; of n such rows exactly ``round(fraction * n)`` get a wrong label.
        seed: Of the choice of rows and classes.
        kind: ``"uniform"``: one of the other classes, each with the same chance; ``"pairs"``: the next class, and the
            first after the last (as digits that are mistaken for one another).
        label_column: Column of the labels; default: ``labels``, ``label`` or ``label_ids``.

    Returns:
        The dataset with changed labels and two columns more: ``original_label`` (of the same feature) and
        ``is_corrupted`` (bool). Rows without a label (None, -1 or -100) are as before. Classes are those of the
        ``ClassLabel``, else the numbers that occur.

    Raises:
        ConfigError: Not a `datasets.Dataset`, a fraction outside 0..1, an unknown kind, no such label column or not one
            of whole numbers, fewer than two classes, or a column ``original_label`` or ``is_corrupted`` already.
        LabelError: A label that is none of the classes.

    Example:
        >>> noisy = plant_label_noise(Dataset.from_dict({"label": [0, 1, 2, 0]}), 0.5, kind="pairs")
        >>> noisy["original_label"][:], sum(noisy["is_corrupted"])
        ([0, 1, 2, 0], 2)
    """
    if not has_table(dataset):
        raise ConfigError(
            f"label noise can be planted into a datasets.Dataset, got a {type(dataset).__name__}; pass one split, e.g. "
            "dataset['train'], and load a streaming dataset without streaming=True"
        )
    fraction, seed = real_number("fraction", fraction, 0, 1), whole_number("seed", seed, 0)
    require_type("label_column", label_column, (str, type(None)), "pass the name of a column")
    require_type("kind", kind, str, "pass 'uniform' or 'pairs'")
    if kind not in ("uniform", "pairs"):
        raise ConfigError(f"kind must be 'uniform' or 'pairs', got {kind!r}")
    name, labels = _label_column(dataset, label_column)
    labeled = np.flatnonzero(labels >= 0)
    classes = _classes(dataset, name, labels)
    rng = np.random.default_rng(seed)
    rows = rng.choice(labeled, round(fraction * len(labeled)), replace=False)
    steps = rng.integers(1, len(classes), len(rows)) if kind == "uniform" else 1
    noisy = labels.copy()
    noisy[rows] = classes[(np.searchsorted(classes, labels[rows]) + steps) % len(classes)]
    return _replaced(dataset, name, noisy, rows)


def _label_column(dataset: Dataset, label_column: str | None) -> tuple[str, npt.NDArray[np.int64]]:
    """The name of the label column and its values, -1 where there is none."""
    names = [label_column] if label_column else LABEL_NAMES
    name = next((name for name in names if name in dataset.column_names), None)
    if name is None:
        raise ConfigError(
            f"there is no label column {' or '.join(map(repr, names))} in {dataset.column_names}; pass label_column=",
            argument="label_column=",
        )
    taken = [added for added in (ORIGINAL, CORRUPTED) if added in dataset.column_names]
    if taken:
        raise ConfigError(
            f"the dataset has {taken} already; drop what was planted before: dataset.remove_columns({taken})"
        )
    labels = integer_column(dataset, [name])
    if labels is None:
        raise ConfigError(
            f"label column {name!r} must hold one class number per row, got {dataset.features[name]}; encode texts "
            f"with dataset.class_encode_column({name!r})"
        )
    return name, labels


def _classes(dataset: Dataset, name: str, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The classes that labels may have, in the order of their numbers."""
    feature = dataset.features[name]
    given = labels[labels >= 0]
    classes = np.arange(feature.num_classes) if isinstance(feature, ClassLabel) else np.unique(given)
    outside = ~np.isin(labels, [*classes, *NO_LABEL])
    if outside.any():
        row = int(outside.argmax())
        raise LabelError(
            f"label {labels[row]} of row {row} is outside the classes; only None, -1 and -100 mean no label", row
        )
    if len(classes) < 2 or not len(given):
        raise ConfigError(
            f"a wrong label needs at least two classes, and {name!r} has {len(classes)} in {len(given)} labeled rows"
        )
    return classes


def _replaced(dataset: Dataset, name: str, noisy: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Dataset:
    """The dataset with these labels in these rows, in the same place among its columns and under its format."""
    original = dataset.select_columns([name]).with_format("arrow")[:].column(name)
    is_corrupted = np.zeros(len(dataset), dtype=bool)
    is_corrupted[rows] = True
    changed = pa.chunked_array([pa.array(noisy, pa.int64()).cast(original.type)])
    column = pc.if_else(pa.array(is_corrupted), changed, original)  # a null elsewhere stays null
    feature = dataset.features[name]
    features = Features({name: feature, ORIGINAL: feature, CORRUPTED: Value("bool")})
    return with_columns(dataset, pa.table([column, original, pa.array(is_corrupted)], schema=features.arrow_schema))
