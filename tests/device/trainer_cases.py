"""`VoGCallback` under `transformers.Trainer` on the simulated device; `test_simulated_device` runs these cases."""

import numpy as np
import pytest
import simulated_device
import torch
from accelerate.state import AcceleratorState
from simulated_device import DEVICE
from trainers import trained
from trainings import assert_same_scores, pixel_rows

from vog_hf import VoGConfig
from vog_hf.trainer.callback import VoGCallback


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Trains with some callbacks on the device, or on the CPU, from the same seeds; returns the Trainer."""
    simulated_device.install()

    def on(where, callbacks):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", where)
        trainer = trained(tmp_path / where.replace(":", "-"), callbacks, use_cpu=where == "cpu")
        assert {str(parameter.device) for parameter in trainer.model.parameters()} == {where}
        return trainer

    yield on
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("collect", ["replay", "live", "training"])
def test_a_training_on_the_device_is_scored_and_not_disturbed(training, collect):
    """Scores are those of the same training on the CPU, and weights are those of a training without the callback."""
    scores = {}
    for where in ("cpu", DEVICE):
        config = VoGConfig(target="loss" if collect == "training" else ("logit", "loss"))
        callback = VoGCallback(pixel_rows(), collect=collect, config=config)
        scored = training(where, [callback])
        scores[where] = callback.scores
    plain = training(DEVICE, [])
    for with_callback, without in zip(scored.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(with_callback, without)
    assert_same_scores(scores[DEVICE], scores["cpu"], tolerance=1e-4)
    np.testing.assert_array_equal(scores[DEVICE].trajectory("prediction"), scores["cpu"].trajectory("prediction"))
