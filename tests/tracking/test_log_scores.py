"""Scores in Weights & Biases: what the real client wrote offline is read back and compared with the scores."""

import html
import json
import logging
import re
import shutil
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import wandb
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from html_page import read_page
from PIL import Image
from report_cases import make_words
from scipy.stats import spearmanr
from torch import nn, rand
from wandb_runs import logged_run, offline_client, read_back

from vog_hf.errors import ConfigError, DataError, RowMismatchError
from vog_hf.evaluation import (
    PATTERNS,
    auroc,
    early_late_table,
    error_by_decile,
    hard_tail,
    rank_correlations,
    ranking_stability,
    recommended_ranking,
    stability_in_words,
)
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.metric.vocabulary import COMPANIONS
from vog_hf.runtime.files import read_json
from vog_hf.scores.pictures import overlay
from vog_hf.scores.ranking import most_extreme
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.tracking import log_scores
from vog_hf.tracking.contents import contents

N = 53


class Page(HTMLParser):
    """The lists of a page: texts of its items, and names with their definitions."""

    def __init__(self, text):
        super().__init__()
        self.items, self.definitions, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in ("li", "dt", "dd"):
            self._open.append([])

    def handle_data(self, data):
        if self._open:
            self._open[-1].append(data)

    def handle_endtag(self, tag):
        if tag in ("li", "dt", "dd"):
            text = " ".join("".join(self._open.pop()).split())
            if tag == "dd":
                self.definitions[-1] = (self.definitions[-1], text)
            else:
                {"li": self.items, "dt": self.definitions}[tag].append(text)


NAMES = ["cat", "$x_$", "ship, or boat"]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """Where the runs are."""
    with offline_client(tmp_path_factory.mktemp("wandb")) as folder:
        yield folder


def make_scores(*, labels=True, heat_maps=True):
    """Scores of a classification over N rows, random but for the seed, some rows without a label."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, N).astype(np.int32)
    columns: dict[str, Any] = {
        "label": np.where(np.arange(N) % 10 == 7, -1, label).astype(np.int32),
        "prediction": np.where(generator.random(N) < 0.4, 0, label).astype(np.int32),
        "vog": generator.random(N).astype(np.float32),
        "vog_class_normalized": generator.normal(size=N).astype(np.float32).round(1),  # rounded: there are ties
        "vog_percentile": generator.random(N).astype(np.float32),
        "vog_early": generator.random(N).astype(np.float32),
        "vog_late": generator.random(N).astype(np.float32),
        "forgetting": generator.integers(0, 4, N).astype(np.int32),
        "variability": generator.random(N).astype(np.float32),
        "confidence": generator.random(N).astype(np.float32),
        "prediction_probability": generator.random(N).astype(np.float32),
        "loss": generator.random(N).astype(np.float32),
        "margin": np.ones(N, dtype=np.float32),
    }
    if not labels:
        del columns["label"]
    manifest = {"class_names": NAMES, "snapshots": [{"name": "a", "step": 1}] * 4, "long": "x" * 9_999}
    shares = generator.random((N, 4, 4)).astype(np.float16)
    maps = RaggedMaps(shares.ravel(), np.full((N, 2), 4, np.int32), np.ones(N, np.float32)) if heat_maps else None
    running = {"vog": generator.random((N, 4)).astype(np.float32)}
    return VoGScores(columns, manifest, trajectories=running, heat_maps=maps, row_hash=np.arange(N, dtype=np.uint64))


def make_images():
    """Tiny pictures whose color tells the row."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)})
    pictures = [Image.new("RGB", (8, 8), (4 * i, 100, 255 - 4 * i)) for i in range(N)]
    return Dataset.from_dict({"image": pictures, "label": make_scores().column("label")}, features=features)


@pytest.fixture(scope="module")
def image_run(offline):
    """Into a run as transformers' WandbCallback leaves it."""

    def prepare(run):
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)
        run.log({"train/loss": 1.0, "train/global_step": 30})

    return logged_run(offline, make_scores(), make_images(), prepare=prepare, step=31, top_k=7)


