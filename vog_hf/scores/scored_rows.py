"""Proof that the rows of a dataset are those that were scored."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from vog_hf.data.arrow_columns import has_table, integer_column
from vog_hf.data.batch_reader import check_map_style
from vog_hf.data.row_identity import by_split_name, identify_rows
from vog_hf.errors import ConfigError, RowMismatchError, require_type
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)


def verify_rows(dataset: Dataset, scores: VoGScores) -> None:
    """Raise RowMismatchError where the rows of a data set are not those of the scores, in their order."""
    if scores.identity.verify(identify_rows(dataset, like=scores.identity)):
        return
    labels = integer_column(dataset, given_label_names(scores))
    if labels is not None and "label" in scores.column_names:
        differing = np.flatnonzero(np.where(labels < 0, -1, labels) != scores.column("label"))
        if len(differing):
            row = int(differing[0])
            raise RowMismatchError(
                f"row {row} has label {labels[row]} in the data set and {scores.column('label')[row]} in the scores "
                f"({len(differing)} rows differ); pass the data set that was scored, in its order"
            )
    logger.warning(
        "the data set shares no column with the one that was scored, so only the number of rows%s could be compared",
        "" if labels is None else " and the labels",
    )


def require_scores(scores: Any) -> None:
    """Raise ConfigError where these are neither `VoGScores` nor a mapping of splits to them."""
    parts = scores.values() if isinstance(scores, Mapping) else [scores]
    for part in parts:
        require_type("scores", part, VoGScores, "pass VoGScores, or a mapping from splits to them")


def shown_splits(scores: VoGScores | Mapping[str, VoGScores], dataset: Any) -> list[tuple[str, VoGScores, Any]]:
    """Name, scores and rows of each split that is to be shown, its rows verified; the name of the only one is empty.

    Args:
        scores: Of a data set, or of splits by name.
        dataset: What was scored; of several splits a mapping of them (others may be in it); None = nothing is shown.

    Raises:
        ConfigError: Splits that do not fit the data set's.
        RowMismatchError: The data set's rows are not the ones that were scored.
        DataError: Rows that cannot be read by their number.
    """
    dataset = by_split_name(dataset) if isinstance(dataset, Mapping) else dataset
    if isinstance(scores, Mapping):
        scores = by_split_name(scores)
        if dataset is not None and not (isinstance(dataset, Mapping) and set(scores) <= set(dataset)):
            got = sorted(dataset) if isinstance(dataset, Mapping) else type(dataset).__name__
            raise ConfigError(
                f"scores of the splits {sorted(scores)} need a mapping with these splits as data set, got {got}"
            )
        parts = [(name, part, None if dataset is None else dataset[name]) for name, part in scores.items()]
    else:
        parts = [("", scores, dataset)]
    for _, part, rows in parts:
        if rows is not None:
            verify_shown_rows(rows, part)
    return parts


def verify_shown_rows(dataset: Any, scores: VoGScores) -> None:
    """Raise where the rows of a data set that is to be shown beside its scores are not those that were scored.

    Args:
        dataset: One split: a `Dataset`, or any map-style data set, of which only the number of rows can be compared.
        scores: Its scores.

    Raises:
        RowMismatchError: The rows differ.
        DataError: Rows that cannot be read by their number.
    """
    check_map_style(dataset)
    if has_table(dataset):
        verify_rows(dataset, scores)
    else:
        scores.identity.verify(identify_rows(dataset))


def given_label_names(scores: VoGScores) -> Sequence[str]:
    """Where the labels that were scored may stand: in the column that was configured, else under the usual names."""
    configured = scores.manifest.get("config", {}).get("label_column")
    return LABEL_NAMES if configured is None else (configured,)
