"""Label tokens of causal and masked language models as units of their rows, where they are asked for."""

import functools

import models
import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.testing import assert_allclose, assert_array_equal
from reference import reference_gradients, reference_logits
from trainers import arguments, tokenizer
from transformers import BertForMaskedLM, Trainer

from vog_hf import VoGCallback, VoGConfig, VoGScorer, VoGScores, add_vog_columns
from vog_hf.errors import ConfigError
from vog_hf.scores.pictures import RowViews
from vog_hf.scores.pictures.worst_units import worst_units
from vog_hf.scores.scored_rows import ScoredSplit

N, SNAPSHOTS = 53, 3
TASK_OF = {"causal": "causal_language_model", "masked": "token_prediction"}


def made(kind):
    """A model in float64."""
    if kind == "causal":
        return models.gpt2().model.double()
    return models._made(lambda: BertForMaskedLM(models.bert_config()), 0).double()


@functools.cache
def rows_of(kind, n=N):
    """Texts of 2 to 12 tokens, some without a label; the first token has one, which a causal model does not predict."""
    rows = models.token_rows(7, lengths=tuple(2 + 7 * i % 11 for i in range(n)))
    for i, row in enumerate(rows):
        labels = torch.where(torch.arange(len(row["input_ids"])) % 4 == i % 3 + 1, -100, row["input_ids"])
        labels[-1] = row["input_ids"][-1]
        row["labels"] = (
            labels if kind == "causal" else (labels + 3 * i) % models.VOCABULARY * (labels >= 0) - 100 * (labels < 0)
        )
    return rows


@functools.cache
def states(kind):
    """Weights of each snapshot."""
    return models.perturbed_states(made(kind), SNAPSHOTS)


def scored(kind, batch_size=7, **options):
    """Scores with units."""
    config = VoGConfig(**{"token_units": True, **options})
    scorer = VoGScorer(made(kind), config=config, batch_size=batch_size, progress=False)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states(kind))]
    return scorer.score(rows_of(kind), named, collate_fn=models.collate)


@functools.cache
def expected(kind):
    """Every column by a loop: one row, one snapshot, autograd; then one token."""
    rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows_of(kind)]
    labels, shift = [row["labels"].tolist() for row in rows_of(kind)], int(kind == "causal")
    gradients = reference_gradients(
        made(kind), states(kind), rows, "logit", [row["labels"] for row in rows_of(kind)], task=TASK_OF[kind]
    )
    logits = reference_logits(made(kind), states(kind), rows)
    columns: dict[str, list[float]] = {}
    for of_labels, gradient, z in zip(labels, gradients, logits, strict=True):
        for i, label in enumerate(of_labels):
            if label == -100 or i < shift:
                continue
            at = z[:, i - shift]
            p = np.exp(at[:, label]) / np.exp(at).sum(1)
            found = {
                "label": label,
                "position": i,
                "vog": gradient[:, i].std(0).mean(),
                "loss": -np.log(p).mean(),
                "confidence": p.mean(),
                "variability": p.std(),
                "correctness": (at.argmax(1) == label).mean(),
            }
            for name, value in found.items():
                columns.setdefault(f"{name}_token", []).append(float(value))
    return {name: np.array(values) for name, values in columns.items()}


@pytest.mark.parametrize("batch_size", [1, 7, N])
@pytest.mark.parametrize("kind", TASK_OF)
def test_tokens_are_those_of_a_loop_over_rows_snapshots_and_tokens(kind, batch_size):
    """In float64, in batches of 1, 7 and all rows; VoG lies at the token, its loss comes from the logit before it."""
    scores = scored(kind, batch_size)
    assert scores.manifest["task"] == TASK_OF[kind]
    assert scores.manifest["units"] == {"of": "tokens", "class_names": None, "columns": list(scores.units.columns)}
    first = int(kind == "causal")
    assert_array_equal(scores.units.sizes, [int((row["labels"][first:] >= 0).sum()) for row in rows_of(kind)])
    assert set(scores.units.columns) == set(expected(kind))
    for name, values in expected(kind).items():
        assert np.ptp(values) > 0
        assert_allclose(scores.units.column(name), values, rtol=1e-6, atol=1e-6 * np.abs(values).mean(), err_msg=name)


@pytest.mark.parametrize("kind", TASK_OF)
def test_scores_of_rows_stay_and_tokens_are_left_out_unless_asked_for(kind):
    """The same columns of rows; without the option there are no units, and the configuration is written as before."""
    with_units, without = scored(kind), scored(kind, token_units=False)
    assert without.units is None
    assert "token_units" not in without.manifest["config"]
    assert with_units.manifest["config"]["token_units"] is True
    assert with_units.column_names == without.column_names
    for name in without.column_names:
        assert_array_equal(with_units.column(name), without.column(name), err_msg=name)
    for row in range(N):
        losses = with_units.units.of_row("loss_token", row)
        assert np.isclose(losses.mean(), with_units.column("loss")[row], rtol=1e-9)


def test_live_scores_of_tokens_are_those_of_replay(tmp_path):
    """In a training."""
    found = []
    for collect in ("replay", "live"):
        case = models.gpt2()
        rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
        args = arguments(tmp_path / collect, num_train_epochs=2, per_device_train_batch_size=3, learning_rate=1e-2)
        vog = VoGCallback(
            config=VoGConfig(token_units=True), collect=collect, snapshots=[1, 2], batch_size=4, log=False
        )
        Trainer(case.model, args, train_dataset=rows, data_collator=models.collate, callbacks=[vog]).train()
        found.append(vog.scores.units)
    assert_array_equal(found[0].sizes, found[1].sizes)
    for name, values in found[0].columns.items():
        assert_allclose(found[1].column(name), values, rtol=1e-5, atol=1e-7, err_msg=name)


def test_tokens_color_the_words_and_are_lists_in_the_dataset(tmp_path):
    """The worst token is shown by its text, and the lists of a row have an entry for each token with a score."""
    scores = scored("causal")
    scores.save(tmp_path / "scores")
    scores = VoGScores.load(tmp_path / "scores")
    scores.tokenizer = tokenizer().backend_tokenizer.to_str()
    rows = Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows_of("causal")])
    dataset = add_vog_columns(rows, scores)
    assert [len(values) for values in dataset["loss_token"]] == scores.units.sizes.tolist()
    views = RowViews(ScoredSplit("", scores, rows))
    worst = worst_units(views, 3)
    row = worst["row"][0]
    at = int(scores.units.of_row("loss_token", row).argmax())
    place = int(scores.units.of_row("position_token", row)[at])
    assert worst["unit"][0] == f"w{rows[row]['input_ids'][place]}"
    heat = [word.heat for word in views.view(row).words if word.text.strip()]
    assert int(np.argmax(heat)) == place


def test_what_has_no_such_tokens_is_refused(tmp_path):
    """Encoder-decoder models, other tasks, and the passes of a training, each by name."""
    config = VoGConfig(token_units=True)
    for case, task in ((models.t5(), "token_prediction"), (models.bert(), "single_label_classification")):
        rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
        with pytest.raises(ConfigError, match=f"token_units=True scores the label tokens of causal .* and {task} of"):
            VoGScorer(case.model, config=config, progress=False).check(rows, collate_fn=models.collate)
    with pytest.raises(ConfigError, match=r"observes rows and not their tokens, got token_units=True; leave it out"):
        VoGCallback(config=VoGConfig(target="loss", token_units=True), collect="training")
    with pytest.raises(ConfigError, match="token_units must be one of True, False, got 2"):
        VoGConfig(token_units=2)