class TestImages:
    @pytest.mark.parametrize(("key", "tail"), [("vog/highest", 0), ("vog/lowest", 1)])
    def test_row_tables(self, image_run, key, tail):
        """The right rows in the right order, nine columns in the order in which a person reads, None for no label."""
        scores = make_scores()
        rows = most_extreme(scores, "vog_class_normalized", 7)[tail]
        table = image_run.table(key)
        assert list(table.columns) == [
            "image",
            "heat_map",
            "label",
            "prediction",
            "prediction_probability",
            "confidence",
            "loss",
            "vog_class_normalized",
            "row",
        ]
        assert table["row"].tolist() == rows.tolist()
        for name in ("prediction_probability", "confidence", "loss", "vog_class_normalized"):
            np.testing.assert_array_equal(table[name].astype(float), scores.column(name)[rows].astype(float))
        for name in ("label", "prediction"):
            assert table[name].tolist() == [NAMES[c] if c >= 0 else None for c in scores.column(name)[rows]]

    @pytest.mark.parametrize("key", ["vog/highest", "vog/lowest"])
    def test_pictures(self, image_run, key):
        """A PNG of the row's own picture, and next to it one of the same under its own heat map."""
        scores = make_scores()
        for row, picture, heat in image_run.table(key)[["row", "image", "heat_map"]].itertuples(index=False):
            assert (picture.format, picture.size) == (heat.format, heat.size) == ("PNG", (96, 96))
            plain = Image.new("RGB", (96, 96), (4 * row, 100, 255 - 4 * row))
            assert np.array_equal(np.asarray(picture), np.asarray(plain))
            assert np.array_equal(np.asarray(heat), np.asarray(overlay(plain, scores.heat_map(row))))

    def test_step_axis(self, image_run):
        """One record, on the Trainer's axis, after what the Trainer has logged."""
        assert [item["train/global_step"] for item in image_run.history] == [30, 31]
        assert image_run.history[1] == image_run.logged
        assert [item["_step"] for item in image_run.history] == [0, 1]

    def test_scalars(self, image_run):
        """Sizes, moments, agreement with the companions; nothing is said of a companion whose values are all equal."""
        scores = make_scores()
        logged = image_run.logged
        vog = scores.column("vog").astype(float)
        assert (logged["vog/n_rows"], logged["vog/n_snapshots"]) == (N, 4)
        assert logged["vog/mean"] == pytest.approx(vog.mean())
        assert logged["vog/std"] == pytest.approx(vog.std())
        agreement = rank_correlations(
            {name: scores.column(name) for name in ("vog", "forgetting", "confidence", "loss", "variability")}
        )
        for name in ("forgetting", "confidence", "loss", "variability"):
            assert logged[f"vog/spearman_{name}"] == pytest.approx(agreement.loc["vog", name])
        assert logged["vog/spearman_early_late"] == pytest.approx(
            spearmanr(scores.column("vog_early"), scores.column("vog_late")).statistic
        )
        missing = set(COMPANIONS) - {"forgetting", "confidence", "loss", "variability"}
        assert not {f"vog/spearman_{name}" for name in missing} & logged.keys()

    def test_error_by_decile(self, image_run):
        """Of the rows that have a label, by the column that the tables are ranked by."""
        scores = make_scores()
        label, prediction = scores.column("label"), scores.column("prediction")
        known = label >= 0
        wrong = (prediction != label)[known]
        expected = error_by_decile(scores.column("vog_class_normalized")[known], wrong)
        table = image_run.table("vog/error_by_decile").astype(float)
        pd.testing.assert_frame_equal(table, expected, check_dtype=False)
        assert image_run.logged["vog/error_decile_1"] == pytest.approx(expected["error"].iloc[0])
        assert image_run.logged["vog/error_decile_10"] == pytest.approx(expected["error"].iloc[-1])

    def test_classes(self, image_run):
        """One line per class, by name; rows without a label on a line without one."""
        scores = make_scores()
        table = image_run.table("vog/classes")
        assert table["class"].tolist() == [None, *NAMES]
        assert table["error"][0] is None
        for i, class_number in enumerate([-1, 0, 1, 2]):
            rows = scores.column("label") == class_number
            assert table["rows"][i] == rows.sum()
            assert table["vog_mean"][i] == pytest.approx(scores.column("vog")[rows].mean())
            assert table["vog_std"][i] == pytest.approx(scores.column("vog")[rows].std())
            assert table["confidence"][i] == pytest.approx(scores.column("confidence")[rows].mean())
            if class_number >= 0:
                assert table["error"][i] == pytest.approx((scores.column("prediction")[rows] != class_number).mean())

    @pytest.mark.parametrize(("key", "sign"), [("vog/highest_by_class", -1), ("vog/lowest_by_class", 1)])
    def test_row_tables_of_classes(self, image_run, key, sign):
        """The first five of each class, classes in order, with their pictures; rows without a label in none."""
        scores = make_scores()
        label, values = scores.column("label"), scores.column("vog_class_normalized")
        expected = []
        for class_number in range(3):
            rows = [row for row in range(N) if label[row] == class_number]
            expected += sorted(rows, key=lambda row: sign * values[row])[:5]
        table = image_run.table(key)
        assert table["row"].tolist() == expected
        assert table["label"].tolist() == [NAMES[c] for c in label[expected]]
        assert {picture.size for picture in table["image"]} == {(96, 96)}

    def test_charts(self, image_run):
        """The specifications that W&B draws, over tables with the numbers of the evaluation."""
        scores = make_scores()
        known = scores.column("label") >= 0
        wrong = (scores.column("prediction") != scores.column("label"))[known]
        spec, table = image_run.chart("vog/error_by_decile_chart")
        assert spec["panelDefId"] == "wandb/lineseries/v0"
        assert spec["stringSettings"]["title"] == "Error by decile of vog_class_normalized (95 % interval)"
        deciles = error_by_decile(scores.column("vog_class_normalized")[known], wrong)
        for line, name in (("error", "error"), ("low", "error_low"), ("high", "error_high")):
            points = table[table["lineKey"] == line]
            assert points["step"].tolist() == list(range(1, 11))
            np.testing.assert_allclose(points["lineVal"].astype(float), deciles[name])
        both = early_late_table(scores.column("vog_early")[known], scores.column("vog_late")[known], wrong)
        _, table = image_run.chart("vog/early_late_chart")
        for line in ("early", "late"):
            found = table["lineVal"][table["lineKey"] == line].astype(float)
            np.testing.assert_allclose(found, both[f"error_{line}"])
        spec, table = image_run.chart("vog/mean_by_class")
        assert spec["panelDefId"] == "wandb/bar/v0"
        means = {name: scores.column("vog")[scores.column("label") == i].mean() for i, name in enumerate(NAMES)}
        assert dict(zip(table["class"], table["mean VoG"], strict=True)) == pytest.approx(means)
        assert table["mean VoG"].is_monotonic_decreasing

    def test_every_table_fits_on_a_screen(self, image_run):
        """At most nine columns, those behind the charts in a section of their own."""
        tables = [key for key, value in image_run.logged.items() if key.endswith("._type") and value == "table-file"]
        assert {"vog/review_first._type", "vog/classes._type", "vog/error_by_decile._type"} <= set(tables)
        assert all(image_run.logged[key.replace("._type", ".ncols")] <= 9 for key in tables)
        behind = [key for key in tables if "_table." in key]
        assert behind
        assert all(key.startswith("Custom Chart Tables/vog/") for key in behind)

    def test_stability(self, image_run):
        """A line per snapshot from the second on, as a chart and in the artifact."""
        expected = ranking_stability(make_scores().trajectory("vog"))
        table = pd.read_csv(image_run.artifact("dataset")[1]["ranking_stability.csv"]).astype(float)
        pd.testing.assert_frame_equal(table, expected.astype(float), check_dtype=False)
        _, table = image_run.chart("vog/ranking_stability_chart")
        points = table[table["lineKey"] == "spearman_previous"]
        assert points["step"].tolist() == [3, 4]
        np.testing.assert_allclose(points["lineVal"].astype(float), expected["spearman_previous"][1:])

    def test_pictures_of_all_rows(self, image_run):
        """The data map and the sheet of both ends are there, with captions that say what they show."""
        for name, said in (("data_map", "all 53 rows"), ("contact_sheet", "The 7 lowest of 53 rows by vog_class_norm")):
            with Image.open(image_run.file(f"vog/{name}")) as picture:
                assert min(picture.size) > 200
            assert said in image_run.logged[f"vog/{name}.caption"]

    def test_rows_to_review_first(self, image_run):
        """The first rows of the recommended ranking, the mean loss, with the reason in the caption of the table."""
        table = image_run.table("vog/review_first")
        expected = np.argsort(-make_scores().column("loss"), kind="stable")[: len(table)]
        assert table["row"].tolist() == expected.tolist()
        about = dict(Page(image_run.file("vog/about").read_text()).definitions)
        assert about["review_first"].startswith("The 7 of 53 rows to review first. Start with loss, highest first")

    def test_what_a_person_reads_first(self, image_run):
        """Which end is hard, on what evidence and what each table shows; markup in names is text."""
        tail = hard_tail(make_scores())
        assert image_run.summary["vog/hard_tail"] == tail.tail
        assert image_run.summary["vog/hard_tail_evidence"] == tail.evidence
        about = html.unescape(image_run.file("vog/about").read_text())
        assert (
            about.index(f"<h1>{tail.headline}</h1>")
            < about.index(str(recommended_ranking(make_scores())))
            < about.index(tail.evidence)
        )
        assert image_run.summary["vog/hard_tail_strength"] == tail.strength
        assert stability_in_words(ranking_stability(make_scores().trajectory("vog"))) in about
        shown = dict(Page(about).definitions)
        assert shown["highest"].startswith("The 7 highest of 53 rows by vog_class_normalized.")
        assert shown["lowest_by_class"].startswith(
            "The lowest rows of each of 3 classes by vog_class_normalized, 15 of 53 rows."
        )
        known = make_scores().column("label") >= 0
        wrong = (make_scores().column("prediction") != make_scores().column("label"))[known]
        expected = auroc(make_scores().column("vog_class_normalized")[known], wrong)
        assert image_run.logged["vog/auroc_misclassified"] == pytest.approx(expected)

    def test_the_numbers_of_the_first_panel(self, image_run):
        """Rows, the share of errors among them and among those to review first."""
        scores = make_scores()
        known = scores.column("label") >= 0
        wrong = scores.column("prediction") != scores.column("label")
        first = np.argsort(-scores.column("loss"), kind="stable")[:7]
        of_first = wrong[first][known[first]].mean()
        assert Page(image_run.file("vog/about").read_text()).items == [
            f"{N} rows, scored from 4 snapshots",
            f"{wrong[known].mean():.1%} of all labeled rows are predicted as another class",
            f"{of_first:.1%} of the first 7 to review are predicted as another class",
        ]

    def test_the_first_panel_explains_every_column_of_the_tables(self, image_run):
        """By its name, and nothing else."""
        definitions = Page(image_run.file("vog/about").read_text()).definitions
        columns = image_run.table("vog/review_first").columns
        start = [name for name, _ in definitions].index(columns[0])
        assert [name for name, _ in definitions[start : start + len(columns)]] == list(columns)
        assert dict(definitions)["confidence"].startswith("Mean probability of the given label over the snapshots.")

    def test_the_first_panel_names_the_commands_that_come_next(self, image_run):
        """Review from the folder, or from the artifact of this very run; no other folder of this machine is named."""
        (_, here), (_, elsewhere), *_ = Page(image_run.file("vog/about").read_text()).definitions
        assert here == "vog-hf review SCORES_FOLDER --dataset YOUR_DATASET"
        artifact = f"vog-scores-{image_run.run_id}:latest"
        assert elsewhere.startswith("wandb artifact get ")
        assert elsewhere.endswith(f"/vog/{artifact} --root scores vog-hf review scores --dataset YOUR_DATASET")

    def test_the_first_panel_asks_for_nothing(self, image_run):
        """No script and no address: the page needs nothing from elsewhere, and its policy forbids it."""
        text = image_run.file("vog/about").read_text()
        assert "default-src 'none'; style-src 'unsafe-inline'" in text
        assert not re.search(r"<script|<link|https?:|src=|url\(", text)

    def test_histogram(self, image_run):
        """Every row is in one of its bins."""
        assert image_run.logged["vog/histogram._type"] == "histogram"
        assert sum(image_run.logged["vog/histogram.values"]) == N

    def test_artifact(self, image_run, tmp_path):
        """Every column of the scores, the manifest, and its short entries as metadata; all of it loads again."""
        scores = make_scores()
        record, files = image_run.artifact("dataset")
        assert record["name"] == f"vog-scores-{image_run.run_id}"
        assert set(files) == {"scores.parquet", "manifest.json", "ranking_stability.csv"}
        scores.save(tmp_path / "scores")
        assert pq.read_table(files["scores.parquet"]).equals(pq.read_table(tmp_path / "scores" / "scores.parquet"))
        assert read_json(files["manifest.json"]) == scores.manifest
        metadata = json.loads(record["metadata"])
        assert metadata == {name: value for name, value in scores.manifest.items() if name != "long"}
        for name, path in files.items():
            shutil.copy(path, (tmp_path / name))
        shutil.rmtree(tmp_path / "scores")
        assert VoGScores.load(tmp_path).column_names == scores.column_names

    def test_no_claim(self, image_run):
        """Which tail is hard is for the summary to say, not for the name of a chart."""
        names = " ".join(image_run.logged).replace("vog/hard_tail", "")
        assert not [word for word in ("hard", "easy", "easiest") if word in names]


