"""A review against hostile requests, and against what happens to its journal while it is open."""

import json
import os
import shutil
import threading

import pytest
from report_cases import make_regression, make_scores, make_texts

from vog_hf.review.app import LOOPBACK, PUBLISHED, is_own_page
from vog_hf.review.grid import GridService
from vog_hf.review.journal import Journal
from vog_hf.review.journal_events import read_decisions
from vog_hf.review.service import answering
from vog_hf.scores.scored_rows import ScoredSplit

ASKED = {"reviewer": "ada", "row": 3, "skip": "me", "filter": {}, "decision": "keep", "label": 1, "note": "", "step": 1}
ASKED |= {"rows": [4, 5], "at": 24, "ids": ["x"]}
OF_FILTER = ("order", "tail", "classes", "patterns", "mismatched", "low", "search")
HOSTILE = [
    *(None, True, -1, 10**30, 1.5, float("nan"), float("inf"), "", "0", "\ud800", "\x00", "x" * 10**6, b"bytes"),
    *([], [1], [[]], [None], {}, {"order": []}, "__class__", "../../etc/passwd"),
]


def opened(path, scores=None, rows=None):
    """A service with a journal at a path."""
    scores = make_scores() if scores is None else scores
    return GridService(ScoredSplit("", scores, rows), Journal.open(path, scores))


def answer(service, function, **changes):
    """The answer to a request, which is JSON, or one line with an error."""
    given = answering(getattr(service, function))(ASKED | changes)
    json.dumps(given, allow_nan=False, ensure_ascii=False).encode("utf-8")
    if "error" in given:
        assert "\n" not in given["error"]
        assert len(given["error"]) < 400
    return given


def test_a_row_outside_the_queue_is_answered_in_json(tmp_path):
    """Undoing a decision shows its row, which a filter set since then can leave out."""
    service = opened(tmp_path / "journal.jsonl", rows=make_texts())
    answer(service, "decide", filter={})
    left_out = answer(service, "undo", filter={"mismatched": True, "search": "no row has this"})
    assert (left_out["row"], left_out["place"], left_out["random"]) == (3, None, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "field", [*ASKED, "last", "any", "order", "tail", "classes", "patterns", "mismatched", "low", "search"]
)
def test_no_value_of_a_request_breaks_the_page(tmp_path, field):
    """Whatever a field holds, every function answers in JSON or in one line, and the journal can be read again."""
    service = opened(tmp_path / "journal.jsonl", rows=make_texts())
    of_filter = field in OF_FILTER
    for value in HOSTILE:
        changes = {"filter": {field: value}} if of_filter else {field: value}
        for function in PUBLISHED:
            answer(service, function, **changes)
    assert len(Journal.open(tmp_path / "journal.jsonl", make_scores()).standing()) == service._journal.count


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("all", "filter must be an object, got 'all'"),
        (7, "filter must be an object, got 7"),
        ({"classes": "01"}, "classes must be a list of class numbers, got '01'"),
        ({"classes": 1}, "classes must be a list of class numbers, got 1"),
        ({"patterns": "forgotten"}, "patterns must be a list of learned_early"),
        ({"patterns": [["forgotten"]]}, "patterns must be a list of learned_early"),
        ({"order": "x" * 10**6}, "no queue can be ordered by 'xxx"),
    ],
)
def test_a_filter_of_another_type_is_named(tmp_path, chosen, message):
    """The answer says what was expected and how what came begins."""
    assert answer(opened(tmp_path / "journal.jsonl"), "show", filter=chosen)["error"].startswith(message)


def test_classes_of_rows_without_classes(tmp_path):
    """Neither a filter nor a relabeling names a class that no row can have."""
    service = opened(tmp_path / "journal.jsonl", make_regression())
    assert answer(service, "show", filter={"classes": [0]})["error"] == (
        "class cannot be given: these rows have no classes"
    )
    assert "these rows have no classes" in answer(service, "decide", decision="relabel", label=0)["error"]


@pytest.mark.parametrize("header", ["host", "origin"])
def test_an_address_that_is_none_is_rejected(header):
    """A malformed Host or Origin is not the review page."""
    headers = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}
    assert is_own_page(headers, LOOPBACK)
    assert not is_own_page(headers | {header: "http://[::1"}, LOOPBACK)


