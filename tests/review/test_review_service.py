"""What the page of the review is answered, without a browser or Gradio."""

import json
import time
import zipfile

import numpy as np
import pytest
from datasets import Audio, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from html_page import _Reader
from PIL import Image
from report_cases import HOSTILE, HOSTILE_TEXT, N, make_pictures, make_regression, make_scores, make_texts

from vog_hf.data.referenced_files import is_cached
from vog_hf.errors import ConfigError, DataError
from vog_hf.evaluation import hard_tail, recommended_ranking
from vog_hf.review import Filter, Queue, review_yield
from vog_hf.review.html import LABEL_NOTE
from vog_hf.review.journal import Journal
from vog_hf.review.journal_events import read_decisions
from vog_hf.review.row_records import RowRecords
from vog_hf.review.service import ReviewService, answering, pace
from vog_hf.scores.scored_rows import ScoredSplit


def opened(folder, scores=None, dataset=None, **options):
    """A desk with a journal in a folder."""
    scores = make_scores() if scores is None else scores
    return ReviewService(ScoredSplit("", scores, dataset), Journal.open(folder / "journal.jsonl", scores), **options)


@pytest.fixture
def desk(tmp_path):
    """A desk with pictures."""
    return opened(tmp_path, dataset=make_pictures())


def asked(row=None, reviewer="ada", skip="me", **more):
    """A question of the page."""
    chosen = {name: more.pop(name) for name in list(more) if name not in ("decision", "label", "note", "step", "last")}
    return {"reviewer": reviewer, "row": row, "skip": skip, "filter": chosen, **more}


