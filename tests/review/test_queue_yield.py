"""The yield of a review from its journal: places, majorities, recorded queues and random rows."""

import json

import numpy as np
import pytest

from vog_hf.errors import ConfigError, JournalError, RowMismatchError
from vog_hf.evaluation import review_yield as estimate
from vog_hf.review import Filter, Journal, Queue, review_yield
from vog_hf.review.decision import Decision
from vog_hf.review.journal_events import read_decisions
from vog_hf.review.queue_yield import queue_in_words, reviewed_queue
from vog_hf.scores.vog_scores import VoGScores

N = 400
LOSS = np.random.default_rng(3).permutation(N) / N
BY_LOSS = np.argsort(-LOSS)  # rows in the recommended order
QUEUE = Filter(order="loss")


def scores_of(n=N, **manifest):
    """Scores of rows with a label, two columns to order by and a prediction."""
    columns = {"label": np.arange(n) % 3, "prediction": np.arange(n) % 2, "vog": np.arange(n) / n, "loss": LOSS[:n]}
    return VoGScores(columns, {"class_names": ["cat", "dog", "frog"], "data": {"columns": {"text": "ab"}}, **manifest})


SCORES = scores_of()


def decided(row, decision, reviewer="Ada", **shown):
    """A decision."""
    return Decision(int(row), decision, None, "", reviewer, "", f"{reviewer}{row}", int(row) % 3, None, **shown)


def decisions_of(rows, period=3, **shown):
    """Decisions about rows in turn, of which every ``period``-th is to be dropped."""
    return [decided(row, "drop" if place % period == 0 else "keep", **shown) for place, row in enumerate(rows)]


def known(decisions, rows):
    """What `estimate` takes: 1 for dropped, 0 for kept, NaN for other rows, in the order of rows."""
    values = {decision.row: float(decision.decision == "drop") for decision in decisions}
    return np.array([values.get(int(row), np.nan) for row in rows])


def test_decisions_count_at_the_place_of_their_row():
    """Whatever order they were made in: the estimate is that over the rows of the queue."""
    decisions = decisions_of(BY_LOSS[:90])
    found = review_yield(SCORES, decisions[::-1], QUEUE)
    assert found == estimate(known(decisions, BY_LOSS))
    assert review_yield(SCORES, decisions, Filter(order="loss", tail="lowest")).unclear.startswith("only 0 rows from")
    few = review_yield(SCORES, decisions, QUEUE, next_rows=7, worth_at=0.9)
    assert (few.next.rows, few.worth_at) == (7, 0.9)


def test_the_majority_decides_and_a_tie_is_unsure():
    """Two of three that drop a row make it wrong; keep against drop, or two new labels, are left out."""
    decisions = decisions_of(BY_LOSS[:60], period=2)
    votes = {1: ("drop", "drop"), 3: ("drop",), 5: ("unsure", "unsure")}
    others = [
        decided(BY_LOSS[place], what, reviewer=f"Bob {number}")
        for place, given in votes.items()
        for number, what in enumerate(given)
    ]
    found = review_yield(SCORES, [*decisions, *others], QUEUE)
    assert (found.reviewed, found.wrong, found.unsure) == (58, 31, 2)


def test_a_journal_records_the_queue_of_each_decision(tmp_path):
    """Order, filters and random rows are read again; a decision without them is written as before."""
    journal = Journal.open(tmp_path / "journal.jsonl", SCORES)
    chosen = Filter(order="vog", tail="lowest", classes=(0, 2), mismatched=True, percentile=(5, 100), search="a")
    journal.decide(1, "keep", reviewer="Ada", queue=chosen, random=True)
    journal.decide(2, "keep", reviewer="Ada")
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert lines[1]["queue"] == {
        "order": "vog",
        "tail": "lowest",
        "classes": [0, 2],
        "mismatched": True,
        "percentile": [5, 100],
        "search": "a",
    }
    assert lines[1]["random"] is True
    assert {"queue", "random"}.isdisjoint(lines[2])
    first, second = read_decisions(tmp_path / "journal.jsonl")
    assert (Filter.from_record(first.queue), first.random, second.queue, second.random) == (chosen, True, None, False)
    assert Journal.open(tmp_path / "journal.jsonl", SCORES).standing()[1, "Ada"] == first
    with pytest.raises(ConfigError, match="queue must be"):
        journal.decide(3, "keep", reviewer="Ada", queue={"order": "vog"})