def folder_removed(path):
    """The folder of the journal is deleted."""
    shutil.rmtree(path.parent)


def emptied(path):
    """All of the journal is cut off."""
    os.truncate(path, 0)


def cut(path):
    """The last decision is cut off."""
    os.truncate(path, path.read_bytes().rstrip(b"\n").rfind(b"\n") + 1)


def made_folder(path):
    """A folder takes the journal's place."""
    path.unlink()
    path.mkdir()


def made_pipe(path):
    """A pipe takes its place."""
    path.unlink()
    os.mkfifo(path)


def made_loop(path):
    """A link to itself takes its place."""
    path.unlink()
    path.symlink_to(path)


def nested(path):
    """Somebody appends JSON that is too deep to be read."""
    with path.open("ab") as file:
        file.write(b"[" * 100_000 + b"\n")


@pytest.mark.parametrize(
    ("happens", "message"),
    [
        (folder_removed, "is gone; put it back, or open a new one"),
        (emptied, "bytes while it was open, so decisions are missing; put a copy in its place"),
        (cut, "bytes while it was open, so decisions are missing; put a copy in its place"),
        (made_folder, "is not a file; choose another journal"),
        (made_pipe, "is not a file; choose another journal"),
        (made_loop, "is a symbolic link that leads nowhere"),
        (nested, "line 4 of "),
    ],
)
def test_what_happens_to_a_journal_is_told_each_time(tmp_path, happens, message):
    """Every request says so in one line until it is fixed, and the journal's copy, put back, continues."""
    path = tmp_path / "reviews" / "journal.jsonl"
    service = opened(path)
    answer(service, "decide", row=1)
    answer(service, "decide", row=2)
    copy = path.read_bytes()
    happens(path)
    for function in ("show", "decide", "undo", "decisions", "facts", "decide"):
        assert message in answer(service, function)["error"]
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(copy)
    answer(service, "decide", row=3)
    assert [decision.row for decision in read_decisions(path)] == [1, 2, 3]


def test_a_journal_that_lost_its_end_continues_when_it_is_opened_again(tmp_path):
    """With what is left of it; nothing was written while decisions were missing."""
    path = tmp_path / "journal.jsonl"
    service = opened(path)
    answer(service, "decide", row=1)
    answer(service, "decide", row=2)
    cut(path)
    left = path.read_bytes()
    assert "decisions are missing" in answer(service, "decide", row=3)["error"]
    assert path.read_bytes() == left
    again = opened(path)
    answer(again, "decide", row=3)
    assert [decision.row for decision in read_decisions(path)] == [1, 3]


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's journal can only be made by root")
def test_a_read_only_journal_is_shown_and_takes_no_decision(tmp_path):
    """Rows and decisions are shown; deciding is answered with the reason; made writable, it continues."""
    path = tmp_path / "journal.jsonl"
    service = opened(path)
    answer(service, "decide", row=1)
    for folder in (path.parent, *path.parent.parents):
        if folder.stat().st_uid == 0 and folder.name.startswith(("pytest", "popen", tmp_path.name)):
            folder.chmod(0o755)
    path.chmod(0o444)
    os.seteuid(65534)
    try:
        assert answer(service, "show", row=1)["decided"] == 1
        assert "error" not in answer(service, "decisions")
        refused = answer(service, "decide", row=2)["error"]
    finally:
        os.seteuid(0)
    assert "Permission denied" in refused
    assert "free some space or name another journal; earlier decisions are kept" in refused
    assert "error" not in answer(service, "decide", row=3)
    assert [decision.row for decision in read_decisions(path)] == [1, 3]


@pytest.mark.slow
def test_two_reviewers_at_once_lose_no_decision(tmp_path):
    """Two services on one journal, with two threads each, and two tabs of one reviewer: each decision is there once."""
    path = tmp_path / "journal.jsonl"
    services = opened(path), opened(path)

    def work(service, reviewer):
        for row in range(15):
            assert "error" not in answer(service, "decide", row=row, reviewer=reviewer)

    who = [(services[0], "ada"), (services[0], "bob"), (services[1], "cyd"), (services[1], "dee")]
    threads = [threading.Thread(target=work, args=given) for given in who]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = {(decision.row, decision.reviewer) for decision in read_decisions(path)}
    assert made == {(row, reviewer) for row in range(15) for _, reviewer in who}
