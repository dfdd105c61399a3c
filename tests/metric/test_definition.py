import numpy as np
import pytest
import torch
from reference import reference_class_normalized, reference_percentile, reference_vog
from scipy.stats import rankdata, zscore
from torch.testing import assert_close

from vog_hf.errors import ConfigError, NonFiniteError
from vog_hf.metric.definition import class_normalize, mean_over_elements, percentile, vog

N = 53


def drawn(*shape, seed=0):
    """Random values in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("input_shape", [(), (1,), (7,), (5, 3), (3, 5, 4), (2, 3, 5, 4)])
def test_vog_is_the_mean_over_elements_of_the_population_std_over_snapshots(input_shape):
    """`vog` is numpy's std with ddof = 0 over the snapshots, averaged over whatever elements an input has."""
    gradients = drawn(4, N, *input_shape)
    expected = reference_vog(gradients.transpose(0, 1).numpy())
    assert_close(vog(gradients), torch.from_numpy(expected))


def test_vog_is_neither_the_variance_nor_the_sample_deviation_nor_the_sum_form():
    """Of two snapshots 0 and 2 the score is 1: not 2**0.5 (ddof = 1, or the sum of squares / sqrt(K)), nor a power."""
    gradients = torch.tensor([[[0.0]], [[2.0]]])
    assert vog(gradients).tolist() == [1.0]
    assert vog(2 * gradients).tolist() == [2.0]
    assert vog(torch.cat([gradients, gradients])).tolist() == [1.0]


def test_vog_does_not_depend_on_the_order_of_snapshots_and_follows_the_rows():
    """Snapshots may come in any order; permuted rows have permuted scores."""
    gradients = drawn(5, N, 3, 4)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert_close(vog(gradients.flip(0)), vog(gradients))
    assert_close(vog(gradients[:, order]), vog(gradients)[order])


def test_vog_of_a_gradient_that_does_not_change_is_zero():
    """A zero score means that the gradient was the same at every snapshot."""
    assert torch.equal(vog(drawn(1, N, 3).expand(4, -1, -1)), torch.zeros(N, dtype=torch.float64))


def test_channels_are_averaged_before_the_deviation():
    """`reduce_channels` averages the gradients, not their deviations: opposite channels cancel to 0."""
    gradients = drawn(4, N, 3, 5, 4)
    expected = reference_vog(gradients.transpose(0, 1).numpy(), channel_mean=True)
    assert_close(vog(gradients, reduce_channels=True), torch.from_numpy(expected))
    opposite = torch.stack([gradients[:, :, 0], -gradients[:, :, 0]], dim=2)
    assert torch.equal(vog(opposite, reduce_channels=True), torch.zeros(N, dtype=torch.float64))


def test_a_mask_leaves_elements_out_as_if_they_were_not_there():
    """The score of a masked row is the score of the row cut to the elements that count."""
    gradients = drawn(4, N, 9, 3)
    lengths = [1 + i % 9 for i in range(N)]
    mask = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    expected = reference_vog([gradients[:, i, :n].numpy() for i, n in enumerate(lengths)])
    assert_close(vog(gradients, mask=mask), torch.from_numpy(expected))
    assert_close(vog(gradients, mask=mask.unsqueeze(2).expand(-1, -1, 3)), torch.from_numpy(expected))
    assert_close(vog(gradients, mask=mask.int()), torch.from_numpy(expected))
    spoiled = gradients.masked_fill(~mask.unsqueeze(2), torch.nan)
    assert_close(vog(spoiled, mask=mask), torch.from_numpy(expected))


def test_a_mask_applies_after_the_channel_mean():
    """With `reduce_channels` the mask has no channel axis."""
    gradients, mask = drawn(4, N, 3, 5, 4), drawn(N, 5, 4) > 0
    expected = [reference_vog([g.mean(1)[:, m].numpy()])[0] for g, m in zip(gradients.unbind(1), mask, strict=True)]
    assert_close(vog(gradients, reduce_channels=True, mask=mask).tolist(), expected)


def test_a_full_mask_changes_nothing():
    """Where every element counts, a mask is as good as none."""
    gradients = drawn(4, N, 5)
    assert_close(vog(gradients, mask=torch.ones(N, 5, dtype=torch.bool)), vog(gradients))


def test_a_row_of_which_nothing_counts_is_refused_by_number():
    """A mean over no element is not a score; one element is enough."""
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ConfigError, match="example 1 has no element that counts"):
        vog(drawn(2, 3, 5), mask=mask)
    mask[1, 4] = True
    assert vog(drawn(2, 3, 5), mask=mask).shape == (3,)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2), (3, 5), (3, 1), (3, 4, 2, 1)])
def test_a_mask_that_does_not_cover_the_first_axes_is_refused(shape):
    """Masks are never broadcast from the right, where a wrong one could fit by chance."""
    with pytest.raises(ConfigError, match="a mask must cover the first axes"):
        vog(drawn(2, 3, 4, 2), mask=torch.ones(shape, dtype=torch.bool))


