"""The units of rows in a dataset, on the pages of report and review, and in trackers."""

import models
import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from html_page import read_page
from numpy.testing import assert_allclose, assert_array_equal
from tagged_texts import TAGS, tagged, tagger, tokenizer, with_labels
from transformers import DataCollatorForTokenClassification

from vog_hf import VoGScorer, VoGScores, add_vog_columns, write_report
from vog_hf.errors import ConfigError
from vog_hf.review import Filter, Queue
from vog_hf.review.row_records import RowRecords
from vog_hf.scores import most_extreme, scores_from_columns
from vog_hf.scores.descriptions import column_meanings
from vog_hf.scores.label_lists import label_lists
from vog_hf.scores.pictures import RowViews
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.tracking.contents import contents

CORE = ["vog", "vog_normalized", "vog_percentile", "vog_token", "loss_token", "confidence_token"]


@pytest.fixture(scope="module")
def example():
    """Rows of the example with a tokenizer's columns, and their scores; the row without a word is skipped."""
    fast = tokenizer()
    rows = tagged().map(lambda part: with_labels(part, fast), batched=True)
    model = tagger(fast)
    named = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, 3))]
    scorer = VoGScorer(model, batch_size=7, progress=False, on_error="skip")
    columns = ["input_ids", "attention_mask", "labels"]
    collate = DataCollatorForTokenClassification(fast)
    scores = scorer.score(
        rows, named, collate_fn=lambda batch: collate([{name: row[name] for name in columns} for row in batch])
    )
    scores.tokenizer = fast.backend_tokenizer.to_str()
    return rows, scores


def test_lists_have_an_entry_for_each_word_of_the_label_column(example):
    """As long as ner_tags in every row; null for words behind the cut, all of them in the row that was skipped."""
    rows, scores = example
    scored = add_vog_columns(rows, scores)
    assert scored.column_names == [*rows.column_names, *CORE]
    assert label_lists(rows, scores.units).column == "ner_tags"
    n_cut = 0
    for i, row in enumerate(scored):
        n_seen = sum(label != -100 for label in row["labels"])
        n_cut += n_seen < len(row["ner_tags"])
        for name in CORE[3:]:
            assert len(row[name]) == len(row["ner_tags"])
            assert_allclose(row[name][:n_seen], scores.units.of_row(name, i), rtol=1e-6)
            assert row[name][n_seen:] == [None] * (len(row["ner_tags"]) - n_seen)
        assert scores.units.of_row("label_token", i).tolist() == row["ner_tags"][:n_seen]
    assert n_cut > 3
    assert scores.units.sizes[5] == 0
    everything = add_vog_columns(rows, scores, "all", prefix="run2_")
    assert everything.features["run2_prediction_token"].feature.names == TAGS
    assert not {"run2_label_token", "run2_position_token"} & set(everything.column_names)
    with pytest.raises(ConfigError, match=r"the dataset has \['vog'.* 'loss_token', 'confidence_token'\] already"):
        add_vog_columns(scored, scores)


def test_without_a_column_that_fits_lists_have_an_entry_for_each_unit(example):
    """Where labels are numbered otherwise than in the data, nothing is aligned by guessing."""
    rows, scores = example
    other = rows.map(lambda row: {"ner_tags": [2 - tag for tag in row["ner_tags"]]}, features=rows.features)
    assert label_lists(other, scores.units).column == "labels"
    shared = rows.select_columns(["tokens"])
    assert label_lists(shared, scores.units) is None
    scored = add_vog_columns(shared, scores, ["loss_token"])
    assert [len(values) for values in scored["loss_token"]] == scores.units.sizes.tolist()


def test_scores_are_read_from_the_lists_again(example, tmp_path):
    """From disk, with the features; without label and place, which are not scores."""
    rows, scores = example
    add_vog_columns(rows, scores, "all").save_to_disk(tmp_path / "scored")
    found = scores_from_columns(load_from_disk(tmp_path / "scored"))
    assert_array_equal(found.units.sizes, scores.units.sizes)
    names = [name for name in scores.units.columns if name not in ("label_token", "position_token")]
    assert sorted(found.units.columns) == sorted(names)
    for name in names:
        assert_allclose(found.units.column(name), scores.units.column(name), rtol=1e-6)
    assert "vog_token" not in found.column_names


