"""Proof that decisions are about the rows and labels of a dataset."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from vog_hf.data.row_identity import RowIdentity, identify_rows, is_first_version
from vog_hf.errors import ConfigError, RowMismatchError, require_type
from vog_hf.review.decision import Decision, hex_of, require_valid
from vog_hf.review.journal import Journal
from vog_hf.review.journal_events import read_journal
from vog_hf.review.journal_header import JournalHeader
from vog_hf.scores.vog_scores import VoGScores

Decisions = str | Path | Journal | Sequence[Decision]
Labels = npt.NDArray[np.int64]


def collect_decisions(
    decisions: Decisions, scores: VoGScores | None
) -> tuple[JournalHeader | None, list[Decision], str]:
    """The header of the data that decisions are about (None: unknown), the decisions that count, and their name."""
    if isinstance(decisions, str | Path):
        return *read_journal(decisions), str(decisions)
    if isinstance(decisions, Journal):
        return decisions.header, list(decisions.standing().values()), str(decisions.path)
    require_type("decisions", decisions, Iterable, "pass the journal, its path, or a list of Decision")
    decisions = list(decisions)
    for decision in decisions:
        require_type("a decision", decision, Decision, "pass the journal, its path, or a list of Decision")
    return None if scores is None else JournalHeader.of(scores), decisions, "decisions"


def verified_decisions(decisions: Decisions, scores: VoGScores) -> list[Decision]:
    """The decisions that count.

    Raises:
        RowMismatchError: The journal belongs to a different dataset.
        JournalError: The journal is missing or damaged.
        ConfigError: A decision that no journal of this data would take, or two of one reviewer about a row.
    """
    header, standing, name = collect_decisions(decisions, scores)
    if header is not None:
        header.verify_scores(scores, name)
    for decision in standing:
        require_valid_decision(decision, len(scores), header, None)
    require_one_per_reviewer(standing)
    return standing


def identity_of_scored_columns(dataset: Dataset, header: JournalHeader | None) -> RowIdentity:
    """The identity of the rows over the columns that were scored, if the dataset has them all."""
    if header is None:
        return identify_rows(dataset)
    has_all = header.columns and set(header.columns) <= set(dataset.column_names)
    return identify_rows(dataset.select_columns([*header.columns]) if has_all else dataset, like=header.identity)


def require_valid_decision(
    decision: Decision, n_rows: int, header: JournalHeader | None, class_names: list[str] | None
) -> None:
    """Raise ConfigError for a decision that no journal of this data would take."""
    n_classes = len(class_names) if class_names else None if header is None else header.n_classes
    if n_classes is None and header is None:
        n_classes = 1 + max(decision.label or 0, decision.old_label or 0)
    try:
        require_valid(decision, n_rows, n_classes)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def require_one_per_reviewer(decisions: list[Decision]) -> None:
    """Raise ConfigError for two decisions of a reviewer about a row: only a journal knows which one counts."""
    count = Counter((decision.row, decision.reviewer) for decision in decisions)
    twice = next((key for key, times in count.items() if times > 1), None)
    if twice is not None:
        raise ConfigError(
            f"there are {count[twice]} decisions of {twice[1]!r} about row {twice[0]}; pass the one that counts"
        )


def require_same_rows(
    decisions: list[Decision],
    dataset: Dataset,
    identity: RowIdentity,
    labels: Labels | None,
    header: JournalHeader | None,
) -> None:
    """Raise RowMismatchError for a row that a decision is not about, by its hash and its given label."""
    known = [identity.row_hash] if header is None or set(header.columns) == set(identity.columns) else []
    if header is not None and known and any(map(is_first_version, header.columns.values())):
        # Scores that were made again since the journal was begun have hashes of this version.
        known.append(identify_rows(dataset.select_columns([*header.columns])).row_hash)
    unscored = set() if header is None else set(header.unscored)
    for decision in decisions:
        advice = "pass the data that was reviewed, in its order"
        hashes = [hex_of(row_hash[decision.row]) for row_hash in known if row_hash is not None]
        if hashes and decision.row_hash is not None and decision.row_hash not in hashes:
            extra = "" if header is not None else ", without columns that were added since, or its scores, too"
            raise RowMismatchError(
                f"row {decision.row} has the hash {hashes[0]}, and the decision about it {decision.row_hash}; "
                f"{advice}{extra}"
            )
        given = -1 if decision.old_label is None else decision.old_label
        # Scores have no label of a row that was skipped: that it was, or its hash, shows that it is the same row.
        has_hash = bool(hashes) and decision.row_hash is not None
        is_known = decision.old_label is None and (decision.row in unscored or has_hash)
        if labels is not None and labels[decision.row] != given and not is_known:
            raise RowMismatchError(
                f"row {decision.row} has the label {labels[decision.row]}, and the decision about it was made under "
                f"{'no label' if decision.old_label is None else decision.old_label}; {advice}"
            )
