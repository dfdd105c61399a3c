"""`Trainer` on two processes: the callback's scores are those of one process, and the training is as without it."""

import json

import numpy as np
import pytest
from launch import run
from scorings import assert_bit_equal, everything
from train_model import ROWS, SPLITS, scored_rows, splits, trainings
from trainers import network
from wandb_runs import Run, inspect

from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.scorer import VoGScorer

STEPS = 12
UNREADABLE = (
    "row {0} cannot be read: OSError: row {0} cannot be decoded; restore its file, leave the row out, or pass "
    "on_error='skip'"
)
WHOLE = [name for name, (_, options) in trainings().items() if "breaks" not in name and "other" not in name]
SAME_ROWS = [name for name in trainings() if "own-rows" not in name and name not in ("without", "breaks-at-once")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every training's own folder, and what each process saw of it."""
    made = tmp_path_factory.mktemp("training")
    run("train_model.py", made, processes=2)
    return made


def seen(folder, name, rank):
    """Digests after every step and the losses, and the error, of one process."""
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def one_process(folder, rows, **options):
    """Scores that one process computes from the snapshots of a training."""
    return VoGScorer(network(), progress=False, **options).score(rows, folder / "_vog")


def test_training_is_training(folder):
    """What is compared below: twelve steps, all different; random numbers and running statistics per process."""
    whole = {f"{c}{s}" for c in ("replay", "live") for s in ("", "-splits", "-own-rows")}
    assert set(WHOLE) == {"without", "live-logged", *whole}
    processes = [seen(folder, "without", rank)["seen"] for rank in (0, 1)]
    for steps in processes:
        assert len(steps) == STEPS + 1
        assert len({step["weights"] for step in steps[:-1]}) == STEPS
        assert len({step["random"] for step in steps[:-1]}) > 1
    assert processes[0][-1]["losses"].count("loss") == STEPS
    assert processes[0][0]["weights"] != processes[1][0]["weights"]  # BatchNorm has seen other rows


@pytest.mark.parametrize("name", SAME_ROWS)
def test_training_is_bit_identical_with_the_callback(folder, name):
    """Weights, statistics, optimizer, random states and losses of each process, even where scoring fails."""
    for rank in (0, 1):
        assert seen(folder, name, rank)["seen"] == seen(folder, "without", rank)["seen"]


def test_replay_gives_the_scores_of_one_process(folder):
    """Row by row, bit for bit, from the same snapshots; so does a resumed folder of one process."""
    scores = VoGScores.load(folder / "replay" / "_vog" / "scores")
    assert scores.manifest["n_processes"] == 2
    assert len(scores.manifest["snapshots"]) == 8
    assert (scores.column("vog") > 0).all()
    assert_bit_equal(scores, one_process(folder / "replay", scored_rows(), batch_size=1))


def test_live_gives_the_scores_of_replay(folder):
    """Although the processes hold other statistics of BatchNorm while they train."""
    live = VoGScores.load(folder / "live" / "_vog" / "scores")
    assert live.manifest["n_processes"] == 2
    assert_close(live, VoGScores.load(folder / "replay" / "_vog" / "scores"))


def test_the_main_process_logs_what_all_of_them_hold(folder):
    """One run; of each snapshot from the second on the ranking of all rows, the last one that of the scores."""
    (path,) = folder.rglob("run-*.wandb")
    logged = Run(inspect(path), path.stem.removeprefix("run-"), path.parent).all_logged
    assert [item["vog/n_snapshots"] for item in logged] == list(range(2, 9))
    assert {item["vog/n_rows"] for item in logged} == {ROWS}
    assert {item["vog/highest.nrows"] for item in logged} == {3}
    scores = VoGScores.load(folder / "live-logged" / "_vog" / "scores")
    running = scores.trajectory("vog").mean(axis=0)[1:]
    assert [item["vog/mean"] for item in logged] == pytest.approx(running.tolist(), rel=1e-5)


@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize("split", SPLITS)
def test_each_split_gets_the_scores_of_one_process(folder, collect, split):
    """Splits of odd lengths, in the trainer's batches for evaluation."""
    scores = VoGScores.load(folder / f"{collect}-splits" / "_vog" / "scores" / split)
    assert len(scores) == SPLITS[split][0]
    assert_close(scores, one_process(folder / "replay-splits", splits()[split], batch_size=1))


@pytest.mark.parametrize("collect", ["replay", "live"])
def test_without_data_the_training_rows_are_scored_once_each(folder, collect):
    """All 53, although the trainer's own sampler gives each process 27."""
    scores = VoGScores.load(folder / f"{collect}-own-rows" / "_vog" / "scores")
    assert len(scores) == ROWS
    assert_close(scores, one_process(folder / "replay-own-rows", scored_rows(), batch_size=1))


@pytest.mark.parametrize("name", ["replay-breaks", "live-breaks"])
def test_a_row_that_breaks_on_one_process_costs_the_scores_but_not_the_training(folder, name):
    """Both processes train to the end; `scores` raises the cause on both."""
    other, own = (seen(folder, name, rank)["error"] for rank in (0, 1))
    assert own == ["NotScoredError", f"scoring failed: {UNREADABLE.format(41)}", "DataError"]
    assert other[0] == "NotScoredError"
    assert other[1].endswith(f"failed on process 1 of 2: {UNREADABLE.format(41)}")
    assert not (folder / name / "_vog" / "scores" / "manifest.json").exists()


def test_what_is_wrong_on_one_process_is_raised_on_both_before_training(folder):
    """In on_train_begin, before any step."""
    other, own = (seen(folder, "breaks-at-once", rank) for rank in (0, 1))
    assert own["error"][:2] == ["DataError", UNREADABLE.format(1)]
    assert other["error"][:2] == [
        "ProcessError",
        f"preparing to score failed on process 1 of 2: {UNREADABLE.format(1)}",
    ]
    assert own["seen"] == other["seen"] == []


@pytest.mark.parametrize("name", ["replay-other-rows", "live-other-rows"])
def test_processes_with_other_rows_get_no_scores(folder, name):
    """Both are told that the data differs."""
    for rank in (0, 1):
        kind, message, _ = seen(folder, name, rank)["error"]
        assert kind == "NotScoredError"
        assert "data" in message
    assert not (folder / name / "_vog" / "scores" / "manifest.json").exists()


def assert_close(scores, expected):
    """In float32, whose sums depend on what a row is batched with."""
    got, wanted = everything(scores), everything(expected)
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        if np.issubdtype(values.dtype, np.integer):
            np.testing.assert_array_equal(got[name], values, err_msg=name)
        else:
            tolerance = 1e-3 if name.startswith("heat map") else 1e-5
            np.testing.assert_allclose(got[name], values, rtol=1e-4, atol=tolerance * np.abs(values).max())
