"""Pairs of texts: a cross-encoder reads both at once, a bi-encoder each alone; both are scored over both texts."""

import numpy as np
import pytest
import torch
from limitations_page import code_of_page
from models import _made, bert_config, perturbed_states, token_rows
from numpy.testing import assert_allclose
from reference import _snapshots, reference_gradients, reference_vog
from trainers import tokenizer
from transformers import BertForSequenceClassification, BertModel, DataCollatorWithPadding

from vog_hf import VoGConfig, VoGScorer

N_ROWS = 53


def pairs():
    """The tokens of two texts of several lengths."""
    first = token_rows(1, lengths=tuple(1 + i % 5 for i in range(N_ROWS)))
    second = token_rows(2, lengths=tuple(1 + 3 * i % 7 for i in range(N_ROWS)))
    return [[text["input_ids"].tolist() for text in both] for both in zip(first, second, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 7, N_ROWS])
def test_a_cross_encoder_is_scored_over_both_texts(batch_size):
    """As a regression with one output, told apart by token types, in float64, with the tokenizer's own collator."""
    make = lambda: _made(lambda: BertForSequenceClassification(bert_config(num_labels=1)), 0).double()  # noqa: E731
    rows = [
        {
            "input_ids": [1, *first, 2, *second, 2],
            "token_type_ids": [0] * (2 + len(first)) + [1] * (1 + len(second)),
            "attention_mask": [1] * (3 + len(first) + len(second)),
            "label": 0.1 * i,
        }
        for i, (first, second) in enumerate(pairs())
    ]
    states = perturbed_states(make(), 2)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states)]
    scorer = VoGScorer(make(), config=VoGConfig(target=("logit", "loss")), batch_size=batch_size, progress=False)
    scores = scorer.score(rows, named, collate_fn=DataCollatorWithPadding(tokenizer()))
    alone = [{name: torch.tensor(row[name]) for name in row if name != "label"} for row in rows]
    labels = [np.float32(row["label"]) for row in rows]
    for name, target in (("vog", "logit"), ("vog_loss", "loss")):
        gradients = reference_gradients(make(), states, alone, target, labels, task="regression")
        assert_allclose(scores.column(name), reference_vog(gradients), rtol=1e-6)


def collate_pairs(rows):
    """Both texts of each row padded to one length, ``[rows, 2, tokens]``."""
    width = max(len(text) for row in rows for text in row["texts"])
    ids = torch.zeros((len(rows), 2, width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        for k, text in enumerate(row["texts"]):
            ids[i, k, : len(text)], mask[i, k, : len(text)] = torch.tensor(text), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["label"] for row in rows])}


def expected_scores(model, states, rows):
    """VoG of the cosine and of its squared error, and the mean loss: each text alone through the encoder."""
    gradients, losses = {"logit": [[] for _ in rows], "loss": [[] for _ in rows]}, []
    for snapshot in _snapshots(model, states):
        for i, row in enumerate(rows):
            leaves = [snapshot.get_input_embeddings()(torch.tensor([text])).detach() for text in row["texts"]]
            leaves = [leaf.requires_grad_() for leaf in leaves]
            a, b = (snapshot(inputs_embeds=leaf).last_hidden_state[0].mean(0) for leaf in leaves)
            cosine = (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()
            loss = (cosine - np.float32(row["label"])) ** 2
            losses.append(float(loss))
            for target, scalar in (("logit", cosine), ("loss", loss)):
                both = torch.autograd.grad(scalar, leaves, retain_graph=target == "logit")
                gradients[target][i].append(np.concatenate([gradient[0].numpy() for gradient in both]))
    found = {target: reference_vog([np.stack(of_row) for of_row in of_rows]) for target, of_rows in gradients.items()}
    return found | {"mean loss": np.reshape(losses, (len(states), len(rows))).mean(0)}


@pytest.mark.parametrize("batch_size", [1, 7, N_ROWS])
def test_a_bi_encoder_is_scored_over_both_texts_from_the_checkpoints_of_its_encoder(batch_size, tmp_path):
    """With the module of the page, from folders as sentence-transformers saves them, in float64."""
    encoder = _made(lambda: BertModel(bert_config(), add_pooling_layer=False), 0).double()
    states = perturbed_states(encoder, 2)
    for k, state in enumerate(states):
        encoder.load_state_dict(state)
        encoder.save_pretrained(tmp_path / f"checkpoint-{k + 1}")
    rows = [{"texts": texts, "label": 0.3 * (i % 4)} for i, texts in enumerate(pairs())]
    model = code_of_page()["PairScores"](bert_config(), add_pooling_layer=False).double()
    scorer = VoGScorer(model, config=VoGConfig(target=("logit", "loss")), batch_size=batch_size, progress=False)
    scores = scorer.score(rows, tmp_path, collate_fn=collate_pairs)
    expected = expected_scores(encoder, states, rows)
    assert scores.manifest["task"] == "regression"
    assert_allclose(scores.column("vog"), expected["logit"], rtol=1e-6)
    assert_allclose(scores.column("vog_loss"), expected["loss"], rtol=1e-6)
    assert_allclose(scores.column("loss"), expected["mean loss"], rtol=1e-6)
