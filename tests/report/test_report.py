"""The report as a file: its structure, its numbers, what it escapes, what it leaves out and what it refuses."""

import base64
import hashlib
import io
import re
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, DatasetInfo
from html_page import Element, read_page, table_of
from PIL import Image
from report_cases import (
    HOSTILE,
    HOSTILE_TEXT,
    SNAPSHOTS,
    N,
    make_pictures,
    make_regression,
    make_scores,
    make_texts,
)
from torch.utils.data import Dataset as TorchDataset

from vog_hf.errors import ConfigError, DataError, OutputFolderError, RowMismatchError
from vog_hf.evaluation import (
    class_table,
    detection_table,
    early_late_table,
    error_by_decile,
    hard_tail,
    learning_pattern_table,
    rank_correlations,
    ranking_stability,
    recommended_ranking,
    stability_in_words,
)
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.report import write_report
from vog_hf.report.figures import histogram_figure
from vog_hf.scores.formatting import number, printable, signed
from vog_hf.scores.ranking import most_extreme
from vog_hf.scores.vog_scores import VoGScores

LOADING = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background", "style")


def written(tmp_path, scores, dataset, **options):
    """The page of a report."""
    return read_page(write_report(scores, dataset, tmp_path / "report.html", **options))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The report of a classification of pictures, and the scores it is of."""
    scores = make_scores()
    return written(tmp_path_factory.mktemp("report"), scores, make_pictures(), top_k=5, per_class=2), scores


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The report of a classification of texts."""
    scores = make_scores(maps="tokens")
    return written(tmp_path_factory.mktemp("report"), scores, make_texts(), top_k=5, per_class=2), scores


CASES = {
    "pictures": lambda: (make_scores(), make_pictures()),
    "texts": lambda: (make_scores(maps="tokens"), make_texts()),
    "texts without maps": lambda: (make_scores(maps=None), make_texts()),
    "maps without a dataset": lambda: (make_scores(), None),
    "strips without a dataset": lambda: (make_scores(maps="tokens"), None),
    "no labels": lambda: (make_scores(labels=False), make_pictures()),
    "no trajectories": lambda: (make_scores(trajectories=False, maps=None), None),
    "regression": lambda: (make_regression(), None),
    "vog alone": lambda: (VoGScores({"vog": np.array([0.2, 0.1, 0.3])}, {}), None),
    "one row": lambda: (VoGScores({"vog": np.array([0.2])}, {}), None),
    "equal values": lambda: (VoGScores({"vog": np.zeros(60), "loss": np.ones(60)}, {}), None),
    "nothing finite": lambda: (VoGScores({"vog": np.full(60, np.nan), "loss": np.ones(60)}, {}), None),
    "splits": lambda: (
        {"train": make_scores(), "<b>test</b>": make_scores(maps=None)},
        {"train": make_pictures(), "<b>test</b>": make_pictures(), "unscored": None},
    ),
}


