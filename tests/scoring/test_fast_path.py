"""The fast way to run a model gives the scores of the plain one, and is left where it does not."""

import functools
import logging
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import nn

from vog_hf.config import VoGConfig
from vog_hf.gradients.batchnorm_folding import FoldedModules, Folding
from vog_hf.scoring import dry_run, fast_path, replay, runner
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import SnapshotWriter, open_folder, temporary_weights

N = 53
LABELS = [(i * i + i // 3) % models.CLASSES for i in range(N)]
FOLDED = {
    "conv_net": ((3, 8, 8), "image"),
    "resnet": ((3, 32, 32), "pixel_values"),
    "timm_net": ((3, 32, 32), "x"),
}


def labeled(rows, labels):
    """Rows with labels."""
    return [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]


@functools.cache
def family(name):
    """A model with BatchNorms, 53 rows with labels, and five snapshots."""
    shape, key = FOLDED[name]
    case = models.CASES[name]()
    rows = [
        {**row, "labels": label} for row, label in zip(models._float_rows(key, shape, seed=3, n=N), LABELS, strict=True)
    ]
    states = models.perturbed_states(case.model, 5)
    return case.model, rows, [(f"epoch-{k}", state) for k, state in enumerate(states)]


def scored(name, config=None, **options):
    """Scores of a family."""
    model, rows, states = family(name)
    return VoGScorer(model, config=config, batch_size=12, **options).score(rows, states, collate_fn=models.collate)


def plan_of(model, rows, config=None, **options):
    """The plan after the dry run."""
    scorer = VoGScorer(model, config=config, batch_size=12, **options)
    return scorer.plan(scorer.reader(rows, collate_fn=models.collate))


@pytest.mark.parametrize("config", [VoGConfig(target=("logit", "loss")), VoGConfig(reduce_channels=False)])
@pytest.mark.parametrize("name", FOLDED)
def test_folded_and_plain_scores_agree(name, config):
    """To 1e-5 (relative) in float32 in every column that is not a count, and in all ranks but those of ties."""
    model, rows, _ = family(name)
    plan = plan_of(model, rows, config)
    assert plan.folding
    assert plan.folding.channels_last
    assert not plan_of(model, rows, config, fold=False).folding
    fast, plain = scored(name, config), scored(name, config, fold=False)
    for column in plain.column_names:
        expected = plain.column(column)
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(fast.column(column), expected, rtol=1e-5, atol=tolerance, err_msg=column)
    for column in ("vog", "vog_class_normalized"):
        distinct = np.diff(np.sort(plain.column(column))).min() > 1e-5 * np.abs(plain.column(column)).max()
        same = rankdata(fast.column(column)) == rankdata(plain.column(column))
        assert same.all() or not distinct
        assert same.mean() > 0.9


def test_live_is_folded_too(monkeypatch):
    """The model that trains runs the fast way during a live pass, and is itself again behind it."""
    model, rows, states = family("conv_net")
    scorer = VoGScorer(model, batch_size=12)
    reader = scorer.reader(rows, collate_fn=models.collate)
    plan = scorer.plan(reader)
    live = scorer.live(reader, plan, len(states))
    refreshed = []
    refresh = FoldedModules.refresh
    monkeypatch.setattr(FoldedModules, "refresh", lambda self: refreshed.append(refresh(self)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, state in states:
        model.load_state_dict(state)
        live.update(name)
        assert not any("forward" in module.__dict__ for module in model.modules())
    model.load_state_dict(before)
    assert len(refreshed) == len(states)
    np.testing.assert_allclose(live.finish().column("vog"), scored("conv_net").column("vog"), rtol=1e-6)


def wrong_by(factor):
    """A folding that is another function."""

    def to_memory_format(self, tensor):
        return tensor * factor if self else tensor

    return to_memory_format


@pytest.mark.parametrize(("factor", "falls_back"), [(1.5, True), (float("nan"), True), (1 + 1e-6, False)])
def test_another_function_is_not_taken(monkeypatch, caplog, factor, falls_back):
    """One line says so, and the scores are the plain ones; rounding is not another function."""
    expected = scored("conv_net", fold=False).column("vog")
    monkeypatch.setattr(Folding, "to_memory_format", wrong_by(factor))
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        found = scored("conv_net").column("vog")
    lines = [record.getMessage() for record in caplog.records if "the model is run as it is" in record.getMessage()]
    assert len(lines) == falls_back
    if falls_back:
        assert "2 BatchNorms folded into convolutions, channels last" in lines[0]
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_every_plan_that_falls_back_says_so(monkeypatch, caplog):
    """The second look at the same rows, when training has changed the model, is not silent because of the first."""
    monkeypatch.setattr(Folding, "to_memory_format", wrong_by(1.5))
    model, rows, _ = family("conv_net")
    scorer = VoGScorer(model)
    reader = scorer.reader(rows)
    for _ in range(2):
        assert not scorer.plan(reader).folding
    assert sum("the model is run as it is" in record.getMessage() for record in caplog.records) == 2


class ZeroHead(models.ConvNet):
    """Says 0 to everything, as heads of fresh models do."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def test_a_model_whose_logits_are_all_zero_is_folded():
    """No difference to nothing is none."""
    _, rows, _ = family("conv_net")
    assert plan_of(ZeroHead(), rows).folding.pairs


@pytest.mark.parametrize("name", ["mlp", "vit", "bert"])
def test_models_without_batch_normalization_run_as_they_are(name):
    """Nothing to fold: no second layout, no second pass."""
    case = models.CASES[name]()
    rows = labeled(case.rows, case.labels)
    plan = plan_of(case.model, rows)
    assert plan.folding == Folding()
    assert plan.module is case.model


def test_low_precision_is_not_folded():
    """Neither weights in bfloat16 nor bfloat16 by autocast: both ways are equally far from the truth there."""
    model, rows, _ = family("conv_net")
    assert plan_of(model, rows).folding
    assert not plan_of(model, rows, VoGConfig(dtype="bfloat16")).folding
    half = models.CASES["conv_net"]().model.bfloat16()
    assert not plan_of(half, rows, VoGConfig(dtype="model")).folding
    assert plan_of(half, rows).folding  # cast up to float32


@pytest.mark.parametrize("name", ["resnet", "vit", "bert"])
def test_bfloat16_is_close_to_float32(name):
    """Under autocast scores change by little, in the ranks by less; weights and modes are as before."""
    case = models.CASES[name]()
    rows = labeled(case.rows, case.labels)
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(case.model, 4))]
    found = [
        VoGScorer(case.model, config=VoGConfig(dtype=dtype)).score(rows, states, collate_fn=models.collate)
        for dtype in ("float32", "bfloat16")
    ]
    full, low = (scores.column("vog") for scores in found)
    assert not np.array_equal(full, low)
    np.testing.assert_allclose(low, full, rtol=0.15)
    assert found[1].manifest["config"]["dtype"] == "bfloat16"


def test_autocast_never_keeps_the_weights_of_an_earlier_snapshot():
    """Under autocast each snapshot's gradients are of its own weights: two that are the same leave the VoG as it is."""
    case = models.CASES["vit"]()
    rows = labeled(case.rows, case.labels)
    first, second = models.perturbed_states(case.model, 2, scale=0.5)
    config = VoGConfig(dtype="bfloat16")
    alternating = [(f"{k}", (first, second)[k % 2]) for k in range(4)]
    pair = alternating[:2]
    found = [
        VoGScorer(case.model, config=config).score(rows, states, collate_fn=models.collate).column("vog")
        for states in (alternating, pair)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert (found[1] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "vit", "bert"])
def test_compiled_scores_are_those_of_the_plain_model(name):
    """torch.compile through all snapshots, a short last batch and a hook on the embeddings."""
    case = models.CASES[name]()
    rows = labeled(case.rows, case.labels)
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(case.model, 3))]
    plan = plan_of(case.model, rows, torch_compile=True)
    assert plan.module is not case.model
    found = [
        VoGScorer(case.model, batch_size=4, torch_compile=compiled).score(rows, states, collate_fn=models.collate)
        for compiled in (True, False)
    ]
    np.testing.assert_allclose(found[0].column("vog"), found[1].column("vog"), rtol=1e-4)


# --- what is for accelerators, run on a CPU -------------------------------------------------------------------------


def test_rows_are_read_ahead_where_a_device_computes(monkeypatch):
    """With the next block read in a thread, scores are the same bit by bit, in many blocks and in one."""
    expected = scored("conv_net").column("vog")
    used = []
    monkeypatch.setattr(replay, "prefetch", lambda items, real=replay.prefetch: used.append(True) or real(items))
    made = dry_run._plan
    monkeypatch.setattr(
        dry_run, "_plan", lambda *arguments, **options: replace(made(*arguments, **options), block_copies=2)
    )
    np.testing.assert_array_equal(scored("conv_net", memory_budget=1).column("vog"), expected)
    np.testing.assert_array_equal(scored("conv_net").column("vog"), expected)
    assert used == [True, True]


def test_snapshots_stay_on_the_device_where_they_fit(tmp_path):
    """What was kept is not read again, is the same, and the model still gets its own tensors back."""
    _, _, states = family("conv_net")
    model = models.CASES["conv_net"]().model
    writer = SnapshotWriter(tmp_path, model)
    for step, (_, state) in enumerate(states):
        model.load_state_dict(state)
        writer.take(model, step)
    found = open_folder(tmp_path)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    room = 2 * sum(tensor.nbytes for tensor in model.state_dict().values())
    with temporary_weights(model, found.frozen, cast_up=True, resident_bytes=room) as weights:
        seen = []
        for snapshot in (*found.snapshots, *found.snapshots):
            weights.load(snapshot)
            seen.append({name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()})
    kept = [
        all(first[name][0] == second[name][0] for name, _ in model.named_parameters())
        for first, second in zip(seen[:5], seen[5:], strict=True)
    ]
    assert kept[:2] == [True, True]
    for first, second, (_, state) in zip(seen[:5], seen[5:], states, strict=True):
        for name, (_, value) in first.items():
            assert torch.equal(value, second[name][1])
            assert torch.equal(value, state[name])
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before


def test_fast_path_watches_two_rows_only(monkeypatch):
    """What can be folded is seen on two rows, whatever the batch; the batch is only compared."""
    model, rows, _ = family("conv_net")
    sizes = []

    def spied(model, inputs, leaf, forward=fast_path.forward_from_leaf):
        sizes.append(len(inputs["image"]))
        return forward(model, inputs, leaf)

    monkeypatch.setattr(fast_path, "forward_from_leaf", spied)
    plan_of(model, rows)
    assert sizes == [2, 12]  # then the whole batch, to compare


class Cliff(nn.Module):
    """BatchNorm between a convolution and a wave so steep that rounding decides on which side a unit is."""

    def __init__(self, steepness, *, only_float32=False):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))
        self.norm.running_var.fill_(0.3)
        self.head, self.steepness, self.only_float32 = nn.Linear(4, models.CLASSES), steepness, only_float32

    def forward(self, image):
        hidden = self.norm(self.convolution(image))
        hidden = (hidden + (self.steepness * hidden).sin() / self.steepness).mean((2, 3))
        return self.head(hidden.float() if self.only_float32 else hidden)


