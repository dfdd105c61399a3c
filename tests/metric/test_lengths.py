"""Rows of similar length share a batch: less padding, the same scores."""

import models
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from vog_hf.data.arrow_columns import list_lengths
from vog_hf.scoring.scorer import VoGScorer

N = 53
CASE = models.bert()
LENGTHS = [3 + 7 * i % 11 for i in range(N)]
ROWS = [
    {"input_ids": row["input_ids"].tolist(), "attention_mask": row["attention_mask"].tolist(), "labels": i % 3}
    for i, row in enumerate(models.token_rows(7, lengths=tuple(LENGTHS)))
]
STATES = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(CASE.model.double(), 4))]


def collate(rows):
    """Padded to the longest of the batch, with the mask that says so."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {
        name: torch.tensor([list(row[name]) + [0] * (longest - len(row[name])) for row in rows])
        for name in ("input_ids", "attention_mask")
    }
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def score(rows, folder=None, *, collate_fn=collate, memory_budget=None, fails_at=None):
    """Scores, and the shapes of the batches that were fed."""
    model, shapes = CASE.model, []

    def watch(module, args, kwargs):
        if len(shapes) == fails_at:
            raise KeyboardInterrupt
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        scorer = VoGScorer(model, batch_size=7, memory_budget=memory_budget)
        return scorer.score(rows, STATES, collate_fn=collate_fn, output_dir=folder), shapes
    finally:
        handle.remove()


def assert_agree(found, expected):
    """Every column, trajectory and heat map, to rounding in float64."""
    for column in expected.column_names:
        np.testing.assert_allclose(found.column(column), expected.column(column), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.trajectory("vog"), expected.trajectory("vog"), rtol=1e-9)
    for row in range(N):
        np.testing.assert_allclose(found.heat_map(row), expected.heat_map(row), rtol=1e-3, atol=1e-6)


def test_texts_of_similar_length_share_a_batch_and_score_the_same():
    """A table of texts is fed with less padding than rows of unknown lengths; each row keeps its place."""
    expected, as_planned = score(ROWS)
    found, ordered = score(Dataset.from_list(ROWS))
    assert_agree(found, expected)
    tokens = [sum(rows * longest for rows, longest in shapes[2:]) for shapes in (as_planned, ordered)]
    assert tokens[1] < 0.8 * tokens[0]
    assert ordered[-1][1] == max(LENGTHS)


def test_an_interrupted_scoring_of_texts_is_bit_equal(tmp_path):
    """The order follows from the rows alone: the blocks that are left are those that were left."""
    rows = Dataset.from_list(ROWS)
    whole, _ = score(rows, memory_budget=1)
    with pytest.raises(KeyboardInterrupt):
        score(rows, tmp_path / "scores", memory_budget=1, fails_at=20)
    resumed, _ = score(rows, tmp_path / "scores", memory_budget=1)
    pd.testing.assert_frame_equal(resumed.to_pandas(), whole.to_pandas())


def test_padding_that_nobody_tells_from_text_keeps_the_batches(caplog):
    """Without a mask, padding counts and batches are in the order of the rows, as ever."""

    def without_mask(rows):
        batch = collate(rows)
        return {name: value for name, value in batch.items() if name != "attention_mask"}

    _, as_planned = score(ROWS, collate_fn=without_mask)
    _, shapes = score(Dataset.from_list(ROWS), collate_fn=without_mask)
    assert shapes == as_planned
    assert "padding counts in the scores" in caplog.text


def test_lengths_are_read_from_the_table_alone():
    """Of lists of numbers, in the order of a selection; None for other columns and other datasets."""
    rows = Dataset.from_dict({"ids": [[1, 2, 3], [], [4], None], "name": ["a", "b", "c", "d"], "n": [1, 2, 3, 4]})
    assert list_lengths(rows, "ids").tolist() == [3, 0, 1, 0]
    assert list_lengths(rows.select([2, 0]), "ids").tolist() == [1, 3]
    assert list_lengths(rows.with_transform(lambda batch: batch), "ids").tolist() == [3, 0, 1, 0]
    for name in ("name", "n", "missing"):
        assert list_lengths(rows, name) is None
    assert list_lengths(ROWS, "input_ids") is None
