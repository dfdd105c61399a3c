"""Rows of many passes are observed together with the values that each pass would have alone."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from vog_hf.gradients.observed_passes import KEPT_BYTES, ObservedPass, settle
from vog_hf.gradients.tasks import TASKS

SINGLE, MULTI, TOKENS = (
    TASKS[name] for name in ("single_label_classification", "multi_label_classification", "token_prediction")
)
SIZES = (5, 3, 1, 5)


def drawn_pass(task, n, seed, *, classes=4, scale=1.0, at_once=False, gradient="logits"):
    """A pass of ``n`` rows through a linear model, with what its backward pass says; and the model's loss."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator).requires_grad_()
    weight = torch.randn(6, classes, generator=generator)
    if task is MULTI:
        labels = torch.randint(0, 2, (n, classes), generator=generator)
    else:
        labels = torch.randint(0, classes, (n,), generator=generator)
    logits = x @ weight
    observed = ObservedPass(torch.arange(n), labels, {})
    observed.observe(task, logits, labels, 0.0, at_once=at_once)
    own = task.scalar("loss", logits, labels)
    loss = scale * own.mean()
    of_logits, of_x = torch.autograd.grad(loss, [logits, x])
    if gradient == "logits":
        observed.weigh(of_logits)
    elif gradient == "loss":
        observed.loss = own.mean().detach(), torch.tensor(scale)
    observed.weigh_by_loss()
    observed.norms = of_x.square().sum(1)
    observed.of_x, observed.loss_of_rows = of_x, own.detach()
    return observed


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["one label", "several"])
def test_passes_have_the_same_values_together_as_alone(task):
    """Bit by bit, in batches of different sizes; nor does it matter when a pass is observed."""
    together = [drawn_pass(task, n, seed, scale=2.0**seed) for seed, n in enumerate(SIZES)]
    alone = [drawn_pass(task, n, seed, scale=2.0**seed) for seed, n in enumerate(SIZES)]
    at_once = [drawn_pass(task, n, seed, scale=2.0**seed, at_once=True) for seed, n in enumerate(SIZES)]
    settle(together, task, 0.0)
    for one in alone + at_once:
        settle([one], task, 0.0)
    for passes in (alone, at_once):
        for found, expected in zip(together, passes, strict=True):
            assert list(found.values) == list(expected.values)
            assert all(torch.equal(found.values[name], expected.values[name]) for name in expected.values)
            assert torch.equal(found.weights, expected.weights)


@pytest.mark.parametrize("gradient", ["logits", "loss"])
def test_the_energy_is_that_of_each_rows_own_loss(gradient):
    """A model without a gradient at its logits (compiled in one piece) is weighed by its loss, batch by batch."""
    passes = [drawn_pass(SINGLE, n, seed, scale=3.0 + seed, gradient=gradient) for seed, n in enumerate(SIZES)]
    settle(passes, SINGLE, 0.0)
    for seed, (n, found) in enumerate(zip(SIZES, passes, strict=True)):
        own_gradients = found.of_x * n / (3.0 + seed)
        assert_close(found.values["csg"], own_gradients.square().sum(1))
        assert_close(found.of_own_losses(found.of_x), own_gradients)
        assert_close(found.values["loss"], found.loss_of_rows)
        assert torch.equal(found.values["label"], found.labels)


def test_a_pass_without_gradients_has_a_loss_and_no_energy():
    """Its neighbors have both, and those with another number of classes are observed, too."""
    passes = [
        drawn_pass(SINGLE, 3, 0),
        drawn_pass(SINGLE, 3, 1, gradient=None),
        drawn_pass(SINGLE, 3, 2),
        drawn_pass(SINGLE, 3, 3, classes=7),
    ]
    passes[2].norms = None
    settle(passes, SINGLE, 0.0)
    assert [bool(found.values["csg"].isnan().all()) for found in passes] == [False, True, True, False]
    assert not passes[0].values["csg"].isnan().any()
    assert not passes[3].values["csg"].isnan().any()
    assert passes[1].of_own_losses(passes[1].of_x).isnan().all()
    for found in passes:
        assert_close(found.values["loss"], found.loss_of_rows)


def test_only_small_logits_are_kept_and_nothing_after_they_are_settled():
    """Large logits, and those of tokens, are observed in the forward pass; no pass keeps them until the epoch's end."""
    n_classes = KEPT_BYTES // 4 // 2
    small, large = drawn_pass(SINGLE, 2, 0, classes=n_classes), drawn_pass(SINGLE, 3, 0, classes=n_classes)
    assert small.logits is not None
    assert small.nbytes == KEPT_BYTES + small.labels.nbytes
    assert large.logits is None
    assert large.losses is not None
    assert large.weights is not None
    tokens = ObservedPass(torch.arange(2), torch.zeros(2, 3, dtype=torch.int64), {})
    tokens.observe(TOKENS, torch.randn(2, 3, 4), tokens.labels, 0.0, at_once=False)
    assert tokens.logits is None
    assert tokens.nbytes == 2 * 3 * 4
    settle([small, large], SINGLE, 0.0)
    assert [found.nbytes for found in (small, large)] == [0, 0]
    assert small.logits_gradient is None
    assert small.norms is None


def test_logits_and_gradients_are_kept_as_they_were():
    """A training may change both in place before the pass is settled."""
    logits, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 3])
    gradient = (logits.softmax(-1) - F.one_hot(labels, 4)) / 3
    observed = ObservedPass(torch.arange(3), labels, {})
    observed.observe(SINGLE, logits, labels, 0.0, at_once=False)
    observed.weigh(gradient)
    expected = F.cross_entropy(logits, labels, reduction="none")
    logits.zero_()
    gradient.zero_()
    labels.zero_()
    settle([observed], SINGLE, 0.0)
    assert_close(observed.values["loss"], expected)
    assert_close(observed.weights, torch.full((3,), 1 / 3))