def test_rounding_that_the_model_magnifies_is_no_other_function(caplog):
    """What differs in float32 but not in float64 is folded, and only that; the model keeps its own tensors."""
    _, rows, _ = family("conv_net")
    for steepness, options, folded in ((1.0, {}, True), (1e6, {}, True), (1e6, {"only_float32": True}, False)):
        torch.manual_seed(0)
        model = Cliff(steepness, **options)
        before = {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()}
        assert bool(plan_of(model, rows).folding) == folded
        assert {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()} == before
    assert len([r for r in caplog.records if "the model is run as it is" in r.getMessage()]) == 1


class Gated(nn.Module):
    """A convolution whose output is read behind autograd's back, next to its BatchNorm."""

    def __init__(self, gate):
        super().__init__()
        self.convolution, self.norm, self.gate = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), gate
        self.head = nn.Linear(4, models.CLASSES)

    def forward(self, image):
        hidden = self.convolution(image)
        return self.head((self.norm(hidden) * self.gate(hidden)).mean((2, 3)))


def without_gradients(hidden):
    """A gate that autograd does not see."""
    with torch.no_grad():
        return hidden.sigmoid()


class Flattening(nn.Module):
    """A network that views its features as vectors, which works with the channels first only."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4 * 6 * 6, models.CLASSES)

    def forward(self, image):
        hidden = self.features(image)
        return self.head(hidden.view(len(hidden), -1))


def label_logit(outputs, batch):
    """The logit of class 0, as a custom target."""
    return outputs[:, 0]


@pytest.mark.parametrize(
    ("make", "target", "pairs"),
    [
        (lambda: Gated(lambda hidden: hidden.detach().sigmoid()), "logit", 0),
        (lambda: Gated(without_gradients), "logit", 0),
        (lambda: Gated(torch.ones_like), "logit", 0),
        (Flattening, "logit", 1),
        (Flattening, label_logit, 0),
    ],
)
def test_what_is_read_behind_autograd_is_not_folded_away(make, target, pairs):
    """A fresh BatchNorm hides the difference from the first comparison, trained ones would not: scores must agree."""
    _, rows, _ = family("conv_net")
    torch.manual_seed(0)
    model = make()
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, 3, scale=0.5))]
    plan = plan_of(model, rows, VoGConfig(target=target))
    assert (len(plan.folding.pairs), len(plan.folding.affine)) == (pairs, 1 - pairs)
    fast, plain = (
        VoGScorer(model, config=VoGConfig(target=target), fold=fold).score(rows, states, collate_fn=models.collate)
        for fold in (True, False)
    )
    np.testing.assert_allclose(fast.column("vog"), plain.column("vog"), rtol=1e-4)


class LearnedDelta(nn.Module):
    """A frozen convolution with a learned change of its weights that starts at zero, as an adapter has it."""

    def __init__(self, lend):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, models.CLASSES)
        self.delta, self.lend = nn.Parameter(torch.zeros_like(self.convolution.weight)), lend

    def forward(self, image):
        weight = self.convolution.weight + self.delta
        if self.lend(image, self.delta):
            hidden = torch.func.functional_call(self.convolution, {"weight": weight}, (image,))
        else:
            hidden = self.convolution(image)
        return self.head(self.norm(hidden).tanh().mean((2, 3)))


LENDERS = {
    "always": (lambda image, delta: True, 0),
    "once it is trained": (lambda image, delta: bool(delta.abs().max() > 0), 1),
    "for the short last batch": (lambda image, delta: len(image) == N % 12, 1),
}


@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize("name", LENDERS)
def test_a_model_that_later_becomes_another_function_is_scored_as_it_is(name, collect, caplog):
    """What fresh weights and the first batch do not show is seen at the batch that shows it: the numbers are plain."""
    lend, n_pairs = LENDERS[name]
    _, rows, _ = family("conv_net")
    torch.manual_seed(0)
    fresh = LearnedDelta(lend)
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(fresh, 3, scale=0.5))]
    found = []
    for fold in (False, True):
        scorer = VoGScorer(fresh, batch_size=12, fold=fold)
        if collect == "replay":
            found.append(scorer.score(rows, states, collate_fn=models.collate))
            continue
        reader = scorer.reader(rows, collate_fn=models.collate)
        before = {key: value.clone() for key, value in fresh.state_dict().items()}
        live = scorer.live(reader, scorer.plan(reader), len(states))
        for step, state in states:
            fresh.load_state_dict(state)
            live.update(step)
        fresh.load_state_dict(before)
        found.append(live.finish())
    np.testing.assert_allclose(found[1].column("vog"), found[0].column("vog"), rtol=1e-4)
    lines = [r.getMessage() for r in caplog.records if "the model is run as it is from here on" in r.getMessage()]
    assert len(lines) == n_pairs
    assert found[1].manifest["computed"]["folding"].startswith("nothing" if n_pairs else "1 as")
    assert not any("forward" in module.__dict__ for module in fresh.modules())


def test_each_snapshot_is_compared_once_not_each_block(monkeypatch):
    """The plain model runs on two rows of each snapshot, however many rows the last batch has."""
    model, rows, states = family("conv_net")
    compared = []
    require = runner.require_same_function

    def counted(plan, model, folded, inputs, labels, **options):
        compared.append(len(inputs[plan.leaf.name]))
        require(plan, model, folded, inputs, labels, **options)

    monkeypatch.setattr(runner, "require_same_function", counted)
    scorer = VoGScorer(model, batch_size=12, memory_budget=1)
    scorer.score(rows, states, collate_fn=models.collate)
    assert compared == [2] * len(states)


def test_a_hook_that_training_adds_ends_the_folding(caplog):
    """A live pass after a hook on a folded convolution is run as the model is; one line says so."""
    _, rows, _ = family("conv_net")
    torch.manual_seed(0)
    model = models.CASES["conv_net"]().model
    scorer = VoGScorer(model, batch_size=12)
    reader = scorer.reader(rows, collate_fn=models.collate)
    plan = scorer.plan(reader)
    live = scorer.live(reader, plan, 3)
    live.update("before")
    convolution = plan.folding.pairs[0][0]
    handle = convolution.register_forward_hook(lambda module, args, output: output.sin())
    live.update("hooked")
    handle.remove()
    assert sum("has got hooks" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_several_targets_of_a_compiled_model(name):
    """Two backward passes through one compiled forward give the scores of the plain model."""
    case = models.CASES[name]()
    rows = labeled(case.rows, case.labels)
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(case.model, 2))]
    config = VoGConfig(target=("logit", "loss"))
    found = [
        VoGScorer(case.model, config=config, batch_size=4, torch_compile=compiled).score(
            rows, states, collate_fn=models.collate
        )
        for compiled in (True, False)
    ]
    assert found[0].manifest["computed"]["torch_compile"]
    for column in ("vog", "vog_loss"):
        np.testing.assert_allclose(found[0].column(column), found[1].column(column), rtol=1e-4)


def test_a_model_that_cannot_be_compiled_is_folded_without(monkeypatch, caplog):
    """Without a compiler there is one line and no error, and the scores are those of the folded model."""

    def no_compiler(model, backend):
        class Broken(nn.Module):
            def forward(self, **inputs):
                raise OSError("no C++ compiler on this machine")

        return Broken()

    expected = scored("conv_net").column("vog")
    monkeypatch.setattr(torch, "compile", no_compiler)
    found = scored("conv_net", torch_compile=True)
    np.testing.assert_allclose(found.column("vog"), expected, rtol=1e-6)
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("vog_hf")]
    assert "no C++ compiler on this machine" in line
    assert not found.manifest["computed"]["torch_compile"]
