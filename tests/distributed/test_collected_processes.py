"""`collect="training"` on two processes: each row's values are those of the process that trained on it."""

import importlib.util
import shutil

import models
import numpy as np
import pytest
from collect_rows import EVEN, TRAININGS, ZERO
from collected import case_of, labeled
from launch import run

from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.scorer import VoGScorer

pytestmark = pytest.mark.slow  # seven launches


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of trainings on one process (only the one that must be equal) and on two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run("collect_rows.py", one, "even")
    run("collect_rows.py", two, *TRAININGS, processes=2)
    return one, two


def scores_in(folder, name):
    """The scores of one training."""
    return VoGScores.load(folder / name / "_vog" / "scores")


@pytest.mark.parametrize("name", TRAININGS)
def test_values_are_those_of_a_loop_over_the_batches_of_all_processes(folders, name):
    """Also where copies of rows fill up the last batches, one process sends all batches, or the model is sharded."""
    scores, found = scores_in(folders[1], name), np.load(folders[1] / f"{name}.npz")
    assert scores.manifest["n_processes"] == 2
    assert (scores.column("observations") == 2).all()
    for column in ("loss", "csg", "confidence"):
        np.testing.assert_allclose(scores.trajectory(column), found[column], rtol=1e-6, atol=1e-12, err_msg=column)
    np.testing.assert_allclose(scores.column("vog_loss"), found["vog_loss"], rtol=1e-6, atol=1e-12)


@pytest.fixture(scope="module", params=[2, 3])
def zero_folder(request, tmp_path_factory):
    """A ZeRO stage, and the folder of its trainings on two processes."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    folder = tmp_path_factory.mktemp("zero")
    run("collect_rows.py", folder, *(name for name in ZERO if name.startswith(f"ZeRO-{request.param}")), processes=2)
    return request.param, folder


@pytest.mark.parametrize("case", ["bert", "vit", "lora_bert", "llama"])
def test_values_under_deepspeed_are_those_of_a_loop(case, zero_folder):
    """Trainer's `deepspeed=`, in float32: the model is whole (stage 2), or its parameters are sharded (stage 3)."""
    stage, folder = zero_folder
    name = f"ZeRO-{stage} {case}"
    scores, found = scores_in(folder, name), np.load(folder / f"{name}.npz")
    assert scores.manifest["n_processes"] == 2
    assert (scores.column("observations") == 2).all()
    for column, near in (("loss", 1e-6), ("csg", 1e-5), ("confidence", 1e-6)):
        np.testing.assert_allclose(scores.trajectory(column), found[column], rtol=near, atol=1e-9, err_msg=column)
    np.testing.assert_allclose(scores.column("vog_loss"), found["vog_loss"], rtol=1e-5, atol=1e-9)


def test_a_replay_under_deepspeed_has_the_scores_of_one_process(zero_folder):
    """Snapshots of Trainer's sharded model are whole, and copies on two processes score as one model."""
    stage, folder = zero_folder
    replayed, case = folder / f"ZeRO-{stage} bert replay", case_of("bert", EVEN)
    scores, alone = VoGScores.load(replayed / "scores"), VoGScorer(case.model.float(), progress=False)
    expected = alone.score(labeled(case), replayed / "snapshots", collate_fn=models.collate)
    assert scores.manifest["n_processes"] == 2
    assert [snapshot["step"] for snapshot in scores.manifest["snapshots"]] == [1, 2, 3, 4, 5, 6]
    assert (scores.column("vog") > 0).all()
    for name in expected.column_names:
        np.testing.assert_allclose(scores.column(name), expected.column(name), rtol=1e-5, atol=1e-9, err_msg=name)


def test_two_processes_give_the_columns_of_one(folders):
    """The batches of both together are those of one process, and so are all columns."""
    one, two = (scores_in(folder, "even") for folder in folders)
    assert one.manifest["n_processes"] == 1
    assert one.column_names == two.column_names
    for name in one.column_names:
        np.testing.assert_allclose(two.column(name), one.column(name), rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_resumed_training_has_the_uninterrupted_columns(tmp_path):
    """Cut within an epoch on two processes, resumed on two, bit by bit, or on one, within rounding."""
    run("resume_rows.py", tmp_path / "whole", "whole", processes=2)
    run("resume_rows.py", tmp_path / "two", "cut", processes=2)
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    for name, processes in (("two", 2), ("one", None)):
        run("resume_rows.py", tmp_path / name, "resumed", processes=processes)
        whole, resumed = (VoGScores.load(tmp_path / folder / "_vog" / "scores") for folder in ("whole", name))
        assert "vog_loss" in whole.column_names
        assert resumed.column_names == whole.column_names
        tolerance = 0 if processes else 1e-6
        for column in whole.column_names:
            np.testing.assert_allclose(
                resumed.column(column), whole.column(column), rtol=tolerance, atol=tolerance, err_msg=column
            )


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_training_under_deepspeed_has_the_uninterrupted_columns(tmp_path, stage):
    """Cut within an epoch and resumed on two processes from DeepSpeed's own checkpoint, bit by bit."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    for name, how in (("whole", "whole"), ("two", "cut"), ("two", "resumed")):
        run("resume_rows.py", tmp_path / name, how, stage, processes=2)
    whole, resumed = (VoGScores.load(tmp_path / name / "_vog" / "scores") for name in ("whole", "two"))
    assert "vog_loss" in whole.column_names
    assert resumed.column_names == whole.column_names
    for column in whole.column_names:
        np.testing.assert_array_equal(resumed.column(column), whole.column(column), err_msg=column)
