import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from vog_hf.errors import ConfigError
from vog_hf.metric.definition import vog
from vog_hf.metric.moments import GradientMoments

# Welford's recurrence loses a few units in the last place per update, times mean / deviation (at most 1e3 below).
RELATIVE_TOLERANCE = 1e-10
DTYPES = [torch.float32, torch.float64]
CONSTANTS = [0.1, 1 / 3, -0.7, 1e-20, 1e20, 1e-30, 3e38, 0.0]


def drawn(*shape, seed=0):
    """Random values in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_shot(gradients, mask=None):
    """Moments of ``[snapshots, rows, *element]``, one update per snapshot."""
    moments = GradientMoments(gradients.shape[1], gradients.shape[2:], gradients.dtype)
    for gradient in gradients:
        moments.update(slice(None), gradient, mask)
    return moments


@st.composite
def streams(draw):
    """Gradients at some scale and offset, with the seed of an order, a split and a tree of merges."""
    n_snapshots, n_rows = draw(st.integers(2, 6)), draw(st.integers(1, 7))
    element = draw(st.sampled_from([(), (1,), (5,), (3, 2)]))
    scale, offset = 10.0 ** draw(st.integers(-20, 20)), draw(st.sampled_from([0.0, 1.0, -1e3]))
    seed, masked = draw(st.integers(0, 2**32)), draw(st.booleans())
    gradients = scale * (drawn(n_snapshots, n_rows, *element, seed=seed) + offset)
    mask = None
    if masked and element:
        mask = drawn(n_rows, element[0], seed=seed + 1) > 0
        mask[:, draw(st.integers(0, element[0] - 1))] = True
    return gradients, mask, random.Random(seed), draw(st.integers(1, 4))


def scattered(gradients, mask, rng, n_accumulators):
    """The same snapshots in random order, split at random, over some accumulators merged in a random tree."""
    pieces = []
    for k in range(len(gradients)):
        rows = list(range(gradients.shape[1]))
        rng.shuffle(rows)
        while rows:
            size = rng.randint(1, len(rows))
            pieces.append((k, rows[:size]))
            rows = rows[size:]
    rng.shuffle(pieces)
    parts = [GradientMoments(gradients.shape[1], gradients.shape[2:], gradients.dtype) for _ in range(n_accumulators)]
    for k, rows in pieces:
        rng.choice(parts).update(rows, gradients[k, rows], None if mask is None else mask[rows])
    while len(parts) > 1:
        other = parts.pop(rng.randrange(len(parts)))
        rng.choice(parts).merge(other)
    return parts[0]


@given(streams())
def test_any_split_order_and_merge_tree_gives_the_one_shot_score(stream):
    """However snapshots and rows are cut, ordered and merged, the score is `vog` of all of them, at any scale."""
    gradients, mask, rng, n_accumulators = stream
    moments = scattered(gradients, mask, rng, n_accumulators)
    assert_close(moments.scores(), vog(gradients, mask=mask), rtol=RELATIVE_TOLERANCE, atol=0)
    assert moments.count.tolist() == [len(gradients)] * gradients.shape[1]


@given(streams())
def test_any_split_order_and_merge_tree_gives_the_one_shot_mean_and_deviation(stream):
    """Not only the score: the mean and the deviation of every element agree with the one-shot ones."""
    gradients, mask, rng, n_accumulators = stream
    moments = scattered(gradients, mask, rng, n_accumulators)
    assert_close(moments.deviation(), gradients.std(0, correction=0), rtol=1e-9, atol=0)
    largest = gradients.abs().max().item()
    assert_close(moments.grad_mean, gradients.mean(0), rtol=RELATIVE_TOLERANCE, atol=1e-15 * largest)


@given(stream=streams(), value=st.sampled_from(CONSTANTS), dtype=st.sampled_from(DTYPES))
def test_a_constant_gradient_scores_exactly_zero_after_any_merges(stream, value, dtype):
    """Zero means that nothing changed: no order, split, merge, scale or precision leaves a remainder."""
    gradients, mask, rng, n_accumulators = stream
    constant = torch.full_like(gradients, value, dtype=dtype)
    moments = scattered(constant, mask, rng, n_accumulators)
    assert torch.equal(moments.scores(), torch.zeros(gradients.shape[1], dtype=dtype))
    assert torch.equal(moments.grad_mean, constant[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", CONSTANTS)
def test_a_constant_gradient_scores_exactly_zero_by_slice(dtype, value):
    """The in-place path of slices holds the same promise, over 100 snapshots."""
    assert torch.equal(one_shot(torch.full((100, 3, 4), value, dtype=dtype)).scores(), torch.zeros(3, dtype=dtype))


def test_float32_moments_follow_float64_to_their_precision():
    """float32 accumulators agree with the float64 score to 1e-5 where deviations are of the size of the mean."""
    gradients = drawn(20, 53, 7)
    assert_close(one_shot(gradients.float()).scores().double(), vog(gradients), rtol=1e-5, atol=0)


def test_gradients_are_taken_into_the_dtype_of_the_moments():
    """Half-precision gradients are accumulated in float32, as asked for."""
    moments = GradientMoments(2, (3,))
    gradients = drawn(4, 2, 3).bfloat16()
    for gradient in gradients:
        moments.update([0, 1], gradient)
    assert moments.scores().dtype == torch.float32
    assert_close(moments.scores(), vog(gradients.float()))


def test_slices_lists_and_tensors_of_rows_are_the_same_rows():
    """`rows` may be a slice, a list, a range or a tensor: one meaning, one result."""
    gradients = drawn(3, 4, 5)
    results = []
    for rows in (slice(1, 5), [1, 2, 3, 4], range(1, 5), torch.arange(1, 5)):
        moments = GradientMoments(6, (5,), torch.float64)
        for gradient in gradients:
            moments.update(rows, gradient)
        results.append((moments.count, moments.grad_mean, moments.sum_sq_dev))
    for other in results[1:]:
        assert_close(other, results[0])
    assert results[0][0].tolist() == [0, 3, 3, 3, 3, 0]


def test_a_slice_over_rows_of_different_counts_is_right_for_each():
    """The shortcut for equal counts is not taken where counts differ."""
    gradients = drawn(4, 3, 5)
    moments = GradientMoments(3, (5,), torch.float64)
    moments.update([0], gradients[0, :1])
    for gradient in gradients[1:]:
        moments.update(slice(0, 3), gradient)
    expected = torch.cat([vog(gradients[:, :1]), vog(gradients[1:, 1:])])
    assert_close(moments.scores(), expected)


def test_rows_may_have_seen_different_numbers_of_snapshots():
    """Each row's score is over its own snapshots; a row without any is NaN, with one it is 0."""
    gradients = drawn(5, 4, 3)
    moments = GradientMoments(4, (3,), torch.float64)
    for k, rows in enumerate([[0, 1, 2], [0, 2], [2], [2, 0], [2]]):
        moments.update(rows, gradients[k, rows])
    scores = moments.scores()
    assert_close(scores[0], vog(gradients[[0, 1, 3], :1])[0])
    assert scores[1] == 0
    assert_close(scores[2], vog(gradients[:, 2:3])[0])
    assert scores[3].isnan()


