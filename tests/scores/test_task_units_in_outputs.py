"""Units that are not tokens in a dataset, on the pages of report and review, and in trackers."""

import functools

import models
import numpy as np
import pytest
import transformers as T
from datasets import Dataset, load_from_disk
from html_page import read_page
from numpy.testing import assert_allclose, assert_array_equal
from tagged_texts import tokenizer
from task_cases import TASK_CASES
from unlabeled_cases import UNLABELED_CASES

from vog_hf import VoGScorer, add_vog_columns, write_report
from vog_hf.review import Filter, Queue
from vog_hf.review.html import PageMaker
from vog_hf.review.row_records import RowRecords
from vog_hf.scores import scores_from_columns
from vog_hf.scores.descriptions import column_meanings
from vog_hf.scores.pictures import RowViews
from vog_hf.scores.pictures.choice_texts import choice_columns
from vog_hf.scores.pictures.worst_units import worst_units
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.tracking.contents import contents

ROWS = 12


@functools.cache
def scored(task):
    """Rows of a task as a dataset, and their scores."""
    case = (TASK_CASES | UNLABELED_CASES)[task]
    rows, model = case.rows()[:ROWS], case.model()
    named = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, 2))]
    scores = VoGScorer(model, batch_size=5, progress=False).score(rows, named, collate_fn=case.collate_fn)
    return Dataset.from_dict({"number": range(ROWS)}), scores


@functools.cache
def answered():
    """Questions about texts of made words with their tokens, whose answer is one or two of them, and their scores."""
    fast = tokenizer()
    texts = [["ann saw rome", "bob saw oslo and it rained", "it rained in romeo"][i % 3] for i in range(ROWS)]
    rows = Dataset.from_dict({"question": ["saw"] * ROWS, "context": texts})
    rows = rows.map(lambda row: fast(row["question"], row["context"]))
    rows = rows.map(
        lambda row, i: {"start_positions": 1 + i % 3, "end_positions": 1 + i % 3 + i % 2}, with_indices=True
    )
    config = models.bert_config(num_labels=2, vocab_size=len(fast))
    model = models._made(lambda: T.BertForQuestionAnswering(config), 0)
    named = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, 2))]
    tensors = rows.select_columns(["input_ids", "attention_mask", "start_positions", "end_positions"])
    scores = VoGScorer(model, progress=False).score(tensors.with_format("torch"), named, collate_fn=models.collate)
    scores.tokenizer = fast.backend_tokenizer.to_str()
    return rows, scores, fast


def test_lists_have_an_entry_for_each_end(tmp_path):
    """Two per row, null where an end is cut off, and the same units are read from them again."""
    rows, scores = scored("question_answering")
    dataset = add_vog_columns(rows, scores, "all")
    names = ["loss_end", "confidence_end"]
    assert names == [name for name in add_vog_columns(rows, scores).column_names if name.endswith("_end")]
    assert not {"label_end", "position_end"} & set(dataset.column_names)
    for row in range(ROWS):
        places = scores.units.of_row("position_end", row)
        for name in names:
            values = np.array(dataset[name][row], dtype=float)
            assert values.shape == (2,)
            assert_allclose(values[places], scores.units.of_row(name, row), rtol=1e-6)
            assert np.isnan(np.delete(values, places)).all()
    assert (scores.units.sizes == 1).any()
    dataset.save_to_disk(tmp_path / "scored")
    found = scores_from_columns(load_from_disk(tmp_path / "scored")).units
    assert_array_equal(found.sizes, scores.units.sizes)
    for name in found.columns:
        assert_allclose(found.column(name), scores.units.column(name), rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("multiple_choice", ["vog_choice", "confidence_choice"]),
        ("semantic_segmentation", ["label_class", "loss_class", "confidence_class"]),
        ("reward_modeling", ["vog_side", "reward_side"]),
        ("preference_optimization", ["vog_side", "loss_side", "logp_side"]),
        ("pixel_reconstruction/masked images", ["position_patch", "loss_patch"]),
    ],
)
def test_lists_of_other_units_are_added_with_what_tells_them_apart(task, names):
    """By default; each described, and a row's list as long as the row has units."""
    rows, scores = scored(task)
    dataset = add_vog_columns(rows, scores)
    assert [name for name in dataset.column_names if name in scores.units.columns] == names
    assert set(names) <= {meaning.column for meaning in column_meanings(scores)}
    for name in names:
        assert [len(values) for values in dataset[name]] == scores.units.sizes.tolist()
    orders = set(Queue(scores).columns)
    assert set(names) - {"label_class", "position_patch"} <= orders
    assert not {"label_class", "position_patch", "position_side"} & orders


