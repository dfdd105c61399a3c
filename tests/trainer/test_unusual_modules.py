"""Unusual modules at every entry: the scores of a loop over rows and snapshots, and a training that is left alone."""

import copy
import functools
import re

import numpy as np
import pytest
import torch
from reference import reference_vog
from torch import nn
from torch.testing import assert_close
from trainers import WeightsByStep, arguments
from transformers import Trainer, TrainerCallback
from unusual_models import MODELS, WIDTH, Layers, SparseWeight, Unusual

from vog_hf import VoGCallback, VoGConfig, VoGScorer
from vog_hf.errors import ModelError, SnapshotError
from vog_hf.gradients.input_gradients import input_gradients

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
CONFIG = VoGConfig(reduce_channels=False)
SCORED = [name for name, case in MODELS.items() if not case.refused and not case.warning]
WARNED = [name for name, case in MODELS.items() if case.warning]
ALSO_LIVE = [  # in the default tier: what forward changes
    *("teacher", "LSTM with a state", "memory queue", "counter", "growing table", "derived weight cached"),
    *("Embedding with max_norm", "BatchNorm2d", "functional_call with a difference", "spectral_norm, new"),
]
ORDINARY = [  # their trainings are in the slow tier: nothing in them outlives a forward
    *("BatchNorm1d, not affine", "BatchNorm2d, not affine", "GroupNorm", "InstanceNorm2d, no statistics", "LayerNorm"),
    *(
        "RMSNorm",
        "LocalResponseNorm",
        "layer reused",
        "two inputs",
        "MultiheadAttention",
        "gradient reversal",
        "dropout",
    ),
    *("LSTM in both directions", "Conv1d, BatchNorm1d, ReLU in place", "Fourier transform", "keywords"),
]
REFUSED = [name for name, case in MODELS.items() if case.refused]


# --- the oracle -----------------------------------------------------------------------------------------------------


def gradients(case, states):
    """The gradient of each row's logit w.r.t. its input, per row ``[states, *input]``: one row and state at a time."""
    return [np.stack([gradient(case, model_with(case, state), row) for state in states]) for row in case.rows()]


def model_with(case, state):
    """A new model in evaluation mode that holds a state (see `state_of`), in float64 where it can compute so."""
    model = case.model()
    model.load_state_dict(state["tensors"])
    for name, value in state["attributes"].items():
        setattr(model, name, value)
    return model.eval().double() if case.in_float64 else model.eval()


def state_of(case, model):
    """The tensors of the state dict, and the attributes that count."""
    return copy.deepcopy(
        {
            "tensors": {name: value.detach() for name, value in model.state_dict().items()},
            "attributes": {name: getattr(model, name) for name in case.own_state},
        }
    )


def gradient(case, model, row):
    """The gradient of one row's logit w.r.t. its first input, or w.r.t. what an embedding makes of it."""
    inputs = {name: row[name][None] for name, _ in case.inputs}
    if case.in_float64:
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    leaves = [value.requires_grad_() for value in inputs.values() if value.is_floating_point()]
    if not leaves:

        def keep(_module, _args, output):
            leaves.append(output.detach().requires_grad_())
            return leaves[0]

        model.get_input_embeddings().register_forward_hook(keep)
    if case.needs_labels:
        inputs["labels"] = torch.tensor([row["labels"]])
    outputs = model(**inputs)
    z = outputs[1] if case.needs_labels else outputs
    return torch.autograd.grad(z[0, row["labels"]], leaves[0])[0][0].numpy()


# --- trainings ------------------------------------------------------------------------------------------------------


class StatesByEpoch(TrainerCallback):
    """Keeps the state of the model as it is after every epoch."""

    def __init__(self, case):
        self.case, self.states = case, []

    def on_epoch_end(self, args, state, control, *, model, **kwargs):
        self.states.append(state_of(self.case, model))


