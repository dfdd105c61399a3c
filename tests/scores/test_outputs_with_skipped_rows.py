"""Every output of scores in which some rows were skipped (on_error="skip"): left out, last, or without a value."""

from functools import partial

import numpy as np
import pytest
import torch
from cli_runs import run, train_on_images
from datasets import Image, load_from_disk
from hub_client import HubClient
from hub_server import HubServer
from torch import nn
from trainers import digits, network, plain, trained

from vog_hf import VoGCallback, VoGConfig, VoGScorer
from vog_hf.errors import RowMismatchError
from vog_hf.evaluation import hard_tail, recommended_ranking
from vog_hf.hub.card import describe_split
from vog_hf.review import Filter, Journal, Queue, apply_review
from vog_hf.review.service import ReviewService
from vog_hf.scores import VoGScores, add_vog_columns, most_extreme
from vog_hf.scores.findings import Findings
from vog_hf.scores.pictures.contact_sheet import contact_sheet
from vog_hf.scores.ranking import row_values
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.tracking.contents import contents

N_ROWS = 60
BAD = [3, 17, 20, 29, 52]
GOOD = [row for row in range(N_ROWS) if row not in BAD]


class Digits(nn.Module):
    """Two layers on the pixels of a digit."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 10))

    def forward(self, pixel_values):
        return {"logits": self.layers(pixel_values)}


def made_rows():
    """Digits with their number, of which some are known to be mislabeled."""
    rows = digits(N_ROWS).add_column("number", list(range(N_ROWS)))
    return rows.add_column("is_corrupted", [row % 4 == 0 for row in range(N_ROWS)])


def collate(rows, bad=BAD):
    """A batch of pixels and labels; some rows cannot be collated."""
    if any(row["number"] in bad for row in rows):
        raise RuntimeError("a broken row")
    inputs = plain({name: [row[name] for row in rows] for name in ("image", "label")})
    return {"pixel_values": torch.stack(inputs["pixel_values"]), "labels": torch.tensor(inputs["labels"])}


def score(folder, *, seed=0, bad=BAD):
    """Scores of the digits from five random snapshots, in a folder."""
    torch.manual_seed(seed)
    model = Digits()
    model(torch.zeros(1, 1, 16, 16))
    states = [(f"s{k}", {n: torch.randn_like(p) / 8 for n, p in model.state_dict().items()}) for k in range(5)]
    config = VoGConfig(target=("logit", "loss"))
    scorer = VoGScorer(model, config=config, batch_size=16, progress=False, on_error="skip")
    return scorer.score(made_rows(), states, collate_fn=partial(collate, bad=bad), output_dir=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of scores with skipped rows."""
    path = tmp_path_factory.mktemp("scores") / "skipped"
    score(path)
    return path


@pytest.fixture(scope="module")
def scores(folder):
    """The scores with skipped rows."""
    return VoGScores.load(folder)