@pytest.mark.parametrize("case", CASES)
class TestEveryPage:
    """What holds of every report, whatever the scores have."""

    @pytest.fixture
    def page(self, case, tmp_path):
        return written(tmp_path, *CASES[case](), top_k=4, per_class=2)

    def test_loads_nothing(self, page):
        """Nothing is fetched: every address is in the page itself, and the policy forbids all others."""
        for element in page.walk():
            for name, value in element.attributes.items():
                if name in LOADING and name != "style":
                    assert re.match(r"#|data:image/(png|webp);base64,", value), (element.tag, name, value[:80])
                if name == "style":
                    assert not re.search(r"url\((?!#)", value)
                assert not name.startswith("on"), f"{element.tag} {name}"
            assert element.tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not re.search(r"url\(|@import", page.find("style").text)
        (script,) = page.find_all("script")
        digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
        policy = page.find("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
        assert policy == (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
            "media-src data:; base-uri 'none'; form-action 'none'"
        )
        head = page.find("head").content
        first = [part.tag for part in head if isinstance(part, Element)][:3]
        assert first == ["meta", "meta", "meta"], "the policy stands before whatever it is about"

    def test_can_be_read_aloud(self, page):
        """Language, title, headings without a gap, a text for every picture and figure, headings of tables."""
        assert page.find("html").attributes["lang"] == "en"
        assert page.find("title").text.strip()
        levels = [int(e.tag[1]) for e in page.walk() if re.fullmatch("h[1-6]", e.tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels)), levels
        for image in page.find_all("img"):
            assert image.attributes["alt"].strip()
        for figure in page.find_all("svg"):
            assert figure.attributes["role"] == "img"
            if "figure" in figure.classes:
                title, description = figure.attributes["aria-labelledby"].split()
                assert figure.find("title", id=title).text.strip()
                assert figure.find("desc", id=description).text.strip()
            else:
                assert figure.attributes["aria-label"].strip()
        for table in page.find_all("table"):
            assert all(cell.attributes["scope"] == "col" for cell in table.find("thead").find_all("th"))
        for box in page.find_all(class_name="scroll"):
            assert box.attributes["tabindex"] == "0", "a box that scrolls can be reached by keyboard"
            assert box.attributes["aria-label"].strip()

    def test_names_are_unique_and_links_lead_somewhere(self, page):
        """No id is given twice, and every link and every reference of a figure has its end in the page."""
        ids = [e.attributes["id"] for e in page.walk() if "id" in e.attributes]
        assert len(ids) == len(set(ids))
        used = [e.attributes["href"][1:] for e in page.walk() if e.attributes.get("href", "").startswith("#")]
        for element in page.walk():
            used += [
                name for value in element.attributes.values() for name in re.findall(r"url\(#([^)]+)\)", value or "")
            ]
        assert set(used) <= set(ids)
        assert len(page.find("nav").find_all("a")) >= 3

    def test_makes_no_claim_without_evidence(self, page, case):
        """An end of the ranking is called hard only where the verdict says so."""
        scores = CASES[case]()[0]
        for place, part in enumerate(scores.values() if isinstance(scores, dict) else [scores]):
            split = page.find(id=f"s{place}")
            assert hard_tail(part).tail in split.find(class_name="verdict").classes
            tail = hard_tail(part).named_tail
            titles = {
                g.classes[1]: g.content[1].text
                for g in split.find_all("section", "gallery")
                if "row" in g.content[1].text
            }
            assert ("hard tail" in titles.get("high", "")) == (tail in ("high", "both") and "high" in titles)
            assert ("hard tail" in titles.get("low", "")) == (tail in ("low", "both") and "low" in titles)


class TestNumbers:
    """What the page says is what `vog_hf.evaluation` and the scores say."""

    def test_verdict(self, pictures):
        """The evidence word by word, and its numbers."""
        page, scores = pictures
        tail = hard_tail(scores)
        assert tail.tail == "high"
        box = page.find(class_name="verdict")
        assert tail.evidence in box.text
        assert box.find(class_name="lead").text == tail.headline
        assert str(recommended_ranking(scores)) in box.text
        assert "Next: vog-hf review SCORES" in box.text
        details = box.find("details")
        assert "open" not in details.attributes
        assert tail.evidence in details.text
        assert [part.tag for part in box.content if isinstance(part, Element)] == ["p", "p", "p", "details"]
        _, lines = table_of(box)
        for line, measure in zip(lines, tail.measures.values(), strict=True):
            expected = [measure.low, measure.middle, measure.high, measure.association]
            assert line[1:5] == [number(value) for value in expected]
        assert "Highest rows: the hard tail of this run" in [h.text for h in page.find_all("h3")]

    def test_key_figures(self, pictures):
        """Rows, snapshots, errors of the labeled rows, and agreement with the loss."""
        page, scores = pictures
        box = page.find("dl", "figures")
        said = {div.find("dt").text: div.find("dd").text for div in box.find_all("div")}
        known = scores.column("label") >= 0
        wrong = (scores.column("prediction") != scores.column("label"))[known].mean()
        assert said["rows"] == f"{N:,}"
        assert said["snapshots"] == str(SNAPSHOTS)
        assert said["last prediction wrong"] == f"{wrong:.1%}"
        agreement = rank_correlations({name: scores.column(name) for name in ("vog", "loss")})
        assert said["Spearman of vog with loss"] == signed(agreement.loc["vog", "loss"])

    def test_figures_have_their_numbers(self, pictures):
        """The tables under the figures are the tables of evaluation."""
        page, scores = pictures
        known = scores.column("label") >= 0
        wrong = (scores.column("prediction") != scores.column("label"))[known]
        at = {name: scores.column(name)[known] for name in ("vog_class_normalized", "vog_early", "vog_late")}
        stability = ranking_stability(scores.trajectory("vog"))
        is_error = scores.column("prediction") != scores.column("label")
        patterns = learning_pattern_table(scores.column("learning_pattern"), is_error=is_error)
        assert patterns["rows"].min() > 0
        expected = {
            "When rows were learned": patterns,
            "Error by decile of the ranking": error_by_decile(at["vog_class_normalized"], wrong),
            "Early against late": early_late_table(at["vog_early"], at["vog_late"], wrong),
            "Would more snapshots change the ranking?": stability,
        }
        shown = {f.find("h3").text: f for f in page.find_all("figure", "chart")}
        for title, table in expected.items():
            headings, lines = table_of(shown[title])
            assert headings == [name.replace("_", " ") for name in table.columns]
            assert lines == [[number(value) for value in line] for line in table.itertuples(index=False)]
        assert shown["Would more snapshots change the ranking?"].find("figcaption").text == stability_in_words(
            stability
        )
        assert {"Data map", "Distribution of VoG", "VoG by class"} <= set(shown)

    def test_correlations(self, pictures):
        """Spearman of every pair; a column of equal values is left out."""
        page, scores = pictures
        headings, lines = table_of(page.find("table", "heatmap"))
        names = [name.replace(" ", "_") for name in headings[1:]]
        assert names[0] == "vog"
        assert "correctness" not in names
        expected = rank_correlations({name: scores.column(name) for name in names})
        assert lines == [
            [name.replace("_", " "), *(signed(value) for value in expected.loc[name])] for name in expected.index
        ]

    def test_classes(self, pictures):
        """One line per class, by name, rows without a label on a line of their own."""
        page, scores = pictures
        columns = {name: scores.column(name) for name in ("label", "vog", "prediction", "confidence")}
        expected = class_table(**columns)
        _, lines = table_of(page.find(id="s0-classes").find(class_name="scroll"))
        assert [line[0] for line in lines] == ["no label", *map(printable, HOSTILE)]
        assert [line[1:] for line in lines] == [
            [number(value) for value in line] for line in expected.drop(columns="class").itertuples(index=False)
        ]

    def test_galleries(self, pictures):
        """The rows of the recommended ranking, those at both ends in order, and those that changed most."""
        page, scores = pictures
        galleries = page.find(id="s0-rows").find_all("section", "gallery")[:4]
        rows = [[int(c.find(class_name="row").text[1:]) for c in g.find_all("li", "card")] for g in galleries]
        first_rows = most_extreme(scores, "loss", 5)[0]
        highest, lowest = most_extreme(scores, "vog_class_normalized", 5)
        way = np.abs(np.diff(scores.trajectory("confidence").astype(float), axis=1)).sum(1)
        assert str(recommended_ranking(scores)).startswith("Start with loss, highest first")
        expected = [first_rows, highest, lowest, np.argsort(-way, kind="stable")[:5]]
        assert rows == [of_gallery.tolist() for of_gallery in expected]
        first = galleries[1].find("li", "card")
        said = {div.find("dt").text: div.find("dd").text for div in first.find("dl", "values").find_all("div")}
        row = int(highest[0])
        assert said == {
            "normalized": number(scores.column("vog_class_normalized")[row]),
            "VoG": number(scores.column("vog")[row]),
            "loss": number(scores.column("loss")[row]),
        }
        confidence = scores.trajectory("confidence")[row]
        assert first.find("svg", "spark").attributes["aria-label"] == (
            f"Confidence over {SNAPSHOTS} snapshots, from {confidence[0]:.2f} to {confidence[-1]:.2f}"
        )

    def test_class_galleries(self, pictures):
        """Of every class its own highest and lowest rows."""
        page, scores = pictures
        boxes = page.find_all("details", "class-rows")
        assert [box.find("summary").text for box in boxes] == [printable(name) for name in HOSTILE]
        for number_of_class, box in enumerate(boxes):
            rows = np.flatnonzero(scores.column("label") == number_of_class)
            order = rows[np.argsort(scores.column("vog_class_normalized")[rows], kind="stable")]
            shown = [[int(e.text[1:]) for e in g.find_all(class_name="row")] for g in box.find_all("section")]
            assert shown == [order[::-1][:2].tolist(), order[:2].tolist()]

    def test_table_of_few_rows(self, pictures):
        """All rows with all columns, values as the scores have them."""
        page, scores = pictures
        headings, lines = table_of(page.find(id="s0-table").find("table"))
        numbers = [name for name in scores.column_names if name not in ("label", "prediction")]
        assert headings == ["row", "label", "prediction", "learning_pattern", *numbers]
        assert len(lines) == N
        order = most_extreme(scores, "vog_class_normalized", N)[0]
        assert [line[0] for line in lines] == [str(row) for row in order]
        at = headings.index("loss")
        assert [line[at] for line in lines] == [number(scores.column("loss")[row]) for row in order]
        labels = {line[1] for line in lines}
        assert labels == {"\N{EN DASH}", *map(printable, HOSTILE)}

    def test_table_of_many_rows(self, tmp_path):
        """Half from each end, and the caption says how many of how many."""
        scores = make_scores()
        table = written(tmp_path, scores, None, max_table_rows=7).find(id="s0-table").find("table")
        highest, lowest = most_extreme(scores, "vog_class_normalized", 4)
        assert [line[0] for line in table_of(table)[1]] == [str(r) for r in [*highest, *lowest[:3][::-1]]]
        assert table.find("caption").text == (
            "The 4 rows with the highest and the 3 with the lowest vog_class_normalized: 7 of 153 rows."
        )

    def test_how_it_was_computed(self, pictures):
        """What the manifest says: model, target, snapshots, windows, versions, dates, digests."""
        page, _ = pictures
        part = page.find(id="s0-run")
        said = {div.find("dt").text: div.find("dd").text for div in part.find_all("div")}
        assert said["Model"] == "Net me/<b>net</b>\"'&"
        assert said["Data"] == "153 rows, columns <i>col</i>, class"
        assert said["Target"] == "logit of the given label"
        assert (
            said["Gradient with respect to"]
            == "input (mean over channels, per row 3 \N{MULTIPLICATION SIGN} 8 \N{MULTIPLICATION SIGN} 8)"
        )
        assert said["Snapshots"] == "5, after the steps 10, 20, 30, 40, 50"
        assert said["Windows"] == "all 5; early: the first 2; late: the last 2"
        assert said["Collected"] == "from stored snapshots (replay)"
        assert said["Digest of the rows after their transform"] == "d1665d1665d1665d"
        assert said["Versions"] == "vog-hf 0.1.0, torch 2.9"
        assert said["Scored"] == "2026-01-02 03:04:05 UTC"
        assert said["column <i>col</i>"] == "abcdef0123456789"
        assert said["snapshot step-1 (step 10)"] == "1" * 16

    def test_meanings(self, pictures):
        """Every column of the scores but label and prediction has unit and direction."""
        page, scores = pictures
        _, lines = table_of(page.find("table", "meanings"))
        names = [n for n in scores.column_names if n not in ("label", "prediction")]
        assert [line[0] for line in lines] == [*names, "learning_pattern"]
        assert all(all(cell.strip() for cell in line) for line in lines)
        assert "logit per unit of input" in lines[0][2]

    def test_other_targets_have_meanings(self, tmp_path):
        """Columns of a second target mean what those of the first do, of that target."""
        names = ("vog", "vog_late", "vog_entropy", "vog_entropy_late")
        scores = VoGScores(
            {name: np.random.default_rng(i).random(60) for i, name in enumerate(names)},
            {"config": {"target": ["logit", "my.module.entropy"]}},
        )
        page = written(tmp_path, scores, None)
        lines = table_of(page.find("table", "meanings"))[1]
        assert lines[3][:3] == [
            "vog_entropy_late",
            "vog of the last snapshots only (of the target my.module.entropy).",
            "my.module.entropy per unit of input, at least 0",
        ]
        headings, _ = table_of(page.find("table", "heatmap"))
        assert headings[1:] == ["vog", "vog entropy", "vog late", "vog entropy late"]


class TestPictures:
    """Thumbnails and heat maps as pictures in the page."""

    def opened(self, image):
        return Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].partition(",")[2])))

    def test_small_pictures_are_exact(self, pictures):
        """A picture of few pixels is stored with its very pixels, and a larger one is reduced."""
        page, _ = pictures
        card = page.find("li", "card")
        row = int(card.find(class_name="row").text[1:])
        plain = self.opened(card.find("img", "pixels"))
        assert plain.size == (8, 8)
        assert plain.convert("RGB").getpixel((3, 3)) == (row % 256, 100, 255 - row % 256)

    def test_large_pictures_are_reduced(self, tmp_path):
        """At most 320 pixels a side, in their own proportions; fewer where they would take more than 10 kB."""
        rows = [{"image": Image.new("RGB", (400, 100))} for _ in range(3)]
        page = written(tmp_path, VoGScores({"vog": np.arange(3.0)}, {}), rows)
        image = page.find("img")
        assert self.opened(image).size == (320, 80)
        assert image.classes == []
        assert page.find("div", "pic").attributes["style"] == "--ratio:4.000"
        noise = [{"image": Image.effect_noise((400, 400), spread)} for spread in (40, 200)]
        noisy = written(tmp_path, VoGScores({"vog": np.arange(2.0)}, {}), noise)
        for image in noisy.find_all("img"):
            assert 112 <= self.opened(image).width < 320
            assert len(image.attributes["src"]) < 1.4 * 10_000

    def test_heat_map_lies_over_the_picture(self, pictures):
        """A picture of its own, clear where there is no heat, so that switching it off leaves the plain picture."""
        page, scores = pictures
        card = page.find("li", "card")
        row = int(card.find(class_name="row").text[1:])
        heat = card.find("div", "pic").find("img", "heat")
        pixels = np.asarray(self.opened(heat).convert("RGBA"))
        expected = scores.heat_map(row)
        assert pixels.shape == (*expected.shape, 4)
        assert pixels[..., 3].argmax() == expected.argmax()
        assert heat.attributes["alt"].startswith(f"Heat map of row {row}, largest ")
        assert page.find("input", "heat-switch").attributes["type"] == "checkbox"

    def test_strips_have_a_cell_per_token(self, texts):
        """One pixel per token; the note says that they are not aligned with the words."""
        page, scores = texts
        for card in page.find_all("li", "card"):
            row = int(card.find(class_name="row").text[1:])
            heat = scores.heat_map(row)
            strip = card.find("img", "strip")
            assert self.opened(strip).size == (len(heat), 1)
            assert strip.attributes["alt"] == (
                f"Heat of row {row} by token, largest at token {heat.argmax() + 1} of {len(heat)}"
            )
        assert "not aligned with the words" in page.find(id="s0-rows").text

    def test_long_inputs_are_pooled_in_strips(self, tmp_path):
        """Of a sound or a long text at most 128 cells, each the largest of its neighbors; the alternative says so."""
        shares = np.zeros(2_000, np.float16)
        shares[[700, 1_999]] = 1
        maps = RaggedMaps(shares, np.full((2, 1), 1_000, np.int32), np.ones(2, np.float32))
        page = written(tmp_path, VoGScores({"vog": np.array([0.2, 0.1])}, {}, heat_maps=maps), None)
        cards = page.find(id="s0-rows").find_all("li", "card")
        first, second = (card.find("img", "strip") for card in cards)
        assert self.opened(first).size == self.opened(second).size == (128, 1)
        assert np.asarray(self.opened(first)).argmax() == 700 // 8
        assert np.asarray(self.opened(second)).argmax() == 127
        assert first.attributes["alt"] == (
            "Heat of row 0 by part, largest at part 701 of 1000, each cell the largest of 8"
        )
        assert "from its start, in equal parts" in page.find(id="s0-rows").text

    def test_no_maps_no_switch(self, tmp_path):
        """Scores without heat maps have neither maps nor a switch for them."""
        page = written(tmp_path, make_scores(maps=None), make_pictures(), top_k=2)
        assert page.find_all("img")
        assert not page.find_all(class_name="heat")
        assert not page.find_all(class_name="heat-switch")


