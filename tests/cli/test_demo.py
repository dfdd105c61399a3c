import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from cli_runs import run
from datasets import ClassLabel, Image, load_from_disk
from PIL import Image as PILImage

import vog_hf
from vog_hf.demo import load_digits_dataset
from vog_hf.scores.vog_scores import VoGScores

COMMAND = [sys.executable, "-m", "vog_hf"]


def run_cli(*arguments, cwd):
    """Run the command in a separate process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One run of the demo through the command line, with its default output folder."""
    folder = tmp_path_factory.mktemp("demo")
    done = run_cli("demo", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "vog-demo", done.stdout


def test_demo_scores_every_digit(demo):
    """The scored dataset has all 1,797 digits with unchanged images and labels, and typed score columns."""
    scored = load_from_disk(str(demo[0] / "scored"))
    digits = load_digits_dataset()
    assert len(scored) == 1797
    assert isinstance(scored.features["image"], Image)
    assert isinstance(scored.features["prediction"], ClassLabel)
    assert scored["label"][:] == digits["label"][:]
    np.testing.assert_array_equal(np.asarray(scored[5]["image"]), np.asarray(digits[5]["image"]))
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
