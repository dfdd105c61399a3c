"""A ranked queue with the decisions about its rows, and the part of it that was reviewed from the top."""

import numpy as np
import numpy.typing as npt

from vog_hf.evaluation.yield_forecast import prediction_limits

Flags = npt.NDArray[np.bool_]

LEAST_ROWS = 50  # of a queue: fewer are quicker looked at than estimated
LEAST_REVIEWED = 20  # at the top of the ranking, or random rows
WITHOUT_GAPS = 0.9  # share of rows that are decided in the reviewed part of a ranking


class ReviewedQueue:
    """Rows of a queue in its order, with what is known of each.

    Args:
        known: ``[rows]``, 1 = wrong, 0 = right, NaN = not known.
        unsure: ``[rows]``, true for rows with a decision that says neither.
        random: ``[rows]``, true for rows that were shown because they were drawn at random.

    Attributes:
        is_known: ``[rows]``, true for right and wrong rows.
        is_open: ``[rows]``, true for rows without a decision.
        places: ``[rows]``, 1 = top.
        depth: Places from the top of which at least 90 % are decided; the last one has a decision.
        at_top: ``[rows]``, true for right and wrong rows among them.
        top: ``[reviewed]``, what is known of these.
        random: ``[rows]``, true for right and wrong random rows further down.
        following: Places further down without a decision.
    """

    def __init__(self, known: npt.NDArray[np.float64], unsure: Flags, random: Flags) -> None:
        self.known, self.unsure = known, unsure
        self.is_known = ~np.isnan(known)
        self.is_open = ~self.is_known & ~unsure
        self.places = np.arange(1, len(known) + 1)
        reached = ~self.is_open & ~random & (np.cumsum(~self.is_open) >= WITHOUT_GAPS * self.places)
        self.depth = int(np.flatnonzero(reached)[-1]) + 1 if reached.any() else 0
        self.at_top = self.is_known & (self.places <= self.depth)
        self.top = known[self.at_top]
        self.random = random & self.is_known & (self.places > self.depth)
        self.following = self.places[self.is_open & (self.places > self.depth)]

    @property
    def has_basis(self) -> bool:
        """True where the rows at the top say something about those that follow."""
        return len(self.known) >= LEAST_ROWS and len(self.top) >= LEAST_REVIEWED and len(self.following) > 0

    def most_if_steady(self, rows: int) -> int:
        """Upper limit for the wrong rows among further ones if these are no more often wrong than those at the top."""
        return prediction_limits(int(self.top.sum()), len(self.top), rows)[1]

    def why_unclear(self) -> str:
        """The reason why nothing can be forecast for the next rows; empty if something can."""
        n_rows, n_top, n_known, n_unsure = len(self.known), len(self.top), self.is_known.sum(), self.unsure.sum()
        further = f" ({n_known - n_top:,} more lie further down)" if n_known > n_top else ""
        from_top = f"only {n_top:,} rows from the top of this queue are reviewed{further}"
        reasons = [
            (n_rows == 0, "no row is in this queue; change its filters"),
            (not self.is_open.any(), "every row is reviewed"),
            (n_known == 0 and n_unsure > 0, f"all {n_unsure:,} decisions are unsure"),
            (n_known == 0, "no row is reviewed yet"),
            (
                len(self.known) < LEAST_ROWS,
                f"this queue has only {len(self.known):,} rows, and {LEAST_ROWS} are needed",
            ),
            (n_top < LEAST_REVIEWED, f"{from_top}, and {LEAST_REVIEWED} are needed"),
            (not len(self.following), "no row is left after the reviewed ones, only rows that were skipped"),
        ]
        if self.has_basis and self.top.all():
            reasons.append((True, f"all {n_top:,} reviewed rows from the top are wrong: their share has yet to fall"))
        elif self.has_basis and not self.top.any():
            bound = f"if they are no more frequent further down, the next 100 hold at most {self.most_if_steady(100):,}"
            reasons.append((True, f"none of the {n_top:,} reviewed rows from the top is wrong; {bound}"))
        return next((reason for applies, reason in reasons if applies), "")