def trained(case, folder, *callbacks):
    """The model and the losses of two epochs."""
    model = case.model()
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 5, "learning_rate": 5e-2, **case.options}
    trainer = Trainer(model, arguments(folder, **options), train_dataset=case.rows(), callbacks=list(callbacks))
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def held(model):
    """Whatever numbers a model holds: weights, buffers, attributes of its modules."""
    values = {**dict(model.state_dict()), **{f"buffer {name}": value for name, value in model.named_buffers()}}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (torch.Tensor, int, float)):
                values[f"{prefix}.{name}"] = value
    return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The training without the callback, made once per model: what it holds, losses, states after every epoch."""

    @functools.cache
    def of(name):
        kept = StatesByEpoch(MODELS[name])
        model, losses = trained(MODELS[name], tmp_path_factory.mktemp("plain"), kept)
        return held(model), losses, kept.states

    return of


@pytest.mark.parametrize(
    ("name", "collect"),
    [
        *(pytest.param(name, "replay", marks=pytest.mark.slow if name in ORDINARY else ()) for name in SCORED),
        *(pytest.param(name, "live", marks=() if name in ALSO_LIVE else pytest.mark.slow) for name in SCORED),
    ],
)
def test_training_is_left_alone_and_scored_right(name, collect, tmp_path, plain):
    """Losses, weights, buffers and attributes are bit-identical with the callback, the scores those of the oracle."""
    case = MODELS[name]
    expected_held, losses, states = plain(name)
    vog = VoGCallback(collect=collect, config=CONFIG, snapshots="epoch", log=False)
    model, found_losses = trained(case, tmp_path, vog)
    assert found_losses == losses
    assert_close(held(model), expected_held, rtol=0, atol=0)
    if collect == "replay":
        states = [{**state, "attributes": states[-1]["attributes"]} for state in states]
    expected = reference_vog(gradients(case, states))
    assert np.ptp(expected) > 0
    scores = vog.scores.column("vog").astype(np.float64)
    assert_close(scores, expected, rtol=case.tolerance, atol=case.tolerance * expected.mean())


@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_refused_before_the_first_step(name, collect, tmp_path):
    """The error says why, and no step was made."""
    case, weights = MODELS[name], WeightsByStep()
    with pytest.raises(ModelError, match=case.refused):
        trained(case, tmp_path, VoGCallback(collect=collect, config=CONFIG, log=False), weights)
    assert weights.weights == {}


def test_weights_that_no_snapshot_holds_are_scored_while_they_train(tmp_path):
    """A trained sparse weight is refused by replay with the option that works, and is scored live as by the loop."""
    case = Unusual(SparseWeight, options={"optim": "sgd", "max_grad_norm": 0.0})
    with pytest.raises(SnapshotError, match=r"'weight' .*which a snapshot cannot hold; use collect='live'"):
        trained(case, tmp_path / "replay", VoGCallback(config=CONFIG, log=False))
    kept = StatesByEpoch(case)
    _, losses = trained(case, tmp_path / "plain", kept)
    vog = VoGCallback(collect="live", config=CONFIG, snapshots="epoch", log=False)
    assert trained(case, tmp_path / "live", vog)[1] == losses
    expected = reference_vog(gradients(case, kept.states))
    assert_close(vog.scores.column("vog").astype(np.float64), expected, rtol=1e-4, atol=1e-4 * expected.mean())


@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize("name", WARNED)
def test_rows_that_depend_on_one_another_are_reported_before_the_first_step(name, collect, tmp_path, plain, caplog):
    """A warning names the row and the reason; training is left alone all the same."""
    case, warned = MODELS[name], []

    class Listener(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            warned.append(re.search(case.warning, caplog.text))

    expected_held, losses, _ = plain(name)
    model, found_losses = trained(case, tmp_path, VoGCallback(collect=collect, config=CONFIG, log=False), Listener())
    assert warned[0]
    assert found_losses == losses
    assert_close(held(model), expected_held, rtol=0, atol=0)


# --- without a trainer ----------------------------------------------------------------------------------------------


def perturbed(case, n=3):
    """States of the model with noise added to its weights."""
    generator, states = torch.Generator().manual_seed(2), []
    for _ in range(n):
        model = case.model()
        with torch.no_grad():
            for parameter in filter(lambda p: p.is_floating_point() or p.is_complex(), model.parameters()):
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)
        states.append(state_of(case, model))
    return states


@pytest.mark.parametrize("name", SCORED)
def test_scorer_gives_the_scores_of_the_loop(name):
    """The scorer, folding where it can, gives the oracle's scores, and leaves the model as it was."""
    case = MODELS[name]
    states = perturbed(case)
    model = model_with(case, states[0])
    before = copy.deepcopy(held(model))
    snapshots = [(f"s{k}", state["tensors"]) for k, state in enumerate(states)]
    scores = VoGScorer(model, config=CONFIG, batch_size=4, progress=False).score(case.rows(), snapshots)
    found, expected = scores.column("vog").astype(np.float64), reference_vog(gradients(case, states))
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.mean())
    assert_close(held(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", SCORED)
def test_input_gradients_are_those_of_the_loop(name):
    """Gradients of a batch are those of one row at a time, and the model is left as it was."""
    case, state = MODELS[name], state_of(MODELS[name], MODELS[name].model())
    model = model_with(case, state)
    before = copy.deepcopy(held(model))
    found = input_gradients(model, batch_of(case))
    expected = torch.from_numpy(np.stack([of_row[0] for of_row in gradients(case, [state])])).to(found.dtype)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if found.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    assert_close(found, expected, **tolerance)
    assert_close(held(model), before, rtol=0, atol=0)


def batch_of(case):
    """All rows as one batch."""
    rows = case.rows()
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_refused_without_a_trainer(name):
    """Scorer and input gradients say why, as the callback does."""
    case = MODELS[name]
    states = perturbed(case)
    with pytest.raises(ModelError, match=case.refused):
        VoGScorer(case.model()).score(case.rows(), [(f"s{k}", state["tensors"]) for k, state in enumerate(states)])
    with pytest.raises(ModelError, match=case.refused):
        input_gradients(case.model(), batch_of(case))


@pytest.mark.slow
@pytest.mark.parametrize("name", WARNED)
def test_rows_that_depend_on_one_another_are_reported_without_a_trainer(name, caplog):
    """The scorer warns as the callback does, and every number in the model is bit-identical afterwards."""
    case = MODELS[name]
    model = case.model()
    before = copy.deepcopy(held(model))
    VoGScorer(model, config=CONFIG, progress=False).score(
        case.rows(), [(f"s{k}", state["tensors"]) for k, state in enumerate(perturbed(case))]
    )
    assert re.search(case.warning, caplog.text)
    assert_close(held(model), before, rtol=0, atol=0)


def test_lazy_layers_that_saw_no_batch_are_refused_and_scored_after_one():
    """A shape that no batch has given is named, and the call that the message names makes the model scorable."""
    model, case = Layers(nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d()), MODELS["lazy layers"]
    batch = {"x": batch_of(case)["x"]}
    for refused in (lambda: VoGScorer(model), lambda: input_gradients(model, batch)):
        with pytest.raises(
            ModelError, match=r"'layers\.0\.weight' has no shape\); call it once on .*model\(\*\*batch\)"
        ):
            refused()
    model(**batch)
    states = [(f"s{k}", state["tensors"]) for k, state in enumerate(perturbed(case))]
    assert (VoGScorer(model, progress=False).score(case.rows(), states).column("vog") > 0).all()


@pytest.mark.parametrize(
    "name", ["low-rank difference merged by eval", "layers fused by eval", "weight copied by eval"]
)
@pytest.mark.parametrize("mode", [True, False])
def test_a_model_whose_eval_changes_weights_is_refused_and_left_alone(name, mode):
    """In whichever mode it came, merged or not, every number in it is bit-identical after the error."""
    case = MODELS[name]
    model = case.model().train(mode)
    before, modules = copy.deepcopy(held(model)), dict(model.named_modules())
    with pytest.raises(ModelError, match="merge_weights=False"):
        VoGScorer(model, progress=False).check(case.rows())
    with pytest.raises(ModelError, match="merge_weights=False"):
        input_gradients(model, batch_of(case))
    assert_close(held(model), before, rtol=0, atol=0)
    assert dict(model.named_modules()) == modules
