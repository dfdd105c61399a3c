"""Positions in a queue: its order, the decisions that hide rows of it, and the way from one row to the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vog_hf.review.decision import Decision
from vog_hf.review.journal_events import Key

PACE = 20  # decisions that the pace is taken from
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """A queue: its rows in order, each row's place in it (-1: not in it), and the places of random rows."""

    rows: Rows
    place: Rows
    is_random: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Decided:
    """The decisions that count, as one reviewer sees them."""

    own: Mapping[int, Decision]
    others: Mapping[int, list[Decision]]
    last: str  # id of the reviewer's last decision that is not undone; empty: there is none

    @classmethod
    def by(cls, reviewer: str, standing: Mapping[Key, Decision], last: Decision | None) -> "Decided":
        """Sort the decisions of a journal into those of a reviewer and those of others."""
        own: dict[int, Decision] = {}
        others: dict[int, list[Decision]] = {}
        for (row, who), decision in standing.items():
            if who == reviewer:
                own[row] = decision
            else:
                others.setdefault(row, []).append(decision)
        return cls(own, others, "" if last is None else last.id)

    def hidden(self, skip: str, n_rows: int) -> npt.NDArray[np.bool_]:
        """``[rows]``, whether a row is hidden, by one of `vog_hf.review.requests.SKIPPED`."""
        is_hidden = np.zeros(n_rows, dtype=bool)
        decided = {"": set(), "me": set(self.own), "anyone": set(self.own) | set(self.others)}[skip]
        is_hidden[list(decided)] = True
        return is_hidden


def row_from(order: Order, hidden: npt.NDArray[np.bool_], row: int | None, step: int) -> int | None:
    """The row itself, the next one before or after it that is not hidden, else one from the other end."""
    place = -1 if row is None else int(order.place[row])
    if place >= 0 and step == 0:
        return int(order.rows[place])
    left = np.flatnonzero(~hidden[order.rows])
    if not len(left):
        return None
    if place < 0 or step >= 0:
        after = int(np.searchsorted(left, place, side="right"))
        return int(order.rows[left[after if after < len(left) else 0]])
    return int(order.rows[left[int(np.searchsorted(left, place)) - 1]])


def pace(times: list[str]) -> float | None:
    """Decisions a minute, from the middle one of the last gaps between decisions, so that a break does not count.

    Args:
        times: Of decisions, ISO 8601.

    Example:
        >>> pace(["2026-01-01T00:00:00+00:00", "2026-01-01T00:00:10+00:00", "2026-01-01T00:00:20+00:00"])
        6.0
    """
    last = sorted(datetime.fromisoformat(time) for time in times)[-PACE - 1 :]
    if len(last) < 3:
        return None
    gap = float(np.median([(after - before).total_seconds() for before, after in pairwise(last)]))
    return 60 / max(gap, 0.1)