class TestWhatIsMissing:
    """Parts that the scores do not allow are left out, and where it matters the page says why."""

    def test_no_data_set(self, tmp_path):
        """Cards without pictures or texts, maps by themselves."""
        page = written(tmp_path, make_scores(), None, top_k=3)
        assert {tuple(image.classes) for image in page.find_all("img")} == {("heat", "plane", "pixels")}
        assert not page.find_all("p", "text")

    def test_no_labels(self, tmp_path):
        """No chart of errors and no classes, with the reason."""
        page = written(tmp_path, make_scores(labels=False), None, top_k=3)
        assert "Fewer than 10 rows have a label" in page.find(id="s0-found").text
        titles = [h.text for h in page.find_all("h3")]
        assert "Error by decile of the ranking" not in titles
        assert not page.find_all(id="s0-classes")
        assert not page.find_all("details", "class-rows")

    def test_regression(self, tmp_path):
        """Labels are numbers; the row without VoG is counted and left out, the loss without a value is a dash."""
        scores = make_regression()
        page = written(tmp_path, scores, None, top_k=150)
        found = page.find(id="s0-found").text
        assert "Rows have no single class" in found
        assert "1 of 153 rows have no finite VoG" in found
        galleries = page.find_all("section", "gallery")
        assert not any(e.text == "#3" for g in galleries for e in g.find_all(class_name="row"))
        row = int(galleries[0].find(class_name="row").text[1:])
        said = [e.text for e in galleries[0].find("dl", "values").walk() if e.tag in ("dt", "dd")]
        assert said[:4] == [
            *("label", number(scores.column("label")[row])),
            *("prediction", number(scores.column("prediction")[row])),
        ]
        assert "difference between the row's ranks by early and by late VoG" in galleries[-1].text
        headings, lines = table_of(page.find(id="s0-table").find("table"))
        line = next(line for line in lines if line[0] == "9")
        assert line[headings.index("loss")] == "\N{EN DASH}"
        assert page.find("div", "sortable").attributes["data-class-column"] == ""

    def test_nan_in_trajectories(self, tmp_path):
        """A row without finite VoG does not stop the figure of stability."""
        scores = make_scores()
        vog, running = scores.column("vog").copy(), scores.trajectory("vog").copy()
        vog[4] = running[4, 2:] = np.nan
        columns = {name: scores.column(name) for name in scores.column_names} | {"vog": vog}
        broken = VoGScores(columns, scores.manifest, trajectories={"vog": running})
        page = written(tmp_path, broken, None, top_k=3)
        finite = np.isfinite(vog)
        caption = next(
            f.find("figcaption").text for f in page.find_all("figure", "chart") if "snapshots" in f.find("h3").text
        )
        assert caption == stability_in_words(ranking_stability(running[finite]))

    def test_other_columns_of_the_data(self, tmp_path):
        """Numbers, texts and classes of the data are columns of the table, marked so that they are shown on demand."""
        rows = make_pictures().add_column("speaker", [f"<i>{row}</i>" for row in range(N)])
        rows = rows.add_column("is_odd", [bool(row % 2) for row in range(N)])
        page = written(tmp_path, make_scores(), rows, top_k=1)
        box = page.find(id="s0-table")
        headings, lines = table_of(box.find("table"))
        at = headings.index("speaker")
        assert headings[at : at + 2] == ["speaker", "is_odd"]
        assert all(line[at] == f"<i>{line[0]}</i>" and line[at + 1] == str(int(line[0]) % 2 == 1) for line in lines)
        marked = [cell.text for cell in box.find("thead").find_all("th", "other")]
        assert [text.replace("\u200b", "") for text in marked] == ["speaker", "is_odd"]
        assert len(box.find("tbody").find_all("td", "other")) == 2 * N
        assert box.find("input", "others-switch").attributes.get("checked") is None

    def test_no_other_columns(self, tmp_path):
        """Without other columns there is no switch for them."""
        page = written(tmp_path, make_scores(), make_pictures(), top_k=1)
        assert not page.find_all(class_name="others-switch")

    def test_rows_and_cards_lead_to_each_other(self, tmp_path):
        """A row of the table links to the first card of its row, if there is one, and each card to its row there."""
        page = written(tmp_path, make_scores(), make_pictures(), top_k=3, per_class=1, max_table_rows=20)
        cards = {card.attributes["id"]: card for card in page.find_all("li", "card")}
        lines = {line.attributes["id"]: line for line in page.find(id="s0-table").find("tbody").find_all("tr")}
        assert len(lines) == 20
        shown = {int(card.find(class_name="row").text[1:]) for card in cards.values()}
        for ident, line in lines.items():
            row = line.find("th").text
            assert ident == f"s0-t{row}"
            links = [link.attributes["href"][1:] for link in line.find_all("a")]
            assert len(links) == (int(row) in shown)
            assert [cards[link].find(class_name="row").text for link in links] == [f"#{row}"] * len(links)
        for card in cards.values():
            number_of_row = card.find(class_name="row")
            assert number_of_row.tag == ("a" if f"s0-t{number_of_row.text[1:]}" in lines else "span")

    def test_ids_stand_beside_the_rows(self, tmp_path):
        """Where rows have names of their own, cards and table show them."""
        ids = np.array([f"<u>{i}</u>" for i in range(60)], dtype=object)
        page = written(tmp_path, VoGScores({"vog": np.arange(60.0)}, {}, ids=ids), None, top_k=1)
        assert page.find("li", "card").find(class_name="id").text == "<u>59</u>"
        headings, lines = table_of(page.find(id="s0-table").find("table"))
        assert headings[:2] == ["row", "id"]
        assert lines[0][:2] == ["59", "<u>59</u>"]

    def test_many_classes(self, tmp_path):
        """Galleries of the twenty classes with most errors, the chart of thirty, the table of all."""
        page = written(tmp_path, make_scores(2_000, maps=None, names=[f"c{i}" for i in range(50)]), None, per_class=1)
        assert len(page.find_all("details", "class-rows")) == 20
        assert "Of 50 classes, the 20 with the highest error." in page.find(id="s0-rows").text
        classes = page.find(id="s0-classes")
        assert "The 15 highest and lowest of 50 classes." in classes.find("figcaption").text
        assert len(table_of(classes.find(class_name="scroll"))[1]) == 51

    def test_scores_without_predictions(self, tmp_path):
        """As a push of the core columns leaves them: it is said what is missing, and by what classes are chosen."""
        whole = make_scores(2_000, maps=None, trajectories=False, names=[f"c{i}" for i in range(50)])
        columns = {name: whole.column(name) for name in ("label", "vog", "vog_class_normalized")}
        page = written(tmp_path, VoGScores(columns, whole.manifest), None, per_class=1)
        assert "These scores have no predictions" in page.find(id="s0-found").text
        assert "Of 50 classes, the 20 with the most rows." in page.find(id="s0-rows").text

    def test_few_rows_stand_at_one_end(self, tmp_path):
        """Of five rows, two at each end; of a class of three, one."""
        label, vog = np.array([0, 0, 0, 1, 1], np.int32), np.arange(5.0)
        columns = {"label": label, "prediction": label, "vog": vog}
        page = written(tmp_path, VoGScores(columns, {"class_names": ["a", "b"]}), None)
        galleries = page.find(id="s0-rows").find_all("section", "gallery")
        shown = [[e.text for e in gallery.find_all(class_name="row")] for gallery in galleries]
        assert shown == [["#4", "#3"], ["#0", "#1"], ["#2"], ["#0"], ["#4"], ["#3"]]

    def test_known_wrong_labels(self, tmp_path):
        """With a column is_corrupted, a table says how well each column finds these rows."""
        scores, known = make_scores(), np.arange(N) % 4 == 1
        page = written(tmp_path, scores, make_pictures().add_column("is_corrupted", known))
        boxes = page.find(id="s0-charts").find_all("div", "scroll")
        (box,) = [box for box in boxes if "known to be mislabeled" in box.attributes["aria-label"]]
        headings, lines = table_of(box)
        expected = detection_table({"vog_class_normalized": scores.column("vog_class_normalized")}, known).iloc[0]
        assert headings[:4] == ["column", "direction", "AUROC", "average precision"]
        assert lines[0][:3] == ["vog_class_normalized", expected["direction"], number(expected["auroc"])]
        assert lines[-1][0] == "random"

    def test_parts_can_be_left_out(self, tmp_path):
        """No galleries of classes and no table where none are wanted."""
        page = written(tmp_path, make_scores(), None, top_k=1, per_class=0, max_table_rows=0)
        assert not page.find_all("details", "class-rows")
        assert not page.find_all(id="s0-table")


