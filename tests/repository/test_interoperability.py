"""Every snippet of docs/interoperability.md, on a scored dataset, with the real library where it is installed."""

import re
from pathlib import Path

import numpy as np
import pytest
from cli_runs import run, train_on_images

from vog_hf.scores.vog_scores import VoGScores

PAGE = (Path(__file__).parents[2] / "docs" / "interoperability.md").read_text(encoding="utf-8")
IMPORTED = {"pandas": "pandas", "polars": "polars", "DuckDB": "duckdb", "cleanlab": "cleanlab"}
IMPORTED |= {"Argilla": "argilla", "FiftyOne": "fiftyone"}


def blocks(part):
    """The python blocks of a part of the page that need no server; of the text before the first part under ""."""
    titles = ["", *re.findall(r"^## (.+)$", PAGE, re.MULTILINE)]
    parts = dict(zip(titles, re.split(r"^## .+$", PAGE, flags=re.MULTILINE), strict=True))
    found = re.findall(r"^```python\n(.*?)^```$", parts[part], re.DOTALL | re.MULTILINE)
    assert found
    return [block for block in found if not block.startswith("# Needs ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page begins with: scores and a scored dataset of a training on digits."""
    made = tmp_path_factory.mktemp("interoperability")
    return made, train_on_images(made)


@pytest.fixture
def names(folder, capfd, monkeypatch):
    """Run the blocks of a part after those before it, where the page's command has left its files; their names."""
    made, training = folder
    monkeypatch.chdir(made)
    if not Path("scores").exists():
        command = re.search(r"^```bash\nvog-hf (.+)\n```$", PAGE, re.MULTILINE)[1]
        given = [{"./outputs": training.folder, "./digits": training.data}.get(word, word) for word in command.split()]
        done = run(capfd, *given)
        assert done.code == 0, done.stderr

    def executed(part):
        pytest.importorskip(IMPORTED[part])
        found = {}
        for block in [*blocks(""), *blocks(part)]:
            exec(compile(block, f"interoperability.md, {part}", "exec"), found)  # noqa: S102 (of our own page)
        return found

    return executed


def test_every_part_is_run():
    """The page has no tool without a test here."""
    assert set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE)) == set(IMPORTED)


def test_pandas(names):
    """The table has the scores, row by row, next to the columns of the data."""
    table = names("pandas")["table"]
    np.testing.assert_array_equal(table["vog"], VoGScores.load("scores").column("vog"))
    assert {"image", "label", "loss"} <= set(table.columns)


def test_polars(names):
    """The mean of each class is that of numpy."""
    by_class = names("polars")["by_class"].collect()
    scores = VoGScores.load("scores")
    for label, vog, n_rows in by_class.iter_rows():
        of_class = scores.column("vog")[scores.column("label") == label]
        assert n_rows == len(of_class)
        np.testing.assert_allclose(vog, of_class.mean(), rtol=1e-5)
    assert len(by_class) == 10


def test_duckdb(names):
    """Both files are queried where they lie; the error is that of the last snapshot."""
    found = names("DuckDB")
    rows = found["duckdb"].sql(found["query"]).fetchall()
    scores = VoGScores.load("scores")
    wrong = scores.column("prediction") != scores.column("label")
    np.testing.assert_allclose(sum(n * error for _, n, _, error in rows) / len(scores), wrong.mean())


def test_cleanlab(names, capfd):
    """A row per row of the data, the worst ones flagged at the end that the run calls hard."""
    found = names("cleanlab")
    issues = found["lab"].get_issues("vog")
    percentile = VoGScores.load("scores").column("vog_percentile")
    assert found["end"] in ("high", "low")
    flagged = percentile > 95 if found["end"] == "high" else percentile < 5
    np.testing.assert_array_equal(issues["is_vog_issue"], flagged)
    assert flagged.sum() > 1
    assert found["lab"].get_issue_summary()["issue_type"].tolist() == ["vog"]


def test_argilla(names):
    """A record for each row, with picture, scores, and a suggestion where the model predicts another class."""
    records = names("Argilla")["records"]
    scores = VoGScores.load("scores")
    pairs = zip(scores.column("prediction"), scores.column("label"), strict=True)
    suggested = [[suggestion.value for suggestion in record.suggestions] for record in records]
    assert suggested == [[] if guess == label else [str(guess)] for guess, label in pairs]
    assert [record.metadata["vog"] for record in records] == scores.column("vog").tolist()
    assert records[0].fields["image"].size == (8, 8)


def test_fiftyone(names):
    """A sample for each row, with its fields and a picture that is there."""
    samples = names("FiftyOne")["samples"]
    scores = VoGScores.load("scores")
    assert [sample["vog"] for sample in samples] == scores.column("vog").tolist()
    assert [sample.ground_truth.label for sample in samples] == [str(label) for label in scores.column("label")]
    assert all(Path(sample.filepath).is_file() for sample in samples)
