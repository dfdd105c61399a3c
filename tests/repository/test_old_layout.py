"""What an earlier version wrote loads and continues; `old_layout.make` names the commit and made the folders."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from cli_hub import hub_with_commands
from datasets import load_from_disk
from hub_server import ACCEPTED
from live_cases import assert_identical
from old_layout.make import BLOCKS_BEFORE_THE_BREAK, DATA, Network, collate, live_callback, score, train
from safetensors.torch import load_file

from vog_hf import VoGScores, apply_review, write_report
from vog_hf.evaluation import PATTERNS
from vog_hf.review import Journal
from vog_hf.runtime.files import read_json
from vog_hf.scores.dataset_columns import add_vog_columns, scores_from_columns

FINISHED = 4 * BLOCKS_BEFORE_THE_BREAK  # rows whose blocks were written
NEW_COLUMNS = {"csg", "prediction_probability"}  # of scores that are computed today
NEW_TRAJECTORIES = {"csg", "loss"}
EQUAL_ELSEWHERE = {"rtol": 1e-4, "atol": 1e-6}  # processors differ in the last digits


@pytest.fixture
def old(tmp_path):
    """A copy of the folders, which a test may continue."""
    return shutil.copytree(DATA, tmp_path / "old")


def rows():
    """The rows that were scored."""
    return load_from_disk(str(DATA / "rows"))


def assert_close(scores, expected, *, new=frozenset()):
    """Every column, up to what processors differ by; some that only the scores of today have."""
    assert new <= set(scores.column_names)
    assert [name for name in scores.column_names if name not in new] == expected.column_names
    for name in expected.column_names:
        np.testing.assert_allclose(scores.column(name), expected.column(name), **EQUAL_ELSEWHERE, err_msg=name)


def test_old_scores_load_and_rank_as_they_did(old):
    """Columns, manifest, trajectories and heat maps are those that were written next to the rows."""
    scores, columns = VoGScores.load(old / "scores"), load_from_disk(str(old / "scored"))
    written = read_json(old / "scores" / "manifest.json")
    assert scores.manifest == {key: value for key, value in written.items() if key != "files"}
    assert [snapshot["step"] for snapshot in scores.manifest["snapshots"]] == [5, 10, 15, 20]
    np.testing.assert_array_equal(scores.column("vog"), columns["vog"][:])
    ranking = scores.to_pandas().sort_values("vog", ascending=False).index
    np.testing.assert_array_equal(ranking, np.argsort(-np.array(columns["vog"][:]), kind="stable"))
    assert scores.trajectory("vog").shape == (20, 4)
    np.testing.assert_allclose(scores.trajectory("vog")[:, -1], scores.column("vog"), rtol=1e-6)
    assert scores.heat_map(0).shape == (4, 4)


def test_old_scores_give_the_old_columns(old):
    """A dataset with columns that was saved holds what is made of the old scores today, and they are found in it."""
    saved = load_from_disk(str(old / "scored"))
    columns = add_vog_columns(rows(), VoGScores.load(old / "scores"), columns="all")
    new = [name for name in columns.column_names if name not in saved.column_names]
    assert new == ["learning_pattern"]
    assert set(columns["learning_pattern"][:]) <= set(PATTERNS)
    pd.testing.assert_frame_equal(columns.to_pandas().drop(columns=new), saved.to_pandas())
    found = scores_from_columns(saved)
    for name in ("vog", "vog_class_normalized", "vog_percentile", "vog_loss"):
        np.testing.assert_array_equal(found.column(name), columns[name][:], err_msg=name)


@pytest.mark.parametrize("folder", ["scores", "training/_vog/scores"])
def test_finished_old_scores_are_returned(folder, old):
    """Scoring into a finished folder reads no row and gives the scores that are there."""
    scores = score(rows(), old / "training" / "_vog", old / folder, collate_fn=collate)
    assert_identical(scores, VoGScores.load(DATA / folder))


def test_old_snapshots_are_scored_to_the_old_scores(old, tmp_path):
    """Snapshots of the callback load, and what is computed of them is what was computed then."""
    scores = score(rows(), old / "training" / "_vog", tmp_path / "new")
    assert_close(scores, VoGScores.load(old / "scores"), new=NEW_COLUMNS)
    assert set(scores.trajectory_names) - NEW_TRAJECTORIES == {"vog", "confidence", "prediction"}


def test_an_old_scoring_continues_where_it_was_interrupted(old, tmp_path, caplog):
    """Rows of finished blocks keep their old values bit by bit, and the others get those of a run without a break.

    The last bit of the latter can differ: a processor's kernels need not add in the same order in two runs.

    Columns and trajectories that the old blocks lack are left out for all rows, with a warning.
    """
    collated = []

    def noting(batch):
        collated.append(len(batch))
        return collate(batch)

    scores = score(rows(), old / "training" / "_vog", old / "interrupted", collate_fn=noting)
    fresh = score(rows(), old / "training" / "_vog", tmp_path / "fresh")
    before = VoGScores.load(old / "scores")
    for name in ("vog", "vog_loss", "vog_early", "loss", "confidence", "gradient_magnitude"):
        np.testing.assert_array_equal(scores.column(name)[:FINISHED], before.column(name)[:FINISHED], err_msg=name)
        np.testing.assert_allclose(scores.column(name)[FINISHED:], fresh.column(name)[FINISHED:], 1e-6, err_msg=name)
    assert_close(scores, before)
    assert set(scores.trajectory_names).isdisjoint(NEW_TRAJECTORIES)
    assert "csg" not in scores.manifest
    assert not list((old / "interrupted").glob(".trajectory-*"))
    (left_out,) = re.findall(r"VoG: (.*) left out, because an earlier version", caplog.text)
    assert set(left_out.split(", ")) == NEW_COLUMNS | {f"the trajectory {name}" for name in NEW_TRAJECTORIES}


@pytest.mark.slow  # two trainings
def test_an_old_live_training_resumes(old, tmp_path):
    """Moments next to an old checkpoint are restored, and the scores are those of a training without a break.

    What was not kept from the first snapshot on is left out; what the last one tells is there.
    """
    again, whole = live_callback(rows()), live_callback(rows())
    train(rows(), again, old / "live", resume=str(old / "live" / "checkpoint-10"))
    train(rows(), whole, tmp_path / "whole")
    assert [snapshot["step"] for snapshot in again.scores.manifest["snapshots"]] == [5, 10, 15, 20]
    assert_close(whole.scores, again.scores, new={"csg"})
    assert set(whole.scores.trajectory_names) - set(again.scores.trajectory_names) == NEW_TRAJECTORIES


def test_an_old_snapshot_holds_the_weights_of_the_module(old):
    """A snapshot is a file of the module's own keys, which the module itself loads."""
    for path in (old / "training" / "_vog" / "snapshots").glob("*.safetensors"):
        Network().load_state_dict(load_file(path))