def test_text_scored_for_real(offline):
    """Scores of the real scorer over a dataset with a tokenizer set: the stored text stands in the table."""

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(11, 4)
            self.head = nn.Linear(4, 2)

        def get_input_embeddings(self):
            return self.words

        def forward(self, input_ids):
            return self.head(self.words(input_ids).mean(1))

    texts = [f"sentence {i} " + "long " * 500 for i in range(12)]
    features = Features({"idx": Value("string"), "sentence": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    dataset = Dataset.from_dict({"idx": ["id"] * 12, "sentence": texts, "label": [0, 1] * 6}, features=features)
    tokenized = dataset.with_transform(
        lambda rows: {"input_ids": [[len(t) % 11, i % 11, 3] for i, t in enumerate(rows["sentence"])], **rows}
    )
    model = Bag()
    states = [(f"s{k}", {name: rand(v.shape) for name, v in model.state_dict().items()}) for k in range(4)]
    scores = VoGScorer(model, progress=False, batch_size=12).score(tokenized, states)
    run = logged_run(offline, scores, tokenized, top_k=5)
    highest = most_extreme(scores, "vog_class_normalized", 5)[0]
    table = run.table("vog/highest")
    content, of_row = ["text", "heat_map"], ["label", "prediction", "prediction_probability", "confidence", "loss"]
    assert list(table.columns) == [*content, *of_row, "vog_class_normalized", "row"]
    assert table["text"].tolist() == [texts[row][:2000] for row in highest]
    for row, heat in table[["row", "heat_map"]].itertuples(index=False):
        assert heat.size == (3 * 8, 24), "a cell for each of three tokens"
        cells = np.asarray(heat.convert("L"), dtype=int)[12, 4::8]
        assert cells.argsort().tolist() == scores.heat_map(row).argsort().tolist()
    about = html.unescape(run.file("vog/about").read_text())
    assert "within each row by itself. Texts end after 2,000 characters." in about
    assert table["label"].tolist() == [["no", "yes"][row % 2] for row in highest]
    assert set(scores.column_names) <= set(pq.read_schema(run.artifact("dataset")[1]["scores.parquet"]).names)
    assert "train/global_step" not in run.logged
    assert run.logged["vog/n_snapshots"] == 4


def test_texts_with_colored_words(offline):
    """A page per text with a color for each word, which loads nothing; the first panel explains it."""
    scores, texts = make_words()
    run = logged_run(offline, scores, texts, top_k=5)
    table = run.table("vog/highest")
    for row, text, page in table[["row", "text", "heat_map"]].itertuples(index=False):
        assert text == texts[row]["sentence"]
        (shown,) = read_page(page).find_all("div", "words")
        assert shown.text == text
        heat = [float(word.attributes["style"].removeprefix("--h:")) for word in shown.find_all("span")]
        expected = scores.heat_map(row) / scores.heat_map(row).max()
        assert heat == pytest.approx(np.round(20 * expected)[np.round(20 * expected) > 0] / 20)
        assert not re.search(r"<script|<link|https?:|src=|url\(", page.read_text())
    about = dict(Page(run.file("vog/about").read_text()).definitions)
    assert about["heat_map"].startswith("The row's text: the stronger a word's color")


def test_no_classes_and_no_data_set(offline):
    """A regression: no class, no picture, a NaN in a column; the tables have no such columns and no such cell."""
    columns = {
        "label": np.linspace(-1, 1, N, dtype=np.float32),
        "vog": np.random.default_rng(1).random(N),
        "vog_normalized": np.where(np.arange(N) == 5, 9.0, 0.0),
        "loss": np.where(np.arange(N) == 5, np.nan, 1.0),
        "prediction": np.zeros(N, dtype=np.float32),
    }
    scores = VoGScores(columns, {"class_names": None, "snapshots": []})
    run = logged_run(offline, scores, None, top_k=3)
    table = run.table("vog/highest")
    assert list(table.columns) == ["label", "prediction", "loss", "vog_normalized", "row"]
    assert table["row"].tolist() == [5, 0, 1]
    assert table["loss"].tolist() == [None, 1.0, 1.0]
    assert table["label"].tolist() == pytest.approx(columns["label"][[5, 0, 1]].tolist())
    assert not [key for key in run.logged if key.startswith(("vog/classes", "vog/error", "vog/spearman"))]


def test_some_pictures_broken_and_no_label_column(offline, caplog):
    """A row whose picture is damaged has an empty cell; without labels there is neither label nor class table."""
    dataset = make_images().remove_columns("label").cast_column("image", ImageFeature(decode=False))
    scores = make_scores(labels=False, heat_maps=False)
    worst = int(most_extreme(scores, "vog_class_normalized", 1)[0][0])
    stored = dataset["image"][:]
    stored[worst] = {"bytes": b"no picture", "path": None}
    broken = Dataset.from_dict({"image": stored}, features=Features({"image": ImageFeature()}))
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        run = logged_run(offline, scores, broken, top_k=3)
    table = run.table("vog/highest")
    assert [picture is None for picture in table["image"]] == [True, False, False]
    assert table["image"][1].getpixel((50, 50)) == (4 * table["row"][1], 100, 255 - 4 * table["row"][1])
    assert "label" not in table
    assert "heat_map" not in table
    assert "vog/classes.nrows" not in run.logged
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"row {worst} is shown without")]


