"""apply_review: the decisions of a review as columns of the data set, and the data set that they correct."""

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
from vog_hf.review.agreement import Resolved, resolve
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
    """Decisions about a data set, verified to be about its rows; what `apply_review` carries out.

    Attributes:
        dataset: The rows as stored.
        decisions: The ones that stand.
        resolved: What they come to, by row.
        label_column: Name of the column of labels; None where there is none.
        labels: ``[rows]``, given labels as numbers of classes, -1 where there is none; None without such a column.
        class_names: Names of the classes, where they have any.
    """

    dataset: Dataset
    decisions: list[Decision]
    resolved: dict[int, Resolved]
    label_column: str | None
    labels: Labels | None
    class_names: list[str] | None

    @property
    def relabelled(self) -> dict[int, int]:
        """New labels by row."""
        return {row: one.label for row, one in self.resolved.items() if one.label is not None}

    @property
    def dropped(self) -> list[int]:
        """The rows that are to be dropped."""
        return [row for row, one in self.resolved.items() if one.decision == "drop"]

    def kept(self, mode: str) -> npt.NDArray[np.int64]:
        """The rows that are in the data set that comes of it."""
        dropped = self.dropped if mode in ("filter", "clean") else []
        return np.setdiff1d(np.arange(len(self.dataset)), np.array(dropped, dtype=np.int64))

    def corrects(self, mode: str) -> bool:
        """Whether there are labels that others take the place of."""
        return mode in ("correct", "clean") and bool(self.relabelled) and self.label_column is not None

    def counts(self) -> dict[str, int]:
        """How many rows each decision counts for, in the order of their frequency."""
        return dict(Counter(one.decision for one in self.resolved.values()).most_common())

    def apply(self, mode: str = "flag") -> Dataset:
        """The data set that comes of it: see `apply_review`."""
        require_mode(mode)
        decided: list[str | None] = [None] * len(self.dataset)
        for row, one in self.resolved.items():
            decided[row] = one.decision
        features, columns = Features({REVIEW: Value("string")}), {REVIEW: pa.array(decided, pa.string())}
        if self.label_column is not None:
            for name in (REVIEWED, self.label_column) if self.corrects(mode) else (REVIEWED,):
                features[name] = self.dataset.features[self.label_column]
                columns[name] = self._reviewed_labels(self.label_column)
        earlier = [name for name in (REVIEW, REVIEWED) if name in self.dataset.column_names]
        found = with_columns(self.dataset.remove_columns(earlier), pa.table(columns, schema=features.arrow_schema))
        if mode in ("filter", "clean") and self.dropped:
            found = found.select(self.kept(mode))
        return found

    def scores(self, scores: VoGScores, applied: Dataset, mode: str) -> VoGScores:
        """The scores of the data set that comes of it: its rows' own, with identity and labels that these have now.

        Values stay those that were computed under the given labels; ``manifest["review"]`` says so.

        Args:
            scores: Of the data set that was reviewed.
            applied: What `apply` gave.
            mode: How it was applied.
        """
        scored = scores.identity.columns
        if mode == "flag" and REVIEW not in scored and REVIEWED not in scored:
            return scores
        rows = self.kept(mode)
        kept = scores.select(rows)
        names = [name for name in scored if name in applied.column_names]
        identity = identify_rows(applied.select_columns(names)) if names else RowIdentity(len(applied), {}, None)
        earlier = scores.facts.review
        corrects = self.corrects(mode) and "label" in kept.column_names
        if corrects:
            label, new = kept.column("label"), self.relabelled  # the column is a copy: `select` has made it
            for place in np.flatnonzero(np.isin(rows, list(new))):
                label[place] = new[int(rows[place])]
        kept.manifest |= {
            "data": {**scores.facts.data, "columns": identity.columns},
            "review": {
                "mode": mode,
                "rows_scored": earlier.get("rows_scored", len(scores)),
                "labels": "reviewed" if corrects else earlier.get("labels", "given"),
            },
        }
        kept.row_hash = identity.row_hash
        return kept

    def _reviewed_labels(self, name: str) -> pa.ChunkedArray:
        """The column of labels with the new ones in it; what is null elsewhere stays null."""
        given = self.dataset.select_columns([name]).with_format("arrow")[:].column(name)
        if not self.relabelled:
            return given
        by_number = pa.types.is_integer(given.type)
        new: list[Any] = [None] * len(given)
        for row, label in self.relabelled.items():
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
    """The data set with what reviewers decided about its rows.

    Two columns are added: ``review`` (text: keep, relabel, drop, unsure; None where nobody decided) and
    ``label_reviewed``, of the feature of the labels: the new label of a relabelled row, the given one of every other.
    Where reviewers differ, what more than half of them decided counts, else the row is unsure and its label stays: see
    `vog_hf.review.resolve`. Columns of these names that an earlier review has written are replaced.

    Args:
        dataset: What was reviewed: one split, with or without a transform (which is not kept) and columns of scores.
        decisions: The journal, or its path; or decisions, at most one of a reviewer about a row.
        scores: Of the data set, to verify it by; a journal says by itself of which data it is.
        mode: ``"flag"``: every row and label stays. ``"correct"``: the labels are the reviewed ones (the given ones
            are in the journal). ``"filter"``: without the rows to drop. ``"clean"``: both.
        label_column: Column of the labels; default: the one that was scored, else ``labels``, ``label``, ``label_ids``.

    Returns:
        The data set with two columns more (one where it has no labels).

    Raises:
        RowMismatchError: The decisions are about other data, or about another version of a row.
        JournalError: The journal is missing or damaged.
        ConfigError: An unknown mode, decisions that no journal would take, no such label column, or columns ``review``
            or ``label_reviewed`` that no review has written.
        DataError: No `datasets.Dataset`.

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
    """What `apply_review` would do, all of it verified."""
    _require_table(dataset)
    require_type("scores", scores, (VoGScores, type(None)), "pass the scores of this data set, or leave them out")
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
    if labels is None and any(one.label is not None for one in resolved.values()):
        lacking = f"none of the columns {dataset.column_names}" if column is None else f"column {column!r}"
        has = "has labels" if column is None else "has no such classes"
        raise ConfigError(
            f"rows are relabelled by number of class, and {lacking} {has}; pass label_column=", argument="label_column="
        )
    _warn_of_lost(stored, resolved)
    return Review(stored, standing, resolved, column, labels, class_names)


def require_mode(mode: str) -> None:
    """Raise ConfigError where there is no such mode."""
    require_type("mode", mode, str, f"pass one of {', '.join(MODES)}")
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")


def _require_table(dataset: AnyDataset) -> None:
    if not has_table(dataset):
        advice = "pass one split, dataset['train']" if isinstance(dataset, dict) else "pass what was reviewed"
        raise DataError(f"a review is applied to a datasets.Dataset, got a {type(dataset).__name__}; {advice}")
    taken = [name for name in (REVIEW, REVIEWED) if name in dataset.column_names]
    if taken and _earlier_decisions(dataset) is None:
        raise ConfigError(
            f"the review adds the columns {[REVIEW, REVIEWED]}, and the data set has {taken}, which no review has "
            f"written; rename your own first, e.g. dataset.rename_column({taken[0]!r}, 'my_{taken[0]}')"
        )


def _earlier_decisions(dataset: Dataset) -> list[str | None] | None:
    """What an earlier review left in its column; None where there is none of its kind."""
    if REVIEW not in dataset.column_names or dataset.features[REVIEW] != Value("string"):
        return None
    values: list[str | None] = dataset.with_format(None)[REVIEW][:]
    return values if set(values) <= {None, *DECISIONS} else None


def _warn_of_lost(dataset: Dataset, resolved: dict[int, Resolved]) -> None:
    """Say where an earlier review's decisions are in no column any more."""
    earlier = _earlier_decisions(dataset) or []
    lost = sum(decision is not None and row not in resolved for row, decision in enumerate(earlier))
    if lost:
        logger.warning(
            "an earlier review decided about rows that this one says nothing of (%d); its columns are replaced, and "
            "what it decided stays in its journal alone",
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
    """Given labels as numbers of classes, -1 where there is none; None where they are no classes."""
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
            f"the label {unknown!r} in column {column!r} is none of the classes {class_names}; pass label_column=",
            argument="label_column=",
        )
    return np.array([-1 if value is None else number[value] for value in values], dtype=np.int64)
