"""`ModelRunner` holds all state of a model while it is scored, a few calls away from the user."""

import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import models
import pytest
import torch

import vog_hf
from vog_hf.scoring.runner import ModelRunner
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import open_snapshots

PACKAGE = str(Path(vog_hf.__file__).parent)
MAX_FRAMES = 8


def frames_inside():
    """Functions of vog_hf that are running, the innermost first."""
    frame, names = sys._getframe(1), []
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names


def labeled(case):
    """Rows with their labels."""
    return [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]


def states_of(model, n=2):
    """Named snapshots of a model."""
    return [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, n))]


@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_a_gradient_is_few_calls_away_from_the_scorer(name, monkeypatch):
    """From `VoGScorer.score` to `torch.autograd.grad` there are at most 8 functions: a traceback fits on a screen."""
    case = models.CASES[name]()
    paths = set()
    grad = torch.autograd.grad

    def counted(*arguments, **options):
        paths.add(tuple(frames_inside()))
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    VoGScorer(case.model, batch_size=7).score(labeled(case), states_of(case.model), collate_fn=models.collate)
    scored = {path for path in paths if "ModelRunner.observe" in path and not any("require_same" in n for n in path)}
    assert scored
    for path in scored:
        assert path[-1] == "VoGScorer.score"
        assert len(path) <= MAX_FRAMES, " <- ".join(path)


@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_a_runner_gives_the_model_back_and_can_be_entered_again(name, tmp_path):
    """Weights, modes and forwards are the model's own outside; a second time inside gives the same gradients."""
    case = models.CASES[name]()
    model = case.model.train()
    scorer = VoGScorer(model, batch_size=7)
    reader = scorer.reader(labeled(case), collate_fn=models.collate)
    snapshots = open_snapshots(states_of(model), spool=tmp_path)
    runner = ModelRunner(model, scorer.plan(reader), snapshots.frozen)
    before = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    observed = []
    for _ in range(2):
        with runner:
            runner.load(snapshots.snapshots[1])
            (batch,) = reader.read([range(5)])
            observed.append(runner.observe(runner.to_device(batch)))
        assert all(module.training and "forward" not in vars(module) for module in model.modules())
        for key, value in model.state_dict().items():
            assert value.data_ptr() == before[key][0]
            assert torch.equal(value, before[key][1])
    torch.testing.assert_close(*observed, rtol=0, atol=0)


def test_a_plan_is_a_value():
    """Scoring leaves the plan as the dry run made it: equal to one of another dry run of the same rows."""
    case = models.CASES["conv_net"]()
    scorer = VoGScorer(case.model, batch_size=7)
    reader = scorer.reader(labeled(case), collate_fn=models.collate)
    plan = scorer.plan(reader)
    before = dict(vars(plan))
    live = scorer.live(reader, plan, 2)
    live.update("first")
    assert vars(plan) == before
    with pytest.raises(FrozenInstanceError):
        plan.batch_size = 1
