import json

import numpy as np
import pytest
from report_cases import HOSTILE, make_regression, make_scores

from vog_hf.errors import ConfigError
from vog_hf.review import Filter, Queue
from vog_hf.scores.vog_scores import VoGScores


def small(**columns):
    """Seven rows of two classes, with a tie and a value that is not a number."""
    values = {
        "label": np.array([0, 1, 0, 1, 0, -1, 1], np.int32),
        "prediction": np.array([0, 1, 1, 0, 0, 1, 1], np.int32),
        "vog": np.array([0.5, 0.1, 0.9, 0.3, 0.5, np.nan, 0.7], np.float32),
        "loss": np.arange(7, dtype=np.float32),
        **columns,
    }
    return VoGScores(values, {"class_names": ["cat", "dog"]})


TEXTS = ["A Cat", "dogs", "STRASSE", "straße", "cat.*", "", "a\ud800b"]


@pytest.mark.parametrize(
    ("chosen", "rows"),
    [
        ({}, [2, 6, 0, 4, 3, 1, 5]),
        ({"tail": "lowest"}, [1, 3, 0, 4, 6, 2, 5]),
        ({"order": "loss"}, [6, 5, 4, 3, 2, 1, 0]),
        ({"order": "loss", "tail": "lowest"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"classes": (1,)}, [6, 3, 1]),
        ({"classes": (1, -1)}, [6, 3, 1, 5]),
        ({"mismatched": True}, [2, 3]),
        ({"percentile": (50, 100)}, [2, 6, 0, 4]),
        ({"percentile": (0, 100)}, [2, 6, 0, 4, 3, 1, 5]),
        ({"percentile": (90, 100)}, [2]),
        ({"search": "CAT"}, [0, 4]),
        ({"search": ".*"}, [4]),
        ({"search": "strasse"}, [2, 3]),
        ({"search": "nowhere"}, []),
        ({"undecided": True}, [6, 4, 3, 1, 5]),
        ({"classes": (0,), "undecided": True, "tail": "lowest"}, [4]),
    ],
)
def test_rows_that_pass_a_filter_come_in_its_order(chosen, rows):
    """Each filter leaves the rows it names, ties in row order and rows without a value last, at either end."""
    assert Queue(small(), TEXTS).rows(Filter(**chosen), {0, 2}).tolist() == rows


def test_learning_patterns_filter_rows():
    """Rows with one of the patterns pass, and a row without a pattern does not; the record of a filter keeps them."""
    scores = make_scores()
    pattern = scores.column("learning_pattern")
    for patterns in (("forgotten",), ("never_learned", "unstable")):
        chosen = Filter(order="loss", patterns=patterns)
        order = np.argsort(-scores.column("loss"), kind="stable")
        expected = [row for row in order.tolist() if pattern[row] in patterns]
        assert 0 < len(expected) < len(scores)
        assert Queue(scores).rows(chosen).tolist() == expected
        assert Filter.from_record(json.loads(json.dumps(chosen.to_record()))) == chosen
    assert None in pattern


def test_order_and_filters_agree_with_a_sorted_table():
    """On many rows every filter together gives what pandas gives."""
    scores = make_scores()
    texts = [f"row {row}" for row in range(len(scores))]
    chosen = Filter("loss", "lowest", (0, 2), mismatched=True, percentile=(20, 95), search="1", undecided=True)
    decided = set(range(0, len(scores), 4))
    table = scores.to_pandas()
    share = 100 * (table["loss"].rank() - 0.5) / len(table)
    keep = (
        table["label"].isin([0, 2])
        & (table["label"] != table["prediction"])
        & share.between(20, 95)
        & table["row"].astype(str).str.contains("1")
        & ~table["row"].isin(decided)
    )
    expected = table[keep].sort_values("loss")["row"].tolist()
    found = Queue(scores, texts).rows(chosen, decided)
    assert expected
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_the_ranking_column_is_the_first_order():
    """Rows come by the class-normalized score unless another column is named; labels are not order."""
    queue = Queue(make_scores())
    assert queue.columns[0] == "vog_class_normalized"
    assert {"vog", "vog_early", "vog_late", "loss"} <= set(queue.columns)
    assert not {"label", "prediction"} & set(queue.columns)
    assert queue.rows(Filter()).tolist() == queue.rows(Filter("vog_class_normalized")).tolist()


@pytest.mark.parametrize(
    ("row", "count", "tail", "near"),
    [
        (0, 2, "highest", [2, 4]),
        (0, 2, "lowest", [4, 2]),
        (2, 2, "highest", [0, 4]),
        (4, 2, "highest", [2, 0]),
        (6, 6, "highest", [3, 1, 5]),
        (5, 1, "highest", [1]),
        (3, 0, "highest", []),
    ],
)
def test_neighbors_stand_next_to_the_row_in_its_class(row, count, tail, near):
    """Half before and half after in the order, more on one side at an end; a row without a label by its prediction."""
    assert Queue(small()).neighbors(row, Filter(tail=tail, search="x", classes=(0,)), count).tolist() == near


def test_rows_without_classes_have_neighbors_of_any_kind():
    """Where rows have no class, the neighbors are simply next in the order."""
    queue = Queue(make_regression())
    ordered = queue.rows(Filter())
    assert queue.neighbors(int(ordered[10]), Filter(), 4).tolist() == ordered[[8, 9, 11, 12]].tolist()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Filter(tail="hard"), "'highest' or 'lowest', got 'hard'"),
        (lambda: Filter(percentile=(60, 40)), r"lower one first, got \(60, 40\)"),
        (lambda: Filter(percentile=(0, 101)), r"in 0..100"),
        (lambda: Filter(percentile=(float("nan"), 100)), r"in 0..100"),
        (lambda: Queue(small(), ["one"]), "one per row, got 1 for 7 rows"),
        (lambda: Queue(small()).rows(Filter("label")), "cannot be ordered by 'label'; choose one of vog, loss"),
        (lambda: Queue(small()).rows(Filter(search="x")), "no text to search for 'x'"),
        (lambda: Queue(make_regression()).rows(Filter(classes=(1,))), "no single label per row"),
        (lambda: Queue(make_regression()).rows(Filter(mismatched=True)), "no single label per row"),
        (lambda: Queue(small()).neighbors(7, Filter()), r"0..6, got 7"),
        (lambda: Filter(patterns=("late",)), r"patterns must be a tuple of learned_early, .* got \('late',\)"),
        (lambda: Filter(patterns="forgotten"), "patterns must be a tuple of learned_early, .* got 'forgotten'"),
        (lambda: Queue(make_regression()).rows(Filter(patterns=("forgotten",))), "because the rows of these scores"),
    ],
)
def test_what_cannot_be_filtered_is_refused(build, message):
    """A filter that the scores cannot answer is an error, not an empty queue."""
    with pytest.raises(ConfigError, match=message):
        build()


def test_hostile_names_of_classes_change_nothing():
    """Classes go by number: names with HTML in them are not looked at."""
    scores = make_scores(names=HOSTILE)
    rows = Queue(scores).rows(Filter(classes=(0,)))
    assert len(rows)
    assert set(scores.column("label")[rows]) == {0}
