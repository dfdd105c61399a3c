"""`vog-hf review --status`: what a review has found and may still find, without a page."""

import sys

import numpy as np
import pytest
from cli_runs import run
from test_cli import made_scores

from vog_hf.review import Filter, Journal, Queue, review_yield
from vog_hf.scores.vog_scores import VoGScores

N = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scores of 120 digits and a review of the 60 with the lowest VoG, every third to be dropped."""
    folder = made_scores(tmp_path_factory.mktemp("status"), np.arange(N) / N)
    scores = VoGScores.load(folder)
    journal = Journal.open(folder.with_name("scores.review.jsonl"), scores)
    lowest = Filter(order="vog", tail="lowest")
    for place, row in enumerate(Queue(scores).rows(lowest)[:60]):
        journal.decide(int(row), "drop" if place % 3 == 0 else "keep", reviewer="Ada", queue=lowest)
    return folder


def test_the_status_is_that_of_the_reviewed_queue(folder, capfd, monkeypatch):
    """Words and a table for people, every figure for machines, and neither Gradio nor a page."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    found = review_yield(VoGScores.load(folder), folder.with_name("scores.review.jsonl"))
    done = run(capfd, "review", folder, "--status")
    assert done.code == 0, done.stderr
    assert done.stdout.startswith(f"✓ 60 reviewed, 20 wrong; the next 60 hold {found.next}.\n")
    assert "queue: VoG, raw, lowest first" in done.stdout
    assert found.sentences()[1] in done.stdout
    assert len(done.stdout.split("FITTED\n")[1].splitlines()) == len(found.shares) == 6
    values = run(capfd, "review", folder, "--status", "--json").values
    assert (values["next"]["low"], values["total"]["low"]) == (found.next.low, found.total.low)
    assert values["summary"] == " ".join(found.sentences())
    assert values["queue"] == "VoG, raw, lowest first"


def test_another_queue_and_another_threshold(folder, capfd):
    """The places are those of the queue that is asked for, and the verdict follows the threshold."""
    done = run(capfd, "review", folder, "--status", "--order", "vog", "--json")
    assert "only 0 rows from the top of this queue are reviewed (60 more lie further down)" in done.values["unclear"]
    assert done.values["next"] is None
    worth = [
        run(capfd, "review", folder, "--status", "--worth-at", at, "--json").values["worth"] for at in (0.01, 0.95)
    ]
    assert worth == ["yes", "no"]


def test_a_review_that_has_not_begun(tmp_path, capfd):
    """There is nothing to estimate from, no journal is created, and a journal that was named must exist."""
    folder = made_scores(tmp_path, np.arange(60) / 60)
    done = run(capfd, "review", folder, "--status")
    assert "0 reviewed, 0 wrong; unclear how many the next rows hold, because no row is reviewed yet" in done.stdout
    assert not list(tmp_path.glob("*.jsonl"))
    done = run(capfd, "review", folder, "--status", "--journal", tmp_path / "gone.jsonl")
    assert done.code == 1
    assert "cannot be read" in done.stderr


def test_a_journal_of_other_rows_is_refused(folder, tmp_path, capfd):
    """As the page does."""
    other = made_scores(tmp_path, np.arange(60) / 60)
    done = run(capfd, "review", other, "--status", "--journal", folder.with_name("scores.review.jsonl"))
    assert done.code == 1
    assert "belongs to a different dataset" in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--json"], "Invalid value for --json: this has no effect here; leave it out, or add --status"),
        (["--order", "vog"], "Invalid value for --order: this has no effect here; leave it out, or add --status"),
        (["--tail", "lowest"], "Invalid value for --tail: this has no effect here; leave it out, or add --status"),
        (
            ["--status", "--tail", "lowest"],
            "Invalid value for --tail: this has no effect here; leave it out, or add --order",
        ),
        (["--status", "--port", "80"], "Invalid value for --port: this has no effect here; leave it out, or leave out"),
    ],
)
def test_options_without_effect_are_refused(folder, capfd, given, message):
    """Of the status without it, and of the page with it."""
    done = run(capfd, "review", folder, *given)
    assert done.code == 2
    assert message in done.stderr