def letters(text):
    """A text without spaces and the marks of parts of words."""
    return text.replace(" ", "").replace("##", "")


def test_an_answer_is_shown_in_words():
    """Both ends with token numbers and losses, and the given and the predicted part of the text, where they are one."""
    rows, scores, fast = answered()
    shown = RowViews(ScoredSplit("", scores, rows))
    without_texts = RowViews(ScoredSplit("", scores, rows.select_columns(["input_ids", "attention_mask"])))
    n_predicted = 0
    for row in range(ROWS):
        lines, ids = shown.view(row).unit_lines, rows[row]["input_ids"]
        given, predicted = (scores.units.of_row(f"{name}_end", row).tolist() for name in ("label", "prediction"))
        assert lines[0].text.startswith(f"start: given token {given[0]}, predicted token {predicted[0]}, loss ")
        assert lines[0].is_mismatched == (given[0] != predicted[0])
        assert lines[1].text.startswith(f"end: given token {given[1]}, ")
        answer = lines[2].text.removeprefix("given answer: ")
        assert answer in f"{rows[row]['question']} {rows[row]['context']}"
        assert answer.replace(" ", "") == letters(fast.decode(ids[given[0] : given[1] + 1]))
        n_predicted += len(lines) == 4
        assert (len(lines) == 4) == (predicted[0] <= predicted[1])
        assert letters(without_texts.view(row).unit_lines[2].text) == letters(lines[2].text)
    assert 0 < n_predicted < ROWS


def test_choices_are_shown_with_the_given_and_the_predicted_one():
    """One line for each, with its probability; lines that only one of both is at are marked."""
    _, scores = scored("multiple_choice")
    for row in range(ROWS):
        lines = RowViews(ScoredSplit("", scores)).view(row).unit_lines
        given, predicted = int(scores.column("label")[row]), int(scores.column("prediction")[row])
        assert [line.text.partition(":")[0] for line in lines] == ["choice 0", "choice 1", "choice 2"]
        assert [("given" in line.text, "predicted" in line.text) for line in lines] == [
            (i == given, i == predicted) for i in range(3)
        ]
        assert [line.is_mismatched for line in lines] == [(i == given) != (i == predicted) for i in range(3)]


TEXTS = [[f"ends {row} in way {k}" for k in range(3)] for row in range(ROWS)]
CHOICES = {
    "a column for each": {f"ending{k}": [texts[k] for texts in TEXTS] for k in range(3)},
    "letters": {f"answer{letter}": [texts[k] for texts in TEXTS] for k, letter in enumerate("ABC")},
    "lists": {"question": ["how?"] * ROWS, "choices": TEXTS},
    "structs": {"question": ["how?"] * ROWS, "choices": [{"label": list("ABC"), "text": texts} for texts in TEXTS]},
}


