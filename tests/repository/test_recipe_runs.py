"""The recorded runs of the recipes and the table that is made of them."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECORDS = sorted(FOLDER.glob("results/*.json"))
RECIPE = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("--dataset", "--seed", "--output_dir"):
    parser.add_argument(name)
args = parser.parse_args()
pathlib.Path(args.output_dir).mkdir(parents=True)
value = float(pathlib.Path(args.dataset).read_text()) + int(args.seed)
pathlib.Path(args.output_dir, "results.json").write_text(json.dumps({"headline": {"auroc": value}}))
"""
RUNS = """
[mine]
recipe = "mine.py"
about = "adds"
arguments = ["--dataset", "number.txt"]
claims = [
  {says = "large", figure = "auroc", above = 1.5},
  {says = "small", figure = "auroc", below = 9},
  {says = "huge", figure = "auroc", above = 9},
]
"""


@pytest.fixture
def runner(tmp_path):
    """runs.py in a folder of its own, with a recipe that adds its seed to the number in a data file."""
    for name, text in {"runs.toml": RUNS, "mine.py": RECIPE, "runs.py": (FOLDER / "runs.py").read_text()}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "number.txt").write_text("0.5")
    (tmp_path / "README.md").write_text("before\n<!-- table by runs.py: begin --><!-- table by runs.py: end -->\nafter")

    def run(*arguments):
        command = [sys.executable, str(tmp_path / "runs.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return SimpleNamespace(folder=tmp_path, run=run)


def record(runner, *options, hardware="an abacus"):
    """Run the recipe of the fixture for all its seeds, or those of the options."""
    return runner.run("run", "mine", "--data", str(runner.folder / "data"), "--hardware", hardware, *options)


def recorded_seeds(runner):
    """The seeds that the record holds."""
    return [seed["seed"] for seed in json.loads((runner.folder / "results" / "mine.json").read_text())["seeds"]]


def test_run_records_each_seed(runner):
    """A run is started in the data folder once per seed; its record says how, on what, and what came out."""
    done = record(runner)
    assert done.returncode == 0, done.stderr
    found = json.loads((runner.folder / "results" / "mine.json").read_text())
    assert [seed["headline"]["auroc"] for seed in found["seeds"]] == [0.5, 1.5, 2.5]
    assert all(seed["seconds"] >= 0 for seed in found["seeds"])  # rounded to a tenth
    assert found["hardware"] == "an abacus"
    assert {"python", "torch", "vog-hf"} <= set(found["versions"])
    assert not list((runner.folder / "data").glob("mine*"))


def test_table_says_where_a_claim_is_contradicted(runner):
    """The table has mean and range over the seeds, and for each claim whether it held and by how much."""
    record(runner)
    text = (runner.folder / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert "auroc: 1.500 (0.500 to 2.500)" in text
    # scipy.stats.t.interval(0.95, 2, 0, 1 / 3 ** 0.5): 2.484
    assert "large: cannot be told from these seeds; auroc, less 1.5: +0.000 (-2.484 to +2.484)" in text
    assert "small: holds; auroc, less 9: -7.500 (-9.984 to -5.016)" in text
    assert "huge: **contradicted**; auroc, less 9: -7.500 (-9.984 to -5.016)" in text
    assert "python recipes/mine.py --dataset number.txt" in text
    assert str(runner.folder) not in text


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("mine.py", "raise SystemExit(3)", "ended with 3; nothing was recorded of it"),
        (
            "mine.py",
            RECIPE.replace('{"auroc": value}', '{"auroc": float("nan")}'),
            "finite numbers, got {'auroc': nan}",
        ),
        ("runs.toml", "", r"not in runs.toml: \['mine'\]"),
        ("README.md", "", "README.md must hold <!-- table"),
    ],
)
def test_a_run_that_fails_is_not_recorded(runner, file, text, message):
    """A recipe that fails or gives no figures, an unknown run, a README without markers: one line."""
    (runner.folder / file).write_text(text)
    done = record(runner)
    assert done.returncode == 1
    assert re.search(message, done.stderr.splitlines()[-1])
    assert file == "README.md" or not (runner.folder / "results").exists()


def test_a_failure_costs_one_seed(runner):
    """What was recorded before a seed that fails stays, and the others can be added; other hardware begins anew."""
    (runner.folder / "mine.py").write_text(RECIPE + "assert args.seed != '1'")
    assert "ended with 1; nothing was recorded of it" in record(runner).stderr
    assert recorded_seeds(runner) == [0]
    (runner.folder / "mine.py").write_text(RECIPE)
    assert record(runner, "--seeds", "2", "1").returncode == 0
    assert recorded_seeds(runner) == [0, 1, 2]
    assert record(runner, "--seeds", "1", hardware="two abaci").returncode == 0
    assert recorded_seeds(runner) == [1]


def test_what_a_run_reads_is_made_first(runner):
    """Once, in the data folder; where it fails nothing is left that a later run would take for it."""
    first = '[mine]\nfirst = {recipe = "first.py", arguments = [], output = "made"}'
    (runner.folder / "runs.toml").write_text(RUNS.replace("[mine]", first))
    making = "import pathlib, sys\nfolder = pathlib.Path(sys.argv[-1]); folder.mkdir()\n"
    (runner.folder / "first.py").write_text(making + "raise SystemExit(4)")
    assert "ended with 4" in record(runner).stderr
    assert not (runner.folder / "data" / "made").exists()
    shutil.rmtree(runner.folder / "data" / "made.part")
    (runner.folder / "first.py").write_text(making)
    assert record(runner).returncode == 0
    assert (runner.folder / "data" / "made").is_dir()
    assert "python recipes/first.py --output_dir made\n" in (runner.folder / "README.md").read_text()


def test_one_seed_judges_nothing(runner):
    """A claim about a single seed is left open."""
    record(runner, "--seeds", "0")
    assert "large: one seed, cannot be told; auroc, less 1.5: -1.000" in (runner.folder / "README.md").read_text()


def test_a_record_of_other_arguments_is_refused(runner):
    """Where runs.toml has changed since, no table is written from the old record."""
    record(runner)
    (runner.folder / "runs.toml").write_text(RUNS.replace("number.txt", "other.txt"))
    done = runner.run("table")
    assert done.returncode == 1
    assert "results/mine.json is of other arguments" in done.stderr


def test_table_of_the_readme_is_what_was_recorded():
    """README.md has the table that results/ and runs.toml give; every recipe has a run, and each run a record."""
    runs = runpy.run_path(str(FOLDER / "runs.py"))
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert runs["with_table"](text, runs["make_table"]()) == text
    assert {path.stem for path in RECORDS} == set(runs["read_runs"]())
    recipes = {path.name for path in FOLDER.glob("*.py")} - {"runs.py"}
    assert {run["recipe"] for run in runs["read_runs"]().values()} == recipes


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_recorded_options_exist(path, monkeypatch, capsys):
    """The recipe's own help knows every option of a recorded command."""
    found = json.loads(path.read_text(encoding="utf-8"))
    recipe = FOLDER / found["recipe"]
    monkeypatch.setattr(sys, "argv", [str(recipe), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(recipe), run_name="__main__")
    assert stopped.value.code == 0
    options = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert {argument for argument in found["arguments"] if argument.startswith("--")} <= options
