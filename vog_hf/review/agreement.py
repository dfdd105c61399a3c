"""What several reviewers' decisions come to, and how far the reviewers agree."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from vog_hf.review.decision import Decision


@dataclass(frozen=True)
class Resolved:
    """What the decisions about one row come to.

    Attributes:
        row: Its number.
        decision: What counts.
        label: The new label, of ``"relabel"`` only.
        reviewers: How many have decided.
        agreed: Whether all of them decided the same.
    """

    row: int
    decision: str
    label: int | None
    reviewers: int
    agreed: bool


@dataclass(frozen=True)
class Agreement:
    """How far reviewers agree.

    Attributes:
        rows: Number of rows that more than one has decided.
        share: On which part of them (0..1) all decided the same; NaN without such rows.
        pairs: For each pair of reviewers with rows in common: ``a``, ``b``, how many ``rows``, the ``share`` of them
            decided the same, and Cohen's ``kappa`` (1 = always the same, 0 = as chance would have it, below 0 = less;
            NaN where both gave one and the same answer throughout, so that nothing tells agreement from habit).
    """

    rows: int
    share: float
    pairs: pd.DataFrame


def resolve(decisions: Iterable[Decision]) -> dict[int, Resolved]:
    """What counts for each row: what more than half of its reviewers decided, else ``"unsure"``.

    Relabelling to different classes are different decisions. So where two reviewers differ, and where three all differ
    or one of four does not make it three, the row is unsure and its given label stays.

    Args:
        decisions: The ones that stand, at most one of a reviewer about a row.

    Returns:
        By row, in the order of rows.

    Example:
        >>> votes = [("Ada", "drop", None), ("Bob", "relabel", 2), ("Eve", "relabel", 2)]
        >>> decisions = [Decision(7, what, label, "", who, "", who, 1, None) for who, what, label in votes]
        >>> resolve(decisions)[7]
        Resolved(row=7, decision='relabel', label=2, reviewers=3, agreed=False)
    """
    found = {}
    for row, votes in sorted(_by_row(decisions).items()):
        (decision, label), most = Counter(votes.values()).most_common(1)[0]
        if 2 * most <= len(votes):
            decision, label = "unsure", None
        found[row] = Resolved(row, decision, label, len(votes), most == len(votes))
    return found


def reviewer_agreement(decisions: Iterable[Decision]) -> Agreement:
    """How far reviewers agree on the rows that more than one has decided.

    Args:
        decisions: The ones that stand, at most one of a reviewer about a row.
    """
    shared = [votes for votes in _by_row(decisions).values() if len(votes) > 1]
    agreed = sum(len(set(votes.values())) == 1 for votes in shared)
    by_pair: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for votes in shared:
        for a, b in combinations(sorted(votes), 2):
            by_pair.setdefault((a, b), []).append((_category(votes[a]), _category(votes[b])))
    pairs = [
        {"a": a, "b": b, "rows": len(both), "share": sum(x == y for x, y in both) / len(both), "kappa": _kappa(both)}
        for (a, b), both in sorted(by_pair.items())
    ]
    table = pd.DataFrame(pairs, columns=["a", "b", "rows", "share", "kappa"])
    return Agreement(len(shared), agreed / len(shared) if shared else float("nan"), table)


def known_wrong(decisions: Iterable[Decision], n_rows: int) -> npt.NDArray[np.float64]:
    """``[rows]``, 1 where reviewers dropped or relabeled a row, 0 where they kept it, else NaN.

    Unsure says nothing, and neither do reviewers who contradict each other: a row that one kept and another did not.
    """
    votes: dict[int, set[float]] = {}
    for decision in decisions:
        if decision.decision != "unsure":
            votes.setdefault(decision.row, set()).add(float(decision.decision != "keep"))
    known = np.full(n_rows, np.nan)
    for row, found in votes.items():
        if len(found) == 1:
            known[row] = found.pop()
    return known


def _by_row(decisions: Iterable[Decision]) -> dict[int, dict[str, tuple[str, int | None]]]:
    """Who decided what, by row."""
    found: dict[int, dict[str, tuple[str, int | None]]] = {}
    for decision in decisions:
        found.setdefault(decision.row, {})[decision.reviewer] = decision.decision, decision.label
    return found


def _category(vote: tuple[str, int | None]) -> str:
    decision, label = vote
    return decision if label is None else f"{decision} to {label}"


def _kappa(both: list[tuple[str, str]]) -> float:
    if len({answer for pair in both for answer in pair}) == 1:  # scikit-learn would divide by zero
        return float("nan")
    return float(cohen_kappa_score(*zip(*both, strict=True)))
