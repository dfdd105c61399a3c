"""The other columns of the data, as texts for the table, and the name of the dataset."""

from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset, Features, Value

from vog_hf.data.arrow_columns import has_table
from vog_hf.scores.formatting import ABSENT, number, printable, shortened
from vog_hf.scores.pictures.row_content import shown_column_names
from vog_hf.scores.scored_rows import ScoredSplit, given_label_names

MAX_COLUMNS = 12
EXCERPT = 60  # characters of a value
FILE_ENDINGS = (".parquet", ".csv", ".json", ".jsonl", ".arrow")


def other_columns(split: ScoredSplit, rows: npt.NDArray[np.int64]) -> Mapping[str, list[str]]:
    """The columns of the data that hold numbers, texts or classes, for some rows; at most `MAX_COLUMNS`.

    Args:
        split: Scores with their rows; rows without a table have no such columns.
        rows: Row numbers.

    Returns:
        ``[rows]`` texts by name of the column. The label, scores, and what every output shows of a row are left out.

    Example:
        >>> from vog_hf.scores.vog_scores import VoGScores
        >>> data = Dataset.from_dict({"text": ["a", "b"], "speaker": ["Ada", "Bo"], "take": [1, 2], "label": [0, 1]})
        >>> split = ScoredSplit("", VoGScores({"vog": np.array([0.2, 0.1])}, {}), data)
        >>> other_columns(split, np.array([1, 0]))
        {'speaker': ['Bo', 'Ada'], 'take': ['2', '1']}
    """
    data = split.rows
    if not has_table(data):
        return {}
    scores = split.scores
    known = {
        *scores.column_names,
        *scores.text_column_names,
        *given_label_names(scores),
        *shown_column_names(data, scores.facts),
    }
    names = [name for name, feature in data.features.items() if name not in known and _is_plain(feature)]
    if not names:
        return {}
    stored = data.with_format(None).select_columns(names[:MAX_COLUMNS])
    values = stored.with_format("arrow")[rows.tolist()].to_pydict()
    return {name: [_cell(stored.features, name, value) for value in values[name]] for name in stored.column_names}


def dataset_name(split: ScoredSplit) -> str | None:
    """Name of the dataset: the source that is noted with the scores, else the name that `datasets` loaded it under.

    Example:
        >>> from vog_hf.scores.vog_scores import VoGScores
        >>> scores = VoGScores({"vog": np.array([0.2])}, {"data": {"source": {"name": "files/train.parquet"}}})
        >>> dataset_name(ScoredSplit("", scores))
        'train.parquet'
    """
    name = (split.scores.facts.data.get("source") or {}).get("name")
    if name:
        path = PurePosixPath(str(name).replace("\\", "/"))
        is_file = path.is_absolute() or len(path.parts) > 2 or path.suffix in FILE_ENDINGS or path.parts[:1] == ("~",)
        return path.name if is_file else str(path)
    info = split.rows.info if isinstance(split.rows, Dataset) else None
    if info is None or info.dataset_name == info.builder_name:  # "parquet" is the name of a reader
        return None
    return info.dataset_name or None


def _is_plain(feature: object) -> bool:
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "binary" not in feature.dtype)


def _cell(features: Features, name: str, value: object) -> str:
    feature = features[name]
    if value is None:
        return ABSENT
    if isinstance(feature, ClassLabel) and isinstance(value, int) and 0 <= value < feature.num_classes:
        value = feature.int2str(value)
    shown = number(value) if isinstance(value, float) else str(value)
    return printable(shortened(shown, EXCERPT))
