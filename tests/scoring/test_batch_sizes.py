"""Scoring works where training works: numbers of rows, labels that forward requires, signatures without names."""

import logging
from copy import deepcopy

import models
import numpy as np
import pytest
import reference
import torch
from datasets import Dataset
from torch import nn
from trainers import arguments, tokenizer
from transformers import GPT2Config, GPT2ForSequenceClassification, Trainer, default_data_collator

from vog_hf import VoGCallback, VoGConfig, VoGScorer, input_gradients
from vog_hf.cli.model_inputs import Preparation
from vog_hf.errors import CollationError, DataError, ModelError
from vog_hf.runtime.memory import SavedBytes
from vog_hf.snapshots import open_folder

N = 10
LABELS = [i % 3 for i in range(N)]


def vectors():
    """Rows for `models.mlp`."""
    features = torch.randn(N, 5, generator=torch.Generator().manual_seed(3))
    return [{"features": row, "labels": label} for row, label in zip(features, LABELS, strict=True)]


def states_of(model, n=3):
    """Stored snapshots by name."""
    return [(f"s{k}", state) for k, state in enumerate(models.perturbed_states(model, n))]


def vog_of(model, rows, states, **options):
    """Scores of rows that may be fed to the model as they are."""
    collate_fn = options.pop("collate_fn", None)
    scorer = VoGScorer(model, progress=False, **options)
    return scorer.score(rows, states, collate_fn=collate_fn).column("vog")


def oracle(model, rows, states):
    """The same by a loop over single rows."""
    labels = [int(row["labels"]) for row in rows]
    inputs = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    gradients = reference.reference_gradients(model, [state for _, state in states], inputs, labels=labels)
    return np.asarray(reference.reference_vog(gradients))


def gpt2():
    """A classifier that takes one row at a time: it does not know its padding token."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=models.VOCABULARY, n_positions=16, num_labels=3)
    config.eos_token_id = config.bos_token_id = 0
    return GPT2ForSequenceClassification(config).eval()


def texts():
    """Rows of tokens of different lengths."""
    rows = models.token_rows(1, lengths=tuple(3 + 5 * i % 7 for i in range(N)))
    return [{**row, "labels": torch.tensor(label)} for row, label in zip(rows, LABELS, strict=True)]


def trained(folder, model, rows, vog, collator=None, **options):
    """Train with a callback; returns its scores and the snapshots it took."""
    table = Dataset.from_dict({name: [torch.as_tensor(row[name]).tolist() for row in rows] for name in rows[0]})
    args = arguments(folder, **options)
    Trainer(model, args, train_dataset=table, data_collator=collator, callbacks=[vog]).train()
    return vog.scores.column("vog")


def test_a_model_that_takes_one_row_at_a_time_is_scored_so(caplog):
    """The default batch fails in GPT-2 without a padding token; one logged line says that rows are scored singly."""
    model, rows = gpt2(), texts()
    states = states_of(model)
    with caplog.at_level(logging.WARNING, "vog_hf"):
        found = vog_of(model, rows, states, collate_fn=models.collate)
    np.testing.assert_allclose(found, oracle(model, rows, states), rtol=1e-4)
    lines = [
        record.message for record in caplog.records if "batches of 1 rows, because batches of 64 fail" in record.message
    ]
    assert len(lines) == 1
    assert "padding token" in lines[0]


@pytest.mark.parametrize("collect", ["replay", "live"])
def test_rows_without_padding_are_scored_with_the_trainings_batch_size_of_one(collect, tmp_path):
    """A collator that cannot pad works in a training of single rows, and so it does in scoring."""
    model, rows = gpt2(), texts()
    options = {"per_device_train_batch_size": 1, "num_train_epochs": 1}
    vog = VoGCallback(collect=collect, snapshots=[4, 8, N])
    found = trained(tmp_path, model, rows, vog, default_data_collator, **options)
    assert vog.scores.manifest["batch_size"] == 1
    padded = VoGCallback(collect=collect, snapshots=[4, 8, N], output_dir=tmp_path / "padded")
    expected = trained(tmp_path, gpt2(), rows, padded, models.collate, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rows_that_collate_only_alone_are_refused_with_advice_that_works():
    """Without a training of single rows they are refused; the batch size that the message names is accepted."""
    model, rows = gpt2(), texts()
    states = states_of(model)
    with pytest.raises(CollationError, match=r"collating .* failed.*one at a time: pass batch_size=1"):
        vog_of(model, rows, states, collate_fn=default_data_collator)
    found = vog_of(model, rows, states, collate_fn=default_data_collator, batch_size=1)
    np.testing.assert_allclose(found, oracle(model, rows, states), rtol=1e-4)


def in_fours(rows):
    """A collator that needs four rows, as one does that pairs or arranges them."""
    if len(rows) != 4:
        msg = f"expected 4 rows, got {len(rows)}"
        raise ValueError(msg)
    return models.collate(rows)


@pytest.mark.parametrize("collect", ["replay", "live"])
def test_a_collator_of_a_fixed_number_of_rows_gets_that_number(collect, tmp_path):
    """Ten rows in batches of four: the last one is filled up for the collator, and no copy is scored."""
    model, rows = Strict(), vectors()
    vog = VoGCallback(collect=collect, snapshots="epoch")
    options = {"per_device_train_batch_size": 4, "dataloader_drop_last": True, "per_device_eval_batch_size": 8}
    found = trained(tmp_path, model, rows, vog, in_fours, num_train_epochs=3, **options)
    assert (len(found), vog.scores.manifest["batch_size"]) == (N, 4)
    if collect == "replay":
        snapshots = open_folder(tmp_path / "_vog" / "snapshots")
        expected = VoGScorer(model, progress=False).score_rows(VoGScorer(model, progress=False).reader(rows), snapshots)
        np.testing.assert_allclose(found, expected.column("vog"), rtol=1e-5)


class Strict(models.MLP):
    """Requires labels, and writes the problem type as transformers' models do."""

    def __init__(self):
        super().__init__()
        self.config = GPT2Config()
        self.seen = []

    def forward(self, features, labels):
        self.seen.append(labels.clone())
        self.config.problem_type = "single_label_classification"
        logits = super().forward(features)
        return nn.functional.cross_entropy(logits, labels), logits