def tree(html):
    """HTML as a tree; a tag that is not closed is an error."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def highest(scores, name="loss"):
    """The rows by a column, highest first."""
    return np.argsort(-scores.column(name), kind="stable").tolist()


def test_a_queue_is_walked_in_its_order(desk):
    """The first row is the highest; a decision leads to the next; a row that was decided is walked past, both ways."""
    order = highest(make_scores())
    answer = desk.show(asked())
    assert (answer["row"], answer["place"], answer["length"], answer["decided"]) == (order[0], 1, N, 0)
    answer = desk.decide(asked(order[0], decision="keep"))
    assert (answer["row"], answer["decided"], answer["left"]) == (order[1], 1, N - 1)
    assert desk.show(asked(order[1], step=1))["row"] == order[2]
    assert desk.show(asked(order[2], step=-1))["row"] == order[1]
    assert desk.show(asked(order[1], step=-1))["row"] == order[-1], "from the first one to the other end"
    assert desk.show(asked(order[1], step=-1, skip=""))["row"] == order[0]
    assert desk.show(asked(order[-1], step=1))["row"] == order[1]
    assert desk.show(asked(order[0]))["row"] == order[0], "a reload shows the row that was on the screen"
    assert desk.show(asked(reviewer="grace"))["row"] == order[0], "another reviewer's decisions are not one's own"
    assert desk.show(asked(reviewer="grace", skip="anyone"))["row"] == order[1]


def test_filters_and_orders(desk):
    """Every filter of the page reaches the queue: column, tail, classes, mismatch, percentiles."""
    scores = make_scores()
    assert desk.show(asked(order="vog_early", tail="lowest"))["row"] == int(scores.column("vog_early").argmin())
    label, prediction = scores.column("label"), scores.column("prediction")
    assert desk.show(asked(classes=[1, 2]))["length"] == np.isin(label, [1, 2]).sum()
    assert desk.show(asked(mismatched=True))["length"] == ((label >= 0) & (label != prediction)).sum()
    assert abs(desk.show(asked(low=90, high=100))["length"] - N / 10) <= 1
    forgotten = int((scores.column("learning_pattern") == "forgotten").sum())
    assert desk.show(asked(patterns=["forgotten"]))["length"] == forgotten > 0
    about = desk.about({})
    assert about["patterns"][0] == ["learned_early", "learned early"]
    assert {"vog", "vog_early", "vog_late", "loss", "confidence"} <= {name for name, _ in about["columns"]}
    assert about["classes"][0] == HOSTILE[0]
    assert not about["texts"], "there is nothing to search in pictures"


def test_a_neighbor_is_shown_whatever_is_filtered(desk):
    """A row next to another one can be looked at, though the queue has it not; from there the queue begins again."""
    label = make_scores().column("label")
    outside = int(np.flatnonzero(label != 1)[0])
    first = desk.show(asked(classes=[1]))["row"]
    assert desk.show(asked(outside, classes=[1]))["row"] == first
    answer = desk.show(asked(outside, classes=[1]) | {"any": True})
    assert (answer["row"], answer["place"]) == (outside, None)
    assert desk.decide(asked(outside, classes=[1], decision="keep"))["row"] == first
    assert f'data-go="{outside}"' not in answer["html"]["near_rows"]


def test_search(tmp_path):
    """Rows are found by their text, in capitals or not; none is an answer, too."""
    desk = opened(tmp_path, dataset=make_texts())
    assert desk.about({})["texts"]
    answer = desk.show(asked(search="RAW %} ROW 15", skip=""))
    assert answer["length"] == 4  # 15 and 150 to 152
    none = desk.show(asked(search="nowhere"))
    assert (none["row"], none["length"], none["html"]) == (None, 0, {})


def test_when_all_is_decided(tmp_path):
    """Nothing is shown, and the row that is named still is."""
    desk = opened(tmp_path)
    for row in range(3):
        desk.decide(asked(row, decision="drop"))
    answer = desk.show(asked(classes=[9]) | {"filter": {"search": ""}})
    assert answer["left"] == N - 3
    label = make_scores().column("label")
    rare = np.flatnonzero(label == label[0])
    for row in rare.tolist():
        last = desk.decide(asked(row, decision="keep", classes=[int(label[0])]))
    assert (last["row"], last["left"], last["decided"]) == (None, 0, len(rare))


def test_a_decision_is_written_once(desk, tmp_path):
    """A question that is asked again, because its answer was lost, leaves one line; another decision replaces it."""
    question = asked(5, decision="relabel", label=2, note="a dog")
    desk.decide(question)
    desk.decide(question)
    lines = (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2, "a header and the decision"
    desk.decide(asked(5, decision="unsure"))
    (decision,) = read_decisions(tmp_path / "journal.jsonl")
    assert (decision.row, decision.decision, decision.label, decision.reviewer) == (5, "unsure", None, "ada")


def test_undo_shows_the_row_again(desk, tmp_path):
    """The last decision of whoever asks is gone, and its row is on the screen; then the one before."""
    for row in (7, 3):
        last = desk.decide(asked(row, decision="keep"))["last"]
    desk.decide(asked(9, decision="drop", reviewer="grace"))
    answer = desk.undo(asked(50, last=last))
    assert (answer["row"], answer["mine"], answer["message"]) == (3, None, "Undone: keep of row 3.")
    answer = desk.undo(asked(3, last=answer["last"]))
    assert (answer["row"], answer["last"]) == (7, "")
    answer = desk.undo(asked(7, last=""))
    assert (answer["row"], answer["message"]) == (7, "There is nothing to undo.")
    assert [decision.row for decision in read_decisions(tmp_path / "journal.jsonl")] == [9]


def test_an_undo_takes_back_no_more_than_it_was_asked_to(desk, tmp_path):
    """Asked again because its answer was lost, or in another tab: nothing is undone before the page has said so."""
    desk.decide(asked(7, decision="keep"))
    last = desk.decide(asked(3, decision="keep"))["last"]
    desk.undo(asked(3, last=last))
    answer = desk.undo(asked(3, last=last))
    assert (answer["row"], "Nothing was undone" in answer["message"]) == (3, True)
    assert [decision.row for decision in read_decisions(tmp_path / "journal.jsonl")] == [7]
    assert desk.undo(asked(3, last=answer["last"]))["message"] == "Undone: keep of row 7."


@pytest.mark.parametrize("wrong", [{"filter": {"order": "label"}}, {"row": N}, {"last": 3}])
def test_an_undo_that_cannot_be_shown_is_none(desk, tmp_path, wrong):
    """A question that is wrong leaves the journal as it was."""
    last = desk.decide(asked(7, decision="keep"))["last"]
    with pytest.raises(ConfigError):
        desk.undo(asked(7, last=last) | wrong)
    assert [decision.row for decision in read_decisions(tmp_path / "journal.jsonl")] == [7]


def test_others_are_shown_to_those_who_have_decided(desk):
    """Another's decision does not lead one's own; the page then shows both, and how far they agree."""
    desk.decide(asked(7, decision="relabel", label=0, note="<b>sure</b>", reviewer="grace & co"))
    before = desk.show(asked(7))
    assert "grace" not in before["decisions"]
    assert "1 other reviewer has decided" in before["decisions"]
    assert desk.facts({})["agreement"] == ""
    desk.decide(asked(7, decision="drop"))
    after = tree(desk.show(asked(7))["decisions"]).text
    assert "You decided: Drop" in after
    assert f"grace & co: Relabel to {HOSTILE[0]} <b>sure</b>" in after
    agreement = "Same decision on 0 of 1 rows with several reviewers. ada and grace & co: Cohen's kappa +0.00."
    assert desk.facts({})["agreement"] == agreement


def test_the_journal_is_saved_whole_or_not(desk, tmp_path):
    """Every line that is whole, with the decisions of all; where the file is gone or damaged, the page is told."""
    desk.decide(asked(7, decision="keep", reviewer="ada"))
    desk.decide(asked(7, decision="drop", reviewer="grace"))
    path = tmp_path / "journal.jsonl"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + '{"event": "dec', encoding="utf-8")
    assert desk.decisions({}) == {"name": "journal.jsonl", "text": whole}
    path.write_text(whole + "something else\n", encoding="utf-8")
    assert "line 4 of" in answering(desk.decisions)({})["error"]
    path.unlink()
    assert "is gone; put it back" in answering(desk.decisions)({})["error"]


def test_labels_of_an_earlier_review_are_told_from_those_that_were_scored(tmp_path):
    """The page says that the confidence is not in the label it shows; without an earlier review it says nothing."""
    scores = make_scores()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert LABEL_NOTE not in opened(tmp_path / "a", scores).show(asked(3))["html"]["facts"]
    scores.manifest["review"] = {"mode": "correct", "rows_scored": N, "labels": "reviewed"}
    assert LABEL_NOTE in opened(tmp_path / "b", scores).show(asked(3))["html"]["facts"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The caches of datasets and huggingface_hub, in a folder of the test's own."""
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        monkeypatch.setattr(f"datasets.config.{name}", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    (tmp_path / "cache" / "hub").mkdir(parents=True)
    return tmp_path / "cache"


def test_what_reads_another_file_than_that_in_the_cache_is_not_cached(tmp_path, cache, monkeypatch):
    """A chain of URLs that begins elsewhere, and a URL, also where one works in the cache itself."""
    monkeypatch.chdir(cache)
    for path in ("file:///etc/passwd", f"file:///etc/passwd::{cache}/a.zip", f"zip://a::file:///b::{cache}/a.zip"):
        assert not is_cached(path)
    for path in (f"{cache}/a.png", f"zip://a.png::{cache}/a.zip", f"gzip://a::tar://b::{cache}/hub/../a.tar"):
        assert is_cached(path)


def test_rows_of_the_hub_show_no_file_that_they_name(tmp_path, cache):
    """Neither by its path nor by a link, in a picture or a list of them; a fetched one, and one's own rows, do."""
    own, fetched = tmp_path / "own.png", cache / "hub" / "fetched.png"
    for path in (own, fetched):
        Image.new("L", (4, 4), 99).save(path)
    (cache / "link.png").symlink_to(own)
    with zipfile.ZipFile(cache / "hub" / "some.zip", "w") as archive:
        archive.write(fetched, "a.png")
    zipped = f"{cache}/hub/some.zip"
    foreign = [own, f"file://{own}", cache / ".." / "own.png", cache / "link.png", f"file://{own}::{zipped}"]
    paths = [*foreign, fetched, f"zip://a.png::{zipped}"]
    values = [*({"bytes": None, "path": str(path)} for path in paths), {"bytes": own.read_bytes(), "path": str(own)}]
    scores = make_scores(len(values))
    stored = {"bytes": Value("binary"), "path": Value("string")}
    pictures = Dataset.from_dict({"image": values}, features=Features({"image": stored}))
    lists = Dataset.from_dict({"image": [[v] * 3 for v in values]}, features=Features({"image": List(stored)}))
    pictures, lists = (
        rows.cast_column("image", feature)
        for rows, feature in ((pictures, ImageFeature()), (lists, List(ImageFeature())))
    )
    hidden = [True] * len(foreign) + [False] * 3
    for dataset in (pictures, lists):
        split = ScoredSplit("", scores, dataset)
        rows = RowRecords(split, is_from_hub=True)
        assert [rows.record(row).picture is None for row in range(len(values))] == hidden
        assert [record.picture is None for record in rows.small_records(range(len(values)))] == hidden
        assert RowRecords(split).record(0).picture is not None
    texts = Dataset.from_dict({"text": ["a"] * len(values), "audio": values}).cast_column("audio", Audio())
    assert RowRecords(ScoredSplit("", scores, texts), is_from_hub=True).record(0).text == "a"


def test_what_the_run_shows_of_its_tails(desk):
    """The headline is that of the evaluation, and the ranking to start with follows it."""
    assert desk.facts({})["verdict"] == (
        f"{hard_tail(make_scores()).headline} {recommended_ranking(make_scores())} "
        "Next: decide here, then vog-hf apply."
    )


def test_the_yield_of_the_queue(tmp_path):
    """Nothing before the first decision; then the sentences of the estimate for the queue on the screen."""
    desk = opened(tmp_path, worth_at=0.3)
    assert desk.facts(asked())["yield"] == []
    order, loss = highest(make_scores()), Filter(order="loss")
    for place, row in enumerate(order[:60]):
        desk.decide(asked(row, decision="drop" if place % 3 == 0 else "keep"))
    journal = tmp_path / "journal.jsonl"
    sentences = review_yield(make_scores(), journal, loss, worth_at=0.3).sentences()
    assert desk.facts(asked())["yield"] == sentences
    assert sentences[0].startswith("60 reviewed, 20 wrong; the next 93 hold about ")
    lowest = desk.facts(asked(order="loss", tail="lowest"))["yield"]
    assert "only 0 rows from the top of this queue are reviewed (60 more lie further down)" in lowest[0]
    assert {decision.queue["order"] for decision in read_decisions(journal)} == {"loss"}


def test_random_rows_are_mixed_in_and_recorded(tmp_path):
    """At the places of the queue; the page opens with the share of the service and may ask for another one."""
    desk, scores = opened(tmp_path, random_share=0.25), make_scores()
    assert desk.about({})["random"] == 25
    rows, is_random = Queue(scores).mixed_rows(Filter(order="loss", random_share=0.25))
    assert is_random[:4].tolist() == [False, False, False, True]
    shown = [desk.show(asked())]
    for _ in range(7):
        shown.append(desk.decide(asked(shown[-1]["row"], decision="keep")))
    assert [answer["row"] for answer in shown] == rows[:8].tolist()
    assert [answer["random"] for answer in shown] == is_random[:8].tolist()
    written = read_decisions(tmp_path / "journal.jsonl")
    assert [decision.random for decision in written] == is_random[:7].tolist()
    assert desk.show(asked(skip="", random=0))["random"] is False
    assert [desk.show(asked(row, random=0))["place"] for row in highest(scores)[:4]] == [1, 2, 3, 4]


def test_a_row_from_outside_the_queue_has_no_queue(tmp_path):
    """A decision about a neighbor that the filters leave out does not count as shown by the queue."""
    desk, scores = opened(tmp_path), make_scores()
    outside = int(np.flatnonzero(scores.column("label") == 1)[0])
    desk.decide(asked(outside, decision="keep", classes=[0]))
    (decision,) = read_decisions(tmp_path / "journal.jsonl")
    assert (decision.queue, decision.random) == (None, False)


def test_a_row_that_is_opened_among_the_neighbors_is_no_sample(tmp_path):
    """Its decision has no queue, and is not one about a random row, wherever the queue would have shown it."""
    desk, scores = opened(tmp_path, random_share=0.25), make_scores()
    rows, is_random = Queue(scores).mixed_rows(Filter(order="loss", random_share=0.25))
    row = int(rows[np.flatnonzero(is_random)[1]])
    shown = desk.show({**asked(row), "any": True})
    assert (shown["row"], shown["opened"], desk.show(asked())["opened"]) == (row, True, False)
    following = desk.decide({**asked(row, decision="drop"), "opened": shown["opened"]})
    (decision,) = read_decisions(tmp_path / "journal.jsonl")
    assert (decision.row, decision.queue, decision.random) == (row, None, False)
    assert following["row"] != row


@pytest.mark.parametrize("option", ["random_share", "worth_at"])
def test_a_share_outside_0_to_1_is_refused(tmp_path, option):
    """Before anything is shown."""
    with pytest.raises(ConfigError, match=f"{option} must lie in"):
        opened(tmp_path, **{option: 20})


def test_names_and_texts_are_shown_as_text(tmp_path):
    """HTML in classes and texts is text in every part of the page; a page that is not closed properly is an error."""
    desk = opened(tmp_path, dataset=make_texts())
    for row in range(12):
        html = desk.show(asked(row))["html"]
        for part in html.values():
            assert not tree(part).find_all("script")
            assert all(image.attributes["src"].startswith("data:") for image in tree(part).find_all("img"))
        assert f"{HOSTILE_TEXT} {row}" in tree(html["stage"]).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reviewer": " "}, "needs the name of its reviewer"),
        ({"reviewer": "a" * 81}, "at most 80 characters"),
        ({"row": N}, "row must be a whole number from 0 to 152, got 153"),
        ({"row": "1; --"}, "whole number"),
        ({"row": True}, "whole number"),
        ({"decision": "delete"}, "one of keep, relabel, drop, unsure, got 'delete'"),
        ({"decision": "relabel", "label": 4}, "label must be a whole number from 0 to 3, got 4"),
        ({"decision": "relabel"}, "label must be a whole number"),
        ({"note": "x" * 2001}, "note must be a text of at most 2000"),
        ({"note": 3}, "note must be a text"),
        ({"skip": "all"}, "skip must be one of"),
        ({"filter": {"order": "label"}}, "no queue can be ordered by 'label'"),
        ({"filter": {"tail": "middle"}}, "no queue"),
        ({"filter": {"low": 60, "high": 40}}, "from percentile 60.0 to 40.0"),
        ({"filter": {"low": float("nan")}}, "a percentile lies in 0..100"),
        ({"filter": {"classes": [7]}}, "class must be a whole number"),
        ({"filter": {"search": "x"}}, "no text to search"),
    ],
)
def test_what_cannot_be_decided_is_an_answer(desk, tmp_path, change, message):
    """A question that is wrong is answered in words and leaves the journal as it was; its neighbor is written."""
    question = asked(5, decision="keep") | change
    with pytest.raises(ConfigError, match=message):
        desk.decide(question)
    assert message.split(",")[0] in answering(desk.decide)(question)["error"]
    assert read_decisions(tmp_path / "journal.jsonl") == []
    assert "error" not in answering(desk.decide)(asked(5, decision="keep"))


