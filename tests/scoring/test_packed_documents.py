"""Documents of packed sequences and rows of padding-free batches have the scores that they have alone."""

import functools

import models
import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.testing import assert_allclose
from packed_texts import PaddingFree, documents, language_model, packed
from reference import reference_gradients, reference_heat_map, reference_logits, reference_vog
from transformers import DataCollatorWithFlattening

from vog_hf import VoGConfig, VoGScorer
from vog_hf.data import unpack_documents
from vog_hf.errors import DataError, LabelError

BOTH = VoGConfig(target=("logit", "loss"))
ORACLE = {"task": "causal_language_model"}


@functools.cache
def states():
    """Weights of each snapshot."""
    return models.perturbed_states(language_model(), 3)


@functools.cache
def alone():
    """Each document as the oracle feeds it, and its labels."""
    rows = [{"input_ids": torch.tensor(row["input_ids"])} for row in documents()]
    return rows, [torch.tensor(row["labels"]) for row in documents()]


@functools.cache
def expected():
    """Scores of each document by a loop: one document, one snapshot, autograd."""
    rows, labels = alone()
    gradients = {t: reference_gradients(language_model(), states(), rows, t, labels, **ORACLE) for t in BOTH.target}
    losses = [
        np.mean([[-torch.tensor(z)[i - 1].log_softmax(0)[t] for i, t in _counted(tokens)] for z in of_row])
        for of_row, tokens in zip(reference_logits(language_model(), states(), rows), labels, strict=True)
    ]
    columns = {"vog": reference_vog(gradients["logit"]), "vog_loss": reference_vog(gradients["loss"])}
    return {**columns, "loss": np.array(losses)}, [reference_heat_map(g, tokens=True) for g in gradients["logit"]]


def _counted(labels):
    return [(i, int(token)) for i, token in enumerate(labels) if i and token != -100]


def scored(rows, collate_fn, *, batch_size=7, live=False, **options):
    """Scores over all snapshots."""
    model = language_model()
    scorer = VoGScorer(model, config=BOTH, batch_size=batch_size, progress=False, **options)
    if live:
        reader = scorer.reader(rows, collate_fn=collate_fn)
        live = scorer.live(reader, scorer.plan(reader), len(states()))
        for k, state in enumerate(states()):
            model.load_state_dict(state)
            live.update(f"epoch-{k}", k + 1)
        return live.finish()
    named = [(f"epoch-{k}", state) for k, state in enumerate(states())]
    return scorer.score(rows, named, collate_fn=collate_fn)


def check(scores, order=range(53)):
    """Each column is the oracle's."""
    columns, maps = expected()
    for name, values in columns.items():
        assert_allclose(scores.column(name)[: len(order)], values[list(order)], rtol=1e-6)
    for row in (0, 17, 52):
        assert_allclose(scores.heat_map(row), maps[order[row]], rtol=2e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 53])
def test_documents_of_packed_sequences_have_the_scores_that_they_have_alone(batch_size):
    """In float64, whatever their length and the batch, with a collator of the shape of TRL's."""
    sequences, order = packed(documents())
    check(scored(unpack_documents(sequences), PaddingFree(pad_to_multiple_of=8), batch_size=batch_size), order)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("options", [{}, {"return_position_ids": False}, {"return_flash_attn_kwargs": True}])
def test_rows_of_flattened_batches_have_the_scores_that_they_have_alone(options, live):
    """With each way in which transformers' collator says where they begin; live as replayed."""
    check(scored(documents(), DataCollatorWithFlattening(**options), live=live))


def test_a_model_with_positions_of_its_own_gets_those_of_each_row():
    """GPT-2's learned positions begin again at each row."""
    case = models.gpt2()
    rows = [
        {"input_ids": row["input_ids"].tolist(), "labels": t} for row, t in zip(case.rows, case.labels, strict=True)
    ]
    model = case.model.double()
    states = models.perturbed_states(model, 2)
    scorer = VoGScorer(model, batch_size=3, progress=False)
    scores = scorer.score(rows, [(str(k), s) for k, s in enumerate(states)], collate_fn=DataCollatorWithFlattening())
    gradients = reference_gradients(model, states, case.rows, "logit", case.labels, **ORACLE)
    assert_allclose(scores.column("vog"), reference_vog(gradients), rtol=1e-6)


@pytest.mark.parametrize("kind", ["dataset", "list", "stream"])
def test_rows_of_several_documents_are_refused_with_the_function_that_unpacks_them(kind):
    """Under any collator; in a stored dataset wherever they are, since those of the longest documents come first."""
    rows = packed(documents())[0].to_list()
    stored = Dataset.from_list([rows[0]] * 100 + rows)
    assert max(map(len, stored["seq_lengths"][:100])) == 1
    made = {"dataset": stored, "list": rows, "stream": Dataset.from_list(rows).to_iterable_dataset()}[kind]
    message = r"row.* holds \d documents \(seq_lengths\), and each document has a score .*unpack_documents\(dataset\)"
    for collate_fn in (PaddingFree(), models.collate):
        with pytest.raises(DataError, match=message):
            VoGScorer(language_model(), progress=False).check(made, collate_fn=collate_fn)
    singles = Dataset.from_list([row for row in rows if len(row["seq_lengths"]) == 1])
    VoGScorer(language_model(), progress=False).check(singles, collate_fn=PaddingFree())


def test_a_document_without_a_completion_is_found_before_scoring_or_skipped():
    """By its row, though padding-free collators leave out the first label; and so is one of a single token."""
    last = {"input_ids": [5, 6, 7], "labels": [-100] * 3}
    rows = Dataset.from_list([*documents(), last])
    scorer = VoGScorer(language_model(), batch_size=7, progress=False)
    with pytest.raises(LabelError, match=r"row 53: a row has no label token .* leave such rows out"):
        scorer.check(rows, collate_fn=DataCollatorWithFlattening())
    scores = scored(rows, DataCollatorWithFlattening(), on_error="skip")
    assert np.flatnonzero(np.isnan(scores.column("vog"))).tolist() == [53]
    check(scores)
    single = Dataset.from_list([*documents(), {"input_ids": [5], "labels": [5]}])
    with pytest.raises(LabelError, match="row 53: a row has no label token"):
        scorer.check(single, collate_fn=PaddingFree())
