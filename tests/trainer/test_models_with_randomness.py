"""Models that are another function while they train, or for other values: scores of a loop over rows and snapshots."""

import copy
import functools

import numpy as np
import pytest
import torch
from models import collate
from random_models import BRANCHING, RANDOM
from reference import reference_gradients, reference_vog
from torch import nn
from torch.testing import assert_close
from trainers import arguments
from transformers import Trainer, TrainerCallback

from vog_hf import VoGCallback, VoGConfig, VoGScorer

MODELS = {**RANDOM, **BRANCHING}
CONFIG = VoGConfig(reduce_channels=False)


class TrainerOfLogits(Trainer):
    """Cross-entropy of the logits, whatever form the output has."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
        loss = nn.functional.cross_entropy(logits, labels)
        return (loss, {"logits": logits}) if return_outputs else loss


class StatesByEpoch(TrainerCallback):
    """Keeps the weights as they are after every epoch."""

    def __init__(self):
        self.states = []

    def on_epoch_end(self, args, state, control, *, model, **kwargs):
        self.states.append(copy.deepcopy(model.state_dict()))


def labeled(case):
    """Rows with their labels."""
    return [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]


def trained(name, folder, *callbacks):
    """The weights and the losses of three epochs."""
    case = MODELS[name]()
    options = {"learning_rate": 2e-2, "per_device_train_batch_size": 2}
    trainer = TrainerOfLogits(
        case.model,
        arguments(folder, **options),
        train_dataset=labeled(case),
        data_collator=collate,
        callbacks=list(callbacks),
    )
    trainer.train()
    return case.model.state_dict(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The training without the callback, made once per model: weights, losses, weights after every epoch."""

    @functools.cache
    def of(name):
        kept = StatesByEpoch()
        weights, losses = trained(name, tmp_path_factory.mktemp("plain"), kept)
        return weights, losses, kept.states

    return of


@functools.cache
def expected_scores(name, of):
    """The oracle: one row, one snapshot, float64."""
    case = MODELS[name]()
    if "jitter" in name:
        case.model.set_experts_implementation("eager")  # the grouped one knows no float64
    return reference_vog(reference_gradients(case.model, of(name)[2], case.rows, "logit", case.labels))


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_the_models_of_the_table_are_random_in_training_only(name):
    """Two passes differ in training mode, and are bit-identical in evaluation mode."""
    case = MODELS[name]()
    batch = collate(case.rows)

    def logits():
        outputs = case.model(**batch)
        return outputs if isinstance(outputs, torch.Tensor) else outputs.logits

    case.model.train()
    assert any(not torch.equal(logits(), logits()) for _ in range(5))
    case.model.eval()
    assert torch.equal(logits(), logits())


@pytest.mark.parametrize("name", BRANCHING)
def test_the_branches_of_the_table_are_both_taken(name, plain):
    """Rows or snapshots of one training are on both sides of each branch."""
    case, states = MODELS[name](), plain(name)[2]
    if name == "branch on the weights":
        sides = {bool(state["gate"] > 0.04) for state in states}
    elif name == "branch on the input":
        sides = {bool(row["x"].mean() > 0) for row in case.rows}
    else:
        case.model.load_state_dict(states[-1])
        hidden = case.model.first(collate(case.rows)["x"]).tanh()
        sides = set((case.model.early(hidden).softmax(1).amax(1) < 0.5).tolist())
    assert sides == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_is_left_alone_and_scored_right(name, collect, tmp_path, plain):
    """Losses and weights are bit-identical with the callback, the scores those of the oracle."""
    expected_weights, losses, _ = plain(name)
    vog = VoGCallback(collect=collect, config=CONFIG, snapshots="epoch", batch_size=4, log=False)
    weights, found_losses = trained(name, tmp_path, vog)
    assert found_losses == losses
    assert_close(weights, expected_weights, rtol=0, atol=0)
    _compare(vog.scores, expected_scores(name, plain))


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in RANDOM), *BRANCHING])
def test_the_scorer_gives_the_scores_of_the_loop(name, plain):
    """From a model in training mode too, and its weights and mode are left as they were."""
    case, states = MODELS[name](), plain(name)[2]
    before = copy.deepcopy(case.model.train().state_dict())
    snapshots = [(f"s{k}", state) for k, state in enumerate(states)]
    scores = VoGScorer(case.model, config=CONFIG, batch_size=4, progress=False).score(
        labeled(case), snapshots, collate_fn=collate
    )
    _compare(scores, expected_scores(name, plain))
    assert_close(case.model.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in case.model.modules())


def _compare(scores, expected):
    assert np.ptp(expected) > 0
    assert_close(scores.column("vog").astype(np.float64), expected, rtol=1e-4, atol=1e-4 * expected.mean())