def test_rows_without_classes(tmp_path):
    """Of a regression nothing is relabeled; numbers are shown, and a row without a value comes last."""
    desk = opened(tmp_path, make_regression())
    assert desk.about({})["classes"] == []
    answer = desk.show(asked())
    assert "This row has nothing to show except its scores" in answer["html"]["stage"]
    assert (answer["label"], answer["prediction"]) == (None, None)
    with pytest.raises(ConfigError, match="these rows have no classes"):
        desk.decide(asked(0, decision="relabel", label=0))
    assert desk.show(asked(3, skip="", order="vog_normalized"))["place"] == N


def test_the_next_row_is_made_ahead(desk, monkeypatch):
    """When a row is on the screen the one after it is being made, so that it need not be waited for."""
    order = highest(make_scores())
    desk.show(asked())
    deadline = time.monotonic() + 30
    while desk._page_of.cache_info().currsize < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    before = desk._page_of.cache_info().hits
    assert desk.decide(asked(order[0], decision="keep"))["row"] == order[1]
    assert desk._page_of.cache_info().hits > before


def test_answers_are_json(desk):
    """Nothing in an answer is left to be guessed by whoever writes it out."""
    written = desk.decide(asked(1, decision="keep", note="half of a pair \ud800", reviewer="\ud800"))
    shown = desk.show(asked(1, reviewer="\ud800") | {"any": True})
    assert shown["mine"]["note"] == "half of a pair \\ud800"
    for answer in (desk.about({}), desk.show(asked()), written, shown, desk.facts({}), desk.decisions({})):
        json.dumps(answer, allow_nan=False, ensure_ascii=False).encode("utf-8")


