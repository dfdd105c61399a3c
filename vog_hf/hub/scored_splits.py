"""What is pushed: each split's rows with its scores, put together and checked before anything leaves the machine."""

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.referenced_files import columns_of_named_files, with_more_columns
from vog_hf.data.row_identity import by_split_name, identify_rows, is_first_version
from vog_hf.errors import ConfigError, DataError
from vog_hf.hub.repo_paths import SPLIT_NAME
from vog_hf.scores.dataset_columns import (
    add_vog_columns,
    class_feature,
    is_declared,
    score_columns,
    score_feature,
    scores_from_columns,
    scores_of,
)
from vog_hf.scores.scored_rows import verify_rows
from vog_hf.scores.storage import ROW_ID
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One split that is pushed.

    Attributes:
        split: Its name.
        dataset: Its rows as stored, with the columns of scores.
        scores: None for a split that was not scored and goes along, its columns of scores empty.
        prefix: Of the names of these columns; None: the only one that the rows have.
    """

    split: str
    dataset: Dataset
    scores: VoGScores | None
    prefix: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """The columns of its rows that hold scores, by their names among the scores."""
        return score_columns(self.dataset, self.prefix)


def collect_parts(
    dataset: Dataset | DatasetDict,
    scores: VoGScores | Mapping[str, VoGScores] | None,
    columns: str | Sequence[str],
    split: str | None,
    *,
    prefix: str = "",
    with_rows: bool = True,
) -> list[Part]:
    """The splits of a data set with their scores, every row and column verified.

    Args:
        dataset: As for `push_scored_dataset`, like the next four.
        scores: See there.
        columns: See there.
        split: See there.
        prefix: See there.
        with_rows: Whether the rows are pushed with the scores.

    Raises:
        ConfigError: No scores, scores that do not fit the splits, or a split's name that `datasets` cannot have.
        RowMismatchError: Scores of other rows.
        DataError: No `datasets.Dataset`.
    """
    splits = _splits(dataset, scores, split)
    for name, rows, _ in splits:
        if not SPLIT_NAME.fullmatch(name):
            raise ConfigError(
                f"the name of a split is letters, digits, _ and dots between them, got {name!r}; pass split='train'"
            )
        if not has_table(rows):
            raise DataError(f"a datasets.Dataset or DatasetDict can be pushed, got a {type(rows).__name__} as {name!r}")
        if not len(rows):
            raise DataError(f"the split {name!r} has no rows; leave it out")
    parts = []
    for name, rows, given in splits:
        scored, known = _publishable(*_scored(rows, given, columns, prefix), with_rows=with_rows)
        parts.append(Part(name, scored, known, prefix or None))
    if all(part.scores is None for part in parts):
        raise ConfigError(
            "the data set has no column of scores 'vog' and no scores were given; pass scores=, or "
            "add_vog_columns(...) first"
        )
    return _with_same_columns(parts)


def score_tables(parts: Sequence[Part]) -> list[Part]:
    """The same splits as nothing but row number, id, label and scores; splits without scores are left out."""
    return [Part(p.split, _score_table(p.dataset, p.scores), p.scores) for p in parts if p.scores is not None]


def _splits(
    dataset: Any, scores: VoGScores | Mapping[str, VoGScores] | None, split: str | None
) -> list[tuple[str, Any, VoGScores | None]]:
    scores = by_split_name(scores) if isinstance(scores, Mapping) else scores
    if isinstance(dataset, Mapping):
        dataset = by_split_name(dataset)
        if split is not None:
            raise ConfigError(
                f"split= names the split of one Dataset, and a DatasetDict has its own, {sorted(dataset)}"
            )
        given: Any = {} if scores is None else scores
        if not isinstance(given, Mapping) or not set(given) <= set(dataset):
            got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ConfigError(f"a DatasetDict needs a mapping from its splits {sorted(dataset)} to scores, got {got}")
        return [(name, rows, given.get(name)) for name, rows in dataset.items()]
    if isinstance(scores, Mapping):
        raise ConfigError(f"one Dataset needs one VoGScores, got a mapping of {sorted(scores)}; pass scores[split]")
    (name,) = by_split_name({split or getattr(dataset, "split", None) or "train": None})
    return [(name, dataset, scores)]


def _scored(
    dataset: Dataset, scores: VoGScores | None, columns: str | Sequence[str], prefix: str
) -> tuple[Dataset, VoGScores | None]:
    """The rows with columns of scores, and the scores."""
    columns_of = score_columns(dataset, prefix or None)
    has_columns = "vog" in columns_of
    if scores is None and not has_columns:
        return dataset.with_format(None), None
    if scores is not None and not has_columns:
        return add_vog_columns(dataset, scores, columns, prefix=prefix), scores
    known = scores_of(dataset)
    _require_columns(columns_of, scores or known, columns)
    if scores is None and known is None:
        logger.warning(
            "the data set has columns of scores and nothing says how they were computed: the card cannot either, and "
            "trajectories and heat maps are not pushed; pass scores="
        )
        return dataset.with_format(None), scores_from_columns(dataset, prefix=prefix or None)
    if scores is not None and scores is not known:
        verify_rows(dataset, scores)
        _require_same_scores(dataset, scores, columns_of)
    return dataset.with_format(None), scores or known


def _publishable(dataset: Dataset, scores: VoGScores | None, *, with_rows: bool) -> tuple[Dataset, VoGScores | None]:
    """The same, the scores without the digests of columns of named files that tell more than is pushed, or less.

    A digest of a file that is not pushed would let others check a guess at its content; one of version 1 is of its
    name, and the rows come back with its bytes.
    """
    digests = {} if scores is None else scores.identity.columns
    named = {*digests} & {*columns_of_named_files(dataset)}
    dropped = {name for name in named if not with_rows or is_first_version(digests[name])}
    if scores is None or not dropped:
        return dataset, scores
    kept = {name: digest for name, digest in digests.items() if name not in dropped}
    shared = [name for name in kept if name in dataset.column_names]
    known = copy(scores)
    known.manifest = {**scores.manifest, "data": {**scores.manifest["data"], "columns": kept}}
    if scores.row_hash is not None:
        known.row_hash = identify_rows(dataset.select_columns(shared), like=known.identity).row_hash if shared else None
    return dataset, known


def _require_columns(columns_of: Mapping[str, str], scores: VoGScores | None, columns: str | Sequence[str]) -> None:
    """Raise ConfigError where more scores are wanted than the data set has columns of."""
    if columns == "core":
        return
    wanted = columns if not isinstance(columns, str) else [] if scores is None else scores.column_names
    missing = [name for name in wanted if name not in (*columns_of, "label")]
    if missing:
        raise ConfigError(
            f"the data set has columns of scores, {[*columns_of.values()]}, and columns={columns!r} asks for {missing} "
            "beside them; leave columns= out, or pass scores= and a data set without them: dataset.remove_columns(...)"
        )


def _require_same_scores(dataset: Dataset, scores: VoGScores, columns_of: Mapping[str, str]) -> None:
    """Raise ConfigError where a column of the data set is not that of the scores."""
    shared = {name: columns_of[name] for name in scores.column_names if name in columns_of}
    for name, column in shared.items():
        found = dataset.select_columns([column]).with_format("arrow")[:].column(column).to_numpy()
        if not np.array_equal(found.astype(np.float32), scores.column(name).astype(np.float32), equal_nan=True):
            raise ConfigError(
                f"the column {column!r} of the data set is not that of the scores; pass the scores it came from, or "
                f"drop it first: dataset.remove_columns({[*shared.values()]})"
            )


def _with_same_columns(parts: list[Part]) -> list[Part]:
    """Splits without some of the scores get empty columns for them: one configuration has one set of columns."""
    features: dict[str, Any] = {}
    for part in parts:
        features |= {n: f for n, f in part.dataset.features.items() if n not in features}
    found, scored = [], {column for part in parts for column in part.columns.values()}
    for part in parts:
        missing = {n: f for n, f in features.items() if n not in part.dataset.column_names}
        foreign = [n for n, f in missing.items() if n not in scored and not is_declared(f)]
        if foreign:
            raise ConfigError(
                f"the splits of a data set have the same columns, and {part.split!r} has no {foreign[0]!r}; push them "
                "one by one with a config_name= each, or drop what is not shared"
            )
        taken = [n for n in part.dataset.column_names if n in scored and n not in part.columns.values()]
        if taken:
            raise ConfigError(
                f"the split {part.split!r} has a column {taken[0]!r} of its own, and in another split that name holds "
                "scores; name the scores otherwise with prefix=, or rename the column: dataset.rename_column(...)"
            )
        differing = [n for n, f in part.dataset.features.items() if f != features[n]]
        if differing:
            raise ConfigError(
                f"the column {differing[0]!r} of {part.split!r} is {part.dataset.features[differing[0]]} and in "
                f"another split {features[differing[0]]}; cast one: dataset.cast_column(...)"
            )
        found.append(replace(part, dataset=_with_empty(part.dataset, missing)))
    return found


def _with_empty(dataset: Dataset, missing: Mapping[str, Any]) -> Dataset:
    if not missing:
        return dataset
    nothing = {name: [None] * len(dataset) for name in missing}
    empty = Dataset.from_dict(nothing, features=Features(missing))
    return with_more_columns(dataset, empty)


def _score_table(dataset: Dataset, scores: VoGScores | None) -> Dataset:
    """Row number, id, label and every column of the scores, typed."""
    if scores is None:
        raise TypeError("a split without scores has no table of scores")
    values: dict[str, Any] = {"row": np.arange(len(scores))}
    features: dict[str, Any] = {"row": Value("int64")}
    if scores.ids is not None:
        values[ROW_ID], features[ROW_ID] = list(scores.ids), Value("string")
        if np.issubdtype(np.asarray(scores.ids).dtype, np.integer):
            features[ROW_ID] = Value("int64")
    for name in scores.column_names:
        column = scores.column(name)
        values[name] = column if np.issubdtype(column.dtype, np.integer) else column.astype(np.float32)
        if name == "label":
            features[name] = class_feature(dataset, scores, name) or Value("int64")
        else:
            features[name] = score_feature(dataset, scores, name)
    return Dataset.from_dict(values, features=Features(features))