def test_one_end_of_few_rows_and_few_rows_of_a_class(offline):
    """No row stands at both ends; rows with an id have it in the tables."""
    columns = {
        "vog": np.arange(7.0),
        "label": np.array([0, 0, 0, 1, 1, 1, 1], np.int32),
        "prediction": np.zeros(7, np.int32),
    }
    scores = VoGScores(columns, {"class_names": ["crane", "crane"], "snapshots": []}, ids=np.array(list("abcdefg")))
    run = logged_run(offline, scores, None, top_k=50)
    assert run.table("vog/highest")["row"].tolist() == [6, 5, 4]
    assert run.table("vog/lowest")["row"].tolist() == [0, 1, 2]
    assert run.table("vog/lowest")["id"].tolist() == ["a", "b", "c"]
    assert run.table("vog/highest_by_class")["row"].tolist() == [2, 6, 5]
    assert run.table("vog/lowest_by_class")["row"].tolist() == [0, 3, 4]
    _, bars = run.chart("vog/mean_by_class")
    assert dict(zip(bars["class"], bars["mean VoG"], strict=True)) == {"crane (1)": 4.5, "crane": 1.0}


def test_known_wrong_labels_are_looked_for(offline):
    """With a column is_corrupted, the worth of columns as finders of these rows and their share by learning pattern."""
    known = np.arange(N) % 4 == 1
    dataset = make_images().add_column("is_corrupted", known)
    scores = make_scores()
    columns = {name: scores.column(name) for name in scores.column_names}
    predicted = np.random.default_rng(1).integers(0, 3, (N, 4))
    predicted[:, -1] = scores.column("prediction")
    scores = VoGScores(columns, scores.manifest, trajectories={"prediction": predicted})
    run = logged_run(offline, scores, dataset, top_k=N // 2)
    _check_learning_patterns(run, scores, known)
    table = run.table("vog/detection")
    assert table["column"].tolist()[:2] == ["vog_class_normalized", "vog"]
    assert table["column"].tolist()[-1] == "random"
    area = auroc(make_scores().column("loss"), known)
    assert table.set_index("column").loc["loss", "auroc"] == pytest.approx(max(area, 1 - area))
    assert "in whichever direction works better" in run.file("vog/about").read_text()


def _check_learning_patterns(run, scores, known):
    """The column of the rows in the artifact, the table and both charts, against counting them."""
    pattern = scores.column("learning_pattern")
    stored = pq.read_table(run.artifact("dataset")[1]["scores.parquet"])["learning_pattern"]
    assert stored.to_pylist() == pattern.tolist()
    assert None in pattern
    table = run.table("vog/learning_patterns").set_index("pattern")
    assert table.index.tolist() == list(PATTERNS)
    _, rows = run.chart("vog/learning_patterns_chart")
    _, share = run.chart("vog/mislabeled_by_learning_pattern")
    share = dict(zip(share["pattern"], share["share"], strict=True))
    for name in PATTERNS:
        of_pattern = pattern == name
        assert table.loc[name, "rows"] == of_pattern.sum()
        assert dict(zip(rows["pattern"], rows["rows"], strict=True))[name] == of_pattern.sum()
        if of_pattern.any():
            assert table.loc[name, "known_wrong"] == share[name] == pytest.approx(known[of_pattern].mean())
        else:
            assert name not in share


def test_a_run_of_any_name_keeps_its_scores(offline):
    """A run id and a split's name that W&B would not take for an artifact are put so that it does, as is metadata."""
    scores = make_scores(heat_maps=False)
    scores.manifest["class_names"] = ["half \ud800", "a", "b"]  # which the client cannot encode
    with wandb.init(project="vog", id="vit lr=3e-4", settings=wandb.Settings(console="off")):
        log_scores({"de/train": scores}, None, top_k=3)
    record, _ = read_back(offline, "vit lr=3e-4").artifact("dataset")
    assert record["name"] == "vog-scores-de_train-vit_lr_3e-4"
    assert json.loads(record["metadata"]) == {
        "format": scores.manifest["format"],
        "snapshots": scores.manifest["snapshots"],
    }


def test_pictures_below_those_of_the_sheet(offline):
    """Where only rows beyond the sheet's have a picture, there is no sheet, and everything else is there."""
    features = Features({"image": ImageFeature()})
    order = np.argsort(np.arange(120.0))
    pictures = [Image.new("RGB", (4, 4)) if 30 <= row < 40 else None for row in order]
    scores = VoGScores({"vog": np.arange(120.0)}, {"snapshots": []})
    run = logged_run(offline, scores, Dataset.from_dict({"image": pictures}, features=features), top_k=50)
    assert "vog/contact_sheet.path" not in run.logged
    assert sum(picture is not None for picture in run.table("vog/lowest")["image"]) == 10


def test_splits_have_keys_of_their_own(offline):
    """Scores of several splits are logged side by side: tables, scalars and artifact of each under its name."""
    splits = {"train": make_scores(), "test": make_scores(heat_maps=False)}
    with wandb.init(project="vog", settings=wandb.Settings(console="off")) as active:
        assert log_scores(splits, {"train": make_images(), "test": None}, top_k=3)
    run = read_back(offline, active.id)
    (logged,) = [item for item in run.history if "vog/train/n_rows" in item]
    assert logged["vog/test/n_rows"] == logged["vog/train/n_rows"] == N
    assert {"vog/train/highest", "vog/test/highest"} <= {key.removesuffix(".nrows") for key in logged}
    for split, scores in splits.items():
        _, files = run.artifact("dataset", f"vog-scores-{split}-")
        np.testing.assert_array_equal(pq.read_table(files["scores.parquet"])["vog"], scores.column("vog"))


def test_no_run(caplog):
    """Without a run nothing is logged or raised: one line says how to get one."""
    assert wandb.run is None
    with caplog.at_level(logging.DEBUG, logger="vog_hf"):
        assert log_scores(make_scores(), make_images(), step=3) is False
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "report_to='wandb' in TrainingArguments" in record.getMessage()
    assert "wandb.init()" in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.fixture
def disabled_run():
    """A run that is switched off."""
    yield wandb.init(mode="disabled")
    wandb.finish()  # leaving `with` would leave it the active run


def test_disabled_run(disabled_run):
    """A run that is switched off takes everything and keeps nothing."""
    assert log_scores(make_scores(), make_images(), top_k=1) is True


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Dataset.from_dict({"text": ["a"]}), RowMismatchError, "the scores cover 53 rows and the dataset has 1"),
        ([1, 2], RowMismatchError, "the scores cover 53 rows and the dataset has 2"),
        (iter([1]), DataError, "rows are scored by their number, and a list_iterator has none"),
    ],
)
def test_other_rows_are_refused(disabled_run, dataset, error, message):
    """Pictures of rows that were not scored would be worse than none."""
    with pytest.raises(error, match=message):
        log_scores(make_scores(), dataset)