def test_pace_leaves_breaks_out():
    """An hour of lunch among decisions every six seconds: ten a minute; of two decisions there is no pace."""
    seconds = [0, 6, 12, 3612, 3618, 3624, 3630]
    times = [f"2026-01-01T{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}+00:00" for s in seconds]
    assert pace(times[::-1]) == 10
    assert pace(times[:2]) is None


def test_a_row_that_is_not_of_the_data_set(desk):
    """Neighbors' sounds are asked for by number, and only by one that exists."""
    with pytest.raises(ConfigError, match="row must be"):
        desk.sound({"row": -1})
    assert desk.sound({"row": 0}) == {"sound": None}


def test_scores_from_columns():
    """What was added as columns comes back as scores of the same rows; without vog it is refused."""
    from datasets import ClassLabel, Dataset, Features, Value

    from vog_hf.scores.dataset_columns import add_vog_columns, scores_from_columns
    from vog_hf.scores.scored_rows import verify_rows

    scores = make_scores(maps=None)
    label = scores.column("label").tolist()
    rows = Dataset.from_dict(
        {"text": [f"row {i}" for i in range(N)], "label": label, "weight": [0.5] * N},
        features=Features(
            {"text": Value("string"), "label": ClassLabel(names=HOSTILE[:4]), "weight": Value("float32")}
        ),
    )
    scored = add_vog_columns(rows, scores, "all")
    back = scores_from_columns(scored)
    assert set(back.column_names) == set(scores.column_names)
    for name in scores.column_names:
        np.testing.assert_array_equal(back.column(name), scores.column(name))
    assert back.manifest["class_names"] == HOSTILE
    verify_rows(rows, back)
    with pytest.raises(DataError, match="has no score column 'vog', but text, label, weight"):
        scores_from_columns(rows)