def test_merging_leaves_the_other_as_it_was_and_adds_disjoint_rows():
    """`merge` changes only the accumulator it is called on, and takes rows that only the other has seen."""
    gradients = drawn(3, 4, 5)
    mine, other = GradientMoments(4, (5,), torch.float64), GradientMoments(4, (5,), torch.float64)
    for gradient in gradients:
        mine.update([0, 2], gradient[[0, 2]])
        other.update([1, 3], gradient[[1, 3]])
    before = [value.clone() for value in (other.count, other.grad_mean, other.sum_sq_dev)]
    mine.merge(other)
    assert_close([other.count, other.grad_mean, other.sum_sq_dev], before, rtol=0, atol=0)
    assert_close(mine.scores(), vog(gradients))


def test_updates_leave_gradients_and_masks_as_they_were():
    """What is passed in is read, never written, and not kept by reference."""
    gradient, mask = drawn(2, 3), torch.tensor([[True, True, False], [True, False, False]])
    passed, passed_mask = gradient.clone(), mask.clone()
    moments = GradientMoments(2, (3,), torch.float64)
    moments.update([0, 1], passed, passed_mask)
    assert torch.equal(passed, gradient)
    assert torch.equal(passed_mask, mask)
    passed.zero_()
    passed_mask.fill_(True)
    moments.update([0, 1], gradient, mask)
    assert torch.equal(moments.scores(), torch.zeros(2, dtype=torch.float64))


def test_no_rows_are_no_update():
    """An empty batch, by list or by slice, changes nothing."""
    moments = GradientMoments(3, (2,), torch.float64)
    moments.update([], torch.zeros(0, 2))
    moments.update(slice(0, 0), torch.zeros(0, 2))
    assert moments.count.tolist() == [0, 0, 0]
    assert GradientMoments(0, (2,)).scores().shape == (0,)


def test_nbytes_is_what_the_arrays_take():
    """The memory that is estimated beforehand is the memory that is then held."""
    for shape, dtype in (((3, 5), torch.float32), ((), torch.float64)):
        moments = GradientMoments(7, shape, dtype)
        assert GradientMoments.nbytes(7, shape, dtype) == moments.grad_mean.nbytes + moments.sum_sq_dev.nbytes


# --- refusals -------------------------------------------------------------------------------------------------------


def unchanged(moments):
    """Everything an accumulator holds, to compare."""
    return [moments.count.tolist(), moments.grad_mean.tolist(), moments.sum_sq_dev.tolist()]


