"""A training that Trainer begins again with smaller batches after running out of memory."""

import numpy as np
import pytest
import torch
from models import MLP, collate
from reference import reference_gradients, reference_vog
from torch.testing import assert_close
from trainers import WeightsByStep, arguments
from transformers import Trainer

from vog_hf import VoGCallback

N_ROWS = 14


class OutOfMemory(Trainer):
    """Has no memory for more than two rows, which shows in its third step."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return torch.nn.functional.cross_entropy(model(inputs["features"]), inputs["labels"])

    def training_step(self, model, inputs, *args, **kwargs):
        if len(inputs["labels"]) > 2 and self.state.global_step >= 2:
            raise RuntimeError("CUDA out of memory.")
        return super().training_step(model, inputs, *args, **kwargs)


def rows():
    """Vectors with labels."""
    features = torch.randn(N_ROWS, 5, generator=torch.Generator().manual_seed(0))
    return [{"features": x, "labels": i % 3} for i, x in enumerate(features)]


def trained(folder, *callbacks):
    """The weights after each step of the training that came to its end."""
    torch.manual_seed(0)
    weights = WeightsByStep()
    args = arguments(folder, auto_find_batch_size=True, num_train_epochs=2, per_device_train_batch_size=4)
    OutOfMemory(MLP(), args, train_dataset=rows(), data_collator=collate, callbacks=[*callbacks, weights]).train()
    return weights.weights


@pytest.mark.slow
@pytest.mark.parametrize("collect", ["replay", "live"])
def test_a_training_begun_again_has_the_scores_of_its_second_beginning(collect, tmp_path):
    """Plan, snapshots and moments are those of the smaller batches, and training is bit-identical."""
    vog = VoGCallback(collect=collect, snapshots="epoch", log=False)
    weights, plain = trained(tmp_path / "run", vog), trained(tmp_path / "plain")
    last = max(plain)
    assert_close(weights[last], plain[last], rtol=0, atol=0)
    steps = [last // 2, last]
    assert [snapshot["name"] for snapshot in vog.scores.manifest["snapshots"]] == [f"step-{k:09d}" for k in steps]
    fed = [{"features": row["features"]} for row in rows()]
    gradients = reference_gradients(MLP(), [weights[k] for k in steps], fed, "logit", [row["labels"] for row in rows()])
    expected = reference_vog(gradients)
    assert np.ptp(expected) > 0
    assert_close(vog.scores.column("vog").astype(np.float64), expected, rtol=1e-4, atol=1e-4 * expected.mean())