def test_options():
    """What cannot be done is said before anything is logged, with or without a run."""
    with pytest.raises(ConfigError, match="log_scores can log to 'wandb' or 'trackio', got to='tensorboard'"):
        log_scores(make_scores(), None, to="tensorboard")
    for top_k in (0, 10_001):
        with pytest.raises(ConfigError, match=f"top_k must lie in 1..10,000.*got {top_k}"):
            log_scores(make_scores(), None, top_k=top_k)
    assert log_scores(make_scores(), None, to="wandb", top_k=10_000) is False


@pytest.fixture(scope="module")
def capped_run(offline):
    """More classes than a table or a chart can hold, more rows wanted than a sheet can show."""
    n_classes = 10_001
    vog = np.random.default_rng(0).random(n_classes).astype(np.float32)
    columns = {
        "label": np.arange(n_classes, dtype=np.int32),
        "prediction": np.zeros(n_classes, dtype=np.int32),
        "vog": vog,
        "vog_class_normalized": vog,
    }
    pictures = [np.zeros((2, 2, 3), np.uint8)] * n_classes
    scores = VoGScores(columns, {"class_names": [f"c{i}" for i in range(n_classes)], "snapshots": []})
    return logged_run(offline, scores, [{"image": picture} for picture in pictures], top_k=30)


