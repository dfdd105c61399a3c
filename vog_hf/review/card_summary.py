"""A review in words, for the card of a dataset: counts and classes, and neither names of reviewers nor their notes."""

from collections import Counter

import numpy as np

from vog_hf.evaluation import ReviewYield
from vog_hf.review.agreement import reviewer_agreement
from vog_hf.review.apply import Review

MOST_CHANGES = 10  # pairs of classes that are named
IN_WORDS = {"keep": "kept", "relabel": "relabeled", "drop": "to be dropped", "unsure": "left as unsure"}
VERSIONS = {
    "flag": "This version has every row with its given label; what was decided is next to it ({columns}).",
    "correct": "This version has every row, with the label of the review in {relabeled}.",
    "filter": "This version has the given labels, without {dropped}.",
    "clean": "This version has the label of the review in {relabeled}, without {dropped}.",
}


def summary(review: Review, mode: str, left: ReviewYield | None = None) -> str:
    """Summary of what was reviewed, decided and changed, and of the agreement: plain text, one line each.

    Args:
        review: Result of `plan_review`.
        mode: Mode of `apply_review`.
        left: Estimate of what the review has yet to find, from `vog_hf.review.review_yield`.
    """
    reviewers = len({one.reviewer for one in review.decisions})
    decided = ", ".join(f"{count:,} {IN_WORDS[name]}" for name, count in review.counts().items())
    columns = "review" if review.label_column is None else "review, label_reviewed"
    reviewed = f"{_rows(len(review.resolved))} of {len(review.dataset):,} reviewed by {_people(reviewers)}"
    lines = [
        f"{reviewed}: {decided or 'nothing decided'}.",
        *_changes(review),
        VERSIONS[mode].format(
            columns=columns, relabeled=_rows(len(review.relabeled)), dropped=_rows(len(review.dropped))
        ),
        *_agreement(review),
        *([] if left is None or not review.resolved else [f"Yield: {' '.join(left.sentences())}"]),
        "Scores were computed with the given labels over all rows that were scored"
        + ("; errors are counted against the labels of this version." if review.corrects(mode) else "."),
    ]
    return "\n".join(lines)


def changes_by_class(review: Review) -> list[tuple[str, str, int]]:
    """Given class, new class and number of relabeled rows, the most frequent first."""
    if review.labels is None:
        return []
    pairs = Counter((int(review.labels[row]), label) for row, label in review.relabeled.items())
    return [(_name(review, a), _name(review, b), count) for (a, b), count in pairs.most_common()]


def _changes(review: Review) -> list[str]:
    changes = changes_by_class(review)
    if not changes:
        return []
    named = ", ".join(f"{given} to {new} ({count:,})" for given, new, count in changes[:MOST_CHANGES])
    others = sum(count for _, _, count in changes[MOST_CHANGES:])
    return [f"Relabeled: {named}{f', and {others:,} more' if others else ''}."]


def _agreement(review: Review) -> list[str]:
    agreement = reviewer_agreement(review.decisions)
    if not agreement.rows:
        return []
    differing = sum(not one.agreed for one in review.resolved.values())
    kappas = agreement.pairs["kappa"].dropna().to_numpy()
    words = f"Reviewers agreed on {100 * agreement.share:.0f} % of the {_rows(agreement.rows)} with several reviewers"
    if len(kappas):
        low, high = np.min(kappas), np.max(kappas)
        words += f" (Cohen's kappa {low:.2f}{'' if len(kappas) == 1 else f' to {high:.2f}, by pair'})"
    rule = "If they disagreed, the majority decides, and without a majority the row is unsure"
    return [f"{words}. {rule} ({_rows(differing)})."]


def _name(review: Review, label: int) -> str:
    if label < 0:
        return "no label"
    return str(label) if review.class_names is None else review.class_names[label]


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count:,} people"
