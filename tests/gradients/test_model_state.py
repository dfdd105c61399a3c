"""Models that change themselves in evaluation mode: training is left alone, and scores are those of a fresh model."""

import functools
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments

from vog_hf import VoGCallback, VoGScorer
from vog_hf.errors import ModelError
from vog_hf.gradients.input_gradients import input_gradients
from vog_hf.gradients.model_mode import scoring_mode
from vog_hf.gradients.model_state import kept_state

ROWS = [(row, i % 3) for i, row in enumerate(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)))]


class Recording(nn.Module):
    """Changes, in every forward, one of each kind of state that the next output depends on."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.register_buffer("longest", torch.zeros(0), persistent=False)
        self.queue, self.seen, self.shift = [torch.zeros(4)], {"rows": 0}, torch.zeros(4)

    def forward(self, x, labels=None):
        type(self).calls += 1
        self.seen["rows"] += len(x)
        self.mean.data.lerp_(x.detach().mean(0), 0.5)
        self.scale = self.scale + 0.1
        self.longest.resize_(len(x)).fill_(1.0)
        self.queue.append(x.detach().mean(0))
        self.shift += 0.01 * self.calls
        z = self.head(torch.tanh((x - self.mean - self.queue[-2] + self.shift) * self.scale))
        return z if labels is None else (F.cross_entropy(z, labels), z)


class CachedUnit(nn.Module):
    """Derives a weight in its first forward in evaluation mode, and keeps it; the second layer keeps nothing."""

    def __init__(self, *, keep):
        super().__init__()
        self.layer, self.head, self.keep, self.unit = nn.Linear(4, 5), nn.Linear(5, 3), keep, None

    @functools.lru_cache  # noqa: B019 (what is tested)
    def cached(self):
        return F.normalize(self.layer.weight.detach())

    def forward(self, x):
        if self.keep == "lru_cache":
            unit = self.cached()
        elif self.keep == "attribute":
            if self.training or self.unit is None:
                self.unit = F.normalize(self.layer.weight)
            unit = self.unit
        else:
            unit = F.normalize(self.layer.weight)
        return self.head(torch.tanh(x @ unit.T))


class Frozen(CachedUnit):
    """Uses none of its weights."""

    def forward(self, x):
        return torch.tanh(x[:, :3])


class Lonely(nn.Module):
    """BatchNorm behind tokens: where its gradient comes in another memory format than its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x)).flatten(2).transpose(1, 2)).square().mean(1))


