"""apply_review: add the decisions of a review to a dataset as columns, or correct the dataset by them."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Value

from vog_hf.data.arrow_columns import has_table, integer_column
from vog_hf.data.loading import with_columns
from vog_hf.data.row_identity import RowIdentity, identify_rows
from vog_hf.data.rows import AnyDataset
from vog_hf.errors import ConfigError, DataError, RowMismatchError, require_type
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.review.agreement import ConsensusDecision, resolve
from vog_hf.review.decision import DECISIONS, Decision
from vog_hf.review.decision_checks import (
    Decisions,
    Labels,
    collect_decisions,
    identity_of_scored_columns,
    require_one_per_reviewer,
    require_same_rows,
    require_valid_decision,
)
from vog_hf.review.journal_header import JournalHeader
from vog_hf.scores.scored_rows import verify_rows
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)

MODES = ("flag", "correct", "filter", "clean")
REVIEW, REVIEWED = "review", "label_reviewed"


@dataclass(frozen=True)
class Review:
    """Decisions that were verified to be about the rows of a dataset, to be applied by `apply_review`.

    Attributes:
        dataset: Rows as stored.
        decisions: Decisions that count.
        resolved: Their consensus by row.
        label_column: Name of the label column; None without one.
        labels: ``[rows]``, given labels as numbers of classes, -1 for a row without a label; None without such a
            column.
        class_names: Names of the classes, if they have names.
    """

    dataset: Dataset
    decisions: list[Decision]
    resolved: dict[int, ConsensusDecision]
    label_column: str | None
    labels: Labels | None
    class_names: list[str] | None

    @property
    def relabeled(self) -> dict[int, int]:
        """New labels by row."""
        return {row: consensus.label for row, consensus in self.resolved.items() if consensus.label is not None}

    @property
    def dropped(self) -> list[int]:
        """The rows to drop."""
        return [row for row, consensus in self.resolved.items() if consensus.decision == "drop"]

    def kept(self, mode: str) -> npt.NDArray[np.int64]:
        """The rows of the resulting dataset."""
        dropped = self.dropped if mode in ("filter", "clean") else []
        return np.setdiff1d(np.arange(len(self.dataset)), np.array(dropped, dtype=np.int64))

    def corrects(self, mode: str) -> bool:
        """Return whether any label is replaced."""
        return mode in ("correct", "clean") and bool(self.relabeled) and self.label_column is not None

    def counts(self) -> dict[str, int]:
        """Number of rows per decision, the most frequent first."""
        return dict(Counter(consensus.decision for consensus in self.resolved.values()).most_common())

    def apply(self, mode: str = "flag") -> Dataset:
        """The resulting dataset: see `apply_review`."""
        require_mode(mode)
        decided: list[str | None] = [None] * len(self.dataset)
        for row, consensus in self.resolved.items():
            decided[row] = consensus.decision
        features, columns = Features({REVIEW: Value("string")}), {REVIEW: pa.array(decided, pa.string())}
        if self.label_column is not None:
            for name in (REVIEWED, self.label_column) if self.corrects(mode) else (REVIEWED,):
                features[name] = self.dataset.features[self.label_column]
                columns[name] = self._reviewed_labels(self.label_column)
        earlier = [name for name in (REVIEW, REVIEWED) if name in self.dataset.column_names]
        reviewed = with_columns(self.dataset.remove_columns(earlier), pa.table(columns, schema=features.arrow_schema))
        if mode in ("filter", "clean") and self.dropped:
            reviewed = reviewed.select(self.kept(mode))
        return reviewed

    def scores(self, scores: VoGScores, applied: Dataset, mode: str) -> VoGScores:
        """The scores of the resulting dataset: those of its rows, with their new identity and labels.

        Values stay those computed with the given labels; ``manifest["review"]`` records this.

        Args:
            scores: Scores of the dataset that was reviewed.
            applied: Result of `apply`.
            mode: Mode of `apply`.
        """
        scored = scores.identity.columns
        if mode == "flag" and REVIEW not in scored and REVIEWED not in scored:
            return scores
        rows = self.kept(mode)
        selected = scores.select(rows)
        names = [name for name in scored if name in applied.column_names]
        identity = identify_rows(applied.select_columns(names)) if names else RowIdentity(len(applied), {}, None)
        earlier = scores.facts.review
        corrects = self.corrects(mode) and "label" in selected.column_names
        if corrects:
            label, new = selected.column("label"), self.relabeled  # a copy, made by `select`
            for place in np.flatnonzero(np.isin(rows, list(new))):
                label[place] = new[int(rows[place])]
        selected.manifest |= {
            "data": {**scores.facts.data, "columns": identity.columns},
            "review": {
                "mode": mode,
                "rows_scored": earlier.get("rows_scored", len(scores)),
                "labels": "reviewed" if corrects else earlier.get("labels", "given"),
            },
        }
        selected.row_hash = identity.row_hash
        return selected

    def _reviewed_labels(self, name: str) -> pa.ChunkedArray:
        """The label column with the new labels; other nulls stay null."""
        given = self.dataset.select_columns([name]).with_format("arrow")[:].column(name)
        if not self.relabeled:
            return given
        by_number = pa.types.is_integer(given.type)
        new: list[Any] = [None] * len(given)
        for row, label in self.relabeled.items():
            new[row] = label if by_number else (self.class_names or [])[label]
        values = pa.chunked_array([pa.array(new, pa.int64() if by_number else pa.string()).cast(given.type)])
        return pc.if_else(values.is_valid(), values, given)


def apply_review(
    dataset: Dataset,
    decisions: Decisions,
    scores: VoGScores | None = None,
    *,
    mode: str = "flag",
    label_column: str | None = None,
) -> Dataset:
    """Add the decisions of reviewers to a dataset, or correct it by them.

    Two columns are added: ``review`` (text: keep, relabel, drop, unsure; None for a row without a decision) and
    ``label_reviewed``, with the feature of the labels: the new label of a relabeled row, the given one of every other.
    If reviewers disagree, the majority decides; without a majority the row is unsure and its label stays: see
    `vog_hf.review.resolve`. Columns with these names from an earlier review are replaced.

    Args:
        dataset: Dataset that was reviewed: one split, with or without a transform (which is dropped) and score columns.
        decisions: The journal, or its path; or decisions, at most one of a reviewer about a row.
        scores: Scores of the dataset, to verify it; a journal identifies its data itself.
        mode: ``"flag"``: every row and label stays. ``"correct"``: the labels are the reviewed ones (the given ones
            are in the journal). ``"filter"``: without the rows to drop. ``"clean"``: both.
        label_column: Column of the labels; default: the one that was scored, else ``labels``, ``label``, ``label_ids``.

    Returns:
        The dataset with two more columns (one for a dataset without labels).

    Raises:
        RowMismatchError: The decisions are about other data, or about another version of a row.
        JournalError: The journal is missing or damaged.
        ConfigError: An unknown mode, invalid decisions, no such label column, or columns ``review`` or
            ``label_reviewed`` that were not written by a review.
        DataError: Not a `datasets.Dataset`.

    Example:
        >>> dataset = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
        >>> decision = Decision(1, "relabel", 0, "", "Ada", "", "1", old_label=1, row_hash=None)
        >>> apply_review(dataset, [decision])[1]
        {'text': 'b', 'label': 1, 'review': 'relabel', 'label_reviewed': 0}
    """
    require_mode(mode)
    return plan_review(dataset, decisions, scores, label_column=label_column).apply(mode)


def plan_review(
    dataset: Dataset, decisions: Decisions, scores: VoGScores | None = None, *, label_column: str | None = None
) -> Review:
    """Verify decisions, and return what `apply_review` would do."""
    _require_table(dataset)
    require_type("scores", scores, (VoGScores, type(None)), "pass the scores of this dataset, or leave them out")
    header, standing, name = collect_decisions(decisions, scores)
    column = _label_column(dataset, scores, label_column)
    class_names = _class_names(dataset, column, header)
    labels = None if column is None else _class_numbers(dataset, column, class_names)
    stored = dataset.with_format(None)
    if scores is not None:
        verify_rows(stored, scores)
    identity = identity_of_scored_columns(stored, header)
    if header is not None:
        header.verify(identity, labels, name)
    for decision in standing:
        require_valid_decision(decision, len(stored), header, class_names)
    require_one_per_reviewer(standing)
    require_same_rows(standing, stored, identity, labels, header)
    resolved = resolve(standing)
    if labels is None and any(consensus.label is not None for consensus in resolved.values()):
        subject = f"none of the columns {dataset.column_names}" if column is None else f"column {column!r}"
        has = "has labels" if column is None else "has no such classes"
        raise ConfigError(
            f"rows are relabeled by class number, and {subject} {has}; pass label_column=", argument="label_column="
        )
    _warn_of_lost(stored, resolved)
    return Review(stored, standing, resolved, column, labels, class_names)


def require_mode(mode: str) -> None:
    """Raise ConfigError for an unknown mode."""
    require_type("mode", mode, str, f"pass one of {', '.join(MODES)}")
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")


def _require_table(dataset: AnyDataset) -> None:
    if not has_table(dataset):
        advice = (
            "pass one split, dataset['train']" if isinstance(dataset, dict) else "pass the dataset that was reviewed"
        )
        raise DataError(f"a review is applied to a datasets.Dataset, got a {type(dataset).__name__}; {advice}")
    taken = [name for name in (REVIEW, REVIEWED) if name in dataset.column_names]
    if taken and _earlier_decisions(dataset) is None:
        raise ConfigError(
            f"the review adds the columns {[REVIEW, REVIEWED]}, and the dataset has {taken}, which no review has "
            f"written; rename your own first, e.g. dataset.rename_column({taken[0]!r}, 'my_{taken[0]}')"
        )


def _earlier_decisions(dataset: Dataset) -> list[str | None] | None:
    """The decisions of an earlier review in its column; None without such a column."""
    if REVIEW not in dataset.column_names or dataset.features[REVIEW] != Value("string"):
        return None
    values: list[str | None] = dataset.with_format(None)[REVIEW][:]
    return values if set(values) <= {None, *DECISIONS} else None


def _warn_of_lost(dataset: Dataset, resolved: dict[int, ConsensusDecision]) -> None:
    """Log a warning if decisions of an earlier review are no longer in a column."""
    earlier = _earlier_decisions(dataset) or []
    lost = sum(decision is not None and row not in resolved for row, decision in enumerate(earlier))
    if lost:
        logger.warning(
            "an earlier review has decisions about rows without one in this review (%d); its columns are replaced, and "
            "these decisions stay only in its journal",
            lost,
        )


def _label_column(dataset: Dataset, scores: VoGScores | None, label_column: str | None) -> str | None:
    scored = None if scores is None else scores.facts.label_column
    if label_column is not None and label_column not in dataset.column_names:
        raise ConfigError(
            f"there is no label column {label_column!r}, only {dataset.column_names}; pass another label_column=",
            argument="label_column=",
        )
    names = [label_column or scored] if label_column or scored else LABEL_NAMES
    return next((name for name in names if name in dataset.column_names), None)


def _class_names(dataset: Dataset, column: str | None, header: JournalHeader | None) -> list[str] | None:
    feature = None if column is None else dataset.features[column]
    reviewed = None if header is None else header.class_names
    if not isinstance(feature, ClassLabel):
        return reviewed
    names = list(feature.names)
    if reviewed is not None and names != reviewed:
        raise RowMismatchError(
            f"column {column!r} has the classes {', '.join(names):.200}, and reviewers saw {', '.join(reviewed):.200}; "
            "pass the data that was reviewed"
        )
    return names


def _class_numbers(dataset: Dataset, column: str, class_names: list[str] | None) -> Labels | None:
    """Given labels as numbers of classes, -1 for a missing label; None if they are not classes."""
    labels = integer_column(dataset, [column])
    if labels is not None:
        return np.where(labels < 0, -1, labels)
    values = dataset.with_format(None)[column][:]
    if class_names is None or not all(value is None or isinstance(value, str) for value in values):
        return None
    number = {name: place for place, name in enumerate(class_names)}
    unknown = next((value for value in values if value is not None and value not in number), None)
    if unknown is not None:
        raise ConfigError(
            f"the label {unknown!r} in column {column!r} is not one of the classes {class_names}; pass label_column=",
            argument="label_column=",
        )
    return np.array([-1 if value is None else number[value] for value in values], dtype=np.int64)