def test_one_snapshot_is_refused_and_two_are_enough():
    """A deviation over one snapshot would always be 0."""
    with pytest.raises(ConfigError, match=r"at least 2 snapshots, got shape \(1, 3, 5\)"):
        vog(drawn(1, 3, 5))
    with pytest.raises(ConfigError, match=r"at least 2 snapshots, got shape \(3,\)"):
        vog(drawn(3))
    assert vog(drawn(2, 3, 5)).shape == (3,)


def test_a_gradient_that_is_nan_gives_nan_and_only_to_its_row():
    """NaN is never hidden: the row's score is NaN, the others are as they were."""
    gradients = drawn(3, N, 4)
    gradients[1, 7, 2] = torch.nan
    scores = vog(gradients)
    assert scores.isnan().nonzero().flatten().tolist() == [7]


def test_mean_over_elements_of_rows_without_elements_axes_is_the_row_itself():
    """Scalars per row are their own mean."""
    values = drawn(N)
    assert torch.equal(mean_over_elements(values), values)


# --- class_normalize ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [[0, 1, 2], [7, 3, 1000], [-5, -1, 4]])
def test_scores_are_normalized_within_their_class(classes):
    """`class_normalize` is scipy's zscore (ddof = 0) of each class, whatever numbers the classes have."""
    scores = drawn(N)
    labels = torch.tensor([classes[i % 3] for i in range(N)])
    expected = torch.empty_like(scores)
    for label in classes:
        expected[labels == label] = torch.from_numpy(zscore(scores[labels == label].numpy()))
    assert_close(class_normalize(scores, labels), expected)
    assert_close(class_normalize(scores, labels), torch.from_numpy(reference_class_normalized(scores, labels.tolist())))


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-30, 1e30, 0.0, -0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 1001])
def test_equal_scores_are_exactly_zero(value, dtype, n):
    """A class of one row or of equal scores has z-score 0, also where the mean of equal values rounds."""
    scores = torch.cat([torch.full((n,), value, dtype=dtype), torch.tensor([1.0, 3.0], dtype=dtype)])
    labels = torch.tensor([5] * n + [2, 2])
    expected = torch.tensor([0.0] * n + [-1.0, 1.0], dtype=dtype)
    assert torch.equal(class_normalize(scores, labels), expected)


def test_a_class_that_differs_by_one_rounding_is_not_flattened():
    """Scores that are nearly but not equal keep their order: 0 is for equal scores only."""
    low = torch.tensor(0.1, dtype=torch.float32)
    scores = torch.stack([low, torch.nextafter(low, torch.tensor(1.0))])
    assert class_normalize(scores, torch.tensor([0, 0])).tolist() == [-1.0, 1.0]


def test_normalized_scores_keep_the_dtype_of_the_scores():
    """float32 in, float32 out, computed in float64; whole numbers become float64."""
    labels = torch.zeros(3, dtype=torch.int64)
    assert class_normalize(torch.tensor([1.0, 2.0, 4.0]), labels).dtype == torch.float32
    assert class_normalize(torch.tensor([1, 2, 4]), labels).dtype == torch.float64
    assert class_normalize(np.array([1.0, 2.0, 4.0]), [0, 0, 0]).dtype == torch.float64


def test_no_scores_normalize_to_no_scores():
    """An empty column is not an error."""
    assert class_normalize(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_scores_and_labels_of_different_lengths_are_refused():
    """Labels are never broadcast over scores."""
    with pytest.raises(ConfigError, match=r"\[examples\] each, got \(3,\) and \(1,\)"):
        class_normalize(torch.ones(3), torch.zeros(1))
    with pytest.raises(ConfigError, match=r"got \(3, 1\) and \(3, 1\)"):
        class_normalize(torch.ones(3, 1), torch.zeros(3, 1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("statistic", [lambda s: class_normalize(s, torch.zeros(3)), percentile])
def test_scores_that_are_not_finite_are_refused_by_row(bad, statistic):
    """One NaN would silently spoil its class's mean, or take a rank."""
    with pytest.raises(NonFiniteError, match=r"got (nan|inf|-inf) at row 1 \(1 of 3 rows\)"):
        statistic(torch.tensor([0.0, bad, 1.0]))


# --- percentile -----------------------------------------------------------------------------------------------------


def test_percentile_is_the_mid_rank_share():
    """`percentile` is 100 * (scipy's average rank - 0.5) / n: within (0, 100), ties share, mean 50."""
    scores = drawn(N).round(decimals=1)
    assert len(scores.unique()) < N
    found = percentile(scores)
    assert_close(found, torch.from_numpy(100 * (rankdata(scores.numpy()) - 0.5) / N))
    assert_close(found, torch.from_numpy(reference_percentile(scores)))
    assert found.min() > 0
    assert found.max() < 100
    assert found.mean().item() == pytest.approx(50)


def test_percentile_of_one_row_and_of_none():
    """A single row stands in the middle; no rows give no percentiles."""
    assert percentile(torch.tensor([3.0])).tolist() == [50.0]
    assert percentile(torch.zeros(0)).tolist() == []


def test_percentile_refuses_more_than_one_axis():
    """A table of scores has no single rank per row."""
    with pytest.raises(ConfigError, match=r"scores must be \[examples\], got \(2, 3\)"):
        percentile(torch.zeros(2, 3))
