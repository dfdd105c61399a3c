import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vog_hf.errors import ConfigError
from vog_hf.snapshots.schedule import MAX_SNAPSHOTS, plan_snapshots

LENGTHS = st.integers(2, 5000)


def plan(snapshots, max_steps, steps_per_epoch=None, max_snapshots=MAX_SNAPSHOTS):
    """`plan_snapshots` with the usual defaults."""
    return plan_snapshots(snapshots, max_snapshots=max_snapshots, max_steps=max_steps, steps_per_epoch=steps_per_epoch)


@given(
    snapshots=st.one_of(st.sampled_from(["auto", "epoch"]), st.integers(1, 50)),
    max_steps=LENGTHS,
    steps_per_epoch=st.integers(1, 900),
    max_snapshots=st.integers(2, 40),
)
def test_every_plan_is_ascending_unique_within_the_run_and_not_too_long(
    snapshots, max_steps, steps_per_epoch, max_snapshots
):
    """Whatever is asked for: steps of this run, each once, in order, at most `max_snapshots`, or a refusal."""
    try:
        steps = plan(snapshots, max_steps, steps_per_epoch, max_snapshots)
    except ConfigError as error:
        assert "needs at least 2 snapshots" in str(error)  # noqa: PT017 (both outcomes are allowed, nothing else)
        assert len(range(snapshots, max_steps + 1, snapshots) if isinstance(snapshots, int) else [1]) < 2
        return
    assert steps == sorted(set(steps))
    assert steps[0] >= 1
    assert steps[-1] <= max_steps
    assert 2 <= len(steps) <= max_snapshots


@given(snapshots=st.sampled_from(["auto", "epoch"]), max_steps=LENGTHS, steps_per_epoch=st.integers(1, 900))
def test_the_end_of_training_is_always_a_snapshot(snapshots, max_steps, steps_per_epoch):
    """The trained model is among the snapshots, also where the last epoch is not whole."""
    if snapshots == "auto" or max_steps > steps_per_epoch:
        assert plan(snapshots, max_steps, steps_per_epoch)[-1] == max_steps


@given(every=st.integers(1, 100), max_steps=LENGTHS)
def test_every_n_steps_ends_with_the_last_multiple(every, max_steps):
    """Thinning keeps the last of the steps that were asked for."""
    if max_steps >= 2 * every:
        assert plan(every, max_steps)[-1] == max_steps // every * every


@given(max_steps=LENGTHS, max_snapshots=st.integers(2, 40))
def test_snapshots_are_evenly_spaced(max_steps, max_snapshots):
    """The distances between snapshots differ by at most one step."""
    steps = plan("auto", max_steps, max_snapshots=max_snapshots)
    gaps = {b - a for a, b in zip([0, *steps[:-1]], steps, strict=True)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("snapshots", "max_steps", "steps_per_epoch", "expected"),
    [
        ("auto", 800, 100, [100, 200, 300, 400, 500, 600, 700, 800]),  # eight epochs: by epoch
        ("auto", 750, 100, [100, 200, 300, 400, 500, 600, 700, 750]),  # the eighth is cut short and still ends the run
        ("auto", 700, 100, [87, 175, 262, 350, 437, 525, 612, 700]),  # seven: eight evenly spaced steps
        ("auto", 3, None, [1, 2, 3]),
        ("epoch", 400, 100, [100, 200, 300, 400]),
        ("epoch", 250, 100, [100, 200, 250]),
        ("epoch", 2000, 100, [200, 500, 700, 1000, 1200, 1500, 1700, 2000]),  # 20 epochs thinned to 8
        (30, 100, 7, [30, 60, 90]),
        ([7, 3, 100], 100, None, [3, 7, 100]),
        (range(1, 26), 25, None, list(range(1, 26))),  # a list is taken as it is
    ],
)
def test_plans_by_example(snapshots, max_steps, steps_per_epoch, expected):
    """The schedules of the documentation, step by step."""
    assert plan(snapshots, max_steps, steps_per_epoch) == expected


@pytest.mark.parametrize(
    ("snapshots", "max_steps", "steps_per_epoch", "message"),
    [
        ("epoch", 100, None, "snapshots='epoch' needs training data with a length"),
        ("epoch", 100, 100, "needs at least 2 snapshots, snapshots='epoch' over 100 steps gives 1"),
        ("auto", 1, 1, "gives 1"),
        ("auto", 0, None, "gives 0"),
        (60, 100, 10, "gives 1"),
        (0, 100, 10, "every n >= 1 steps, got 0"),
        (-5, 100, 10, "every n >= 1 steps, got -5"),
        ("steps", 100, 10, "snapshots must be 'auto', 'epoch', a number of steps or a list of steps, got 'steps'"),
        (True, 100, 10, "got True"),
        (2.5, 100, 10, "got 2.5"),
        (None, 100, 10, "got None"),
        ([5], 100, 10, "gives 1"),
        ([], 100, 10, "gives 0"),
        ([5, 5], 100, 10, r"different steps in 1\.\.100"),
        ([0, 5], 100, 10, r"different steps in 1\.\.100"),
        ([5, 101], 100, 10, r"different steps in 1\.\.100 \(this training's length\), got \[5, 101\]"),
        ([1.5, 2.5], 100, 10, r"whole numbers, got \[1\.5, 2\.5\]"),
        ([True, 5], 100, 10, r"whole numbers, got \[True, 5\]"),
    ],
)
def test_schedules_that_cannot_be_are_refused(snapshots, max_steps, steps_per_epoch, message):
    """What does not exist, does not fit the run or gives fewer than two snapshots raises before training."""
    with pytest.raises(ConfigError, match=message):
        plan(snapshots, max_steps, steps_per_epoch)


def test_fewer_than_two_snapshots_cannot_be_asked_for():
    """`max_snapshots` starts at 2."""
    with pytest.raises(ConfigError, match=r"max_snapshots must be at least 2 .* got 1"):
        plan("auto", 100, max_snapshots=1)
    assert plan("auto", 100, max_snapshots=2) == [50, 100]


@pytest.mark.parametrize("steps", [np.array([4, 8]), torch.tensor([4, 8]), [np.int64(4), np.int64(8)], range(4, 9, 4)])
def test_steps_of_other_libraries_are_plain_numbers(steps):
    """A plan is written as JSON: whatever its steps came as, they are Python's own."""
    plan = plan_snapshots(steps, max_snapshots=np.int64(10), max_steps=8, steps_per_epoch=4)
    assert plan == plan_snapshots(np.int64(4), max_snapshots=10, max_steps=8, steps_per_epoch=4) == [4, 8]
    assert all(type(step) is int for step in plan)
