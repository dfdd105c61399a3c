"""Rows handed over to Argilla and answers taken back, with Argilla's own objects where it is installed."""

import builtins
import re
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_review_apply import NAMES, N, pictures, scores_of

from vog_hf.errors import ConfigError, RowMismatchError
from vog_hf.review import Filter, Journal, Queue, from_argilla, to_argilla
from vog_hf.review.argilla import argilla_questions

PAGE = Path(__file__).parents[2] / "docs" / "review.md"


@pytest.fixture(scope="module")
def data():
    """The rows and their scores."""
    dataset = pictures()
    return dataset, scores_of(dataset)


@pytest.fixture
def journal(data, tmp_path):
    """A journal without decisions."""
    return Journal.open(tmp_path / "review.jsonl", data[1])


def answered(journal, row, *answers, status="submitted", metadata=None):
    """A record as Argilla gives it back: answers of users a, b, ... by question."""
    responses = [
        SimpleNamespace(question_name=question, value=value, user_id=user, status=status)
        for user, given in zip("abc", answers, strict=False)
        for question, value in given.items()
    ]
    known = {"row": row, "row_hash": journal.row_hash(row), **(metadata or {})}
    return SimpleNamespace(id=str(row), metadata=known, responses=responses)


def test_submitted_answers_become_decisions(journal):
    """Each user's answers are one decision; a label counts with relabel alone; drafts and discarded ones do not."""
    records = [
        answered(journal, 4, {"decision": "relabel", "label": "2", "note": "frog"}, {"decision": "keep", "label": "0"}),
        answered(journal, 5, {"decision": "drop"}, status=SimpleNamespace(value="submitted")),
        answered(journal, 6, {"decision": "drop"}, status="draft"),
        answered(journal, 7, {"decision": "drop"}, status="discarded"),
        answered(journal, 8),
    ]
    assert from_argilla(records, journal, reviewers={"a": "Ada"}) == 3
    found = {key: (one.decision, one.label, one.note) for key, one in journal.standing().items()}
    assert found == {
        (4, "Ada"): ("relabel", 2, "frog"),
        (4, "b"): ("keep", None, ""),
        (5, "Ada"): ("drop", None, ""),
    }


def test_answers_are_written_once(journal):
    """The same answers again write nothing; one that was changed since is written."""
    assert from_argilla([answered(journal, 4, {"decision": "drop"})], journal) == 1
    assert from_argilla([answered(journal, 4, {"decision": "drop"})], journal) == 0
    assert from_argilla([answered(journal, 4, {"decision": "keep"})], journal) == 1
    assert journal.count == 1


@pytest.mark.parametrize(
    ("answers", "metadata", "error", "message"),
    [
        ({"decision": "relabel"}, {}, ConfigError, "'a' to record 4 .*got None; fix it in Argilla"),
        ({"decision": "relabel", "label": "1"}, {}, ConfigError, "has the label 1 already"),
        ({"decision": "relabel", "label": "dog"}, {}, ConfigError, "invalid literal"),
        ({"note": "?"}, {}, ConfigError, "got 'None'"),
        ({"decision": "keep"}, {"row_hash": "0" * 16}, RowMismatchError, "record 4 is about another row 4"),
        ({"decision": "keep"}, {"row": N}, RowMismatchError, "about another row 31"),
        ({"decision": "keep"}, {"row": None}, RowMismatchError, "was not created by to_argilla"),
    ],
)
def test_nothing_is_written_where_one_answer_is_wrong(journal, answers, metadata, error, message):
    """An answer no journal takes, or a record about other data, stops all of them, the good ones before it, too."""
    records = [answered(journal, 0, {"decision": "keep"}), answered(journal, 4, answers, metadata=metadata)]
    with pytest.raises(error, match=message):
        from_argilla(records, journal)
    assert journal.count == 0


def test_without_argilla_one_line_says_how_to_get_it(data, monkeypatch):
    """The library is optional, and is asked for only where records are made."""

    def without(name, *rest, imported=builtins.__import__):
        if name == "argilla":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="pip install argilla"):
        to_argilla(data[1], data[0], [0])


def test_records_of_argilla_go_out_and_come_back(data, journal):
    """Argilla's own records: picture, number, hash and scores, a suggestion where the prediction differs; answered."""
    argilla = pytest.importorskip("argilla")
    dataset, scores = data
    rows = Queue(scores).rows(Filter())[:12]
    records = to_argilla(scores, dataset, rows)
    user = uuid.uuid4()
    for row, record in zip(rows, records, strict=True):
        label, prediction = scores.column("label")[row], scores.column("prediction")[row]
        assert record.id == str(row)
        assert record.fields["image"].getpixel((0, 0)) == (row, 0, 0)
        assert record.metadata["row_hash"] == journal.row_hash(int(row))
        assert record.metadata["vog"] == float(scores.column("vog")[row])
        assert record.metadata.get("given") == (NAMES[label] if label >= 0 else None)
        suggested = [suggestion.value for suggestion in record.suggestions]
        assert suggested == ([] if label == prediction else [str(prediction)])
        record.responses.add(argilla.Response("decision", "drop", user, status="submitted"))
    assert from_argilla(records, journal) == 12
    assert {row for row, _ in journal.standing()} == set(rows.tolist())
    (text,) = to_argilla(scores, None, [3])
    assert text.fields["text"] == "row 3"
    with pytest.raises(ConfigError, match=r"0..30, got 31"):
        to_argilla(scores, dataset, [N])


def test_the_page_makes_records(data, tmp_path, monkeypatch):
    """What docs/review.md says of making records runs as it stands."""
    pytest.importorskip("argilla")
    dataset, scores = data
    scores.save(tmp_path / "scores")
    dataset.save_to_disk(str(tmp_path / "digits"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    found = {}
    for block in blocks:
        if not block.startswith("# Needs "):
            exec(compile(block, str(PAGE), "exec"), found)  # noqa: S102 (of our own page)
    assert [record.id for record in found["records"]] == [str(row) for row in found["rows"]]
    assert len(found["records"])


def test_questions_have_every_class_by_its_number(data):
    """Names of classes may be equal or have anything in them: the answer is the number."""
    decision, label, note = argilla_questions(data[1])
    assert label["labels"] == {"0": "cat", "1": "dog", "2": "<b>frog</b>"}
    assert decision["labels"] == ["keep", "relabel", "drop", "unsure"]
    assert note["name"] == "note"
