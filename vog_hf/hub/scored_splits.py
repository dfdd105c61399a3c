"""The splits that are pushed: rows with their scores, paired and verified before anything leaves the machine."""

import logging
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.referenced_files import columns_of_named_files, with_more_columns
from vog_hf.data.row_identity import by_split_name, identify_rows, is_first_version
from vog_hf.data.rows import AnyDataset
from vog_hf.errors import ConfigError, DataError
from vog_hf.hub.repo_paths import SPLIT_NAME
from vog_hf.scores.column_features import class_feature, feature_values, score_feature
from vog_hf.scores.dataset_columns import (
    add_vog_columns,
    has_scores,
    is_declared,
    score_columns,
    scores_from_columns,
)
from vog_hf.scores.scored_rows import ScoredSplit, remember_scores, scores_of, verify_rows
from vog_hf.scores.storage import ROW_ID
from vog_hf.scores.unit_columns import unit_column_names
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)

HEAT_MAP_ROWS = 500_000  # at most 2 kB each


@dataclass(frozen=True)
class PushedSplit:
    """One split as it is pushed.

    Attributes:
        name: Name of the split.
        table: Its rows as stored, with the columns of scores.
        scored: Its scores with these rows; None for a split without scores, pushed along with empty score columns.
        prefix: Prefix of the names of the score columns; None: the only one that the table has.
    """

    name: str
    table: Dataset
    scored: ScoredSplit | None
    prefix: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Columns of the table that hold scores, by their names among the scores."""
        return score_columns(self.table, self.prefix)


def collect_splits(
    dataset: Dataset | DatasetDict,
    scores: VoGScores | Mapping[str, VoGScores] | None,
    columns: str | Sequence[str],
    split: str | None,
    *,
    prefix: str = "",
) -> list[PushedSplit]:
    """Pair the splits of a dataset with their scores; every row and column is verified.

    Args:
        dataset: As in `push_scored_dataset`, like the other arguments.
        scores: As there.
        columns: As there.
        split: As there.
        prefix: As there.

    Raises:
        ConfigError: No scores, scores that do not fit the splits, or an invalid name of a split.
        RowMismatchError: The scores belong to other rows.
        DataError: Not a `datasets.Dataset`.
    """
    splits = _splits(dataset, scores, split)
    for name, rows, _ in splits:
        if not SPLIT_NAME.fullmatch(name):
            raise ConfigError(
                f"the name of a split must be letters, digits, _ and dots between them, got {name!r}; pass "
                "split='train'",
                argument="split='train'",
            )
        if not has_table(rows):
            raise DataError(
                f"only a datasets.Dataset or DatasetDict can be pushed, got a {type(rows).__name__} as {name!r}"
            )
        if not len(rows):
            raise DataError(f"the split {name!r} has no rows; leave it out")
    pushed = [_pushed(name, rows, given, columns, prefix) for name, rows, given in splits]
    if all(split.scored is None for split in pushed):
        raise ConfigError(
            "the dataset has no score column 'vog' and no scores were passed; pass scores=, or call "
            "add_vog_columns(...) first",
            argument="scores=",
        )
    return _with_same_columns(pushed)


def score_tables(splits: Sequence[PushedSplit]) -> list[PushedSplit]:
    """The same splits as nothing but row number, id, label and scores; splits without scores are left out."""
    return [PushedSplit(s.name, _score_table(s.scored), s.scored) for s in splits if s.scored is not None]


def published_scores(split: ScoredSplit, *, with_rows: bool, heat_maps: bool | None) -> VoGScores:
    """The scores of a split as they go into the repository.

    Args:
        split: A split, its rows with columns of scores.
        with_rows: Whether the rows are pushed with the scores.
        heat_maps: Whether heat maps are pushed with them; None: up to 500,000 rows.
    """
    scores = _without_revealing_digests(split, with_rows=with_rows)
    if not with_rows:
        scores = copy(scores)
        scores.tokenizer = None  # its vocabulary may come from the rows
    if not scores.has_heat_maps or (len(scores) <= HEAT_MAP_ROWS if heat_maps is None else heat_maps):
        return scores
    if heat_maps is None:
        logger.warning("the heat maps of %d rows are not pushed; pass heat_maps=True to push them", len(scores))
    return scores.with_heat_maps(None)


def _splits(
    dataset: AnyDataset, scores: VoGScores | Mapping[str, VoGScores] | None, split: str | None
) -> list[tuple[str, Any, VoGScores | None]]:
    scores = by_split_name(scores) if isinstance(scores, Mapping) else scores
    if isinstance(dataset, Mapping):
        dataset = by_split_name(dataset)
        if split is not None:
            raise ConfigError(
                f"split= names the split of one Dataset, and a DatasetDict has its own, {sorted(dataset)}",
                argument="split=",
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


def _pushed(
    name: str, dataset: Dataset, scores: VoGScores | None, columns: str | Sequence[str], prefix: str
) -> PushedSplit:
    """Pair the rows, with columns of scores, with these scores, or with those that the columns hold."""
    columns_of, stored = score_columns(dataset, prefix or None), dataset.with_format(None)
    if not has_scores(columns_of):
        if scores is None:
            return PushedSplit(name, stored, None, prefix or None)
        table = add_vog_columns(dataset, scores, columns, prefix=prefix)
        return PushedSplit(name, table, ScoredSplit(name, scores, table), prefix or None)
    known = scores_of(dataset)
    _require_columns(columns_of, scores or known, columns)
    if scores is not None and scores is not known:
        verify_rows(dataset, scores)
        _require_same_scores(dataset, scores, columns_of)
    elif known is not None:
        scores = known
    else:
        logger.warning(
            "the dataset has score columns but no record of how they were computed, so the card has none either, and "
            "trajectories and heat maps are not pushed; pass scores="
        )
        scores = scores_from_columns(dataset, prefix=prefix or None)
    remember_scores(stored, scores)
    return PushedSplit(name, stored, ScoredSplit(name, scores, stored), prefix or None)


def _without_revealing_digests(split: ScoredSplit, *, with_rows: bool) -> VoGScores:
    """The scores without the digests of columns of referenced files that reveal more than is pushed, or less.

    A digest of a file that is not pushed would let others check a guess at its content; one of version 1 is of its
    name, and the rows come back with its bytes.
    """
    scores, digests = split.scores, split.scores.identity.columns
    referenced = {*digests} & {*columns_of_named_files(split.rows)}
    dropped = {name for name in referenced if not with_rows or is_first_version(digests[name])}
    if not dropped:
        return scores
    remaining = {name: digest for name, digest in digests.items() if name not in dropped}
    shared = [name for name in remaining if name in split.rows.column_names]
    published = copy(scores)
    published.manifest = {**scores.manifest, "data": {**scores.manifest["data"], "columns": remaining}}
    if scores.row_hash is not None:
        rows = split.rows.select_columns(shared)
        published.row_hash = identify_rows(rows, like=published.identity).row_hash if shared else None
    return published


def _require_columns(columns_of: Mapping[str, str], scores: VoGScores | None, columns: str | Sequence[str]) -> None:
    """Raise ConfigError if ``columns`` asks for scores that the dataset does not have as columns."""
    if columns == "core":
        return
    requested = columns if not isinstance(columns, str) else [] if scores is None else scores.column_names
    missing = [name for name in requested if name not in (*columns_of, "label")]
    if missing:
        raise ConfigError(
            f"the dataset has score columns {[*columns_of.values()]}, and columns={columns!r} also asks for {missing}; "
            "leave columns= out, or pass scores= and a dataset without score columns: dataset.remove_columns(...)",
            argument=(f"columns={columns!r}", "columns=", "scores="),
        )


def _require_same_scores(dataset: Dataset, scores: VoGScores, columns_of: Mapping[str, str]) -> None:
    """Raise ConfigError if a column of the dataset differs from that of the scores."""
    shared = {name: columns_of[name] for name in scores.column_names if name in columns_of}
    for name, column in shared.items():
        values = dataset.select_columns([column]).with_format("arrow")[:].column(column).to_numpy()
        if not np.array_equal(values.astype(np.float32), scores.column(name).astype(np.float32), equal_nan=True):
            raise ConfigError(
                f"the column {column!r} of the dataset differs from the scores; pass the scores it came from, or "
                f"drop it first: dataset.remove_columns({[*shared.values()]})"
            )


def _with_same_columns(splits: list[PushedSplit]) -> list[PushedSplit]:
    """Splits without some of the scores get empty columns for them: one configuration has one set of columns."""
    features: dict[str, Any] = {}
    for split in splits:
        features |= {n: f for n, f in split.table.features.items() if n not in features}
    scored = {column for split in splits for column in split.columns.values()}
    return [_with_columns_of_all(split, features, scored) for split in splits]


def _with_columns_of_all(split: PushedSplit, features: Mapping[str, object], scored: Collection[str]) -> PushedSplit:
    """A split with empty columns for the scores of others.

    Args:
        split: One of the splits.
        features: Columns of all splits.
        scored: Columns that hold scores in any of them.
    """
    missing = {n: f for n, f in features.items() if n not in split.table.column_names}
    foreign = [n for n, f in missing.items() if n not in scored and not is_declared(f)]
    if foreign:
        raise ConfigError(
            f"the splits of a dataset have the same columns, and {split.name!r} has no {foreign[0]!r}; push them "
            "one by one with a config_name= each, or drop what is not shared",
            argument="config_name=",
        )
    taken = [n for n in split.table.column_names if n in scored and n not in split.columns.values()]
    if taken:
        raise ConfigError(
            f"the split {split.name!r} has a column {taken[0]!r} of its own, and in another split that name holds "
            "scores; pass prefix= to name the scores differently, or rename the column: dataset.rename_column(...)",
            argument="prefix=",
        )
    differing = [n for n, f in split.table.features.items() if f != features[n]]
    if differing:
        raise ConfigError(
            f"the column {differing[0]!r} of {split.name!r} is {split.table.features[differing[0]]} and in "
            f"another split {features[differing[0]]}; cast one: dataset.cast_column(...)"
        )
    return replace(split, table=_with_empty(split.table, missing))


def _with_empty(dataset: Dataset, missing: Mapping[str, object]) -> Dataset:
    if not missing:
        return dataset
    nothing = {name: [None] * len(dataset) for name in missing}
    empty = Dataset.from_dict(nothing, features=Features(missing))
    return with_more_columns(dataset, empty)


def _score_table(split: ScoredSplit) -> Dataset:
    """Row number, id, label and every column of the scores, typed."""
    scores = split.scores
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
            features[name] = class_feature(split, name) or Value("int64")
        else:
            features[name] = score_feature(split, name)
    for name in (*scores.text_column_names, *unit_column_names(scores)):
        values[name], features[name] = feature_values(split, name), score_feature(split, name)
    return Dataset.from_dict(values, features=Features(features))
