"""Companions from forward passes alone, against a loop over rows and against the scores with gradients."""

import functools
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from reference import reference_dynamics, reference_logits

from vog_hf import VoGScorer, companions
from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, DataError, LabelError, NonFiniteError, SnapshotError

DOCS = Path(__file__).resolve().parents[2] / "docs"
N = 53
LABELS = [(i * i + i // 3) % models.CLASSES for i in range(N)]
ROWS = {
    "conv_net": lambda: models._float_rows("image", (3, 8, 8), seed=7, n=N),
    "bert": lambda: models.token_rows(7, lengths=tuple(3 + 7 * i % 11 for i in range(N))),
}


@functools.cache
def case_of(name):
    """A float64 model, rows of varying length with labels, and four snapshots as (name, state)."""
    case = models.Case(models.CASES[name]().model, ROWS[name](), LABELS)
    states = models.perturbed_states(case.model, 4)
    case.model.double()
    states = [{k: v.double() if v.is_floating_point() else v for k, v in state.items()} for state in states]
    return case, [(f"epoch-{k}", state) for k, state in enumerate(states)]


@functools.cache
def expected_of(name):
    """The companions by a loop over rows and snapshots."""
    case, named = case_of(name)
    return reference_dynamics(reference_logits(case.model, [state for _, state in named], case.rows), case.labels)


def labeled(case, labels=None):
    """Rows with their labels."""
    return [{**row, "labels": label} for row, label in zip(case.rows, labels or case.labels, strict=True)]


BERT = [pytest.param("bert", size, marks=pytest.mark.slow) for size in (7, 53)]


@pytest.mark.parametrize(("name", "batch_size"), [("conv_net", 1), ("conv_net", 7), *BERT])
def test_values_are_those_of_a_loop_over_rows(name, batch_size):
    """Every companion in row order, whatever the batch size, more batches than are in memory at a time, and padding."""
    case, named = case_of(name)
    table = companions(case.model, labeled(case), named, collate_fn=models.collate, batch_size=batch_size)
    assert len(table) == N
    assert table["label"].tolist() == LABELS
    expected = expected_of(name)
    for column, values in expected.items():
        np.testing.assert_allclose(table[column], values, rtol=1e-6, atol=1e-9, err_msg=column)
    assert set(table) == {"label", "prediction", *expected}


def test_columns_are_those_of_the_scores():
    """`VoGScorer.score` has the same values in the same columns, next to those that need gradients."""
    case, named = case_of("conv_net")
    scores = VoGScorer(case.model).score(labeled(case), named, collate_fn=models.collate)
    table = companions(case.model, labeled(case), named, collate_fn=models.collate)
    for column in table:
        np.testing.assert_allclose(table[column], scores.column(column), rtol=1e-6, atol=1e-9)


def test_the_model_is_left_as_it_was():
    """Weights, buffers, modes and gradients are untouched."""
    case, named = case_of("conv_net")
    model = case.model
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    companions(model, labeled(case), named, collate_fn=models.collate)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_regression_has_a_loss_and_no_confidence():
    """A task without classes gives the columns that it defines: the squared error, mean over the snapshots."""
    model = torch.nn.Linear(2, 1).double()
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    states = [{"weight": torch.full((1, 2), float(k)), "bias": torch.zeros(1)} for k in (1, 2, 3)]
    named = [(str(k), {n: v.double() for n, v in state.items()}) for k, state in enumerate(states)]
    table = companions(model, [(row, 0.5) for row in x], named, config=VoGConfig(task="regression"))
    assert sorted(table) == ["loss", "prediction"]
    expected = np.mean([(k * x.sum(1).numpy() - 0.5) ** 2 for k in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(table["loss"], expected, rtol=1e-6)


@pytest.mark.parametrize("missing", [-1, -100])
def test_a_row_without_a_label_is_named(missing):
    """-1 and -100 mean no label, so no loss: the error names the row."""
    case, named = case_of("conv_net")
    rows = labeled(case, [*LABELS[:30], missing, *LABELS[31:]])
    with pytest.raises(LabelError, match="row 30 has no label, and companions need one for every row"):
        companions(case.model, rows, named, collate_fn=models.collate, batch_size=7)


@pytest.mark.parametrize(("label", "error"), [("given", DataError), ("predicted", LabelError)])
def test_rows_without_labels_are_refused(label, error):
    """Neither the configuration nor a prediction replaces a label here."""
    case, named = case_of("conv_net")
    with pytest.raises(error, match="no label"):
        companions(case.model, case.rows, named, collate_fn=models.collate, config=VoGConfig(label=label))


def test_what_cannot_be_observed_is_refused():
    """A stream and a single snapshot."""
    case, named = case_of("conv_net")

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(labeled(case))

    with pytest.raises(ConfigError, match="a map-style dataset is expected, got a stream"):
        companions(case.model, Stream(), named, collate_fn=models.collate)
    with pytest.raises(SnapshotError, match="at least 2 snapshots, got 1"):
        companions(case.model, labeled(case), named[:1], collate_fn=models.collate)


def test_a_diverged_snapshot_is_named():
    """NaN weights are an error with row and snapshot, not a table of NaN."""
    model = torch.nn.Linear(3, 2)
    rows = [(torch.ones(3), i % 2) for i in range(9)]
    states = [(f"epoch-{k}", {n: torch.full_like(p, k) for n, p in model.named_parameters()}) for k in range(3)]
    states[1][1]["bias"].fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="loss of row 0 is not finite at snapshot 'epoch-1'"):
        companions(model, rows, states)
