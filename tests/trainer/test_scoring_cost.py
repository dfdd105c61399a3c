"""The time of scoring as a share of the training's: stated before the training, and kept below ``max_cost``."""

import json
import logging

import models
import numpy as np
import pytest
import torch
from datasets import IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from trainers import WeightsByStep, network, trained
from trainings import PowerCutError, assert_same_scores, pixel_rows, steps_of

from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError
from vog_hf.scoring.pass_time import row_seconds
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import open_folder
from vog_hf.trainer import training_run
from vog_hf.trainer.callback import VoGCallback
from vog_hf.trainer.scoring_cost import Thinning, estimated_share, find_thinning, share_in_words

STEPS = [2, 4, 6, 8, 10, 12]


# --- thinning -------------------------------------------------------------------------------------------------------


@given(
    n=st.integers(2, 40),
    max_cost=st.floats(0.001, 10),
    training_seconds=st.floats(0.01, 1e6),
    snapshot_seconds=st.floats(0, 1e6),
)
def test_as_many_snapshots_as_fit_are_scored_and_at_least_two(n, max_cost, training_seconds, snapshot_seconds):
    """They fit, one more would not, the last one is among them; whatever was left out or does not fit is said."""
    taken = list(range(3, 3 * n + 1, 3))
    times = {"training_seconds": training_seconds, "snapshot_seconds": snapshot_seconds}
    found = Thinning.to_fit(taken, max_cost, **times)
    allowed = max_cost * training_seconds
    assert found.taken == taken
    assert set(found.scored) <= set(taken)
    assert found.scored[-1] == taken[-1]
    assert len(found.scored) >= 2
    fits = len(found.scored) * snapshot_seconds <= allowed * (1 + 1e-9)
    assert fits or len(found.scored) == 2
    assert len(found.scored) == n or (len(found.scored) + 1) * snapshot_seconds > allowed * (1 - 1e-9)
    if found.why is None:
        assert fits
        assert found.scored == taken
    else:
        assert n * snapshot_seconds > allowed * (1 - 1e-9)


def test_the_reason_names_steps_and_times():
    """How many of how many, after which steps, and the numbers that the decision was made of."""
    times = {"training_seconds": 60, "snapshot_seconds": 8}
    assert Thinning.to_fit(STEPS, 0.5, **times).why == (
        "3 of 6 snapshots are scored, those after steps 4, 8, 12: max_cost=0.5 of the training's 60.00 s is 30.00 s, "
        "and scoring takes about 8.00 s for each snapshot"
    )
    fewest = Thinning.to_fit(STEPS, 0.1, **times)
    assert fewest.scored == [6, 12]
    assert fewest.why.startswith("2 of 6 snapshots are scored (the fewest that VoG can have; 0 would fit), those after")


def test_an_interrupted_scoring_continues_with_the_same_snapshots(tmp_path):
    """A decision about the same snapshots is kept; other snapshots, another limit or a damaged file need a new one."""
    path = tmp_path / "thinning.json"

    def find(steps=STEPS, max_cost=0.5, training_seconds=60.0, snapshot_seconds=8.0):
        return find_thinning(path, steps, max_cost, training_seconds, lambda: snapshot_seconds)

    assert find().scored == [4, 8, 12]
    assert find(training_seconds=None, snapshot_seconds=1e9) == find()
    assert find(steps=STEPS[1:]).scored == [4, 8, 12]
    assert find(max_cost=0.3).scored == [6, 12]
    path.write_text("{}")
    assert find().scored == [4, 8, 12]


def test_a_training_that_was_not_timed_is_not_thinned(tmp_path, caplog):
    """Resumed after its last step, without an earlier decision: a warning, and all snapshots."""
    assert find_thinning(tmp_path / "thinning.json", STEPS, 0.5, None, lambda: 8.0) is None
    assert "max_cost=0.5 has no effect" in caplog.text


# --- estimates ------------------------------------------------------------------------------------------------------