@pytest.mark.parametrize(
    ("rows", "n", "message"),
    [
        ([0, 1, 1], 3, r"each row may come once per update, got rows \[1\]"),
        ([0, 3], 2, r"rows must lie in 0\.\.2, got 0\.\.3"),
        ([-1, 0], 2, r"rows must lie in 0\.\.2, got -1\.\.0"),
        ([0, 1], 3, r"gradients of 2 rows must have shape \(2, 4\), got \(3, 4\)"),
        (slice(0, 2), 1, r"gradients of 2 rows must have shape \(2, 4\), got \(1, 4\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_added(rows, n, message):
    """Repeated, foreign or miscounted rows raise, and the moments stay as they were."""
    moments = one_shot(drawn(2, 3, 4))
    before = unchanged(moments)
    with pytest.raises(ConfigError, match=message):
        moments.update(rows, drawn(n, 4))
    assert unchanged(moments) == before
    moments.update([0, 2], drawn(2, 4))
    assert moments.count.tolist() == [3, 2, 3]


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 1), (3, 4, 1), (1, 4)])
def test_gradients_of_another_shape_are_refused(shape):
    """Gradients are never broadcast into the moments."""
    with pytest.raises(ConfigError, match=r"must have shape \(3, 4\)"):
        GradientMoments(3, (4,)).update([0, 1, 2], torch.zeros(shape))


def test_a_mask_that_changes_is_refused_and_the_same_one_may_come_again():
    """Which elements of a row count is fixed by its first update; left out later, it stays."""
    gradients, mask = drawn(3, 2, 4), torch.tensor([[True, True, True, False], [True, False, False, False]])
    moments = GradientMoments(2, (4,), torch.float64)
    moments.update([0, 1], gradients[0], mask)
    moments.update([0, 1], gradients[1], mask)
    moments.update([0, 1], gradients[2])
    assert_close(moments.scores(), vog(gradients, mask=mask))
    with pytest.raises(ConfigError, match="mask must be the same in every snapshot"):
        moments.update([1], gradients[0, 1:], torch.tensor([[True, True, False, False]]))
    with pytest.raises(ConfigError, match="masks must keep their shape"):
        one_shot(drawn(2, 3, 4, 5), torch.ones(3, 4)).update([0], drawn(1, 4, 5), torch.ones(1, 4, 5))


def test_a_mask_that_comes_late_is_refused():
    """A row whose elements all counted so far cannot lose some of them."""
    moments = one_shot(drawn(2, 3, 4))
    with pytest.raises(ConfigError, match="mask must be the same in every snapshot"):
        moments.update([0], drawn(1, 4), torch.tensor([[True, False, True, True]]))
    moments.update([0], drawn(1, 4), torch.ones(1, 4))


def test_a_mask_of_another_shape_is_refused():
    """A mask covers the rows of its update and the first axes of their elements."""
    with pytest.raises(ConfigError, match="a mask must cover the first axes"):
        GradientMoments(3, (4, 5)).update([0], torch.zeros(1, 4, 5), torch.ones(1, 5))


def test_a_mask_without_an_element_is_refused_when_it_comes():
    """An example without an element that counts has no score; one element is enough."""
    moments = GradientMoments(2, (3,))
    with pytest.raises(ConfigError, match="example 1 has no element that counts"):
        moments.update([0, 1], torch.ones(2, 3), torch.tensor([[True, False, True], [False, False, False]]))
    moments.update([0, 1], torch.ones(2, 3), torch.tensor([[True, False, True], [False, True, False]]))
    assert moments.count.tolist() == [1, 1]


def test_moments_of_other_shapes_or_masks_are_not_merged():
    """Accumulators merge only where they hold the same examples and the same elements of each, in either direction."""
    with pytest.raises(ConfigError, match=r"cannot merge moments of \(3, 5\) into \(3, 4\)"):
        GradientMoments(3, (4,)).merge(GradientMoments(3, (5,)))
    gradients, mask = drawn(2, 3, 4), torch.tensor([[True, False, True, True]]).expand(3, 4)
    for mine, other in ((mask, None), (None, mask), (mask, ~mask)):
        with pytest.raises(ConfigError, match="mask must be the same in every snapshot"):
            one_shot(gradients, mine).merge(one_shot(gradients, other))
    merged = one_shot(gradients, mask)
    merged.merge(one_shot(gradients, mask))
    assert_close(merged.scores(), vog(gradients, mask=mask))


def test_sizes_and_dtypes_that_cannot_be_are_refused():
    """Moments need a count of examples and a floating dtype."""
    with pytest.raises(ConfigError, match=r"examples must lie in 0\.\.[0-9,]+, got -1 \(int\)"):
        GradientMoments(-1, (4,))
    with pytest.raises(ConfigError, match=r"floating dtype of torch, got torch\.int64"):
        GradientMoments(1, (4,), torch.int64)


@pytest.mark.parametrize("rows", [slice(None), [1, 0]])
def test_gradients_with_a_graph_are_added_without_it(rows):
    """As of `create_graph=True`: nothing of their graph is kept."""
    values = drawn(2, 2, 3)
    moments, expected = (GradientMoments(2, (3,), torch.float64) for _ in range(2))
    for gradient in values:
        moments.update(rows, gradient.clone().requires_grad_())
        expected.update(rows, gradient)
    assert not moments.grad_mean.requires_grad
    assert_close(moments.scores(), expected.scores(), rtol=0, atol=0)
