"""The recorded runs of the recipes and the table that is made of them."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from experiments import functions_of

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FOLDER = RECIPES / "experiments"
RECORDS = sorted(FOLDER.glob("results/*.json"))
NOT_RECORDED = {"instruction_tuning_lora"}  # FINDINGS.md has the figures of an earlier version
NOT_RUN = {"experiments/runs.py", "experiments/paper_training.py"} | {
    f"experiments/{name}.py"
    for name in ("image_training", "fast_training", "pretrained_models", "c_scores", "regime_tables")
}
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
    folder = tmp_path / "recipes" / "experiments"
    folder.mkdir(parents=True)
    for program in ("runs.py", "regime_tables.py"):
        shutil.copy(FOLDER / program, folder)
    (folder / "runs.toml").write_text(RUNS)
    (tmp_path / "recipes" / "mine.py").write_text(RECIPE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "number.txt").write_text("0.5")

    def run(*arguments):
        command = [sys.executable, str(folder / "runs.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    page = folder / "results" / "README.md"
    return SimpleNamespace(folder=folder, recipes=tmp_path / "recipes", data=tmp_path / "data", page=page, run=run)


def record(runner, *options, hardware="an abacus"):
    """Run the recipe of the fixture for all its seeds, or those of the options."""
    return runner.run("run", "mine", "--data", str(runner.data), "--hardware", hardware, *options)


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
    assert not list(runner.data.glob("mine*"))


def test_table_says_where_a_claim_is_contradicted(runner):
    """The table has mean and range over the seeds, and for each claim whether it held and by how much."""
    record(runner)
    text = runner.page.read_text()
    assert text.startswith("# Results\n")
    assert "auroc: 1.500 (0.500 to 2.500)" in text
    # scipy.stats.t.interval(0.95, 2, 0, 1 / 3 ** 0.5): 2.484
    assert "large: cannot be told from these seeds; auroc, less 1.5: +0.000 (-2.484 to +2.484)" in text
    assert "small: holds; auroc, less 9: -7.500 (-9.984 to -5.016)" in text
    assert "huge: **contradicted**; auroc, less 9: -7.500 (-9.984 to -5.016)" in text
    assert "python recipes/mine.py --dataset number.txt" in text
    assert str(runner.recipes) not in text


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("mine.py", "raise SystemExit(3)", "ended with 3; nothing was recorded of it"),
        (
            "mine.py",
            RECIPE.replace('{"auroc": value}', '{"auroc": float("nan")}'),
            "finite numbers, got {'auroc': nan}",
        ),
        ("experiments/runs.toml", "", r"not in runs.toml: \['mine'\]"),
    ],
)
def test_a_run_that_fails_is_not_recorded(runner, file, text, message):
    """A recipe that fails or gives no figures, or an unknown run: one line."""
    (runner.recipes / file).write_text(text)
    done = record(runner)
    assert done.returncode == 1
    assert re.search(message, done.stderr.splitlines()[-1])
    assert not (runner.folder / "results").exists()


def test_a_failure_costs_one_seed(runner):
    """What was recorded before a seed that fails stays, and the others can be added; other hardware begins again."""
    (runner.recipes / "mine.py").write_text(RECIPE + "assert args.seed != '1'")
    assert "ended with 1; nothing was recorded of it" in record(runner).stderr
    assert recorded_seeds(runner) == [0]
    (runner.recipes / "mine.py").write_text(RECIPE)
    assert record(runner, "--seeds", "2", "1").returncode == 0
    assert recorded_seeds(runner) == [0, 1, 2]
    assert record(runner, "--seeds", "1", hardware="two abaci").returncode == 0
    assert recorded_seeds(runner) == [1]


def test_what_a_run_reads_is_made_first(runner):
    """Once, in the data folder; where it fails nothing is left that a later run would take for it."""
    first = '[mine]\nfirst = {recipe = "first.py", arguments = [], output = "made"}'
    (runner.folder / "runs.toml").write_text(RUNS.replace("[mine]", first))
    making = "import pathlib, sys\nfolder = pathlib.Path(sys.argv[-1]); folder.mkdir()\n"
    (runner.recipes / "first.py").write_text(making + "raise SystemExit(4)")
    assert "ended with 4" in record(runner).stderr
    assert not (runner.data / "made").exists()
    shutil.rmtree(runner.data / "made.part")
    (runner.recipes / "first.py").write_text(making)
    assert record(runner).returncode == 0
    assert (runner.data / "made").is_dir()
    assert "python recipes/first.py --output_dir made\n" in runner.page.read_text()


def test_the_figures_of_a_recipe_are_those_of_its_rows(tmp_path):
    """Without a results.json they are computed from the scored rows: accuracy, errors, detection."""
    loss = np.arange(20.0)
    table = {"label": [0] * 20, "prediction": [0] * 15 + [1] * 5, "correctness": [1.0] * 15 + [0.0] * 5, "loss": loss}
    table |= {"vog": loss[::-1], "vog_class_normalized": loss[::-1], "gradient_magnitude": loss}
    pd.DataFrame({**table, "is_corrupted": loss > 17}).to_parquet(tmp_path / "scored.parquet")
    (tmp_path / "eval_results.json").write_text('{"eval_accuracy": 0.25}')
    assert functions_of("runs")["figures_of"](tmp_path) == pytest.approx(
        {
            "accuracy on the training rows": 0.75,
            "accuracy on the evaluation rows": 0.25,
            "training error, lowest tenth by vog_class_normalized": 1,
            "training error, highest tenth by vog_class_normalized": 0,
            "training error, lowest tenth by loss": 0,
            "training error, highest tenth by loss": 1,
            "AUROC of high vog for wrong rows": 0,
            "AUROC of high gradient_magnitude for wrong rows": 1,
            "AUROC of high loss for wrong rows": 1,
            "rank correlation of vog with gradient_magnitude": -1,
            "rank correlation of vog with loss": -1,
        }
    )


def test_one_seed_judges_nothing(runner):
    """A claim about a single seed is left open."""
    record(runner, "--seeds", "0")
    assert "large: one seed, cannot be told; auroc, less 1.5: -1.000" in runner.page.read_text()


def test_a_record_of_other_arguments_is_refused(runner):
    """Where runs.toml has changed since, no table is written from the old record."""
    record(runner)
    (runner.folder / "runs.toml").write_text(RUNS.replace("number.txt", "other.txt"))
    done = runner.run("table")
    assert done.returncode == 1
    assert "results/mine.json is of other arguments" in done.stderr


def test_the_page_is_what_was_recorded():
    """The page of results is what its records and runs.toml give; every program that needs no GPU has a run."""
    runs = functions_of("runs")
    assert (FOLDER / "results" / "README.md").read_text(encoding="utf-8") == runs["make_page"]()
    by_regime = runs["make_regimes_page"](runs["detailed_records"]())
    assert (FOLDER / "results" / "regimes.md").read_text(encoding="utf-8") == by_regime
    assert {path.stem for path in RECORDS} == set(runs["read_runs"]()) - NOT_RECORDED
    programs = {str(path.relative_to(RECIPES)) for path in [*RECIPES.glob("*.py"), *FOLDER.glob("*.py")]}
    listed = [program["recipe"] for run in runs["read_runs"]().values() for program in (run, run.get("first", run))]
    assert set(listed) == programs - NOT_RUN


def test_the_benchmarks_have_the_table_of_subsets():
    """The tables of fewer snapshots among the benchmarks are those of the records."""
    runs = functions_of("runs")
    records = {name: r for name, r in runs["detailed_records"]().items() if name.startswith("fewer_snapshots_")}
    lines = functions_of("regime_tables")["subset_tables"](records)
    assert len(lines) > 20
    page = (FOLDER.parents[1] / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert "\n".join(lines).rstrip() in page


def test_readmes_are_one_screen():
    """A person who opens either folder sees all of its page at once; long tables have pages of their own."""
    for folder in (RECIPES, FOLDER):
        assert len((folder / "README.md").read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_recorded_options_exist(path, monkeypatch, capsys):
    """The recipe's own help knows every option of a recorded command."""
    found = json.loads(path.read_text(encoding="utf-8"))
    recipe = RECIPES / found["recipe"]
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [str(recipe), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(recipe), run_name="__main__")
    assert stopped.value.code == 0
    options = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert {argument for argument in found["arguments"] if argument.startswith("--")} <= options