def test_what_is_cut_is_said(capped_run):
    """Where classes, bars or pictures are fewer than there are, the caption or the title says how many."""
    about = dict(Page(capped_run.file("vog/about").read_text()).definitions)
    assert capped_run.logged["vog/classes.nrows"] == 10_000
    assert about["classes"] == "The first 10,000 of 10,001 classes, the maximum that a W&B table can hold."
    assert about["highest_by_class"].startswith("The highest rows of the first 400 of 10,001 classes")
    spec, table = capped_run.chart("vog/mean_by_class")
    assert (spec["stringSettings"]["title"], len(table)) == ("Mean VoG by class (100 highest of 10,001)", 100)
    assert about["highest"].startswith("The 30 highest of 10,001 rows")
    assert "The 25 lowest of 10,001 rows" in capped_run.logged["vog/contact_sheet.caption"]


@pytest.mark.parametrize("vog", [np.full(N, np.nan), np.where(np.arange(N) == 3, 1.0, np.nan), np.ones(N)])
@pytest.mark.parametrize("label", [-1, 0])
def test_scores_that_say_nothing_are_logged_without_what_they_do_not_say(disabled_run, vog, label):
    """No finite score, one of them, equal ones; with one class or no label at all: the tables are there, no error."""
    scores = make_scores()
    columns = {name: scores.column(name) for name in scores.column_names}
    columns |= {"vog": vog, "vog_class_normalized": vog, "label": np.full(N, label, np.int32)}
    scores = VoGScores(columns, scores.manifest, trajectories={"vog": np.repeat(vog[:, None], 4, axis=1)})
    found = contents(ScoredSplit("", scores, make_images().remove_columns("label")), 3)
    assert {"highest", "lowest", "n_rows"} <= found.values.keys()
    assert ("histogram" in found.values) == bool(np.isfinite(vog).any())
    assert ("mean_by_class" in found.values) == (label == 0 and bool(np.isfinite(vog).any()))
    assert ("highest_by_class" in found.values) == (label == 0)
    assert found.summary["hard_tail"] == "unclear"
    assert not [name for name, value in found.values.items() if isinstance(value, float) and not np.isfinite(value)]
    assert log_scores(scores, None) is True


def test_splits_that_do_not_fit(disabled_run):
    """Scores of splits need a mapping with these splits, scores of one split its rows and no mapping."""
    with pytest.raises(ConfigError, match=r"scores of the splits \['test'\] need a mapping .* got \['train'\]"):
        log_scores({"test": make_scores()}, {"train": make_images()})
    with pytest.raises(ConfigError, match="need a mapping with these splits as dataset, got Dataset"):
        log_scores({"test": make_scores()}, make_images())
    with pytest.raises(DataError, match="one dataset is scored at a time, got a mapping"):
        log_scores(make_scores(), {"test": make_images()})
