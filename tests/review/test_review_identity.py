"""The rows of a journal where columns cannot tell: rows that were skipped, columns under other names, no table."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset

from vog_hf.data.row_identity import identify_rows
from vog_hf.errors import RowMismatchError
from vog_hf.review import Journal, apply_review
from vog_hf.review.decision_checks import verified_decisions
from vog_hf.runtime.files import without_checksum
from vog_hf.scores import VoGScores

LABELS = [0, 1, 2, 1]
NAMES = ["cat", "dog", "frog"]


def scores_of(labels=LABELS, skipped=(), dataset=None):
    """Scores of rows, of which some were skipped; without a dataset, of rows without a table."""
    vog, label = np.linspace(0.1, 0.4, len(labels)), np.array(labels)
    vog[list(skipped)], label[list(skipped)] = np.nan, -1
    columns = {} if dataset is None else identify_rows(dataset).columns
    return VoGScores({"vog": vog, "label": label}, {"class_names": NAMES, "data": {"columns": columns}})


@pytest.mark.parametrize(
    ("before", "after"), [((), ()), ((1,), (1,)), ((1, 3), (3,)), ((1,), ()), ((), (2,)), ((1,), (2,))]
)
def test_a_journal_continues_whatever_rows_were_skipped(tmp_path, before, after):
    """Rows that have a score only before or only after another scoring do not make it another dataset."""
    path = tmp_path / "review.jsonl"
    Journal.open(path, scores_of(skipped=before)).decide(0, "drop", reviewer="ada")
    assert Journal.open(path, scores_of(skipped=after)).count == 1
    assert len(verified_decisions(path, scores_of(skipped=after))) == 1


def test_labels_of_rows_that_had_a_score_are_compared(tmp_path):
    """A label that differs in another row than the skipped one makes it another dataset."""
    path = tmp_path / "review.jsonl"
    Journal.open(path, scores_of(skipped=[1]))
    assert Journal.open(path, scores_of([0, 0, 2, 1])).count == 0, "row 1 was skipped, so its label was not known"
    with pytest.raises(RowMismatchError, match="the labels differ"):
        Journal.open(path, scores_of([0, 1, 1, 1]))


def test_a_decision_about_a_skipped_row_is_applied(tmp_path):
    """The row has a label in the dataset, and had none in the scores that the decision was made from."""
    scores = scores_of(skipped=[1])
    journal = Journal.open(tmp_path / "review.jsonl", scores)
    journal.decide(1, "relabel", label=0, reviewer="ada")
    rows = Dataset.from_dict({"label": LABELS})
    assert apply_review(rows, journal, mode="clean")["label"][:] == [0, 0, 2, 1]


def test_a_journal_that_did_not_note_them_is_read(tmp_path):
    """Earlier versions wrote no list of rows without a score."""
    path = tmp_path / "review.jsonl"
    Journal.open(path, scores_of())
    header = without_checksum(json.loads(path.read_text()))
    assert header.pop("unscored") == []
    path.write_text(json.dumps(header) + "\n")
    assert Journal.open(path, scores_of()).count == 0


def table(text, label):
    """Rows with text and label under these names."""
    return Dataset.from_dict({text: ["a", "b", "c", "d"], label: LABELS})


def test_without_a_shared_column_the_labels_decide(tmp_path):
    """Renamed columns with the same labels are the same rows; with other labels they are not."""
    path, renamed = tmp_path / "review.jsonl", table("sentence", "labels")
    Journal.open(path, scores_of(dataset=table("text", "label"))).decide(0, "drop", reviewer="ada")
    assert Journal.open(path, scores_of(dataset=renamed)).count == 1
    with pytest.raises(RowMismatchError, match="the labels differ"):
        Journal.open(path, scores_of([0, 1, 2, 2], dataset=renamed))


def test_tables_without_a_shared_column_or_labels_are_refused(tmp_path):
    """Nothing shows that they are the same rows; the message has the columns of both."""
    path = tmp_path / "review.jsonl"
    values, names = {"vog": np.ones(4)}, {"class_names": None}
    columns = [{"data": {"columns": identify_rows(table(*of)).columns}} for of in (("text", "y"), ("sentence", "z"))]
    Journal.open(path, VoGScores(values, names | columns[0]))
    with pytest.raises(RowMismatchError, match="it has the columns text, y, and these rows sentence, z; pass its own"):
        Journal.open(path, VoGScores(values, names | columns[1]))


def test_rows_without_a_table_or_labels_are_compared_by_number(tmp_path, caplog):
    """With a warning that says so, and refused where their number differs."""
    path = tmp_path / "review.jsonl"
    Journal.open(path, VoGScores({"vog": np.ones(4)}, {}))
    with caplog.at_level(logging.WARNING):
        Journal.open(path, VoGScores({"vog": np.zeros(4)}, {}))
    assert "could only be compared with" in caplog.text
    with pytest.raises(RowMismatchError, match="cover 4 rows and the dataset has 5"):
        Journal.open(path, VoGScores({"vog": np.ones(5)}, {}))