@pytest.mark.parametrize("missing", [False, True])
def test_a_forward_that_requires_labels_is_given_them(missing):
    """The logits behind its loss are differentiated; the configuration is as before, and a missing label is class 0."""
    torch.manual_seed(0)
    model, rows = Strict().eval(), vectors()
    states = states_of(model)
    expected = oracle(models.MLP(), [dict(row) for row in rows], states)
    if missing:
        rows[2] = {**rows[2], "labels": -1}
    found = vog_of(model, rows, states, batch_size=4)
    assert model.config.problem_type is None
    assert all((labels >= 0).all() for labels in model.seen)
    known = [i for i in range(N) if not (missing and i == 2)]
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-4)


def test_input_gradients_of_a_forward_that_requires_labels():
    """A mapping and a pair give the gradient of the plain model."""
    torch.manual_seed(0)
    model, plain = Strict().eval(), models.MLP().eval()
    plain.load_state_dict(model.state_dict())
    batch = models.collate(vectors())
    expected = input_gradients(plain, batch)
    torch.testing.assert_close(input_gradients(model, batch), expected)
    torch.testing.assert_close(input_gradients(model, (batch["features"], batch["labels"])), expected)
    assert model.config.problem_type is None


def test_required_labels_that_are_not_there_are_named():
    """Without labels the message says which parameter needs a default, and with it the rows are scored."""
    rows = [{"features": row["features"]} for row in vectors()]
    with pytest.raises(DataError, match=r"forward of Strict requires 'labels'.*labels=None"):
        vog_of(Strict(), rows, states_of(Strict()))
    model = models.mlp().model
    assert (vog_of(model, rows, states_of(model), config=VoGConfig(label="predicted")) > 0).all()


class Open(nn.Module):
    """Takes whatever a batch has: directly, or through a wrapper that names only some of it."""

    def __init__(self):
        super().__init__()
        self.inner = models.MLP()

    def forward(self, **inputs):
        return {"logits": self.inner(inputs["features"] * inputs["scale"].unsqueeze(-1))}


def test_inputs_that_forward_does_not_name_are_fed():
    """A forward of **kwargs gets all tensors of the batch but the labels, as in training."""
    torch.manual_seed(0)
    model = Open().eval()
    rows = [{**row, "scale": torch.tensor(1.0 + i)} for i, row in enumerate(vectors())]
    states = states_of(model)
    inner = [(name, {key.removeprefix("inner."): value for key, value in state.items()}) for name, state in states]
    scaled = [{"features": row["features"] * row["scale"], "labels": row["labels"]} for row in rows]
    expected = oracle(model.inner, scaled, inner) * np.array([1.0 + i for i in range(N)])
    np.testing.assert_allclose(vog_of(model, rows, states, batch_size=4), expected, rtol=1e-4)
    np.testing.assert_allclose(
        vog_of(model, rows, states, batch_size=4, collate_fn=models.collate), expected, rtol=1e-4
    )


class TwoInputs(models.MLP):
    """Requires a second input that no label can stand for."""

    def forward(self, features, scale):
        return super().forward(features * scale.unsqueeze(-1))


def test_an_input_that_the_batch_lacks_is_named():
    """A required parameter that is not a label is reported by its name."""
    model = TwoInputs()
    with pytest.raises(ModelError, match=r"forward of TwoInputs requires 'scale', and the batch has \['features'\]"):
        vog_of(model, vectors(), states_of(model))


