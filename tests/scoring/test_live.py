import models
import numpy as np
import pytest
import torch
from live_cases import LABELS, N, case_of, labeled, start, train
from torch.testing import assert_close

from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, MemoryBudgetError
from vog_hf.scoring.scorer import VoGScorer


@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_live_equals_replay(name):
    """Moments kept while the model trains give, bit for bit, what a replay of the snapshots gives."""
    case, states = case_of(name)
    config = VoGConfig(target=("logit", "loss"))
    model, live = start(case, config=config)
    train(model, live, states)
    scores = live.finish()
    named = [(f"epoch-{k}", state) for k, state in enumerate(states)]
    replayed = VoGScorer(case.model, config=config, batch_size=7, memory_budget=1).score(
        labeled(case), named, collate_fn=models.collate
    )
    assert scores.column_names == replayed.column_names
    for column in replayed.column_names:
        np.testing.assert_array_equal(scores.column(column), replayed.column(column))
    assert scores.trajectory_names == replayed.trajectory_names
    for trajectory in replayed.trajectory_names:
        np.testing.assert_array_equal(scores.trajectory(trajectory), replayed.trajectory(trajectory))
    for row in range(N):
        np.testing.assert_array_equal(scores.heat_map(row), replayed.heat_map(row))
    assert (scores.manifest["collect"], replayed.manifest["collect"]) == ("live", "replay")
    assert scores.manifest["windows"] == replayed.manifest["windows"]
    assert [entry["step"] for entry in scores.manifest["snapshots"]] == [0, 10, 20, 30, 40, 50, 60]


def test_the_model_that_trains_is_left_as_found():
    """An update computes on the model as it is and gives it back: memory, modes, gradients, random streams."""
    case, _ = case_of("conv_net")
    model, live = start(case)
    model.bfloat16().train()
    model.head.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def found():
        return [
            (p.data_ptr(), p.grad.data_ptr(), p.clone(), p.grad.clone(), p.requires_grad) for p in model.parameters()
        ] + [(m.training, [(b.data_ptr(), b.clone()) for b in m.buffers()]) for m in model.modules()]

    before, stream = found(), torch.get_rng_state()
    live.update("now")
    assert_close(found(), before, rtol=0, atol=0)
    assert_close(torch.get_rng_state(), stream, rtol=0, atol=0)


def test_a_ranking_can_be_watched_while_the_model_learns():
    """ranking() has the scores up to now; after the last snapshot they are those written, with their heat maps."""
    case, states = case_of("conv_net")
    model, live = start(case)
    train(model, live, states[:1])
    with pytest.raises(ConfigError, match="at least 2 snapshots, this training gave 1"):
        live.ranking()
    train(model, live, states[1:3])
    early = live.with_heat_maps(live.ranking(), np.array([0, 52]))
    assert "vog_late" not in early.column_names
    assert len(early.manifest["snapshots"]) == 3
    train(model, live, states[3:])
    shown = np.array([3, 17, 40])
    last, scores = live.with_heat_maps(live.ranking(), shown), live.finish()
    assert (last.column("vog") != early.column("vog")).all()
    assert last.column_names == scores.column_names
    for column in scores.column_names:
        np.testing.assert_array_equal(last.column(column), scores.column(column))
    np.testing.assert_array_equal(last.trajectory("vog"), scores.trajectory("vog"))
    for row in range(N):
        expected = scores.heat_map(row) if row in shown else np.zeros((0, 0))
        np.testing.assert_array_equal(last.heat_map(row), expected)
    assert last.identity == early.identity


def test_training_that_stopped_early_has_no_windows_and_the_manifest_says_why():
    """The windows need the planned number of snapshots; without them the columns are absent, not wrong."""
    case, states = case_of("conv_net")
    model, live = start(case)
    train(model, live, states[:4])
    scores = live.finish()
    assert not [name for name in scores.column_names if name.endswith(("_early", "_late"))]
    assert "windows" not in scores.manifest
    assert "training stopped after 4 of 7 planned snapshots" in scores.manifest["windows_missing"]
    named = [(f"epoch-{k}", state) for k, state in enumerate(states[:4])]
    replayed = VoGScorer(case.model, batch_size=7).score(labeled(case), named, collate_fn=models.collate)
    np.testing.assert_array_equal(scores.column("vog"), replayed.column("vog"))


def test_one_snapshot_is_too_few_and_two_are_enough():
    """A deviation over one snapshot is 0 for every row: refused; two make scores."""
    case, states = case_of("conv_net")
    model, live = start(case, planned=2)
    train(model, live, states[:1])
    with pytest.raises(ConfigError, match="at least 2 snapshots, this training gave 1"):
        live.finish()
    train(model, live, states[1:2])
    scores = live.finish()
    np.testing.assert_array_equal(scores.column("vog_early"), scores.column("vog"))
    np.testing.assert_array_equal(scores.column("vog_late"), scores.column("vog"))


def test_the_predicted_label_is_refused_with_replay_named():
    """The last prediction is not known while training continues: refused when it starts; label='given' is accepted."""
    case, _ = case_of("conv_net")
    with pytest.raises(ConfigError, match=r"label='predicted'.*use collect='replay'"):
        start(case, config=VoGConfig(label="predicted"))
    start(case, config=VoGConfig(label="given"))


@pytest.mark.parametrize("missing", [None, -1, -100])
def test_a_row_without_a_label_is_refused_by_its_number_with_replay_named(missing):
    """The first such row is named, also beyond the first batch; with every label given the update goes through."""
    case, _ = case_of("conv_net")
    _, live = start(case, rows=labeled(case, [missing if i == 41 else y for i, y in enumerate(LABELS)]))
    with pytest.raises(ConfigError, match=r"row 41 has no label.*use collect='replay'"):
        live.update("first")
    _, live = start(case)
    live.update("first")


def test_too_little_memory_is_refused_with_both_numbers(monkeypatch):
    """What the moments take is compared with what is free before the first pass; one byte more is accepted."""
    case, _ = case_of("conv_net")
    _, live = start(case)
    needed = live.memory_bytes()
    assert needed == N * (2 * 2 * 8 * 8 * 4 + 16 * 7)  # mean and squares, windows all and late, one plane of float32
    monkeypatch.setattr("vog_hf.scoring.live.free_memory", lambda device: needed)
    start(case)
    monkeypatch.setattr("vog_hf.scoring.live.free_memory", lambda device: needed - 1)
    with pytest.raises(
        MemoryBudgetError, match=r"moments of 53 rows, 58\.8 KiB, and 58\.8 KiB are free; use collect='replay'"
    ):
        start(case)


def test_scores_are_kept_in_a_folder_where_one_is_given(tmp_path):
    """finish(output_dir=...) writes what a replay writes; without it the folder lives as long as the scores."""
    case, states = case_of("conv_net")
    model, live = start(case)
    train(model, live, states)
    scores = live.finish(output_dir=tmp_path / "scores")
    assert scores.folder == tmp_path / "scores"
    assert (tmp_path / "scores" / "manifest.json").is_file()
    assert live.finish().folder != scores.folder
