"""fewer_snapshots, small, through its command line: its columns are those of the scorer over each subset."""

import io

import datasets
import numpy as np
import pytest
from experiments import functions_of, read_results, run_in_this_process, save_texts
from scipy.io import wavfile
from scipy.stats import spearmanr

from vog_hf import VoGConfig, VoGScorer
from vog_hf.demo import load_digits_dataset

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

ROWS, SCORED = 60, 53
SMALL = ("--epochs", "5", "--batch_size", "12", "--max_train_samples", str(ROWS), "--max_scored", str(SCORED))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A parquet file of 60 handwritten digits."""
    path = tmp_path_factory.mktemp("digits") / "digits.parquet"
    load_digits_dataset().select(range(ROWS)).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A parquet file of 60 texts of 1 to 5 words in two classes, and a folder with a tiny BERT for them."""
    words = ["bad", "poor", "dull", "good", "fine", "great"]
    sentences = [" ".join([words[i % 6]] * (1 + i % 5)) for i in range(ROWS)]
    return save_texts(tmp_path_factory.mktemp("texts"), sentences, [i % 6 // 3 for i in range(ROWS)])


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A parquet file of 60 noises of different length in three classes of loudness."""
    rng, stored = np.random.default_rng(0), []
    for i in range(ROWS):
        file = io.BytesIO()
        wavfile.write(file, 8000, (rng.normal(size=3000 + 100 * i) * 500 * (1 + i % 3)).astype(np.int16))
        stored.append({"bytes": file.getvalue(), "path": None})
    rows = datasets.Dataset.from_dict({"audio": stored, "label": [i % 3 for i in range(ROWS)]})
    path = tmp_path_factory.mktemp("sounds") / "sounds.parquet"
    rows.cast_column("label", datasets.ClassLabel(num_classes=3)).to_parquet(path)
    return path


def scored(task, model, files):
    """Scores of the first rows by `VoGScorer` from some of the snapshots."""
    config = VoGConfig(target=("logit", "loss"))
    scorer = VoGScorer(model, config=config, batch_size=20, progress=False, fold=False)
    return scorer.score(task.rows[:SCORED], files, collate_fn=task.collate)


@pytest.mark.parametrize("kind", ["scratch", "image", "text", "audio"])
def test_columns_of_a_subset_are_those_of_the_scorer(kind, digits, texts, sounds, tmp_path):
    """For each kind of rows and each subset of a training's 20 snapshots: every column, row by row.

    Batches of another size round otherwise, which switches single units close to zero: up to 0.5 % of a row.
    """
    experiment = functions_of("fewer_snapshots")
    dataset = {"text": texts[0], "audio": sounds}.get(kind, digits)
    options = {"epochs": 4, "batch_size": 12, "max_train_samples": ROWS, "max_scored": SCORED, "image_size": 32}
    weights = {"text": str(texts[1]), "image": "random"}.get(kind)
    args = experiment["Arguments"](kind, str(dataset), weights=weights, output_dir=str(tmp_path), **options)
    task = experiment["make_task"](args)
    model, files, steps = experiment["train_with_snapshots"](task, args, tmp_path / "snapshots")
    assert len(files) == len(steps) == 20
    subsets = {
        "even 20": list(range(20)),
        "even 5": experiment["chosen"]("even", 5, 20),
        "early 3": experiment["chosen"]("early", 3, 20),
    }
    found = experiment["columns_of_subsets"](model, task, files, subsets, SCORED)
    for subset, places in subsets.items():
        expected = scored(task, model, [files[place] for place in places])
        for name, values in found[subset].items():
            np.testing.assert_allclose(values, expected.column(name), rtol=5e-3, atol=1e-6, err_msg=f"{subset} {name}")


def test_the_program_reports_the_agreement_of_its_columns(digits, tmp_path, capsys):
    """Spearman and overlap follow from the stored columns; the table has a line per subset; snapshots are deleted."""
    run_in_this_process("fewer_snapshots", "--kind", "scratch", "--dataset", digits, *SMALL, "--output_dir", tmp_path)
    results, columns = read_results(tmp_path), np.load(tmp_path / "columns.npz")
    found = results["details"]["agreement"]
    assert len(found) == 12
    for subset in ("even 3", "early 10"):
        for name in ("vog", "vog_loss", "loss", "csg"):
            one, whole = columns[f"{subset} {name}"], columns[f"even 20 {name}"]
            top = set(np.argsort(-one)[:3]) & set(np.argsort(-whole)[:3])  # 5 % of 53 rows
            assert found[subset][name] == pytest.approx([spearmanr(one, whole)[0], len(top) / 3])
    assert results["headline"]["Spearman of 5 with 20, loss"] == found["even 5"]["loss"][0]
    assert len(results["details"]["steps"]) == 20
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == 13
    assert not list((tmp_path / "snapshots").glob("*.safetensors"))


def test_the_fewest_snapshots_agree_with_every_larger_number():
    """A number counts only if all larger ones agree, too; 20 if none does."""
    headline = functions_of("fewer_snapshots")["make_headline"]
    spearman = {3: 0.96, 4: 0.94, 5: 0.951, 6: 0.97, 8: 0.98, 10: 0.99}
    found = {
        f"even {n}": {"vog": [r, 1], "vog_loss": [0.9, 1], "loss": [1, 1], "csg": [r, 1]} for n, r in spearman.items()
    }
    figures = headline(found)
    assert [figures[f"snapshots for Spearman 0.95, {name}"] for name in ("vog", "vog_loss", "loss")] == [5, 20, 3]


@pytest.mark.parametrize("schedule", ["even", "early"])
@pytest.mark.parametrize("n", [3, 4, 5, 6, 8, 10, 20])
def test_a_schedule_has_as_many_snapshots_as_asked_for(schedule, n):
    """Different ones in order, the last one included; early ones come no later than even ones."""
    chosen = functions_of("fewer_snapshots")["chosen"]
    places = chosen(schedule, n, 20)
    assert len(places) == n
    assert sorted(set(places)) == places
    assert places[-1] == 19
    assert places[0] >= 0
    assert all(early <= even for early, even in zip(chosen("early", n, 20), chosen("even", n, 20), strict=True))
