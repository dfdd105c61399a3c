"""Loss spikes: steps that stand out from the steps around them, against numpy's own median."""

import numpy as np
import pytest

from vog_hf.errors import ConfigError
from vog_hf.evaluation import loss_spikes


def falling(n=200, seed=0):
    """A loss that falls, with noise; four rows in each step."""
    rng = np.random.default_rng(seed)
    steps = np.repeat(np.arange(1, n + 1), 4)
    return steps, 2 * np.exp(-steps / 80) + 0.05 * rng.standard_normal(len(steps))


def test_planted_spikes_are_found_worst_first():
    """Two steps among 200 are raised; the fall of the loss is none, and rows are averaged within a step."""
    steps, loss = falling()
    loss[steps == 60] += 1.0
    loss[steps == 150] += 3.0
    found = loss_spikes(steps, loss)
    assert found["step"].tolist() == [150, 60]
    assert found["loss"][0] == pytest.approx(loss[steps == 150].mean())
    means = np.array([loss[steps == step].mean() for step in range(125, 176)])
    assert found["expected"][0] == pytest.approx(np.median(means))
    assert loss_spikes(*falling()).empty


def test_missing_losses_and_few_steps_are_no_spikes():
    """NaN is left out, and fewer than 20 steps have no spike."""
    steps, loss = falling()
    loss[steps == 70] = np.nan
    assert loss_spikes(steps, loss).empty
    loss[steps == 10] = 50.0
    assert loss_spikes(steps[:76], loss[:76]).empty
    assert loss_spikes(steps[:80], loss[:80])["step"].tolist() == [10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": [1.0]}, r"one value per visit, got shapes \(2,\) and \(1,\)"),
        ({"neighbors": 2}, r"neighbors must be .*3"),
        ({"threshold": -1}, r"threshold must lie in 0..inf, got -1"),
    ],
)
def test_wrong_calls_are_refused(options, message):
    """With the value that came."""
    with pytest.raises(ConfigError, match=message):
        loss_spikes(**{"step": [1, 2], "loss": [1.0, 2.0], **options})