def test_an_old_review_continues_and_is_applied(old):
    """Old decisions hold, new ones are added to the same journal, and all of them change the dataset."""
    scores = VoGScores.load(old / "scores")
    journal = Journal.open(old / "review.jsonl", scores)
    assert {(row, who): d.decision for (row, who), d in journal.standing().items()} == {
        (3, "Ada"): "relabel",
        (5, "Ada"): "drop",
        (6, "Bob"): "keep",
    }
    journal.decide(8, "drop", reviewer="Bob")
    reviewed = apply_review(rows(), old / "review.jsonl", scores=scores, mode="clean")
    assert len(reviewed) == 18
    assert reviewed["label"][:][3] == 0


@pytest.mark.slow  # draws every figure
def test_a_report_is_written_of_old_scores(old, tmp_path):
    """The report shows rows, heat maps and trajectories of old scores."""
    page = write_report(VoGScores.load(old / "scores"), rows(), tmp_path / "report.html")
    assert "<svg" in page.read_text() or "<img" in page.read_text()


@pytest.mark.slow  # starts a Hub and a client
def test_old_scores_are_pushed_and_come_back(old, tmp_path):
    """The Hub gets the rows with their scores, and the scores that are pulled from it are the old ones."""
    with hub_with_commands(tmp_path / "home") as (hub, command):
        pushed = command("push", old / "scores", "someone/old", "--dataset", old / "rows", token=ACCEPTED)
        assert pushed.code == 0, pushed.stderr
        for name, content in hub.dataset("someone/old").files().items():
            path = tmp_path / "repository" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    [manifest] = (tmp_path / "repository").rglob("manifest.json")
    assert_identical(VoGScores.load(manifest.parent), VoGScores.load(old / "scores"))
    data = pd.read_parquet(tmp_path / "repository" / "data" / "train-00000-of-00001.parquet")
    np.testing.assert_array_equal(data["vog"], load_from_disk(str(old / "scored"))["vog"][:])