def test_the_queue_starts_with_the_recommended_ranking(desk):
    """The page opens with the mean loss, highest first; a column that is asked for starts with its highest rows."""
    assert desk.about({})["start"] == {"order": "loss", "tail": "highest"}
    assert desk.show(asked())["row"] == highest(make_scores(), "loss")[0]
    assert desk.show(asked(order="vog"))["row"] == highest(make_scores(), "vog")[0]


def test_the_queue_starts_with_what_decisions_show(tmp_path):
    """Rows that were dropped or relabeled choose the ranking; contradictions, unsure rows and too few do not."""
    scores = make_scores()
    low = np.argsort(scores.column("vog_early"), kind="stable")
    rows = [*(int(row) for row in low[:12]), *(int(row) for row in low[-12:])]

    def start(decided):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        journal = Journal.open(folder / "journal.jsonl", scores)
        for row, decision, reviewer in decided:
            other = int(scores.column("label")[row] == 0)
            journal.decide(row, decision, reviewer=reviewer, label=other if decision == "relabel" else None)
        return ReviewService(ScoredSplit("", scores), journal).about({})["start"]

    drops = [(row, "drop" if place % 2 else "relabel", "ada") for place, row in enumerate(rows[:12])]
    keeps = [(row, "keep", "ada") for row in rows[12:]]
    assert start([*drops, *keeps]) == {"order": "vog_early", "tail": "lowest"}
    loss_first = {"order": "loss", "tail": "highest"}
    assert start([*drops[:9], *keeps]) == loss_first
    assert start([(row, "unsure", "ada") for row in rows]) == loss_first
    assert start([*drops, *keeps, *((row, "keep", "grace") for row in rows[:12])]) == loss_first
