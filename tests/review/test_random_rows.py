"""Random rows between those of a ranking."""

import numpy as np
import pytest

from vog_hf.review.random_rows import random_order, with_random_rows
from vog_hf.scores.vog_scores import VoGScores

N = 53


def scores(n=N, **manifest):
    """Scores of some rows."""
    return VoGScores({"vog": np.arange(n) / n}, manifest)


def test_the_draw_depends_on_the_dataset_alone():
    """The same rows in the same order for the same dataset, another order for another one."""
    drawn = random_order(scores())
    assert sorted(drawn) == list(range(N))
    np.testing.assert_array_equal(drawn, random_order(scores()))
    other = random_order(scores(data={"columns": {"text": "another digest"}}))
    assert (drawn != other).any()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_every_row_is_placed_once(share):
    """Random places are as frequent from the start as was asked for; the others keep the ranking's order."""
    ordered, drawn = np.arange(N)[::-1], random_order(scores())
    rows, is_random = with_random_rows(ordered, drawn, share)
    assert sorted(rows) == list(range(N))
    np.testing.assert_array_equal(np.cumsum(is_random), np.floor(np.arange(1, N + 1) * share + 1e-9))
    assert (np.diff(rows[~is_random]) < 0).all()
    place = np.argsort(drawn)
    assert (np.diff(place[rows[is_random]]) > 0).all()
