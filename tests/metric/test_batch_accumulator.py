import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    reference_csg_trajectory,
    reference_deviation,
    reference_dynamics,
    reference_heat_map,
    reference_magnitude,
    reference_trajectory,
    reference_vog,
    reference_window,
)
from torch.testing import assert_close

from vog_hf.metric.batch_accumulator import BatchAccumulator
from vog_hf.metric.definition import squared_norm
from vog_hf.metric.heat_maps import pooled_maps
from vog_hf.metric.moments import GradientMoments
from vog_hf.metric.row_units import UnitAccumulator
from vog_hf.metric.training_dynamics import classification_observation
from vog_hf.metric.unit_kinds import END, SIDE
from vog_hf.metric.windows import Windows

N = 53
CLASSES = 4


def drawn(*shape, seed=0):
    """Random values in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_only_units_along_the_input_have_vog():
    """Two ends of an answer are not the two tokens of a short row; two sides are two texts without padding."""
    label, deviation = torch.zeros(3, 2, dtype=torch.int64), drawn(3, 2, 4, 5).abs()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool().expand(3, 2, 4)
    ends, sides = UnitAccumulator(END), UnitAccumulator(SIDE)
    for units in (ends, sides):
        units.update({"label": label, "loss": drawn(3, 2)})
    assert set(ends.columns({"vog": deviation[:, :, 0]}, None)) == {"is_unit", "label_end", "position_end", "loss_end"}
    found = sides.columns({"vog": deviation}, mask)["vog_side"]
    torch.testing.assert_close(found[:, 0], deviation[:, 0, :2].flatten(1).mean(1))
    torch.testing.assert_close(found[:, 1], deviation[:, 1].flatten(1).mean(1))


def accumulated(gradients, logits, labels, *, planned=None, mask=None, channel_axis=None, heat_maps=True):
    """Results of ``gradients [targets, snapshots, rows, *input]`` and ``logits [snapshots, rows, classes]``."""
    names = ["vog", "vog_loss"][: len(gradients)]
    accumulator = BatchAccumulator(
        names,
        Windows(planned or gradients.shape[1]),
        channel_axis=channel_axis,
        mask=mask,
        heat_maps=heat_maps,
        loss_target=len(gradients) - 1,
    )
    running = []
    for k in range(gradients.shape[1]):
        accumulator.update(list(gradients[:, k]), classification_observation(logits[k], labels))
        running.append(accumulator.running)
    return accumulator.results(), torch.stack(running)


def ragged(maps, row):
    """One map of `RaggedMaps`, as `VoGScores.heat_map` cuts it out."""
    sizes = maps.shapes.prod(axis=1)
    start = sizes[:row].sum()
    return maps.values[start : start + sizes[row]].astype(np.float64).reshape(maps.shapes[row]) * maps.scale[row]


@given(st.integers(2, 100))
def test_the_windows_are_the_first_and_last_third_but_at_least_two(n_snapshots):
    """The windows early and late hold max(2, K // 3) snapshots each, as the oracle counts them."""
    windows = Windows(n_snapshots)
    late = [k for k in range(n_snapshots) if windows.is_late(k)]
    assert late == list(range(n_snapshots))[reference_window(n_snapshots, "late")]
    assert list(range(windows.width)) == list(range(n_snapshots))[reference_window(n_snapshots, "early")]


@pytest.mark.parametrize("n_snapshots", [2, 3, 7, 9])
def test_columns_and_trajectories_are_the_oracles(n_snapshots):
    """Two targets, all windows, companions and what is kept per snapshot, streamed, against the loops."""
    gradients, logits = drawn(2, n_snapshots, N, 3, 4, 5), drawn(n_snapshots, N, CLASSES, seed=1)
    labels = torch.arange(N) % CLASSES
    results, running = accumulated(gradients, logits, labels, channel_axis=1)
    for target, name in enumerate(("vog", "vog_loss")):
        rows = list(gradients[target].transpose(0, 1).numpy())
        for column, window in ((name, "all"), (f"{name}_early", "early"), (f"{name}_late", "late")):
            expected = reference_vog(rows, window=window, channel_mean=True)
            np.testing.assert_allclose(results.columns[column], expected, rtol=1e-12)
        np.testing.assert_allclose(running[:, target].T, reference_trajectory(rows, channel_mean=True), rtol=1e-12)
    rows = list(gradients[0].transpose(0, 1).numpy())
    np.testing.assert_allclose(results.trajectories["vog"], reference_trajectory(rows, channel_mean=True), rtol=1e-12)
    magnitude = reference_magnitude(rows, channel_mean=True)
    np.testing.assert_allclose(results.columns["gradient_magnitude"], magnitude, rtol=1e-12)
    for name, expected in reference_dynamics(list(logits.transpose(0, 1).numpy()), labels).items():
        np.testing.assert_allclose(results.columns[name], expected, rtol=1e-9, err_msg=name)
    rows = list(gradients[1].transpose(0, 1).numpy())
    np.testing.assert_allclose(results.trajectories["csg"], reference_csg_trajectory(rows), rtol=1e-12)
    np.testing.assert_allclose(results.columns["csg"], reference_csg_trajectory(rows).mean(1), rtol=1e-12)
    np.testing.assert_array_equal(results.trajectories["prediction"], logits.argmax(-1).T)
    assert results.trajectories["confidence"].shape == (N, n_snapshots)


def test_masked_elements_count_in_no_window():
    """A row's padding is left out of every window, of the magnitude and of its map."""
    lengths = [1 + i % 6 for i in range(N)]
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    gradients, logits = drawn(1, 7, N, 6, 3), drawn(7, N, CLASSES, seed=1)
    results, _ = accumulated(gradients, logits, torch.zeros(N, dtype=torch.int64), mask=mask)
    rows = [gradients[0, :, i, :n].numpy() for i, n in enumerate(lengths)]
    for column, window in (("vog", "all"), ("vog_early", "early"), ("vog_late", "late")):
        np.testing.assert_allclose(results.columns[column], reference_vog(rows, window=window), rtol=1e-12)
    np.testing.assert_allclose(results.columns["gradient_magnitude"], reference_magnitude(rows), rtol=1e-12)
    np.testing.assert_allclose(results.columns["csg"], reference_csg_trajectory(rows).mean(1), rtol=1e-12)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(ragged(results.heat_maps, i), reference_heat_map(row, tokens=True), rtol=2e-3)


@pytest.mark.parametrize("channel_axis", [1, 2, 3])
def test_the_squared_norm_leaves_masked_elements_out_of_every_channel(channel_axis):
    """A mask is over the axes without the channels; what it leaves out may be NaN."""
    gradients = drawn(N, 4, 5, 6)
    included = gradients.movedim(channel_axis, 1)[:, 0] > 0
    channels_first = gradients.movedim(channel_axis, 1).numpy()
    expected = [np.sum(row[:, kept] ** 2) for row, kept in zip(channels_first, included.numpy(), strict=True)]
    gradients.movedim(channel_axis, -1)[~included] = float("nan")
    found = squared_norm(gradients, included, channel_axis=channel_axis)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_squared_norm_of_small_floats_is_float32():
    """256 elements of 1 in bfloat16, which counts in steps of 2 there, and an input of one number per row."""
    assert_close(squared_norm(torch.ones(2, 257, dtype=torch.bfloat16)), torch.tensor([257.0, 257.0]))
    assert_close(squared_norm(torch.tensor([3.0, -2.0])), torch.tensor([9.0, 4.0]))


def test_fewer_snapshots_than_planned_give_no_windows():
    """What needs the planned number is absent when training stopped early, and everything else is there."""
    gradients, logits = drawn(1, 4, N, 5), drawn(4, N, CLASSES, seed=1)
    labels = torch.zeros(N, dtype=torch.int64)
    stopped, _ = accumulated(gradients, logits, labels, planned=7)
    whole, _ = accumulated(gradients, logits, labels)
    assert set(whole.columns) - set(stopped.columns) == {"vog_early", "vog_late"}
    for name, values in stopped.columns.items():
        np.testing.assert_array_equal(values, whole.columns[name])


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.float64, np.float64), (torch.float32, np.float32), (torch.bfloat16, np.float32)]
)
def test_values_keep_float64_and_are_float32_otherwise(dtype, kept):
    """Small floats are accumulated in float32, whole numbers are int32."""
    results, _ = accumulated(drawn(1, 3, N, 5).to(dtype), drawn(3, N, CLASSES).to(dtype), torch.zeros(N).long())
    assert results.columns["vog"].dtype == kept
    assert results.columns["prediction"].dtype == results.columns["forgetting"].dtype == np.int32
    assert results.trajectories["vog"].dtype == kept


