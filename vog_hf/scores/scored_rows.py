"""Scores with the rows they belong to: the record that outputs take, and the proof that the rows are those."""

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset

from vog_hf.data.arrow_columns import has_table, integer_column
from vog_hf.data.map_style import check_map_style
from vog_hf.data.row_identity import by_split_name, identify_rows
from vog_hf.data.rows import AnyDataset
from vog_hf.errors import ConfigError, RowMismatchError, require_type
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.metric.unit_kinds import OBJECT, TOKEN
from vog_hf.scores.label_lists import LabelLists, label_lists
from vog_hf.scores.ranking import is_skipped
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)

# The scores that were put onto a dataset, for as long as that very object lives.
_SCORES_OF: weakref.WeakKeyDictionary[Dataset, VoGScores] = weakref.WeakKeyDictionary()


def verify_rows(dataset: Dataset, scores: VoGScores) -> None:
    """Raise RowMismatchError unless the rows of a dataset are those that were scored, in the same order."""
    if scores.identity.verify(identify_rows(dataset, like=scores.identity)):
        return
    labels = integer_column(dataset, given_label_names(scores))
    if labels is not None and "label" in scores.column_names:
        differs = np.where(labels < 0, -1, labels) != scores.column("label")
        differing = np.flatnonzero(differs & ~is_skipped(scores))  # a skipped row has no label
        if len(differing):
            row = int(differing[0])
            raise RowMismatchError(
                f"row {row} has label {labels[row]} in the dataset and {scores.column('label')[row]} in the scores "
                f"({len(differing)} rows differ); pass the dataset that was scored, in its order"
            )
    logger.warning(
        "the dataset shares no column with the one that was scored, so only the number of rows%s could be compared",
        "" if labels is None else " and the labels",
    )


@dataclass(frozen=True, eq=False)
class ScoredSplit:
    """The scores of a split together with the rows that were scored, verified when it is made.

    Attributes:
        name: Name of the split; empty for a dataset without splits.
        scores: Scores of its rows.
        rows: A `Dataset`, or any map-style dataset (only the number of its rows can be compared); None = no rows are
            shown.

    Raises:
        RowMismatchError: The rows are not the ones that were scored.
        DataError: Rows that cannot be read by their number.

    Example:
        >>> scores = VoGScores({"vog": np.array([0.2, 0.1])}, {})
        >>> len(ScoredSplit("train", scores, ["a", "b"]))
        2
    """

    name: str
    scores: VoGScores
    rows: Any = None

    def __post_init__(self) -> None:
        if self.rows is None:
            return
        check_map_style(self.rows)
        if not has_table(self.rows):
            self.scores.identity.verify(identify_rows(self.rows))
        elif scores_of(self.rows) is not self.scores:
            verify_rows(self.rows, self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def label_lists(self) -> LabelLists | None:
        """The column of labels that the units of the rows were labeled by; None without one, or without units."""
        units = self.scores.units
        if units is None or units.unit not in (TOKEN.name, OBJECT.name) or not isinstance(self.rows, Dataset):
            return None
        return label_lists(self.rows, units)

    def without_rows(self) -> "ScoredSplit":
        """Return the scores alone, to be shown in numbers."""
        return replace(self, rows=None)


def pair_with_rows(scores: VoGScores | Mapping[str, VoGScores], dataset: AnyDataset) -> list[ScoredSplit]:
    """Pair each split's scores with its rows; a dataset without splits gives one with an empty name.

    Args:
        scores: Scores of a dataset, or of its splits by name.
        dataset: The dataset that was scored; for several splits a mapping that has (at least) all of them; None = no
            rows are shown.

    Raises:
        ConfigError: No scores, or splits that do not fit those of the dataset.
        RowMismatchError: The rows of the dataset are not the ones that were scored.
        DataError: Rows that cannot be read by their number.
    """
    require_scores(scores)
    dataset = by_split_name(dataset) if isinstance(dataset, Mapping) else dataset
    if not isinstance(scores, Mapping):
        return [ScoredSplit("", scores, dataset)]
    scores = by_split_name(scores)
    if dataset is not None and not (isinstance(dataset, Mapping) and set(scores) <= set(dataset)):
        got = sorted(dataset) if isinstance(dataset, Mapping) else type(dataset).__name__
        raise ConfigError(
            f"scores of the splits {sorted(scores)} need a mapping with these splits as dataset, got {got}; pass the "
            "DatasetDict that was scored"
        )
    return [ScoredSplit(name, scores[name], None if dataset is None else dataset[name]) for name in scores]


def require_scores(scores: Any) -> None:
    """Raise ConfigError unless these are `VoGScores`, or a mapping from splits to them."""
    for of_split in scores.values() if isinstance(scores, Mapping) else [scores]:
        require_type("scores", of_split, VoGScores, "pass VoGScores, or a mapping from splits to them")


def scores_of(dataset: Dataset) -> VoGScores | None:
    """The scores that `add_vog_columns` put onto this very dataset; None for any other, and for what was made of it.

    Example:
        >>> from vog_hf.scores import add_vog_columns
        >>> scores = VoGScores({"vog": np.array([0.5, 0.25])}, {})
        >>> scored = add_vog_columns(Dataset.from_dict({"text": ["a", "b"]}), scores, ["vog"])
        >>> scores_of(scored) is scores, scores_of(scored.select([0])) is None
        (True, True)
    """
    return _SCORES_OF.get(dataset)


def remember_scores(dataset: Dataset, scores: VoGScores) -> None:
    """Note that these rows, with the scores as columns, have been verified: see `scores_of`."""
    _SCORES_OF[dataset] = scores


def given_label_names(scores: VoGScores) -> Sequence[str]:
    """Columns that may hold the labels that were scored: the configured one, else the usual names."""
    configured = scores.facts.label_column
    return LABEL_NAMES if configured is None else (configured,)
