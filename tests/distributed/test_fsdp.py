"""Sharded training: full tensors are stored, once, and a replica on every process scores what a whole model scores."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from launch import run
from safetensors.torch import load_file
from torch.testing import assert_close
from train_sharded import STEPS, TRAININGS, train, training_of

from vog_hf.scores.vog_scores import VoGScores
from vog_hf.snapshots import INDEX_NAME, model_tensors, tensor_digest
from vog_hf.snapshots.writer import FROZEN_NAME

ALL_WAYS = ("fsdp2", "checkpointed_fsdp2", "fsdp1", "fsdp1_flat", "zero3")


@pytest.fixture(
    scope="module",
    params=["fsdp2", *(pytest.param(way, marks=pytest.mark.slow) for way in ALL_WAYS[1:])],
)
def sharded(request, tmp_path_factory):
    """A way of sharding, and the folder in which its program left snapshots and scores; two processes."""
    if request.param == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    run("train_sharded.py", folder, request.param, processes=2)
    return request.param, folder


@pytest.fixture(params=TRAININGS)
def name(request):
    """Of a training."""
    return request.param


def trained_whole(name, way):
    """The model after training on one process, and its tensors after each step."""
    training, states = training_of(name, way), []
    model = training.model()
    if way == "fsdp1_flat":
        model.requires_grad_(True)
    train(
        training,
        model,
        lambda _: states.append({n: t.detach().clone() for n, t in model_tensors(model).items()}),
    )
    return model, states


def tolerance(way):
    """How near training comes to that on one process; under ZeRO-3 it is in float32."""
    return {"rtol": 1e-5, "atol": 1e-6} if way == "zero3" else {"rtol": 1e-9, "atol": 1e-12}


def test_full_tensors_are_stored_once(sharded, name):
    """One file a step, of the trainable tensors as torch gathers them and as training on one process makes them."""
    way, folder = sharded
    folder = folder / f"{way}-{name}"
    model, states = trained_whole(name, way)
    trainable = {n for n, t in model_tensors(model).items() if t.requires_grad}
    files = sorted(path.name for path in (folder / "snapshots").iterdir())
    steps = [f"step-{step:09d}.safetensors" for step in range(1, STEPS + 1)]
    at_start = [FROZEN_NAME] if len(trainable) < len(model_tensors(model)) else []  # in case they move later
    assert files == [*at_start, INDEX_NAME, *steps]
    for step, state in enumerate(states, start=1):
        stored = load_file(folder / "snapshots" / f"step-{step:09d}.safetensors")
        assert set(stored) == trainable
        assert_close(stored, {n: state[n] for n in stored}, **tolerance(way))
        if way != "zero3":
            gathered = torch.load(folder / f"state-{step}.pt")
            assert_close(stored, {n: gathered[n] for n in stored}, rtol=0, atol=0)
    frozen = json.loads((folder / "snapshots" / INDEX_NAME).read_text())["frozen"]
    assert frozen == {n: tensor_digest(t) for n, t in model_tensors(model).items() if n not in trainable}
    assert way == "fsdp1_flat" or frozen


def test_replicas_score_what_a_whole_model_scores(sharded, name):
    """On both processes, from the stored snapshots: the scores of one process that trained on its own, to 1e-6."""
    way, folder = sharded
    folder = folder / f"{way}-{name}"
    model, states = trained_whole(name, way)
    scores = VoGScores.load(folder / "scores")
    training = training_of(name, way)
    expected = training.score(model, [(f"step-{i}", state) for i, state in enumerate(states)])
    assert (expected.column("vog") > 0).all()
    near = {"rtol": 1e-4, "atol": 1e-5} if way == "zero3" else {"rtol": 1e-6, "atol": 1e-7}
    for column in expected.column_names:
        np.testing.assert_allclose(scores.column(column), expected.column(column), **near, err_msg=column)
    for trajectory in expected.trajectory_names:
        np.testing.assert_allclose(scores.trajectory(trajectory), expected.trajectory(trajectory), **near)
    from_storage = training.score(training.model(), folder / "snapshots")
    np.testing.assert_allclose(scores.column("vog"), from_storage.column("vog"), rtol=1e-6)


def test_a_replica_holds_what_the_model_holds(sharded, name):
    """Every tensor, tied ones once, after the last step."""
    way, folder = sharded
    _, states = trained_whole(name, way)
    held = torch.load(folder / f"{way}-{name}" / "replica.pt")
    assert_close(held, states[-1], **tolerance(way))


@pytest.mark.slow
def test_what_cannot_be_done_with_a_sharded_model_is_refused_on_every_process():
    """No process is left waiting for another; the messages say how to score all the same."""
    run("refuse_sharded.py", processes=2)
