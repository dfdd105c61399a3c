"""Scores in Trackio: what the real client stored is read back."""

import html
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers
from packaging.version import Version
from PIL import Image
from test_log_scores import NAMES, N, make_images, make_scores
from trainers import digits, plain, trained

from vog_hf import VoGCallback, write_report
from vog_hf.errors import ConfigError
from vog_hf.evaluation import error_by_decile, hard_tail
from vog_hf.runtime.files import read_json
from vog_hf.scores.pictures import overlay
from vog_hf.scores.ranking import most_extreme
from vog_hf.tracking import log_scores
from vog_hf.tracking.media import Table

trackio = pytest.importorskip("trackio")
from trackio.sqlite_storage import SQLiteStorage  # noqa: E402 (only where the extra is installed)
from trackio.utils import MEDIA_DIR  # noqa: E402


@pytest.fixture
def project(request):
    """A project of its own, deleted afterwards; the folder of all projects is the session's (see conftest)."""
    yield request.node.name[:60]
    trackio.delete_project(request.node.name[:60], force=True)


def read_back(project):
    """The records of the only run that hold scores."""
    (run,) = SQLiteStorage.get_runs(project)
    return run, [record for record in SQLiteStorage.get_logs(project, run) if "vog/n_rows" in record]


def page(record, key):
    """A page as it lies on disk."""
    assert record[key]["_type"] == "trackio.html"
    return (MEDIA_DIR / record[key]["file_path"]).read_text(encoding="utf-8")


def about(record):
    """The text of the first panel, which is a page."""
    return html.unescape(page(record, "vog/about"))


def cells(record, key):
    """A table, line by line."""
    assert record[key]["_type"] == "trackio.table"
    return record[key]["_value"]


def test_the_same_rows_and_numbers_as_in_weights_and_biases(project):
    """Tables with pictures under heat maps, deciles, histogram, scalars, and in words which end is hard."""
    scores = make_scores()
    trackio.init(project=project, auto_log_cpu=False)
    assert log_scores(scores, make_images(), to="trackio", step=12, top_k=7) is True
    trackio.finish()
    _, (record,) = read_back(project)
    assert record["train/global_step"] == 12
    rows = most_extreme(scores, "vog_class_normalized", 7)[0]
    table = cells(record, "vog/highest")
    assert [line["row"] for line in table] == rows.tolist()
    for line, row in zip(table, rows, strict=True):
        assert list(line)[-2:] == ["vog_class_normalized", "row"]
        loss = float(scores.column("loss")[row])
        assert line["loss"] == float(f"{loss:.4g}"), "four digits are read more easily"
        given = scores.column("label")[row]
        assert line["label"] == (NAMES[given] if given >= 0 else None)
        plain_picture = Image.new("RGB", (96, 96), (4 * row, 100, 255 - 4 * row))
        heat = overlay(plain_picture, scores.heat_map(int(row)))
        for name, expected in (("image", plain_picture), ("heat_map", heat)):
            with Image.open(MEDIA_DIR / line[name]["file_path"]) as picture:
                assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(expected))
    known = scores.column("label") >= 0
    wrong = (scores.column("prediction") != scores.column("label"))[known]
    expected = error_by_decile(scores.column("vog_class_normalized")[known], wrong)
    errors = [line["error"] for line in cells(record, "vog/error_by_decile")]
    assert errors == pytest.approx(expected["error"].tolist(), rel=1e-3)
    assert [line["decile (1 = lowest)"] for line in cells(record, "vog/early_late_chart")] == list(range(1, 11))
    assert sum(record["vog/histogram"]["values"]) == N
    assert record["vog/mean"] == pytest.approx(scores.column("vog").mean())
    assert hard_tail(scores).headline in about(record)
    assert {"vog/data_map", "vog/contact_sheet"} <= record.keys()
    assert [key for key in record if key.startswith("vog/")][-2:] == ["vog/review_first", "vog/about"], (
        "the dashboard shows first what was logged last"
    )


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.6"), reason="this transformers asks for a token of the Hub"
)
def test_a_trainer_that_reports_to_trackio(project, tmp_path):
    """Trainer finishes its run before training ends for callbacks; it is taken up again, and finished again."""
    rows = digits().with_transform(plain)
    callback = VoGCallback(rows, collect="live", snapshots="epoch", top_k=5)
    trained(tmp_path, [callback], report_to="trackio", project=project, num_train_epochs=4)
    assert trackio.context_vars.current_run.get() is None
    run, records = read_back(project)
    assert [record["train/global_step"] for record in records] == [8, 12, 16]
    assert [record["vog/n_snapshots"] for record in records] == [2, 3, 4]
    assert records[-1]["vog/mean"] == pytest.approx(callback.scores.column("vog").mean())
    assert hard_tail(callback.scores).headline in about(records[-1])
    assert ["vog/report" in record for record in records] == [False, False, True]
    assert page(records[-1], "vog/report") == write_report(callback.scores, rows, tmp_path / "report.html").read_text()
    assert [artifact["name"] for artifact in SQLiteStorage.get_artifacts(project)] == [f"vog-scores-{run}"]
    assert SQLiteStorage.get_run_config(project, run)["num_train_epochs"] == 4, "what Trainer said of its run stays"


def test_the_scores_are_an_artifact(project, tmp_path):
    """The artifact has the table and the manifest; it is read back through the client."""
    scores = make_scores()
    trackio.init(project=project, name="a run 1", auto_log_cpu=False)
    log_scores(scores, None, to="trackio")
    folder = trackio.use_artifact("vog-scores-a_run_1:latest").download(tmp_path / "scores")
    trackio.finish()
    table = pq.read_table(f"{folder}/scores.parquet")
    assert np.array_equal(table["vog"].to_numpy(), scores.column("vog"))
    assert read_json(tmp_path / "scores" / "manifest.json")["format"] == scores.manifest["format"]


def test_sounds_have_players(project):
    """Each of the first rows with a sound has a player of its own: cells of the dashboard's tables cannot play."""
    tone = {"array": [0.0, 0.5, -0.5], "sampling_rate": 8000}
    trackio.init(project=project, auto_log_cpu=False)
    log_scores(make_scores(heat_maps=False), [{"audio": tone}] * N, to="trackio", top_k=3)
    trackio.finish()
    _, (record,) = read_back(project)
    players = {key: value for key, value in record.items() if key.startswith("vog/highest_sounds/")}
    rows = [line["row"] for line in cells(record, "vog/highest")]
    assert list(reversed(players)) == [f"vog/highest_sounds/{place:02d} row {row}" for place, row in enumerate(rows, 1)]
    for player in players.values():
        assert player["_type"] == "trackio.audio"
        assert (MEDIA_DIR / player["file_path"]).read_bytes()[8:12] == b"WAVE"
    assert "sound" not in cells(record, "vog/highest")[0]
    assert "<code>row</code>" in about(record)
    assert "<code>sound</code>" not in about(record), "the legend is that of the tables as they are here"


def test_without_a_run(caplog):
    """One line says how to get one, in Trackio's words."""
    assert log_scores(make_scores(), None, to="trackio") is False
    assert "trackio.init(project=...)" in caplog.text


def test_the_extra_that_is_missing(monkeypatch):
    """What to install is said where Trackio cannot be imported."""
    monkeypatch.setitem(sys.modules, "trackio", None)
    from vog_hf.tracking.trackio_backend import translated

    with pytest.raises(ConfigError, match=r"pip install 'vog_hf\[trackio\]'"):
        translated({"table": Table({"row": [0]})})