class TestEscaping:
    """Names, texts and titles of data are texts on the page, wherever they stand."""

    def test_texts_and_classes(self, texts):
        """A hostile text is read as it was written; no element and no attribute comes of it."""
        page, _ = texts
        cards = page.find_all("li", "card")
        assert all(card.find("p", "text").text.startswith(HOSTILE_TEXT) for card in cards)
        assert len(page.find_all("script")) == 1
        assert not [e for e in page.walk() if "onerror" in e.attributes or e.tag in ("b", "i", "u")]
        assert not [e for e in page.find_all("a") if not e.attributes["href"].startswith("#")]
        assert {e.text for c in cards for e in c.find("p", "class").find_all("bdi")} <= {
            "no label",
            *map(printable, HOSTILE),
        }
        excerpts = [line[1] for line in table_of(page.find(id="s0-table").find("table"))[1]]
        assert all(text.startswith(HOSTILE_TEXT[:60]) for text in excerpts)

    def test_figures(self, pictures):
        """Within the SVG, too: class names at the bars are texts, not markup, mathematics or a template."""
        page, _ = pictures
        bars = page.find(id="s0-classes").find("svg", "figure")
        said = "".join(e.text for e in bars.find_all("text"))
        assert "<script>alert(1)<…" in said
        assert "**bold**" in said
        assert "\ufffd\\ud800 {{ 7 * 7 …" in said
        assert not bars.find_all("script")

    def test_title(self, tmp_path):
        """A title is a text in the tab and on the page."""
        page = written(tmp_path, make_scores(), None, title="</title><script>x</script>", top_k=1)
        assert page.find("title").text == page.find("h1").text == "</title><script>x</script>"
        assert len(page.find_all("script")) == 1

    def test_default_title_names_the_data_set(self, tmp_path):
        """The source that is noted with the scores, else the name that `datasets` loaded it under; a reader is none."""

        def title(source=None, **info):
            scores = make_scores(60)
            noted = {"data": {"source": {"name": source}}} if source else {}
            rows = make_pictures(60)
            rows.info.update(DatasetInfo(**info))
            page = written(tmp_path, VoGScores({"vog": scores.column("vog")}, noted), rows, top_k=1)
            assert page.find("title").text == page.find("h1").text
            return page.find("h1").text

        assert title("uoft-cs/cifar10") == "uoft-cs/cifar10"
        assert title("/home/me/<b>cats.parquet") == "<b>cats.parquet"
        assert title(dataset_name="beans", builder_name="parquet") == "beans"
        assert title(dataset_name="parquet", builder_name="parquet") == "VoG report"

    def test_default_title_names_the_model(self, tmp_path):
        """Without a title, and without a name of the dataset, the model's name."""
        assert written(tmp_path, make_scores(), None, top_k=1).find("h1").text == "VoG report: me/<b>net</b>\"'&"
        scores = VoGScores({"vog": np.ones(2)}, {})
        assert written(tmp_path, scores, None).find("h1").text == "VoG report"