def test_the_share_counts_operations():
    """A snapshot of all rows is two thirds of an epoch, all of it where no weights are trained; a target is a third."""
    model = nn.Linear(3, 2)
    assert estimated_share(model, 10 * 50, 3 * 50, 1) == pytest.approx(10 / 3 * 2 / 3)
    assert estimated_share(model, 50, 50, 2) == pytest.approx(1)
    model.weight.requires_grad_(False)
    assert estimated_share(model, 50, 50, 1) == pytest.approx(2 / (2 + 2 / 8))


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.004, "about 0.4 % of the training's time"),
        (0.06, "about 6 % of the training's time"),
        (0.994, "about 99 % of the training's time"),
        (0.996, "about 1.0 times the training's time"),
        (14.21, "about 14.2 times the training's time"),
    ],
)
def test_a_share_in_words(share, words):
    """A percentage below the training's time, else a multiple of it."""
    assert share_in_words(share) == words


@pytest.mark.parametrize("config", [VoGConfig(), VoGConfig(label="predicted"), VoGConfig(target=("logit", "loss"))])
@pytest.mark.parametrize("make", [models.resnet, models.bert])
def test_a_pass_is_timed_and_leaves_the_model_as_it_was(make, config):
    """Seconds per row; weights, buffers, modes and random states stay."""
    case = make()
    model = case.model.train()
    rows = [{**row, "labels": torch.as_tensor(label)} for row, label in zip(case.rows, case.labels, strict=True)]
    scorer = VoGScorer(model, config=config, batch_size=4)
    reader = scorer.reader(rows, collate_fn=models.collate)
    plan = scorer.plan(reader)
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    assert 0 < row_seconds(scorer.model, plan, reader) < 60
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


# --- with a training ------------------------------------------------------------------------------------------------


@pytest.fixture
def pass_seconds(monkeypatch):
    """A function that sets the time that a row's pass is measured to take: the real one differs from run to run."""

    def set_to(seconds):
        monkeypatch.setattr(training_run, "row_seconds", lambda *_: seconds)

    return set_to


def train(folder, callback, **options):
    """Weights at the end of a training with a snapshot after every second of its 12 steps."""
    weights = WeightsByStep()
    trained(folder, [callback, weights], **options)
    return weights.weights[12]


def test_snapshots_that_do_not_fit_are_stored_and_not_scored(tmp_path, caplog, pass_seconds):
    """A line and the manifest say so; the scores are those of the others; the training is that without max_cost."""
    pass_seconds(1e6)
    vog, all_of_them = (VoGCallback(pixel_rows(), snapshots=2, max_cost=cost) for cost in (0.5, None))
    with caplog.at_level(logging.INFO, logger="vog_hf"):
        weights = train(tmp_path / "thinned", vog)
    assert_close(weights, train(tmp_path / "all", all_of_them), rtol=0, atol=0)
    assert steps_of(vog.scores) == [6, 12]
    assert steps_of(all_of_them.scores) == STEPS
    why = vog.scores.manifest["thinned"]
    assert why.startswith(
        "2 of 6 snapshots are scored (the fewest that VoG can have; 0 would fit), those after steps 6, "
    )
    assert [record.getMessage() for record in caplog.records].count(f"VoG: {why}") == 1
    assert "thinned" not in all_of_them.scores.manifest
    stored = open_folder(tmp_path / "thinned" / "_vog").snapshots
    assert [snapshot.step for snapshot in stored] == STEPS
    files = [str(snapshot.files[0]) for snapshot in stored if snapshot.step in (6, 12)]
    model = network()
    model.load_state_dict(weights)
    assert_same_scores(VoGScorer(model).score(pixel_rows(), files), vog.scores)


def test_snapshots_that_fit_are_scored_without_a_word(tmp_path, caplog, pass_seconds):
    """A cheap pass leaves nothing out."""
    pass_seconds(1e-12)
    vog = VoGCallback(pixel_rows(), snapshots=2, max_cost=0.001)
    with caplog.at_level(logging.INFO, logger="vog_hf"):
        train(tmp_path, vog)
    assert steps_of(vog.scores) == STEPS
    assert "thinned" not in vog.scores.manifest
    assert "max_cost" not in caplog.text


def test_a_measured_pass_thins_by_its_own_time(tmp_path):
    """Without any stand-in: the decision in the folder is that of the manifest."""
    vog = VoGCallback(pixel_rows(), snapshots=2, max_cost=0.5)
    train(tmp_path, vog)
    decided = json.loads((tmp_path / "_vog" / "thinning.json").read_text())
    assert decided["taken"] == STEPS
    assert decided["scored"] == steps_of(vog.scores)
    assert decided["why"] == vog.scores.manifest.get("thinned")


