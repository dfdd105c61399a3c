"""Consensus of several reviewers, and the agreement between them."""

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
class ConsensusDecision:
    """Consensus of the decisions about one row.

    Attributes:
        row: Number of the row.
        decision: Decision that counts.
        label: New label, for ``"relabel"`` only.
        reviewers: Number of reviewers who decided.
        agreed: Whether all of them decided the same.
    """

    row: int
    decision: str
    label: int | None
    reviewers: int
    agreed: bool


@dataclass(frozen=True)
class Agreement:
    """Agreement between reviewers.

    Attributes:
        rows: Number of rows with more than one reviewer.
        share: Share of them (0..1) on which all decided the same; NaN without such rows.
        pairs: For each pair of reviewers with rows in common: ``a``, ``b``, the number of ``rows``, the ``share`` of
            them decided the same, and Cohen's ``kappa`` (1 = always the same, 0 = chance level, below 0 = less; NaN if
            both always gave the same single answer, so that agreement cannot be separated from habit).
    """

    rows: int
    share: float
    pairs: pd.DataFrame


def resolve(decisions: Iterable[Decision]) -> dict[int, ConsensusDecision]:
    """Resolve the decisions about each row by majority (more than half of its reviewers), else to ``"unsure"``.

    Relabeling to different classes counts as different decisions. Without a majority, for example if two reviewers
    disagree, the row is unsure and its given label stays.

    Args:
        decisions: Decisions that count, at most one of each reviewer about a row.

    Returns:
        The consensus by row, in the order of rows.

    Example:
        >>> votes = [("Ada", "drop", None), ("Bob", "relabel", 2), ("Eve", "relabel", 2)]
        >>> decisions = [Decision(7, what, label, "", who, "", who, 1, None) for who, what, label in votes]
        >>> resolve(decisions)[7]
        ConsensusDecision(row=7, decision='relabel', label=2, reviewers=3, agreed=False)
    """
    found = {}
    for row, votes in sorted(_by_row(decisions).items()):
        (decision, label), most = Counter(votes.values()).most_common(1)[0]
        if 2 * most <= len(votes):
            decision, label = "unsure", None
        found[row] = ConsensusDecision(row, decision, label, len(votes), most == len(votes))
    return found


def reviewer_agreement(decisions: Iterable[Decision]) -> Agreement:
    """Measure the agreement on the rows with more than one reviewer.

    Args:
        decisions: Decisions that count, at most one of each reviewer about a row.
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