class TestSplits:
    """Scores of several splits: a part for each, in their order, with links to all parts."""

    def test_parts(self, tmp_path):
        """Each part has its own numbers, and its name as a heading."""
        scores = {"train": make_scores(), "test <1>": make_scores(60, maps=None)}
        page = written(tmp_path, scores, DatasetDict(train=make_pictures()) | {"test <1>": make_pictures(60)}, top_k=2)
        parts = page.find_all("div", "split")
        assert [part.find("h2").text for part in parts] == ["Split train", "Split test <1>"]
        rows = [part.find("dl", "figures").find("dd").text for part in parts]
        assert rows == ["153", "60"]
        links = page.find("nav").find("ol", "splits")
        assert [link.text for link in links.find_all("a") if link.attributes["href"] in ("#s0", "#s1")] == list(scores)

    def test_one_split_by_name(self, tmp_path):
        """A mapping of one split keeps its name."""
        page = written(tmp_path, {"test": make_scores(60)}, None, top_k=1)
        assert page.find("h2").text == "Split test"


class Bare(TorchDataset):
    """Rows without a table."""

    def __init__(self, n_rows):
        self.n_rows = n_rows

    def __len__(self):
        return self.n_rows

    def __getitem__(self, row):
        return {"image": Image.new("RGB", (4, 4), (row, 0, 0)), "label": 0}