@pytest.fixture(scope="module")
def split(scores):
    """The scores with their rows."""
    return ScoredSplit("train", scores, made_rows())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with scores of all the same rows."""
    path = tmp_path_factory.mktemp("scores") / "whole"
    score(path, seed=1, bad=())
    return path


def test_compare_leaves_them_out(capfd, folder, whole):
    """`compare` ranks the rows that are scored in both, in either order, and counts the others."""
    for a, b in ((folder, whole), (whole, folder), (folder, folder)):
        values = run(capfd, "compare", a, b, "--json", "--top", "60").values
        assert (values["n_rows"], values["n_left_out"]) == (60, 5)
        assert not {mover["row"] for mover in values["movers"]} & {*BAD}
    shown = run(capfd, "compare", folder, whole).stdout
    assert "vog_class_normalized of 55 rows" in shown
    assert "Left out 5 of 60 rows without a finite value in both" in shown
    assert run(capfd, "compare", folder, whole, "--json", "--column", "forgetting").values["n_left_out"] == 5
    assert "Left out" not in run(capfd, "compare", whole, whole).stdout


def test_rows_of_compare_keep_their_numbers(capfd, folder, whole, scores):
    """A row behind a skipped one is named by its own number, with its own label and change of rank."""
    first = run(capfd, "compare", folder, whole, "--json").values["movers"][0]
    other = VoGScores.load(whole)
    ranks = [np.argsort(np.argsort(s.column("vog_class_normalized")[GOOD])) for s in (scores, other)]
    change = 100 * (ranks[1] - ranks[0]) / len(GOOD)
    most = np.abs(change).argmax()
    assert abs(first["change"]) == pytest.approx(abs(change[most]))
    assert first["change"] == pytest.approx(change[GOOD.index(first["row"])])
    assert first["label"] == str(made_rows()[first["row"]]["label"])


def test_info_counts_them(capfd, folder, whole):
    """`info` names the rows without a score, each with its reason, and says nothing about them where there are none."""
    shown = run(capfd, "info", folder).stdout
    assert "rows without a score: 5 (row 3: collating 2 rows with keys ['image'," in shown
    listed = run(capfd, "info", folder, "--json").values["scores"]["skipped"]
    assert [entry["row"] for entry in listed["rows"]] == BAD
    assert all("failed: RuntimeError: a broken row." in entry["reason"] for entry in listed["rows"])
    assert "rows without a score" not in run(capfd, "info", whole).stdout


def test_a_whole_number_of_a_row_without_vog_stays():
    """Only -1 in a row without a score is not a value: other whole numbers, and a -1 in a scored row, are ranked."""
    columns = {"vog": np.array([0.1, np.nan, np.nan, 0.2]), "forgetting": np.array([-1, 5, -1, 0])}
    scores = VoGScores(columns, {})
    assert row_values(scores, "forgetting", [0, 1, 2, 3]) == [-1, 5, None, 0]
    assert most_extreme(scores, "forgetting", 4)[1].tolist() == [0, 3, 1, 2]


def test_findings_are_those_of_the_other_rows(scores, split):
    """Verdict, recommendation, deciles, detection, classes and stability equal those of the good rows alone."""
    alone = Findings(ScoredSplit("train", scores.select(GOOD), made_rows().select(GOOD)))
    findings = Findings(split)
    for name in ("deciles", "early_late", "correlations", "detection", "classes", "stability"):
        values = getattr(alone, name)
        assert values is not None, name
        assert values.equals(getattr(findings, name)), name
    assert findings.tail == alone.tail
    assert "csg" in findings.detection["column"].tolist()
    assert "csg" in findings.correlations
    assert findings.learning_patterns["rows"].sum() == len(GOOD)
    assert alone.learning_patterns.equals(findings.learning_patterns)
    assert str(findings.recommended) == str(alone.recommended)
    assert hard_tail(scores, column="loss").measures == hard_tail(scores.select(GOOD), column="loss").measures


def test_a_selection_does_not_list_them(scores):
    """Row numbers of skipped rows belong to all rows, so a selection drops their list."""
    assert scores.facts.n_skipped == 5
    assert scores.select(GOOD).facts.n_skipped == 0


def test_known_rows_among_them_say_nothing():
    """A skipped row that is known to be wrong does not exclude every column from the recommendation."""
    wrong = np.arange(60) < 15
    columns = {"vog": np.where(wrong, 2.0, 1.0), "loss": np.linspace(1, 2, 60), "forgetting": np.arange(60) % 3}
    for name, values in columns.items():
        values[BAD] = -1 if name == "forgetting" else np.nan
    found = recommended_ranking(columns, known_wrong=wrong)
    assert str(found).startswith("Start with vog, highest first: it finds the 14 rows known to be wrong best of 3")


@pytest.mark.parametrize("column", ["vog", "loss", "forgetting"])
@pytest.mark.parametrize("tail", ["highest", "lowest"])
def test_they_come_last(scores, column, tail):
    """Orders by any column, whole numbers too, have the skipped rows last from both ends."""
    queue = Queue(scores)
    assert queue.rows(Filter(order=column, tail=tail))[-5:].tolist() == BAD
    assert not {*queue.rows(Filter(order=column, percentile=(0, 99.9)))} & {*BAD}
    assert most_extreme(scores, column, 60)[tail == "lowest"][-5:].tolist() == BAD
    assert row_values(scores, column, BAD) == [None] * 5


def test_filters_of_the_queue(scores):
    """Skipped rows have no class and no prediction: they are not mismatched, and are found as rows without a label."""
    queue = Queue(scores)
    assert not {*queue.rows(Filter(mismatched=True))} & {*BAD}
    assert queue.rows(Filter(classes=(-1,))).tolist() == BAD
    assert set(queue.neighbors(BAD[0], Filter())) <= {*BAD}


def test_the_review_shows_and_decides_them(split, tmp_path):
    """The start queue ends with them; such a row is shown without values, can be decided about, and dropped."""
    path = tmp_path / "journal.jsonl"
    desk = ReviewService(split, Journal.open(path, split.scores))
    start = desk.about({})["start"]
    asked = {"reviewer": "ada", "skip": "me", "filter": start}
    first = desk.show(asked)
    assert first["row"] in GOOD
    assert first["length"] == N_ROWS
    shown = desk.show({**asked, "row": 52})
    assert (shown["place"], shown["label"], shown["prediction"]) == (60, None, None)
    assert "nan" not in shown["html"]["stage"].lower()
    assert desk.decide({**asked, "row": 52, "decision": "drop"})["row"] in GOOD
    applied = apply_review(made_rows(), path, split.scores, mode="filter")
    assert applied["number"] == [row for row in range(N_ROWS) if row != 52]


def test_pictures_and_tracked_tables(split):
    """A sheet of all rows is drawn; tables, histogram and numbers are finite, or None in tables."""
    assert contact_sheet(split.scores, split.rows, column="forgetting", count=N_ROWS, side=8).size > (0, 0)
    found = contents(split.without_rows(), 60).values
    assert len(found["histogram"].values) == 55
    first = found["review_first"].columns
    assert first["row"][-5:] == BAD
    assert all(values[-5:] == [None] * 5 for name, values in first.items() if name not in ("row", "heat_map"))
    assert all(np.isfinite(value) for value in found.values() if isinstance(value, float))
    assert not {*found["highest"].columns["row"], *found["lowest"].columns["row"]} & {*BAD}


def test_the_card_counts_them(split, tmp_path):
    """The dataset card has its tables and figures, the number of rows without a score, and no NaN."""
    text = describe_split(split.without_rows(), {"vog": "vog"}, "default", tmp_path, "vog/train")
    assert "5 could not be scored" in text
    assert "nan" not in text.lower()


def test_columns_of_the_dataset(scores):
    """Skipped rows keep their own label next to NaN and -1, also where only labels prove that rows are the same."""
    scored = add_vog_columns(made_rows(), scores, "all")
    assert scored["label"] == made_rows()["label"]
    assert np.isnan(scored["vog"])[BAD].all()
    assert [scored["prediction"][row] for row in BAD] == [-1] * 5
    labels = made_rows().select_columns(["label"])
    columns = {name: scores.column(name) for name in scores.column_names}
    ScoredSplit("", VoGScores(columns, {}), labels)
    columns["label"] = np.where(np.arange(60) == 4, 9 - columns["label"], columns["label"])
    with pytest.raises(RowMismatchError, match="row 4 has label"):
        ScoredSplit("", VoGScores(columns, {}), labels)


@pytest.mark.slow
def test_report_of_them(capfd, folder, tmp_path):
    """`report` writes a page without NaN."""
    made_rows().save_to_disk(str(tmp_path / "rows"))
    done = run(capfd, "report", folder, "--dataset", tmp_path / "rows", "--output", tmp_path / "report.html")
    assert done.code == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert "5 could not be scored" in page
    assert ">nan<" not in page


@pytest.mark.slow
def test_score_on_the_command_line(capfd, tmp_path):
    """`score --on-error skip` leaves out an image that cannot be decoded, and says so; without it, the row is named."""
    made = train_on_images(tmp_path)
    rows = load_from_disk(str(made.data)).cast_column("image", Image(decode=False)).to_list()
    rows[40]["image"] = {"bytes": b"no image", "path": "scan-40.png"}
    broken = load_from_disk(str(made.data)).from_list(rows, features=load_from_disk(str(made.data)).features)
    broken.save_to_disk(str(tmp_path / "broken"))
    given = ["score", made.folder, "-d", tmp_path / "broken", "-o", tmp_path / "scores"]
    assert "row 40" in run(capfd, *given).stderr
    done = run(capfd, *given, "--on-error", "skip")
    assert done.code == 0, done.stderr
    assert "Scored 63 of 64 rows from 3 snapshots" in done.stdout
    assert np.flatnonzero(np.isnan(VoGScores.load(tmp_path / "scores").column("vog"))).tolist() == [40]
    assert "without a score: 1 (row 40: scan-40.png: UnidentifiedImageError: cannot identify image" in done.stdout
    values = run(capfd, *given, "--on-error", "skip", "--json").values
    assert (values["n_skipped"], [entry["row"] for entry in values["skipped"]]) == (1, [40])
    assert values["skipped"][0]["reason"].startswith("scan-40.png: UnidentifiedImageError: ")


@pytest.mark.slow
@pytest.mark.parametrize("collect", ["replay", "live"])
def test_a_callback_that_skips(tmp_path, collect):
    """A row that is broken only in the scored dataset is skipped, in a live scoring and in a replay."""

    def transform(rows):
        if 7 in rows["number"]:
            raise RuntimeError("a broken row")
        return plain(rows)

    rows = digits(32).add_column("number", list(range(32))).with_transform(transform)
    callback = VoGCallback(rows, collect=collect, on_error="skip", snapshots="epoch", log=False)
    trained(tmp_path, [callback], rows=digits(32).with_transform(plain), model=network())
    assert np.flatnonzero(np.isnan(callback.scores.column("vog"))).tolist() == [7]
    assert callback.scores.facts.n_skipped == 1


@pytest.mark.slow
def test_push_and_pull(tmp_path):
    """A dataset with skipped rows is pushed, loads with the same values, and its scores are pulled equal."""
    with HubServer() as hub:
        client = HubClient(hub, tmp_path)
        client("push", "skipped", "someone/data", columns="all")
        assert client("load", "someone/data", "skipped", columns="all")["equal"]
        assert client("pull", "someone/data", "skipped") is True
        assert b"2 could not be scored" in hub.dataset("someone/data").files()["README.md"]
        client.close()


@pytest.mark.slow
def test_trackers_take_them(split, tmp_path):
    """The real clients of W&B (offline) and Trackio log such scores."""
    pytest.importorskip("wandb")
    trackio = pytest.importorskip("trackio")
    from wandb_runs import logged_run, offline_client

    from vog_hf.tracking import log_scores

    with offline_client(tmp_path) as offline:
        logged = logged_run(offline, split.scores, split.rows, top_k=60)
    assert logged.table("vog/review_first")["loss"].isna().sum() == 5
    trackio.init(project="vog-skipped", auto_log_cpu=False)
    assert log_scores(split.scores, split.rows, to="trackio", top_k=60) is True
    trackio.finish()
    trackio.delete_project("vog-skipped", force=True)