def test_every_split_counts(tmp_path, pass_seconds):
    """The rows of all splits share the time, and have the same snapshots."""
    pass_seconds(1e6)
    vog = VoGCallback({"a": pixel_rows(), "b": pixel_rows().select(range(9))}, snapshots=2, max_cost=1)
    train(tmp_path, vog)
    assert {split: steps_of(scores) for split, scores in vog.scores.items()} == {"a": [6, 12], "b": [6, 12]}


def test_a_scoring_that_was_interrupted_has_the_same_snapshots(tmp_path, monkeypatch, pass_seconds):
    """Resumed after the last step nothing is timed, and the earlier decision counts; a new training makes its own."""
    pass_seconds(1e6)
    saved = {"save_strategy": "epoch"}
    with monkeypatch.context() as patch:
        patch.setattr(VoGScorer, "score_rows", _fail)
        vog = VoGCallback(pixel_rows(), snapshots=2, max_cost=0.5)
        train(tmp_path, vog, **saved)
    pass_seconds(1e-12)
    resumed = VoGCallback(pixel_rows(), snapshots=2, max_cost=0.5)
    trained(tmp_path, [resumed], resume=str(tmp_path / "checkpoint-12"), **saved)
    assert steps_of(resumed.scores) == [6, 12]
    again = VoGCallback(pixel_rows(), snapshots=2, max_cost=0.5)
    train(tmp_path, again, **saved)
    assert steps_of(again.scores) == STEPS


def _fail(*args, **kwargs):
    raise PowerCutError


@pytest.mark.parametrize("collect", ["replay", "live"])
def test_the_line_before_training_states_the_share(collect, tmp_path, caplog):
    """Of 3 epochs of 64 rows, 3 snapshots are two thirds, and 64 more rows as much again."""
    for rows, words in (
        (pixel_rows(), "about 67 % of the training's time"),
        ({"a": pixel_rows(), "b": pixel_rows()}, "about 1.3 times the training's time"),
    ):
        caplog.clear()
        vog = VoGCallback(rows, snapshots="epoch", collect=collect)
        with caplog.at_level(logging.INFO, logger="vog_hf"):
            trained(tmp_path, [vog])
        assert f"; snapshots after steps 4, 8, 12; scoring takes {words}; all in " in caplog.text


def stream():
    """The rows as a stream, whose length nobody knows."""
    rows = pixel_rows()
    return IterableDataset.from_generator(lambda: (dict(rows[i]) for i in range(len(rows))))


def test_the_share_of_a_stream_is_unknown(tmp_path, caplog):
    """The line has none; the stream is scored."""
    vog = VoGCallback(stream(), snapshots="epoch")
    with caplog.at_level(logging.INFO, logger="vog_hf"):
        trained(tmp_path, [vog])
    assert "; snapshots after steps 4, 8, 12; all in " in caplog.text
    assert np.isfinite(vog.scores.column("vog")).all()


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 10.5, float("nan"), float("inf"), "0.5", True, [0.5], 0.0009])
def test_shares_out_of_range_are_refused(value):
    """A share is a number; 50 for 50 % is not taken for one."""
    with pytest.raises(ConfigError, match=r"max_cost must lie in 0\.001\.\.10, got .*pass a number"):
        VoGCallback(max_cost=value)


@pytest.mark.parametrize("value", [0.001, 10, np.float32(0.5)])
def test_shares_at_the_edge_are_accepted(value):
    """The neighbors of the values above."""
    VoGCallback(max_cost=value)


def test_max_cost_is_refused_where_it_cannot_be_kept():
    """Live moments, observed passes and streams, each with what to pass instead."""
    with pytest.raises(ConfigError, match="max_cost= leaves out stored snapshots once the training has ended"):
        VoGCallback(max_cost=0.5, collect="live")
    with pytest.raises(ConfigError, match="so max_cost= has no effect"):
        VoGCallback(max_cost=0.5, collect="training")
    with pytest.raises(ConfigError, match="max_cost= needs the number of rows to score"):
        VoGCallback(stream(), max_cost=0.5)
    VoGCallback(stream())
    VoGCallback(collect="live", max_snapshots=5)
