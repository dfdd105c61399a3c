import io
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import run
from datasets import ClassLabel, Image, load_from_disk
from PIL import Image as PILImage
from rich.console import Console
from transformers import default_data_collator

import vog_hf
from vog_hf.cli.demo import Demo
from vog_hf.cli.demos import digits
from vog_hf.cli.demos.questions import ANSWERS
from vog_hf.demo import PLANTED_TASKS, fault_table, load_digits_dataset
from vog_hf.scores.vog_scores import VoGScores

COMMAND = [sys.executable, "-m", "vog_hf"]
N_DIGITS = 300


def run_cli(*arguments, cwd):
    """Run the command in a separate process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demo on some of the digits, for two epochs; the folder and what was printed."""
    output, printed = tmp_path_factory.mktemp("demo") / "vog-demo", io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB")]:
            patch.delenv(name)
        patch.setattr(digits, "EPOCHS", 2)
        patch.setattr(digits, "load_digits_dataset", lambda: load_digits_dataset().select(range(N_DIGITS)))
        digits.run_demo(output, console=Console(file=printed, width=200))
    return output, printed.getvalue()


def test_demo_scores_every_digit(demo):
    """The scored dataset has all digits with unchanged images and labels, and typed score columns."""
    scored = load_from_disk(str(demo[0] / "scored"))
    rows = load_digits_dataset().select(range(N_DIGITS))
    assert len(scored) == N_DIGITS
    assert isinstance(scored.features["image"], Image)
    assert isinstance(scored.features["prediction"], ClassLabel)
    assert scored["label"][:] == rows["label"][:]
    np.testing.assert_array_equal(np.asarray(scored[5]["image"]), np.asarray(rows[5]["image"]))
    assert (np.asarray(scored["vog"]) > 0).all()


def test_demo_files_agree(demo):
    """The parquet file, the saved dataset and the scores folder have the same numbers."""
    scored = load_from_disk(str(demo[0] / "scored"))
    table = pd.read_parquet(demo[0] / "scored.parquet")
    scores = VoGScores.load(demo[0] / "trainer" / "_vog" / "scores")
    np.testing.assert_array_equal(table["vog"], np.asarray(scored["vog"], dtype=np.float32))
    np.testing.assert_array_equal(table["vog"], scores.column("vog"))


def test_demo_prints_what_it_found(demo):
    """The demo prints the highest and lowest rows, the error by decile, the rank correlations and the output folder."""
    for expected in ("highest", "lowest", "10 (highest)", "gradient_magnitude", "vog-demo", "contact-sheet.png"):
        assert expected in demo[1]


def test_demo_contact_sheet_is_a_picture(demo):
    """The contact sheet opens and is not of a single color."""
    with PILImage.open(demo[0] / "contact-sheet.png") as sheet:
        assert sheet.width > sheet.height > 400
        assert len(sheet.convert("L").getcolors(maxcolors=256) or [0] * 257) > 50


def test_demo_keeps_the_run_offline(demo):
    """The W&B run lies in the output folder."""
    assert list(demo[0].glob("wandb/offline-run-*"))


@pytest.mark.slow
def test_the_command_scores_all_digits(tmp_path):
    """``vog-hf demo`` trains on the 1,797 digits, in its default output folder, and prints where the results are."""
    done = run_cli("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(load_from_disk(str(tmp_path / "vog-demo" / "scored"))) == 1797
    assert "contact-sheet.png" in done.stdout


def test_version_and_help():
    """The command line prints its version, and lists its commands without arguments."""
    assert run_cli("--version", cwd=".").stdout.strip() == vog_hf.__version__
    assert "demo" in run_cli("--help", cwd=".").stdout


def test_user_errors_are_one_line(tmp_path, capfd, monkeypatch):
    """A foreign folder is refused in one line with exit code 1, without a traceback."""
    monkeypatch.chdir(tmp_path)
    foreign = tmp_path / "vog-demo" / "trainer" / "_vog"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("mine")
    done = run(capfd, "demo")
    assert done.code == 1
    assert "did not write" in done.stderr
    assert "Traceback" not in done.stderr
    assert (foreign / "thesis.txt").read_text() == "mine"


# --- planted faults ---------------------------------------------------------------------------------------------------


def test_every_planted_task_has_its_value_of_the_option():
    """And digits, the default."""
    assert [str(task) for task in Demo] == ["digits", *PLANTED_TASKS]


@pytest.mark.parametrize("name", PLANTED_TASKS)
def test_faults_are_planted_as_their_records_say(name):
    """The same seed gives the same rows, another one others; a batch of rows passes the model with a loss."""
    task, again, other = (PLANTED_TASKS[name](seed) for seed in (0, 0, 1))
    assert task.rows.to_dict() == again.rows.to_dict() != other.rows.to_dict()
    if name == "ner":
        n_places = sum(map(len, task.rows["ner_tags"]))
    elif name == "detection":
        n_places = sum(len(objects["category"]) for objects in task.rows["objects"])
    else:
        n_places = len(task.rows)
    assert len(task.is_faulty) == n_places
    assert 0.05 < task.is_faulty.mean() < 0.15
    rows = [task.rows.with_transform(task.transform)[i] for i in range(3)]
    collate = task.collate_fn or default_data_collator
    assert torch.isfinite(task.make_model()(**collate(rows)).loss)


def test_wrong_answers_are_of_another_kind():
    """An answer is a part of its context, and of the kind that is asked for unless it is faulty."""
    questions = PLANTED_TASKS["qa"](0)
    for row, is_faulty in zip(questions.rows, questions.is_faulty, strict=True):
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        asked = next(asked for asked, answers in ANSWERS.items() if text in answers)
        assert row["question"].startswith(asked) != is_faulty


def test_the_best_column_is_first_in_the_table():
    """Constant columns, labels and predictions are not ranked."""
    task = PLANTED_TASKS["qa"](0)
    wrong = task.is_faulty.astype(np.float32)
    columns = {"vog": 1 - wrong, "loss": np.arange(len(wrong)) + 1e4 * wrong, "margin": 0 * wrong, "label": wrong}
    table = fault_table(VoGScores(columns, {}), task)
    cells = [list(column.cells) for column in table.columns]
    assert sorted(cells[0][:2]) == ["loss", "vog"]
    assert cells[0][2:] == ["random"]
    assert [cells[1][cells[0].index(name)] for name in ("vog", "loss")] == ["low values", "high values"]
    assert cells[2][:2] == ["1.00", "1.00"]
    assert cells[3][:2] == ["100%", "100%"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED_TASKS)
def test_planted_faults_are_found(name, tmp_path):
    """Some column finds most of them; the report and the scored rows are in the folder."""
    done = run_cli("demo", "--task", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (best,) = re.findall(r"│ (\w+) +│ +(?:high|low) values │ +(0\.\d+|1\.00) │", done.stdout)[:1]
    assert float(best[1]) > 0.85, done.stdout
    folder = tmp_path / "vog-demo"
    scored, task = load_from_disk(str(folder / "scored")), PLANTED_TASKS[name](0)
    assert len(scored) == len(task.rows)
    assert "vog_loss" in scored.column_names
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert list(folder.glob("wandb/offline-run-*"))
