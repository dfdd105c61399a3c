"""What the grid of the review is answered: pages of the queue, and decisions about several rows at a time."""

import numpy as np
import pytest
from report_cases import HOSTILE, HOSTILE_TEXT, N, make_pictures, make_regression, make_scores, make_texts
from test_review_service import asked, highest, tree

from vog_hf.errors import ConfigError
from vog_hf.review.grid import TILES, GridService
from vog_hf.review.journal import Journal
from vog_hf.review.journal_events import read_decisions
from vog_hf.scores.formatting import printable
from vog_hf.scores.scored_rows import ScoredSplit


def opened(folder, scores=None, dataset=None, **options):
    """A service with a journal in a folder."""
    scores = make_scores() if scores is None else scores
    return GridService(ScoredSplit("", scores, dataset), Journal.open(folder / "journal.jsonl", scores), **options)


@pytest.fixture
def service(tmp_path):
    """A service with pictures."""
    return opened(tmp_path, dataset=make_pictures())


def grid(at=0, rows=(), **more):
    """A question of the grid."""
    ids = {"ids": more.pop("ids")} if "ids" in more else {}
    return asked(**more) | {"at": at, "rows": list(rows)} | ids


def test_pages_follow_the_queue(service):
    """Each page has the next rows; decided ones are hidden, so that others take their place; none is past the end."""
    order = highest(make_scores())
    first = service.grid(grid())
    assert (first["rows"], first["at"], first["left"], first["length"]) == (order[:TILES], 0, N, N)
    assert service.grid(grid(TILES))["rows"] == order[TILES : 2 * TILES]
    last = service.grid(grid(N - 1))
    assert last["rows"] == order[N - 1 :]
    answer = service.decide_all(grid(rows=order[:3], decision="keep"))
    assert (answer["rows"], answer["left"], answer["decided"]) == (order[3 : TILES + 3], N - 3, 3)
    assert service.grid(grid(skip=""))["rows"] == order[:TILES]
    assert service.grid(grid(reviewer="grace"))["rows"] == order[:TILES]
    assert service.grid(grid(N - 1))["rows"] == order[3 + (N - 4) // TILES * TILES :], "the last page that there is"
    assert service.grid(grid(classes=[1]))["length"] == (make_scores().column("label") == 1).sum()


def test_tiles_show_rows(service, tmp_path):
    """A tile has the picture or the text, label and prediction, and one's own decision; names of data are texts."""
    row = highest(make_scores())[0]
    service.decide_all(grid(rows=[row], decision="drop"))
    tiles = tree(service.grid(grid(skip=""))["html"]["tiles"])
    button = tiles.find("button", "choose")
    assert button.attributes["data-tile"] == str(row)
    assert button.attributes["aria-pressed"] == "false"
    assert button.attributes["aria-label"].endswith("decided: Drop")
    assert button.find("img").attributes["src"].startswith("data:image/webp;base64,")
    label = int(make_scores().column("label")[row])
    name = "\N{EN DASH}" if label < 0 else printable(HOSTILE[label])
    assert button.find("span", "tag").find("b").text == name
    texts = tree(opened(tmp_path / "texts", dataset=make_texts()).grid(grid())["html"]["tiles"])
    assert all(span.text.startswith(HOSTILE_TEXT) for span in texts.find_all("span", "small-text"))
    assert not texts.find_all("img")


def test_decisions_about_several_rows(service, tmp_path):
    """Each row gets a decision of its own, with the queue that showed it; asked again, none is written twice."""
    rows = highest(make_scores())[:4]
    question = grid(rows=rows, decision="relabel", label=2, mismatched=True, random=20)
    relabeled = [row for row in rows if make_scores().column("label")[row] != 2]
    ids = service.decide_all(question | {"rows": relabeled})["ids"]
    written = read_decisions(tmp_path / "journal.jsonl")
    assert [(one.row, one.decision, one.label, one.id) for one in written] == [
        (row, "relabel", 2, ident) for row, ident in zip(relabeled, ids, strict=True)
    ]
    order = service._order(service._reader.filter(question))
    for one in written:
        place = order.place[one.row]
        assert one.random == (place >= 0 and bool(order.is_random[place]))
        assert one.queue == ({"order": "loss", "mismatched": True} if place >= 0 else None)
    assert service.decide_all(question | {"rows": relabeled})["ids"] == []
    assert len(read_decisions(tmp_path / "journal.jsonl")) == len(relabeled)


def test_each_to_its_prediction(service, tmp_path):
    """Rows are relabeled to their own last predictions; with one whose prediction is its label, none is."""
    label, prediction = (make_scores().column(name) for name in ("label", "prediction"))
    wrong = np.flatnonzero((label >= 0) & (label != prediction))[:5].tolist()
    right = int(np.flatnonzero(label == prediction)[0])
    question = grid(rows=[*wrong, right], decision="relabel", label="prediction")
    with pytest.raises(ConfigError, match=f"rows {right} have no prediction that differs from their label"):
        service.decide_all(question)
    assert read_decisions(tmp_path / "journal.jsonl") == []
    service.decide_all(question | {"rows": wrong})
    assert {one.row: one.label for one in read_decisions(tmp_path / "journal.jsonl")} == {
        row: prediction[row] for row in wrong
    }


def test_all_are_checked_before_one_is_written(service, tmp_path):
    """With a row that cannot get the decision, nothing is written, and the row is named; without it, all are."""
    label = make_scores().column("label")
    other, same = int(np.flatnonzero(label == 1)[0]), int(np.flatnonzero(label == 2)[0])
    question = grid(rows=[other, same], decision="relabel", label=2)
    with pytest.raises(ConfigError, match=f"row {same} has the label 2 already"):
        service.decide_all(question)
    assert read_decisions(tmp_path / "journal.jsonl") == []
    service.decide_all(question | {"rows": [other]})
    assert [one.row for one in read_decisions(tmp_path / "journal.jsonl")] == [other]


@pytest.mark.parametrize("rows", [[], "3", [N], [True], [[1]], list(range(501)), None])
def test_rows_are_checked(service, rows):
    """Rows are named in a list, each by its number; a list of one is enough."""
    with pytest.raises(ConfigError, match=r"rows? must be a (list|whole number)"):
        service.decide_all(grid(decision="keep") | {"rows": rows})
    assert service.decide_all(grid(decision="keep", rows=[3, 3]))["decided"] == 1


def test_undo_takes_a_batch_back(service, tmp_path):
    """The decisions of a batch are undone together, and no earlier ones, nor those of another reviewer."""
    rows = highest(make_scores())
    service.decide_all(grid(rows=rows[:2], decision="keep"))
    service.decide_all(grid(rows=rows[5:7], decision="keep", reviewer="grace"))
    ids = service.decide_all(grid(rows=rows[2:5], decision="drop"))["ids"]
    answer = service.undo_all(grid(ids=ids))
    assert answer["message"] == "Undone: 3 decisions."
    assert {one.row for one in read_decisions(tmp_path / "journal.jsonl")} == {*rows[:2], *rows[5:7]}
    assert answer["rows"][:3] == rows[2:5]
    assert service.undo_all(grid(ids=ids))["message"].startswith("Nothing was undone")
    assert service.undo_all(grid(ids=[answer["last"]]))["message"] == "Undone: 1 decision."
    last = service.undo_all(grid(ids=[service.grid(grid())["last"]]))
    assert (last["decided"], last["message"]) == (0, "Undone: 1 decision.")
    assert service.undo_all(grid(ids=[""]))["message"] == "There is nothing to undo."


def test_rows_without_classes(tmp_path):
    """Numbers are kept or dropped in a grid as well; they cannot be relabeled."""
    service = opened(tmp_path, make_regression())
    answer = service.decide_all(grid(rows=[1, 2], decision="drop"))
    assert answer["decided"] == 2
    with pytest.raises(ConfigError, match="these rows have no classes"):
        service.decide_all(grid(rows=[1], decision="relabel", label=0))