def test_a_gradient_that_is_not_finite_shows_in_the_running_value():
    """The row of a NaN or an infinity, and no other, has a running VoG that is not finite: so it can be named."""
    gradients, logits = drawn(1, 3, N, 5), drawn(3, N, CLASSES)
    gradients[0, 0, 3, 0] = float("inf")
    gradients[0, 2, 17, 4] = float("nan")
    _, running = accumulated(gradients, logits, torch.zeros(N).long())
    bad = ~torch.isfinite(running[:, 0])
    assert bad.nonzero().tolist() == [[0, 3], [1, 3], [2, 3], [2, 17]]


def test_the_memory_of_a_row_is_that_of_two_windows_of_moments():
    """What the block plan reckons with is what the moments hold."""
    expected = 2 * 3 * GradientMoments.nbytes(1, (4, 5), torch.float32)
    assert BatchAccumulator.bytes_per_row((4, 5), 3, torch.float32) == expected == 2 * 3 * 2 * 20 * 4


@pytest.mark.parametrize(
    "shape", [(), (5,), (1024,), (1500,), (8, 6), (32, 32), (45, 70), (3, 8, 6), (2, 3, 8, 6)], ids=str
)
def test_maps_are_pooled_as_the_oracle_pools_them(shape):
    """At most 32 x 32 or 1,024 values; leading axes (channels, frames) are averaged."""
    gradients = drawn(4, 3, *shape)
    deviation = torch.from_numpy(np.stack([reference_deviation(gradients[:, i].numpy()) for i in range(3)]))
    maps = pooled_maps(deviation, None)
    for row in range(3):
        expected = reference_heat_map(gradients[:, row].numpy()) if shape else deviation[row : row + 1].numpy()
        assert tuple(maps.shapes[row]) == expected.shape
        np.testing.assert_allclose(ragged(maps, row), expected, rtol=2e-3)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_padded_map_is_that_of_the_row_alone(axes):
    """Padding (on either side) is cut off before pooling, so that a map does not depend on the batch."""
    deviation = drawn(2, *(60,) * axes).abs() if axes == 2 else drawn(2, 1500).abs()
    mask = torch.zeros(deviation.shape, dtype=torch.bool)
    box = (slice(0, 50), slice(7, 48)) if axes == 2 else (slice(13, 1300),)
    mask[(0, *box)] = True
    mask[1] = True
    maps = pooled_maps(deviation, mask)
    alone = pooled_maps(deviation[:1][(slice(None), *box)], None)
    assert tuple(maps.shapes[0]) == tuple(alone.shapes[0])
    np.testing.assert_array_equal(ragged(maps, 0), ragged(alone, 0))
    np.testing.assert_array_equal(ragged(maps, 1), ragged(pooled_maps(deviation[1:], None), 0))


def test_tiny_maps_do_not_vanish_in_float16():
    """Shares of the row's largest value are kept, with that value next to them; a map of zeros stays zeros."""
    deviation = torch.stack([torch.linspace(1, 2, 8) * 1e-20, torch.linspace(1, 2, 8) * 1e20, torch.zeros(8)])
    maps = pooled_maps(deviation, None)
    for row in range(3):
        np.testing.assert_allclose(ragged(maps, row), deviation[row], rtol=1e-3)
    assert maps.values.dtype == np.float16
    assert_close(torch.from_numpy(maps.scale), deviation.amax(1))


def test_maps_can_be_left_out():
    """heat_maps=False keeps none."""
    results, _ = accumulated(drawn(1, 3, N, 5), drawn(3, N, CLASSES), torch.zeros(N).long(), heat_maps=False)
    assert results.heat_maps is None