class Reader(nn.Module):
    """A recurrent network that tells whether cuDNN was on."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head, self.seen = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3), set()

    def forward(self, x):
        ENABLED.append(torch.backends.cudnn.enabled)
        return self.head(self.rnn(x)[0][:, -1])


ENABLED = []


def states_of(model, n=4):
    """Weights of several snapshots."""
    generator = torch.Generator().manual_seed(1)
    return [
        (f"s{k}", {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()})
        for k in range(n)
    ]


def trained(folder, collect=None):
    """A model after three epochs, with the callback (collect) or without it."""
    torch.manual_seed(0)
    Recording.calls = 0
    model = Recording()
    callbacks = [VoGCallback(collect=collect, log=False)] if collect else []
    rows = [{"x": x, "labels": label} for x, label in ROWS]
    options = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 3,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    Trainer(
        model, TrainingArguments(folder, save_strategy="no", **options), train_dataset=rows, callbacks=callbacks
    ).train()
    held = [model.mean, model.scale, model.longest, *model.queue, model.shift, *model.parameters()]
    return [tensor.detach().clone() for tensor in held], (Recording.calls, dict(model.seen))


def test_a_training_with_state_that_forward_changes_is_bit_identical(tmp_path):
    """Buffers, replaced and resized ones, attributes, lists, dictionaries and counters are as without the callback."""
    tensors, counts = trained(tmp_path / "without")
    for collect in ("replay", "live"):
        found, found_counts = trained(tmp_path / collect, collect)
        assert found_counts == counts
        assert len(found) == len(tensors)
        assert all(map(torch.equal, found, tensors))


def test_no_score_depends_on_rows_that_changed_the_model_before():
    """Every batch sees the state of the model as it was found: batch size 1 is the same as each row by itself."""
    model = Recording()
    states = states_of(model)
    for _, state in states:
        state["mean"] = torch.zeros(4)
    alone = [VoGScorer(model, batch_size=1, progress=False).score([row], states).column("vog")[0] for row in ROWS]
    together = VoGScorer(model, batch_size=1, progress=False).score(ROWS, states).column("vog")
    np.testing.assert_array_equal(together, alone)
    assert np.ptp(together) > 0


def test_state_is_put_back_after_an_error_and_input_gradients():
    """An exception in the middle of a pass leaves nothing of it, nor does `input_gradients`."""
    model = Recording()
    mean, queue = model.mean, list(model.queue)
    with pytest.raises(RuntimeError, match="size of tensor"), kept_state(model):
        model(torch.ones(5, 7))
    input_gradients(model, torch.ones(2, 4))
    assert model.mean is mean
    assert not model.mean.any()
    assert model.longest.shape == (0,)
    assert [a is b for a, b in zip(model.queue, queue, strict=True)] == [True]
    assert model.seen == {"rows": 0}


def test_a_forward_that_changes_weights_is_refused():
    """Weights are not copied, so that a model that initializes them in its first forward is refused in the dry run."""

    class Initializing(nn.Linear):
        def forward(self, x):
            self.weight.data.add_(1.0)
            return super().forward(x)

    with pytest.raises(ModelError, match="changes its weights in forward"):
        VoGScorer(Initializing(4, 3), progress=False).check(ROWS)


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("keep", ["attribute", "lru_cache"])
def test_derived_weights_are_those_of_each_snapshot(keep, used_before):
    """A kernel kept from a forward, in one layer of two, gives the scores of the model that keeps nothing."""
    model, plain = CachedUnit(keep=keep).eval(), CachedUnit(keep=None)
    states = states_of(plain)
    if used_before:
        model(torch.ones(2, 4))
    kept = model.unit
    found, expected = (VoGScorer(m, progress=False).score(ROWS, states).column("vog") for m in (model, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert model.unit is kept


def test_scores_that_are_zero_everywhere_are_reported(caplog):
    """A model that uses none of its weights has VoG 0 in every row, and one line says so."""
    model = Frozen(keep=None)
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        scores = VoGScorer(model, progress=False).score(ROWS, states_of(model))
    assert not scores.column("vog").any()
    assert "vog is 0 for every row" in caplog.text


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 4, "fold": False}, {"batch_size": 1, "fold": False}]
)
def test_a_row_alone_in_its_batch_has_the_right_score(options):
    """Behind BatchNorm, batches of one row give what a float64 loop gives."""
    torch.manual_seed(0)
    model = Lonely().eval()
    rows = [(torch.randn(3, 6, 6), i % 3) for i in range(5)]
    states = states_of(model)
    for _, state in states:
        state |= {name: b.clone() for name, b in model.named_buffers()}
    found = VoGScorer(model, progress=False, **options).score(rows, states).column("vog")
    twin, gradients = Lonely().double().eval(), []
    for _, state in states:
        twin.load_state_dict(state)
        pairs = [torch.stack([x, x]).double().requires_grad_() for x, _ in rows]
        gradients.append([torch.autograd.grad(twin(x)[0, y], x)[0][0] for x, (_, y) in zip(pairs, rows, strict=True)])
    expected = [torch.stack(of_row).mean(1).std(0, correction=0).mean() for of_row in zip(*gradients, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    x = rows[0][0][None]
    single = input_gradients(model, x, labels=torch.tensor([1]))
    pair = input_gradients(model, torch.cat([x, x]), labels=torch.tensor([1, 1]))
    torch.testing.assert_close(single, pair[:1])


def test_recurrent_networks_run_without_cudnn():
    """Without a backward of them in evaluation mode, cuDNN is off while they are scored, and on again afterwards."""
    ENABLED.clear()
    input_gradients(Reader(), torch.randn(3, 6, 4))
    assert set(ENABLED) == {False}
    assert torch.backends.cudnn.enabled
    with scoring_mode(nn.Linear(2, 2)):
        assert torch.backends.cudnn.enabled