class TestRefusals:
    """What cannot be done is said before anything is written; next to it stands what can."""

    @pytest.mark.parametrize(
        ("dataset", "error", "message"),
        [
            (Dataset.from_dict({"text": ["a"]}), RowMismatchError, "the scores cover 153 rows and the dataset has 1"),
            (Bare(N + 1), RowMismatchError, "the scores cover 153 rows and the dataset has 154"),
            (iter([1]), DataError, "rows are scored by their number, and a list_iterator has none"),
            ({"train": make_pictures()}, DataError, "one dataset is scored at a time, got a mapping"),
        ],
    )
    def test_other_rows(self, tmp_path, dataset, error, message):
        """Pictures of rows that were not scored would be worse than none."""
        with pytest.raises(error, match=message):
            write_report(make_scores(), dataset, tmp_path / "report.html")
        assert not list(tmp_path.iterdir())

    def test_the_same_number_of_rows_without_a_table(self, tmp_path):
        """Next to a wrong number of rows: the right one is taken."""
        page = written(tmp_path, make_scores(), Bare(N), top_k=1)
        assert page.find_all("img")

    @pytest.mark.parametrize("dataset", [make_pictures(), {"test": make_pictures()}])
    def test_splits_need_their_data_sets(self, tmp_path, dataset):
        """Scores by split need rows by split."""
        with pytest.raises(ConfigError, match=r"scores of the splits \['train'\] need a mapping with these splits"):
            write_report({"train": make_scores()}, dataset, tmp_path / "report.html")

    @pytest.mark.parametrize(
        "scores", [{}, VoGScores({"vog": np.zeros(0)}, {}), {"a": VoGScores({"vog": np.zeros(0)}, {})}]
    )
    def test_no_rows(self, tmp_path, scores):
        """There is nothing to say of no rows."""
        with pytest.raises(ConfigError, match="at least one row"):
            write_report(scores, None, tmp_path / "report.html")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"top_k": 0}, r"top_k must lie in 1\.\.500, got 0"),
            ({"top_k": 501}, r"top_k must lie in 1\.\.500, got 501"),
            ({"per_class": -1}, r"per_class must lie in 0\.\.500, got -1"),
            ({"max_table_rows": -1}, r"max_table_rows must be at least 0, got -1"),
        ],
    )
    def test_options(self, tmp_path, options, message):
        """Options out of range."""
        with pytest.raises(ConfigError, match=message):
            write_report(make_scores(), None, tmp_path / "report.html", **options)

    def test_foreign_files_stay(self, tmp_path):
        """A file that is not a report of ours is not replaced, a folder neither."""
        path = tmp_path / "report.html"
        path.write_text("<html>mine</html>")
        with pytest.raises(OutputFolderError, match="exists and is not a vog_hf report; choose another path"):
            write_report(make_scores(), None, path)
        assert path.read_text() == "<html>mine</html>"
        with pytest.raises(OutputFolderError, match="is not a vog_hf report"):
            write_report(make_scores(), None, tmp_path)

    def test_an_earlier_report_is_replaced(self, tmp_path):
        """A report of ours makes room for the next one; the same scores give the same file."""
        path = tmp_path / "new" / "folder" / "report.html"
        assert write_report(make_scores(), None, path, title="one") == path
        first = path.read_bytes()
        write_report(make_scores(), None, path, title="two")
        assert path.read_bytes() != first
        write_report(make_scores(), None, path, title="one")
        assert path.read_bytes() == first
        assert [p.name for p in path.parent.iterdir()] == ["report.html"]