@pytest.mark.parametrize("columns", CHOICES.values(), ids=CHOICES)
def test_the_text_of_each_choice_is_shown_next_to_its_scores(columns, tmp_path):
    """In the lines of a row, on the pages of report and review, and in the trackers' tables of rows."""
    _, scores = scored("multiple_choice")
    shared = {} if "question" in columns else {"sent1": ["It begins."] * ROWS, "sent2": ["It"] * ROWS}
    rows = Dataset.from_dict(shared | columns)
    split = ScoredSplit("", scores, rows)
    view = RowViews(split).view(3)
    assert view.text.startswith("how?" if "question" in columns else "It begins.\nIt")
    assert [line.text.partition(":")[0] for line in view.unit_lines] == [
        f"choice {k} (ends 3 in way {k})" for k in range(3)
    ]
    assert ["given" in line.text for line in view.unit_lines] == [k == scores.column("label")[3] for k in range(3)]
    assert [unit.text for unit in RowRecords(split).record(3).units] == [line.text for line in view.unit_lines]
    assert "in way 2): " in read_page(write_report(scores, rows, tmp_path / "report.html")).text
    found = contents(split, 7)
    table = found.values["highest"].columns
    lines = RowViews(split).view(table["row"][0]).unit_lines
    assert table["choices"][0] == "\n".join(line.text for line in lines)
    assert "choices" in dict(found.about.legend)


@pytest.mark.parametrize(
    "columns",
    [
        {"sent1": ["a"] * ROWS, "sent2": ["b"] * ROWS},  # no choices: each has a part in all of them
        {"choices": [texts[:2] for texts in TEXTS]},  # fewer than the model read
        {"ending0": ["a"] * ROWS},
    ],
)
def test_columns_that_are_not_the_choices_are_not_shown_as_such(columns):
    """Texts that go with all choices, lists of another length; the scores alone are shown, and no column of choices."""
    _, scores = scored("multiple_choice")
    split = ScoredSplit("", scores, Dataset.from_dict({"number": range(ROWS), **columns}))
    assert RowViews(split).view(0).unit_lines[0].text.startswith("choice 0: ")
    assert "choices" not in contents(split, 7).values["highest"].columns


def test_pages_list_units_and_the_worst_of_all_rows(tmp_path):
    """Cards of the report, records of the review, and a table with the highest loss first."""
    rows, scores = scored("semantic_segmentation")
    page = read_page(write_report(scores, rows, tmp_path / "report.html")).text
    assert "Worst classes" in page
    assert "1: loss " in page
    record = RowRecords(ScoredSplit("", scores, rows)).record(0)
    assert [unit.text.partition(":")[0] for unit in record.units] == ["0", "1", "2"]
    assert "<li>1: loss " in PageMaker(scores).row(record, [])["facts"]
    first = Queue(scores).rows(Filter(order="loss_class"))[0]
    assert worst_units(RowViews(ScoredSplit("", scores)), 1)["row"] == [first]


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("question_answering", ["row", "unit", "given", "predicted", "loss"]),
        ("semantic_segmentation", ["row", "unit", "loss"]),
        ("preference_optimization", ["row", "unit", "loss"]),
        ("pixel_reconstruction/masked images", ["row", "unit", "loss"]),
        ("multiple_choice", None),
        ("speech_recognition", None),
    ],
)
def test_trackers_get_a_table_of_the_worst_units(task, columns):
    """Under the name of what they are, highest loss first; none where units have no loss, or rows no units."""
    rows, scores = scored(task)
    found = contents(ScoredSplit("", scores, rows), 7)
    tables = {name: table for name, table in found.values.items() if name.startswith("worst_")}
    if columns is None:
        assert not tables
        return
    (name, table), units = next(iter(tables.items())), scores.units
    assert name == f"worst_{scores.manifest['units']['of']}"
    assert list(table.columns) == columns
    losses = np.sort(units.column(units.named("loss")))[::-1][:7]
    assert_allclose(table.columns["loss"], losses, rtol=1e-6)
    assert name in dict(found.about.tables)
    for row, loss in zip(table.columns["row"], table.columns["loss"], strict=True):
        assert np.isclose(units.of_row(units.named("loss"), row), loss).any()


def test_choices_are_in_the_order_of_their_numbers():
    """Ten come after two, not after one."""
    dataset = Dataset.from_dict({f"option{number}": ["text"] for number in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)})
    assert choice_columns(dataset)[0] == tuple(f"option{number}" for number in range(1, 11))