def test_the_command_line_collates_single_texts_of_a_tokenizer_without_padding():
    """Where the tokenizer cannot pad, a text alone is a batch; where it can, several are padded to one length."""
    tokenize = tokenizer()
    rows = [{"input_ids": [4, 5], "attention_mask": [1, 1]}, {"input_ids": [6], "attention_mask": [1]}]
    padding = Preparation(tokenize, "text", ("text",), None)
    assert padding.collate(rows)["input_ids"].shape == (2, 2)
    assert not padding.takes_single_rows
    tokenize.pad_token = None
    assert padding.takes_single_rows
    assert padding.collate(rows[:1])["input_ids"].tolist() == [[4, 5]]


def test_a_callback_takes_as_many_rows_as_memory_allows(tmp_path):
    """Up to 64 where none are chosen, whatever the trainer evaluates with; a batch size that is given is kept."""
    chosen = {"default": VoGCallback(snapshots=[2, 4], output_dir=tmp_path / "default")}
    chosen["given"] = VoGCallback(snapshots=[2, 4], output_dir=tmp_path / "given", batch_size=3)
    chosen["in little memory"] = VoGCallback(snapshots=[2, 4], output_dir=tmp_path / "little", memory_budget=1)
    options = {"per_device_eval_batch_size": 2, "max_steps": 4}
    torch.manual_seed(0)
    model = Strict()
    scores = {
        name: trained(tmp_path / "model", deepcopy(model), vectors(), vog, **options) for name, vog in chosen.items()
    }
    sizes = {name: vog.scores.manifest["batch_size"] for name, vog in chosen.items()}
    assert sizes == {"default": 64, "given": 3, "in little memory": 2}
    for found in scores.values():
        np.testing.assert_allclose(found, scores["given"], rtol=1e-5)


def roomy_size(model, rows, budget=None, **options):
    """The batch size with which a plan is made for a reader of eight rows per batch, and the plan of the eight."""
    scorer = VoGScorer(model, batch_size=8, memory_budget=budget, progress=False)
    reader = scorer.reader(rows, **options)
    eight = scorer.plan(reader)
    scorer.plan(reader, roomy=True)
    return reader.batch_size, eight


@pytest.mark.parametrize(("rows_that_fit", "size"), [(1000, 64), (64, 64), (63, 32), (17, 16), (15, 8), (1, 8)])
def test_the_gradients_of_a_batch_fit_into_the_budget(rows_that_fit, size):
    """Twice what the forward pass keeps, for as many rows; never fewer than was asked for."""
    model = models.conv_net().model
    rows = [{"image": torch.rand(3, 8, 8), "labels": i % 3} for i in range(80)]
    _, plan = roomy_size(model, rows)
    row_bytes = 2 * plan.saved_bytes // plan.dry_run_rows
    assert row_bytes > 1000
    assert roomy_size(model, rows, rows_that_fit * row_bytes)[0] == size


def test_long_texts_behind_short_ones_count():
    """Rows that are ten times as long as the first ones need ten times as much; without lengths, the model's limit."""
    short, long = [{"input_ids": [5] * n, "attention_mask": [1] * n, "labels": 0} for n in (3, 16)]
    model = models.bert().model
    table = Dataset.from_list([short] * 8 + [long] * 8).with_format("torch")
    _, plan = roomy_size(model, table, collate_fn=models.collate)
    row_bytes = 2 * plan.saved_bytes // plan.dry_run_rows
    assert roomy_size(model, table.select(range(8)), 65 * row_bytes, collate_fn=models.collate)[0] == 64
    assert roomy_size(model, table, 65 * row_bytes, collate_fn=models.collate)[0] == 8
    assert roomy_size(model, table, 340 * row_bytes, collate_fn=models.collate)[0] == 32
    unknown = list(table.select(range(8)))
    limit = model.config.max_position_embeddings / 3
    assert roomy_size(model, unknown, int(33 * limit * row_bytes), collate_fn=models.collate)[0] == 32


def test_the_memory_of_a_forward_pass_is_counted():
    """The input of each layer, once, and no weight."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    saved = SavedBytes(model)
    with saved.counted():
        z = model(torch.rand(4, 5, requires_grad=True))
    z.sum().backward()
    assert saved.total == 4 * (5 + 7) * 4


def test_a_model_whose_memory_cannot_be_counted_keeps_the_trainers_batch_size():
    """torch.func in forward does not work with the hooks that count: it is scored as before."""

    class Jacobian(models.MLP):
        def forward(self, features):
            inner = torch.func.grad(lambda x: x.square().sum())(features.detach())
            return super().forward(features) + inner.mean()

    model = Jacobian()
    size, plan = roomy_size(model, vectors())
    assert (size, plan.saved_bytes) == (8, None)