def test_the_queue_of_most_decisions_is_the_default():
    """Of the recorded ones that these scores have; without a record the recommended ranking."""
    queue = Queue(SCORES)
    assert reviewed_queue(queue, decisions_of(BY_LOSS[:5])) == QUEUE
    lowest = Filter(order="vog", tail="lowest", mismatched=True)
    decisions = decisions_of(range(4), queue=lowest.to_record()) + decisions_of(range(4, 7), queue={"order": "vog"})
    assert reviewed_queue(queue, decisions) == lowest
    of_sets = Filter(order="vog", classes={np.int64(2)}).to_record()
    assert json.loads(json.dumps(of_sets)) == {"order": "vog", "classes": [2]}
    for record in (
        {"order": "gone"},
        {"order": "vog", "patterns": ["unstable"]},
        {"order": "vog", "search": "a"},
        {"order": "vog", "later": 1},
        {"tail": 5},
    ):
        assert reviewed_queue(queue, decisions_of(range(4), queue=record)) == QUEUE
    rows = queue.rows(lowest)
    found = review_yield(SCORES, decisions_of(rows[:60], queue=lowest.to_record()))
    assert (found.rows, found.depth, found.reviewed) == (len(rows), 60, 60)
    assert queue_in_words(lowest) == "VoG, raw, lowest first, rows with other predictions than labels"


def shown_rows(chosen, count):
    """The first rows of a queue and their decisions, each recorded as the page does."""
    rows, is_random = Queue(SCORES).mixed_rows(chosen)
    record = chosen.to_record()
    return [
        decided(row, "drop" if place % 4 == 0 else "keep", queue=record, random=bool(at_random))
        for place, (row, at_random) in enumerate(zip(rows[:count], is_random[:count], strict=True))
    ]


def test_random_rows_of_the_queue_give_the_total():
    """Those below the reviewed part are the sample, at their places in the ranking without random rows."""
    chosen = Filter(order="loss", random_share=0.4)
    decisions = shown_rows(chosen, 100)
    found = review_yield(SCORES, decisions)
    drawn = {decision.row for decision in decisions if decision.random}
    assert found == estimate(known(decisions, BY_LOSS), random=np.isin(BY_LOSS, list(drawn)))
    assert (found.basis, found.reviewed) == ("from random rows", 100)
    assert 20 <= found.random <= 40
    assert found.depth < 100


def test_random_rows_of_another_selection_are_no_sample():
    """Rows drawn from some classes say nothing about all; rows drawn from all are a sample of some."""
    of_some = Filter(order="loss", classes=(0, 1), random_share=0.5)
    assert review_yield(SCORES, shown_rows(of_some, 90), QUEUE).random == 0
    of_all = shown_rows(Filter(order="loss", random_share=0.5), 90)
    assert review_yield(SCORES, of_all, Filter(order="vog", classes=(0, 1))).random > 10
    upper = Filter(order="loss", percentile=(20, 100), random_share=0.5)
    assert review_yield(SCORES, shown_rows(upper, 90), Filter(order="vog", percentile=(20, 100))).random == 0


def test_a_queue_that_nothing_passes_has_no_yield():
    """It says so, and so does a review without decisions."""
    nothing = Filter(order="loss", classes=(7,))
    assert (
        review_yield(SCORES, decisions_of(BY_LOSS[:60]), nothing).unclear
        == "no row is in this queue; change its filters"
    )
    assert review_yield(SCORES, []).unclear == "no row is reviewed yet"


def test_decisions_about_other_data_are_refused(tmp_path):
    """Another dataset, a missing journal, an unknown column; the journal of these rows is accepted."""
    journal = Journal.open(tmp_path / "journal.jsonl", SCORES)
    journal.decide(1, "keep", reviewer="Ada")
    assert review_yield(SCORES, journal).reviewed == review_yield(SCORES, journal.path).reviewed == 1
    with pytest.raises(RowMismatchError, match="belongs to a different dataset"):
        review_yield(scores_of(data={"columns": {"text": "cd"}}), journal.path)
    with pytest.raises(JournalError, match="cannot be read"):
        review_yield(SCORES, tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match="cannot be ordered by 'nothing'"):
        review_yield(SCORES, journal, Filter(order="nothing"))


@pytest.mark.parametrize("row", [N, -1])
def test_decisions_about_missing_rows_are_refused(row):
    """A row that the scores do not have."""
    with pytest.raises(ConfigError, match="row must be"):
        review_yield(SCORES, [decided(row, "keep")])
