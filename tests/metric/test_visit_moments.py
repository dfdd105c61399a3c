"""Moments of rows over their own visits: those of numpy, however the visits come, are merged or are stored."""

import numpy as np
import pytest
import torch

from vog_hf.errors import DataError, MemoryBudgetError
from vog_hf.metric.visit_moments import VisitMoments

N, WIDTH = 23, 3


def visits_of(sizes, seed=0):
    """Several visits of some rows: (rows, gradients ``[size, width]`` of each), some rows more often than others."""
    rng = np.random.default_rng(seed)
    for _ in range(5):
        rows = rng.permutation(N)[: rng.integers(5, 20)]
        yield rows, [torch.from_numpy(rng.normal(size=(sizes[row], WIDTH))) for row in rows]


def expected(visits):
    """VoG over the visits of each row, in numpy."""
    of_rows = {row: [] for row in range(N)}
    for rows, gradients in visits:
        for row, gradient in zip(rows, gradients, strict=True):
            of_rows[row].append(gradient.numpy())
    return [np.std(found, axis=0).mean() if len(found) > 1 else np.nan for found in of_rows.values()]


def moments_of(visits, *, units=5, limit=10**6):
    """The moments of visits; room is made several times."""
    moments = VisitMoments(N, units=units, limit=limit)
    for rows, gradients in visits:
        moments.add(rows, np.array([len(gradient) for gradient in gradients]), torch.cat(gradients))
    return moments


@pytest.mark.parametrize("longest", [1, 9])
def test_scores_are_those_of_numpy(longest):
    """Rows of one length and of several, some of them visited once or never."""
    sizes = np.random.default_rng(1).integers(1, longest + 1, N)
    visits = list(visits_of(sizes))
    np.testing.assert_allclose(moments_of(visits).scores(), expected(visits), rtol=1e-12)


@pytest.mark.parametrize("longest", [1, 9])
def test_merged_moments_are_those_of_all_visits(longest):
    """Two processes that visited other rows, or the same ones; merging into nothing changes no bit."""
    sizes = np.random.default_rng(2).integers(1, longest + 1, N)
    first, second = list(visits_of(sizes, 3)), list(visits_of(sizes, 4))
    moments = moments_of(first)
    copied = VisitMoments(N, units=5, limit=10**6)
    copied.merge(moments.state())
    np.testing.assert_array_equal(copied.scores(), moments.scores())
    moments.merge(moments_of(second).state())
    np.testing.assert_allclose(moments.scores(), expected(first + second), rtol=1e-12)
    before = moments.scores()
    moments.merge(VisitMoments(N, units=5, limit=10**6).state())
    np.testing.assert_array_equal(moments.scores(), before)


def test_elements_outside_of_a_mask_do_not_count():
    """Rows of one padded length with a mask of their own, also after a merge."""
    rng = np.random.default_rng(5)
    mask = torch.from_numpy(rng.random((N, WIDTH)) < 0.7)
    mask[:, 0] = True
    gradients = [torch.from_numpy(rng.normal(size=(N, WIDTH))) for _ in range(3)]
    moments, ones = VisitMoments(N, units=N, limit=10**6), np.ones(N, dtype=np.int64)
    for gradient in gradients:
        moments.add(np.arange(N), ones, gradient, mask)
    deviation = np.stack([gradient.numpy() for gradient in gradients]).std(0)
    wanted = [of_row[keep].mean() for of_row, keep in zip(deviation, mask.numpy(), strict=True)]
    copied = VisitMoments(N, units=1, limit=10**6)
    copied.merge(moments.state())
    for one in (moments, copied):
        np.testing.assert_allclose(one.scores(), wanted, rtol=1e-12)


def test_a_row_of_another_length_and_a_lack_of_room_are_refused():
    """The row is named, and both numbers of bytes; the same length, and as much room as is needed, are accepted."""
    moments, one = VisitMoments(N, units=2, limit=2 * WIDTH * 2 * 8), np.array([4])
    moments.add(one, np.array([2]), torch.zeros(2, WIDTH, dtype=torch.float64))
    with pytest.raises(DataError, match="row 4 does not have the same shape in every epoch"):
        moments.add(one, np.array([1]), torch.zeros(1, WIDTH, dtype=torch.float64))
    moments.add(one, np.array([2]), torch.ones(2, WIDTH, dtype=torch.float64))
    with pytest.raises(MemoryBudgetError, match="longer than the first ones: their moments take 144 bytes, and 96 are"):
        moments.add(np.array([5]), np.array([1]), torch.zeros(1, WIDTH, dtype=torch.float64))
    assert moments.scores()[4] == 0.5
