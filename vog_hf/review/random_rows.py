"""Rows drawn at random between those of a ranking: an unbiased sample of the rows that the ranking leaves for later.

The order of the draw depends only on the dataset, so every reviewer, process and session draws the same rows.
"""

import hashlib
import json

import numpy as np
import numpy.typing as npt

from vog_hf.scores.vog_scores import VoGScores

Rows = npt.NDArray[np.int64]


def random_order(scores: VoGScores) -> Rows:
    """``[rows]``, all rows of a dataset in a random order that is the same whenever it is drawn."""
    identity = json.dumps([len(scores), scores.identity.columns], sort_keys=True)
    seed = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).permutation(len(scores)).astype(np.int64)


def with_random_rows(ordered: Rows, drawn: Rows, share: float) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Ranked rows mixed with random ones, each row once.

    Every ``1 / share``-th place holds the next row of the draw that is not placed yet, every other place the next row
    of the ranking.

    Args:
        ordered: ``[queue]``, rows of a queue in the order of the ranking.
        drawn: ``[queue]``, the same rows in a random order.
        share: Share of random rows, 0..1.

    Returns:
        ``[queue]`` the rows, and ``[queue]`` true at the places of random ones.

    Example:
        >>> rows, is_random = with_random_rows(np.arange(6), np.array([4, 0, 5, 2, 1, 3]), 0.5)
        >>> rows.tolist(), is_random.tolist()
        ([0, 4, 1, 5, 2, 3], [False, True, False, True, False, True])
    """
    number = np.arange(1, len(ordered) + 1)
    is_random = np.floor(number * share + 1e-9) > np.floor((number - 1) * share + 1e-9)
    sources, placed, mixed = {False: iter(ordered.tolist()), True: iter(drawn.tolist())}, set[int](), list[int]()
    for at_random in is_random.tolist():
        row = next(row for row in sources[at_random] if row not in placed)
        placed.add(row)
        mixed.append(row)
    return np.array(mixed, dtype=np.int64), is_random