def test_words_are_colored_by_the_loss_with_their_labels(example):
    """Each word of the row once, in its share of the highest loss, with what is known of it; the cut ones are pale."""
    rows, scores = example
    views = RowViews(ScoredSplit("", scores, rows))
    for row in (0, 7, 8):
        words, listed = views.view(row).words, rows[row]["tokens"]
        assert "".join(word.text for word in words) == " ".join(listed)
        shown = [word for word in words if word.text.strip()]
        loss, seen = scores.units.of_row("loss_token", row), scores.units.sizes[row]
        assert_allclose([word.heat for word in shown[:seen]], loss / loss.max(), rtol=1e-6)
        assert all(word.is_unseen for word in shown[seen:])
        predicted = scores.units.of_row("prediction_token", row)
        given = scores.units.of_row("label_token", row)
        assert [word.is_mismatched for word in shown[:seen]] == (given != predicted).tolist()
        assert shown[0].note.startswith(f"label {TAGS[given[0]]}, predicted {TAGS[predicted[0]]}, loss ")
    assert scores.units.sizes[8] < len(rows[8]["tokens"])


def test_words_of_a_text_are_found_by_the_tokenizer(example):
    """Of rows without a list of words, by the places of the tokens; parts of words without a label have no color."""
    rows, scores = example
    texts = Dataset.from_dict({"text": [" ".join(words) for words in rows["tokens"]]})
    views = RowViews(ScoredSplit("", VoGScores.with_heat_maps(scores, scores._heat_maps), texts))
    words = views.view(0).words
    assert "".join(word.text for word in words) == texts[0]["text"]
    assert sum((word.heat or 0) > 0 for word in words) == scores.units.sizes[0]


def test_the_review_queue_is_ordered_by_the_worst_unit(example):
    """Highest first by the highest token of a row, lowest first by its lowest; a row without one is last."""
    rows, scores = example
    queue = Queue(scores)
    assert {"loss_token", "confidence_token", "vog_token"} < set(queue.columns)
    assert not {"prediction_token", "label_token", "position_token"} & set(queue.columns)
    for tail, best in (("highest", np.max), ("lowest", np.min)):
        order = queue.rows(Filter(order="margin_token", tail=tail)).tolist()
        extremes = [best(scores.units.of_row("margin_token", row)) for row in order[:-1]]
        assert order[-1] == 5
        assert extremes == sorted(extremes, reverse=tail == "highest")
    highest, lowest = most_extreme(scores, "loss_token", 3)
    assert highest.tolist() == queue.rows(Filter(order="loss_token")).tolist()[:3]
    assert lowest.tolist() == queue.rows(Filter(order="loss_token", tail="lowest")).tolist()[:3]
    record = RowRecords(ScoredSplit("", scores, rows)).record(int(highest[0]))
    assert 'title="label ' in record.words


def test_a_report_shows_the_words_and_says_what_colors_them(example, tmp_path):
    """Words of a text carry their labels; the note names the column."""
    rows, scores = example
    path = write_report(scores, rows, tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    assert 'title="label ' in text
    assert "Words are colored by loss_token" in read_page(path).text
    assert {"vog_token", "loss_token", "el2n_token"} <= {m.column for m in column_meanings(scores)}


def test_the_worst_words_of_all_rows_are_in_a_table(example):
    """Each by its text with its tags, the highest loss first."""
    rows, scores = example
    table = contents(ScoredSplit("", scores, rows), 20).values["worst_tokens"].columns
    assert list(table) == ["row", "unit", "given", "predicted", "loss"]
    for row, word, given, loss in zip(*(table[name] for name in ("row", "unit", "given", "loss")), strict=True):
        at = int(np.flatnonzero(np.isclose(scores.units.of_row("loss_token", row), loss))[0])
        assert (word, given) == (rows[row]["tokens"][at], TAGS[rows[row]["ner_tags"][at]])
    assert table["loss"] == sorted(table["loss"], reverse=True)