class Generated(TorchDataset):
    """Ten thousand pictures that compress badly, made when they are asked for."""

    def __init__(self, side):
        self.side = side

    def __len__(self):
        return 10_000

    def __getitem__(self, row):
        noise = np.random.default_rng(row).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return {"image": Image.fromarray(noise)}


def test_logarithmic_axis():
    """Where few rows lie far above the others the axis is logarithmic, and its numbers are numbers, no formulas."""
    drawing = histogram_figure(np.geomspace(0.001, 10, 60), "logit per unit of input", "spread")
    assert "logarithmic axis" in drawing.caption
    assert {"0.001", "0.01", "0.1", "1", "10"} <= set(re.findall(r">([\d.]+)</text>", drawing.svg))
    assert "$" not in drawing.svg


def test_a_folder_that_cannot_be_made(tmp_path):
    """A file where a folder is needed is an error of ours that names it."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputFolderError, match=r"cannot write .*report\.html"):
        write_report(make_scores(), None, tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("side", "n_classes"),
    [pytest.param(32, 10, marks=pytest.mark.slow), pytest.param(224, 10, marks=pytest.mark.slow), (224, 100)],
)
def test_size(tmp_path, side, n_classes):
    """The report of 10,000 pictures has at most 5 MB, even of noise."""
    scores = make_scores(10_000, maps=None, names=[f"class {i}" for i in range(n_classes)])
    shares = np.random.default_rng(0).random(10_000 * 32 * 32).astype(np.float16)
    columns = {name: scores.column(name) for name in scores.column_names}
    maps = RaggedMaps(shares, np.full((10_000, 2), 32, np.int32), np.ones(10_000, np.float32))
    trajectories = {name: scores.trajectory(name) for name in scores.trajectory_names}
    large = VoGScores(columns, scores.manifest, trajectories=trajectories, heat_maps=maps)
    path = write_report(large, Generated(side), tmp_path / "report.html")
    assert path.stat().st_size <= 5_000_000, f"{path.stat().st_size:,} bytes"
    assert len(read_page(path).find_all("div", "pic")) > 150
