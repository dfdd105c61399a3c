"""Preferences: how the texts of a row are put together, whose margin is scored, and what is refused."""

import numpy as np
import pytest
import torch
from models import perturbed_states
from unlabeled_cases import UNLABELED_CASES, answerer, collate_preferences, rewarder

from vog_hf import VoGConfig, VoGScorer
from vog_hf.errors import ConfigError, DataError, LabelError, ModelError
from vog_hf.gradients.preferences import (
    ANSWERS,
    REFERENCE,
    TEXTS_OF_ROW,
    PreferenceOptimization,
    RewardModeling,
    chosen_come_first,
    paired,
)
from vog_hf.scoring.forward_only import companions


def rows_of(task):
    """Rows of a chosen and a rejected text."""
    return UNLABELED_CASES[task].rows()


def scored(model, rows, *, collate_fn=collate_preferences, **options):
    """Scores over two snapshots, in float64."""
    model = model.double()
    named = [(f"epoch-{k}", state) for k, state in enumerate(perturbed_states(model, 2))]
    scorer = VoGScorer(model, config=VoGConfig(**options), batch_size=7, progress=False)
    return scorer.score(rows, named, collate_fn=collate_fn).to_pandas()


def test_texts_are_put_together_by_row():
    """Chosen before rejected, with their answers alone as what counts, and the reference's margin."""
    batch = collate_preferences(rows_of("preference_optimization")[:3])
    inputs = paired(batch, {name: batch[name] for name in ("input_ids", "attention_mask")})
    assert inputs[TEXTS_OF_ROW] == ("input_ids", "attention_mask")
    for i in range(3):
        for k in range(2):
            assert torch.equal(inputs["input_ids"][i, k], batch["input_ids"][3 * k + i])
            counts = batch["completion_mask"][3 * k + i].bool()
            assert torch.equal(inputs[ANSWERS][i, k] != -100, counts)
    expected = batch["ref_chosen_logps"] - batch["ref_rejected_logps"]
    assert torch.equal(inputs[REFERENCE], expected)


@pytest.mark.parametrize("task", ["reward_modeling", "preference_optimization"])
def test_swapped_texts_have_the_same_vog_and_the_opposite_margin(task):
    """Without a reference, the scalar changes its sign and nothing else; forward passes alone see the same margin."""
    keys = {"prompt_ids", "chosen_ids", "rejected_ids"}
    rows = [{name: value for name, value in row.items() if name in keys} for row in rows_of(task)]
    other = [row | {"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} for row in rows]
    make = rewarder if task == "reward_modeling" else answerer
    scores, swapped = scored(make(), rows), scored(make(), other)
    np.testing.assert_allclose(scores["vog"], swapped["vog"], rtol=1e-6)
    np.testing.assert_allclose(scores["margin"], -swapped["margin"], rtol=1e-6)
    model = make().double()
    named = [(f"epoch-{k}", state) for k, state in enumerate(perturbed_states(model, 2))]
    found = companions(model, rows, named, collate_fn=collate_preferences)
    np.testing.assert_allclose(found["margin"], scores["margin"], rtol=1e-6)


@pytest.mark.parametrize(
    ("chosen", "rejected", "is_right"),
    [
        ([1, 2, 3], [1, 4], True),
        ([1, 2], [1], True),
        ([2, 3], [4], True),
        ([1, 2, 3, 9], [1, 4, 9], True),
        ([1, 4], [1, 2, 3], False),
        ([1, 2, 3], [1, 5], False),
    ],
)
def test_the_order_of_the_texts_is_read_off_their_tokens(chosen, rejected, is_right):
    """Whole, cut off at either end, or with an end token behind; texts of another order are told."""
    row = {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]}
    assert chosen_come_first(row, chosen, rejected) is is_right


def interleaved(rows):
    """Each row's chosen and rejected text next to each other."""
    batch = collate_preferences(rows)
    order = torch.arange(2 * len(rows)).reshape(2, -1).T.flatten()
    return {name: value[order] if len(value) == 2 * len(rows) else value for name, value in batch.items()}


def test_what_the_tasks_cannot_have_is_refused():
    """Another order of texts, answers that are cut off, several outputs, targets without meaning."""
    rows = rows_of("preference_optimization")
    with pytest.raises(DataError, match="must be collated as TRL does: all chosen texts, then all rejected ones"):
        scored(answerer(), rows, collate_fn=interleaved)
    empty = [*rows[:9], rows[9] | {"chosen_ids": [], "rejected_ids": []}]
    with pytest.raises(LabelError, match=r"row 9: a row has no token of either answer .* raise the trainer's max_leng"):
        scored(answerer(), empty)
    with pytest.raises(
        ConfigError, match="'loss' does not exist for preference_optimization, which has logit or a cal"
    ):
        scored(answerer(), rows, target="loss")
    with pytest.raises(ModelError, match=r"needs rows with chosen_ids and rejected_ids, and a model with one output"):
        RewardModeling().logits(torch.zeros(4, 2), {TEXTS_OF_ROW: ()})
    with pytest.raises(ModelError, match=r"preference optimization needs rows with .* batches with completion_mask"):
        PreferenceOptimization().logits(torch.zeros(4, 3, 5), {})
    texts = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3
    with pytest.raises(DataError, match=r"as TRL prepares them, .*VoGCallback\(trainer.train_dataset\)"):
        VoGScorer(rewarder(), progress=False).check(texts)
