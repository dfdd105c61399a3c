import copy
import functools
import json
import logging
import math
import random

import models
import numpy as np
import pytest
import torch
from reference import (
    reference_class_normalized,
    reference_csg_trajectory,
    reference_dynamics,
    reference_gradients,
    reference_heat_map,
    reference_logits,
    reference_magnitude,
    reference_percentile,
    reference_trajectory,
    reference_vog,
)
from torch.testing import assert_close

from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, ForwardError, LabelError, ModelError, OutputFolderError, SnapshotError
from vog_hf.scoring.replay import Replay
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import SnapshotWriter

N = 53
TARGETS = ("logit", "probability", "loss")
ALL_TARGETS = VoGConfig(target=TARGETS)
LABELS = [(i * i + i // 3) % models.CLASSES for i in range(N)]
IMAGES = ("conv_net", "timm_net", "vit")


def waveforms():
    """Waveforms of varying length."""
    generator = torch.Generator().manual_seed(7)
    lengths = [40 + 5 * i % 23 for i in range(N)]
    return [
        {"input_values": torch.randn(n, generator=generator), "attention_mask": torch.ones(n, dtype=torch.int64)}
        for n in lengths
    ]


FAMILIES = {
    "mlp": lambda: models._float_rows("features", (5,), seed=7, n=N),
    "conv_net": lambda: models._float_rows("image", (3, 8, 8), seed=7, n=N),
    "vit": lambda: models._float_rows("pixel_values", (3, 8, 8), seed=7, n=N),
    "bert": lambda: models.token_rows(7, lengths=tuple(3 + 7 * i % 11 for i in range(N))),
    "wav2vec2": waveforms,
    "spectrogram": lambda: models._float_rows("input_values", (16, 8), seed=7, n=N),
}


@functools.cache
def family(name, dtype=torch.float64):
    """A model, 53 rows with labels, and its snapshots: nine of the plain module (windows of 3), four of the others.

    The weights are float32 numbers whatever the dtype, so that one oracle serves both.
    """
    case = models.Case(models.CASES[name]().model, FAMILIES[name](), LABELS)
    states = models.perturbed_states(case.model, 9 if name == "mlp" else 4)
    case.model.to(dtype)
    return case, [{key: cast(value, dtype) for key, value in state.items()} for state in states]


def cast(value, dtype):
    """A floating tensor in a dtype."""
    return value.to(dtype) if value.is_floating_point() else value


@functools.cache
def oracle(name, target="logit"):
    """The gradients of a family, computed once."""
    case, states = family(name)
    return reference_gradients(case.model, states, case.rows, target, case.labels)


@functools.cache
def oracle_logits(name):
    """The logits of a family, computed once."""
    case, states = family(name)
    return reference_logits(case.model, states, case.rows)


def labeled(rows, labels):
    """Rows with their labels."""
    return [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def named(states):
    """States with the names of epochs."""
    return [(f"epoch-{k}", state) for k, state in enumerate(states)]


def tied(model, states):
    """Noise is drawn per name; shared tensors get the noise of one of their names, as a model would hold them."""
    model = copy.deepcopy(model)
    found = []
    for state in states:
        model.load_state_dict(state)
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    return found


def score(case, states, *, config=None, batch_size=7, batches_per_block=2, output_dir=None, rows=None, **options):
    """Scores of a case with a memory budget that holds exactly that many batches."""
    rows = labeled(case.rows, case.labels) if rows is None else rows
    scorer = VoGScorer(case.model, config=config, batch_size=batch_size)
    budget = batches_per_block * batch_size * scorer.plan(scorer.reader(rows, collate_fn=models.collate)).bytes_per_row
    scorer = VoGScorer(case.model, config=config, batch_size=batch_size, memory_budget=budget, **options)
    return scorer.score(rows, named(states), collate_fn=models.collate, output_dir=output_dir)


def blocks_of(folder):
    """How many blocks a folder's plan has."""
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    return math.ceil(plan["n_rows"] / plan["block_rows"])


def assert_relative(actual, expected, tolerance):
    """To a relative tolerance; values that are themselves differences (margins, z-scores) to that of their scale."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=1e-2 * tolerance * np.abs(expected).max())


def assert_vog(scores, gradients, tolerance, *, column="vog", channel_mean=False, vanishing=()):
    """All windows of one target; only rows without anything to differentiate are 0."""
    for name, window in ((column, "all"), (f"{column}_early", "early"), (f"{column}_late", "late")):
        expected = reference_vog(gradients, window=window, channel_mean=channel_mean)
        assert np.flatnonzero(expected == 0).tolist() == list(vanishing)
        assert_relative(scores.column(name), expected, tolerance)


def assert_first_target(scores, gradients, tolerance, *, channel_mean=False, tokens=False):
    """What is kept of the first target only: magnitude, running VoG, heat maps."""
    magnitude = reference_magnitude(gradients, channel_mean=channel_mean)
    assert_relative(scores.column("gradient_magnitude"), magnitude, tolerance)
    running = reference_trajectory(gradients, channel_mean=channel_mean)
    assert_relative(scores.trajectory("vog"), running, tolerance)
    for row, gradient in enumerate(gradients):
        expected = reference_heat_map(gradient, channel_mean=channel_mean, tokens=tokens)
        assert scores.heat_map(row).shape == expected.shape
        np.testing.assert_allclose(scores.heat_map(row), expected, rtol=1e-3, atol=1e-3 * expected.max())  # float16


def assert_csg(scores, loss_gradients, tolerance):
    """Cumulative Sample Gradient, and its value at each snapshot, from the gradients of the loss."""
    expected = reference_csg_trajectory(loss_gradients)
    assert_relative(scores.trajectory("csg"), expected, tolerance)
    assert_relative(scores.column("csg"), expected.mean(1), tolerance)


def assert_classes(scores, classes, logits, tolerance, *, columns=("vog",)):
    """Normalized columns, companions and their trajectories, given the class that was differentiated."""
    for column in columns:
        normalized = reference_class_normalized(scores.column(column), classes)
        np.testing.assert_allclose(scores.column(f"{column}_class_normalized"), normalized, atol=1e-5)
        percentile = reference_percentile(scores.column(f"{column}_class_normalized"))
        np.testing.assert_allclose(scores.column(f"{column}_percentile"), percentile, rtol=1e-6)
    for name, expected in reference_dynamics(logits, classes).items():
        assert_relative(scores.column(name), expected, tolerance)
    over_time = np.stack(logits)
    np.testing.assert_array_equal(scores.trajectory("prediction"), over_time.argmax(-1))
    np.testing.assert_array_equal(scores.column("prediction"), over_time[:, -1].argmax(-1))
    confidence = torch.from_numpy(over_time).softmax(-1).numpy()[np.arange(len(classes)), :, classes]
    assert_relative(scores.trajectory("confidence"), confidence, tolerance)
    assert_relative(scores.trajectory("loss"), -np.log(confidence), tolerance)


# --- the oracle agrees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "batches_per_block", "n_blocks"), [(1, 5, 11), (7, 2, 4), (53, 1, 1)], ids=["one", "seven", "all"]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_column_trajectory_and_heat_map_is_the_oracles(name, batch_size, batches_per_block, n_blocks, tmp_path):
    """In float64 all that is kept of three targets is the dumb loop's to 1e-6, whatever the batches and blocks."""
    case, states = family(name)
    options = {"config": ALL_TARGETS, "batch_size": batch_size, "batches_per_block": batches_per_block}
    scores = score(case, states, **options, output_dir=tmp_path / "scores")
    assert blocks_of(tmp_path / "scores") == n_blocks
    columns = dict(zip(TARGETS, ("vog", "vog_probability", "vog_loss"), strict=True))
    for target, column in columns.items():
        assert_vog(scores, oracle(name, target), 1e-6, column=column, channel_mean=name in IMAGES)
    assert_first_target(scores, oracle(name), 1e-6, channel_mean=name in IMAGES, tokens=name == "bert")
    assert_csg(scores, oracle(name, "loss"), 1e-6)
    assert_classes(scores, LABELS, oracle_logits(name), 1e-6, columns=columns.values())
    np.testing.assert_array_equal(scores.column("label"), LABELS)


@pytest.mark.slow  # the same families once more, live
@pytest.mark.parametrize("batch_size", [1, 7, 53])
@pytest.mark.parametrize("name", ["conv_net", "bert", "wav2vec2"])
def test_live_csg_is_the_oracles(name, batch_size):
    """Images, padded texts and waveforms have the csg of the dumb loop also while the model trains."""
    case, states = family(name)
    model = copy.deepcopy(case.model)
    scorer = VoGScorer(model, config=VoGConfig(target=("logit", "loss")), batch_size=batch_size)
    reader = scorer.reader(labeled(case.rows, case.labels), collate_fn=models.collate)
    live = scorer.live(reader, scorer.plan(reader), len(states))
    for step, state in enumerate(states):
        model.load_state_dict(state)
        live.update(f"step-{step}", step)
    assert_csg(live.finish(), oracle(name, "loss"), 1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_agrees_to_1e_4(name):
    """A float32 model is scored as the float64 oracle scores the same weights, to 1e-4."""
    case, states = family(name, torch.float32)
    scores = score(case, states, config=ALL_TARGETS)
    assert scores.column("vog").dtype == np.float32
    for target, column in zip(TARGETS, ("vog", "vog_probability", "vog_loss"), strict=True):
        assert_vog(scores, oracle(name, target), 1e-4, column=column, channel_mean=name in IMAGES)
    assert_first_target(scores, oracle(name), 1e-4, channel_mean=name in IMAGES, tokens=name == "bert")
    assert_csg(scores, oracle(name, "loss"), 1e-4)


@pytest.mark.parametrize("n_snapshots", [2, 3, 6])
def test_any_number_of_snapshots_from_two_up_has_its_windows(n_snapshots):
    """Windows early and late are two snapshots each until there are nine; with two or three they overlap."""
    case, states = family("mlp")
    scores = score(case, states[:n_snapshots])
    assert_vog(scores, [gradient[:n_snapshots] for gradient in oracle("mlp")], 1e-6)
    assert scores.manifest["windows"]["early"] == ["epoch-0", "epoch-1"]
    assert scores.manifest["windows"]["late"] == [f"epoch-{n_snapshots - 2}", f"epoch-{n_snapshots - 1}"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_a_target_alone_fills_vog_with_what_it_gives_in_company(name, target):
    """The first target is called vog whichever it is, and its numbers do not depend on which others are computed."""
    case, states = family(name)
    alone = score(case, states, config=VoGConfig(target=target))
    assert_vog(alone, oracle(name, target), 1e-6, channel_mean=name in IMAGES)
    assert_first_target(alone, oracle(name, target), 1e-6, channel_mean=name in IMAGES, tokens=name == "bert")
    assert [name for name in alone.column_names if name.startswith("vog_") and target in name] == []
    assert ("csg" in alone.column_names) == ("csg" in alone.manifest) == (target == "loss")
    if target == "loss":
        assert_csg(alone, oracle(name, target), 1e-6)
    assert alone.manifest["config"]["target"] == [target]


@pytest.mark.parametrize("name", ["conv_net", "bert"])
def test_the_predicted_label_is_the_last_snapshots(name):
    """label='predicted' differentiates what the last snapshot says, for every row; the rest is of the given label."""
    case, states = family(name)
    predicted = [int(logits[-1].argmax()) for logits in oracle_logits(name)]
    assert predicted != LABELS
    gradients = reference_gradients(case.model, states, case.rows, "logit", [None] * N)
    some = [-1 if i % 3 == 0 else label for i, label in enumerate(LABELS)]
    for labels in (LABELS, some, [-1] * N):
        scores = score(case, states, config=VoGConfig(label="predicted"), rows=labeled(case.rows, labels))
        assert_vog(scores, gradients, 1e-6, channel_mean=name in IMAGES)
        given = [guess if label == -1 else label for label, guess in zip(labels, predicted, strict=True)]
        assert_classes(scores, given, oracle_logits(name), 1e-6)
        np.testing.assert_array_equal(scores.column("label"), labels)


@pytest.mark.parametrize("missing", [None, -1, -100])
def test_rows_without_a_label_use_the_prediction_and_the_others_their_label(missing):
    """None, -1 and -100 mean no label: just those rows are scored by the last snapshot's prediction."""
    case, states = family("conv_net")
    labels = [missing if i % 3 == 0 else label for i, label in enumerate(LABELS)]
    scores = score(case, states, rows=labeled(case.rows, labels))
    used = [
        int(logits[-1].argmax()) if i % 3 == 0 else label
        for i, (label, logits) in enumerate(zip(LABELS, oracle_logits("conv_net"), strict=True))
    ]
    gradients = reference_gradients(case.model, states, case.rows, "logit", labels)
    assert_vog(scores, gradients, 1e-6, channel_mean=True)
    assert_classes(scores, used, oracle_logits("conv_net"), 1e-6)
    np.testing.assert_array_equal(scores.column("label"), [-1 if i % 3 == 0 else y for i, y in enumerate(LABELS)])


OTHERS = ["multi_label_bert", "regression_bert", "token_bert", "gpt2", "llama", "llava", "t5", "bart"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_tasks_agree_with_the_oracle(name):
    """Rows of several labels, of a number, of tokens: padded batches give what each row gives alone."""
    case = models.CASES[name]()
    case.model.double()
    states = tied(case.model, models.perturbed_states(case.model, 5))
    targets = ("logit", "loss")
    scores = score(case, states, config=VoGConfig(target=targets), batch_size=2, batches_per_block=1)
    assert scores.manifest["task"] == case.task
    for target, column in zip(targets, ("vog", "vog_loss"), strict=True):
        gradients = reference_gradients(case.model, states, case.rows, target, case.labels, task=case.task)
        vanishing = [3] if (name, target) == ("multi_label_bert", "logit") else []  # it has no positive label
        assert_vog(scores, gradients, 1e-6, column=column, vanishing=vanishing)
        normalized = reference_class_normalized(scores.column(column), [0] * len(case.rows))
        np.testing.assert_allclose(scores.column(f"{column}_normalized"), normalized, atol=1e-9)
    assert_csg(scores, gradients, 1e-6)  # of the loss, the last target
    gradients = reference_gradients(case.model, states, case.rows, "logit", case.labels, task=case.task)
    assert_first_target(scores, gradients, 1e-6, tokens=True)
    assert scores.manifest["normalized_over"] == "dataset"
    assert not {"vog_class_normalized", "forgetting", "margin"} & set(scores.column_names)


@pytest.mark.parametrize("name", ["caching", "xlnet"])
@pytest.mark.parametrize("label", ["given", "predicted"])
def test_models_with_a_way_of_their_own_agree_with_the_oracle(name, label):
    """Values kept of a snapshot's weights are dropped with it; embeddings with tokens first are turned round."""
    case = models.CASES[name]()
    case.model.double()
    states = models.perturbed_states(case.model, 4)
    scores = score(case, states, config=VoGConfig(label=label), batch_size=2, batches_per_block=1)
    labels = case.labels if label == "given" else [None] * len(case.rows)
    assert_vog(scores, reference_gradients(case.model, states, case.rows, "logit", labels), 1e-6)


def test_each_snapshot_of_levit_has_attention_biases_of_its_own():
    """It keeps those of the first weights until `train(True)`: scores are those of a fresh model each."""
    from transformers import LevitConfig, LevitForImageClassificationWithTeacher

    config = LevitConfig(image_size=32, num_labels=models.CLASSES)
    make = functools.partial(LevitForImageClassificationWithTeacher, config)
    rows = [
        {name: value.double() for name, value in row.items()}
        for row in models._float_rows("pixel_values", (3, 32, 32), seed=7, n=6)
    ]
    case = models.Case(models._made(make, 0, noise=0.05).double(), rows, [0, 1, 2, 0, 2, 1])
    states = models.perturbed_states(case.model, 3, scale=0.05)
    fresh = []
    for state in states:
        model = make().double().eval()
        model.load_state_dict(state)
        x = case.batch()["pixel_values"].requires_grad_()
        z = model(x).logits.gather(1, torch.tensor(case.labels)[:, None]).sum()
        fresh.append(torch.autograd.grad(z, x)[0].numpy())
    case.model.levit.train()
    modes = [module.training for module in case.model.modules()]
    scores = score(case, states, batch_size=3)
    assert_vog(scores, list(np.stack(fresh, axis=1)), 1e-6, channel_mean=True)
    assert [module.training for module in case.model.modules()] == modes


def test_live_scoring_of_a_model_that_keeps_values_sees_each_snapshot_anew():
    """The same without loading: the weights change under the model while it trains."""
    case = models.caching()
    case.model.double()
    states = models.perturbed_states(case.model, 4)
    rows = labeled(case.rows, case.labels)
    scorer = VoGScorer(case.model, batch_size=2)
    reader = scorer.reader(rows)
    live = scorer.live(reader, scorer.plan(reader), len(states))
    for step, state in enumerate(states):
        case.model.load_state_dict(state)
        live.update(f"step-{step}", step)
    assert_vog(live.finish(), reference_gradients(case.model, states, case.rows, "logit", case.labels), 1e-6)


def test_an_adapter_is_scored_from_snapshots_of_the_adapter_alone(tmp_path):
    """LoRA on BERT: the files hold just the adapter and the head, the frozen base is verified, the oracle agrees."""
    case = models.lora_bert()
    case.model.double()
    writer = SnapshotWriter(tmp_path / "snapshots", case.model)
    trainable = {name for name, parameter in case.model.named_parameters() if parameter.requires_grad}
    states = []
    for step, state in enumerate(models.perturbed_states(case.model, 5)):
        states.append({name: value for name, value in state.items() if name in trainable})
        case.model.load_state_dict(states[-1], strict=False)
        writer.take(case.model, step)
    from safetensors import safe_open

    with safe_open(tmp_path / "snapshots" / "step-000000000.safetensors", framework="pt") as file:
        stored = set(file.keys())
    assert stored == trainable
    assert all("lora_" in name or "modules_to_save" in name for name in stored)
    rows = labeled(case.rows, case.labels)
    scores = VoGScorer(case.model, batch_size=2).score(rows, tmp_path / "snapshots", collate_fn=models.collate)
    gradients = reference_gradients(case.model, states, case.rows, "logit", case.labels)
    assert_vog(scores, gradients, 1e-6)
    assert [snapshot["step"] for snapshot in scores.manifest["snapshots"]] == [0, 1, 2, 3, 4]


def test_a_timm_model_is_scored_on_tuples():
    """Pairs (image, label) of a torch dataset and a model without a configuration need no collator."""
    case = models.timm_net()
    case.model.double()
    states = models.perturbed_states(case.model, 4, scale=0.02)
    rows = [(row["x"], label) for row, label in zip(case.rows, case.labels, strict=True)]
    scores = VoGScorer(case.model, batch_size=2).score(rows, named(states))
    gradients = reference_gradients(case.model, states, case.rows, "logit", case.labels)
    assert_vog(scores, gradients, 1e-6, channel_mean=True)
    assert_first_target(scores, gradients, 1e-6, channel_mean=True)


def test_an_input_of_one_number_per_row_is_scored():
    """A batch ``[batch]`` of numbers has one element per row."""

    class Curve(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(1, 3)

        def forward(self, x):
            return self.out(x.unsqueeze(-1).tanh())

    model = Curve().double()
    states = models.perturbed_states(model, 4)
    rows = [(torch.tensor(0.3 * i), i % 3) for i in range(5)]
    scores = VoGScorer(model, batch_size=2).score(rows, named(states))
    gradients = reference_gradients(model, states, [({"x": x}["x"], y) for x, y in rows], "logit")
    assert_relative(scores.column("vog"), reference_vog([g[:, None] for g in gradients]), 1e-6)


def first_minus_second(outputs, batch):
    """A target of a user's own: the difference of two logits."""
    assert "input_ids" in batch or "inputs_embeds" in batch
    return outputs.logits[:, 0] - outputs.logits[:, 1]


def test_a_callable_target_is_scored_and_named():
    """A callable fills a column called after it, and its qualified name stands in the manifest."""
    case, states = family("bert")
    config = VoGConfig(target=("logit", first_minus_second))
    scores = score(case, states, config=config)
    gradients = reference_gradients(case.model, states, case.rows, first_minus_second, case.labels)
    assert_vog(scores, gradients, 1e-6, column="vog_first_minus_second")
    assert_vog(scores, oracle("bert"), 1e-6)
    assert scores.manifest["config"]["target"] == ["logit", f"{__name__}.first_minus_second"]


def test_a_callable_that_gives_no_value_per_row_is_refused():
    """A scalar for the whole batch cannot say which row it belongs to; the message gives the shape that is needed."""
    case, states = family("mlp")
    with pytest.raises(ConfigError, match=r"one value per row, a tensor of shape \(7,\), got \(\)"):
        score(case, states, config=VoGConfig(target=lambda outputs, batch: outputs.sum()))


def test_rows_can_be_checked_before_a_training():
    """`check` says what `score` would say, and leaves model and random streams as found."""
    case, _ = family("mlp")
    scorer = VoGScorer(case.model, batch_size=7)
    rows = labeled(case.rows, case.labels)
    before = copy.deepcopy(case.model.state_dict()), torch.get_rng_state()
    assert scorer.check(rows) is None
    assert_close(case.model.state_dict(), before[0], rtol=0, atol=0)
    assert_close(torch.get_rng_state(), before[1])
    with pytest.raises(LabelError, match=f"label {models.CLASSES}"):
        scorer.check(labeled(case.rows, [models.CLASSES, *case.labels[1:]]))


def test_reducing_channels_can_be_turned_off_and_is_refused_where_there_are_none():
    """reduce_channels=False keeps every channel's deviation; True on vectors is an error, on images the default."""
    case, states = family("conv_net")
    assert_vog(score(case, states, config=VoGConfig(reduce_channels=False)), oracle("conv_net"), 1e-6)
    assert_vog(score(case, states, config=VoGConfig(reduce_channels=True)), oracle("conv_net"), 1e-6, channel_mean=True)
    case, states = family("mlp")
    with pytest.raises(ConfigError, match="reduce_channels=True needs images"):
        score(case, states, config=VoGConfig(reduce_channels=True))


# --- what must stay the same ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "wav2vec2"])
def test_a_row_of_varying_length_does_not_depend_on_its_batch(name):
    """Padding is left out: whichever rows share a batch, every column, trajectory and heat map of a row is its own."""
    case, states = family(name)
    order = random.Random(0).sample(range(N), N)
    shuffled = models.Case(case.model, [case.rows[i] for i in order], [case.labels[i] for i in order])
    scores, others = score(case, states), score(shuffled, states, batch_size=5)
    for column in scores.column_names:
        if not column.endswith("percentile"):
            np.testing.assert_allclose(others.column(column), scores.column(column)[order], rtol=1e-9, atol=1e-9)
    for trajectory in scores.trajectory_names:
        expected = scores.trajectory(trajectory)[order]
        np.testing.assert_allclose(others.trajectory(trajectory), expected, rtol=1e-9, atol=1e-12)
    for place, row in enumerate(order):
        np.testing.assert_allclose(others.heat_map(place), scores.heat_map(row), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("label", ["given", "predicted"])
def test_a_model_that_changes_its_input_in_place_is_scored_like_its_twin(label):
    """Neither a gradient nor a prediction of one snapshot changes the rows that the next one sees."""
    twins = [models.Shifting(in_place=in_place) for in_place in (True, False)]
    rows, labels = FAMILIES["mlp"](), LABELS
    states = models.perturbed_states(twins[0], 4)
    found = [score(models.Case(m, rows, labels), states, config=VoGConfig(label=label)) for m in twins]
    for column in found[1].column_names:
        np.testing.assert_array_equal(found[0].column(column), found[1].column(column))


def test_a_block_of_rows_longer_than_the_first_ones_is_worked_in_groups_that_fit(tmp_path, monkeypatch):
    """Blocks are planned from the first rows: longer ones are read and held a few at a time, with the same bits."""
    model = models.bert(max_position_embeddings=128).model
    lengths = tuple(4 if i < 21 else 100 for i in range(N))
    case = models.Case(model, models.token_rows(3, lengths=lengths), LABELS)
    states = models.perturbed_states(model, 3)
    score_group, groups = Replay._score, []

    def recorded(self, group, bar):
        groups.append((self.memory_budget, [self.runner.plan.nbytes(batch) for batch in group.batches]))
        return score_group(self, group, bar)

    monkeypatch.setattr(Replay, "_score", recorded)
    scores = score(case, states, batches_per_block=4, output_dir=tmp_path / "tight")
    (budget,) = {budget for budget, _ in groups}
    sizes = [sizes for _, sizes in groups]
    assert [len(several) for several in sizes] == [3, 1, 1, 1, 1, 1]  # three of short rows, the last of long ones
    assert all(sum(several) <= budget or len(several) == 1 for several in sizes)
    assert sizes[-2][0] == 7 * (
        100 * 8 * 2 * 2 * 4 + 2 * 100 * 8 + 8
    )  # two windows, mean and deviations; two inputs; label
    assert blocks_of(tmp_path / "tight") == 2
    monkeypatch.setattr(Replay, "_score", score_group)
    wide = VoGScorer(model, batch_size=7).score(
        labeled(case.rows, case.labels), named(states), collate_fn=models.collate, output_dir=tmp_path / "wide"
    )
    assert blocks_of(tmp_path / "wide") == 1
    for column in wide.column_names:
        np.testing.assert_array_equal(scores.column(column), wide.column(column))
    for row in range(N):
        np.testing.assert_array_equal(scores.heat_map(row), wide.heat_map(row))


def test_rows_like_the_first_ones_are_worked_a_block_at_a_time(monkeypatch):
    """Weights are loaded once per snapshot and block where every row is as long as planned."""
    case, states = family("conv_net")
    score_group, groups = Replay._score, []
    monkeypatch.setattr(
        Replay, "_score", lambda self, group, bar: groups.append(len(group.batches)) or score_group(self, group, bar)
    )
    score(case, states, batches_per_block=3)
    assert groups == [3, 3, 2]


class Scaled(models.MLP):
    """Takes a number that is the same for all rows."""

    def forward(self, features, scale):
        return super().forward(scale * features)


def test_a_tensor_that_a_batch_has_once_splits_no_block(monkeypatch):
    """Bytes per row are rounded up, so that a block of batches like the first one fits as it was planned."""
    case, states = family("mlp", torch.float32)
    model = Scaled()
    rows = labeled(case.rows, LABELS)

    def collate(rows):
        return {**models.collate(rows), "scale": torch.tensor(2.0)}

    scorer = VoGScorer(model, batch_size=7)
    per_row = scorer.plan(scorer.reader(rows, collate_fn=collate)).bytes_per_row
    score_group, groups = Replay._score, []
    monkeypatch.setattr(
        Replay, "_score", lambda self, group, bar: groups.append(len(group.batches)) or score_group(self, group, bar)
    )
    VoGScorer(model, batch_size=7, memory_budget=3 * 7 * per_row).score(rows, named(states), collate_fn=collate)
    assert groups == [3, 3, 2]


def test_worker_processes_change_nothing():
    """Rows that two workers read ahead give the same bits as rows read in the process."""
    case, states = family("bert")
    scores, others = score(case, states), score(case, states, num_workers=2)
    for column in scores.column_names:
        np.testing.assert_array_equal(others.column(column), scores.column(column))


def model_state(model):
    """Everything about a model that scoring must not change."""
    return {
        "memory": {name: value.data_ptr() for name, value in model.state_dict().items()},
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "buffers": {name: (value.data_ptr(), value.clone()) for name, value in model.named_buffers()},
        "modes": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if p.grad is None else (p.grad.data_ptr(), p.grad.clone()) for p in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "config": torch.frombuffer(bytearray(repr(getattr(model, "config", None)).encode()), dtype=torch.uint8),
        "gradients on": torch.is_grad_enabled(),
    }


def random_states():
    """The states of the three global generators."""
    python, numpy = random.getstate()[1], np.random.get_state()[1]
    return {"python": torch.tensor(python), "numpy": torch.from_numpy(numpy.copy()), "torch": torch.get_rng_state()}


def used_model(name, dtype=torch.float32):
    """A model in the middle of training: mixed modes, a frozen parameter, gradients at hand."""
    case = models.CASES[name]()
    model = case.model.to(dtype).train()
    list(model.modules())[-1].eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    for parameter in parameters[1:]:
        parameter.grad = torch.full_like(parameter, 0.5)
    return case


@pytest.mark.parametrize(("name", "dtype"), [("conv_net", torch.float32), ("bert", torch.bfloat16)])
def test_scoring_leaves_the_model_and_the_random_streams_as_found(name, dtype):
    """Storage, values, buffers, modes, requires_grad, .grad, hooks, configuration and three generators: bit for bit."""
    case = used_model(name, dtype)
    states = models.perturbed_states(case.model, 3)
    before, streams = model_state(case.model), random_states()
    scorer = VoGScorer(case.model, config=VoGConfig(label="predicted"), batch_size=2)
    scorer.score(labeled(case.rows, case.labels), named(states), collate_fn=models.collate)
    assert_close(model_state(case.model), before, rtol=0, atol=0)
    assert_close(random_states(), streams, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("interruption", "raised"), [(RuntimeError, ForwardError), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_an_exception_in_the_middle_leaves_them_as_found_too(interruption, raised):
    """Where scoring stops inside a snapshot, the model still gets its own weights and modes back."""
    case = used_model("conv_net", torch.bfloat16)
    states = models.perturbed_states(case.model, 3)
    calls = []

    def interrupt(module, args, kwargs):
        calls.append(next(module.parameters()).dtype)
        if len(calls) >= 6:
            raise interruption

    handle = case.model.register_forward_pre_hook(interrupt, with_kwargs=True)
    before, streams = model_state(case.model), random_states()
    with pytest.raises(raised):
        VoGScorer(case.model, batch_size=2).score(
            labeled(case.rows, case.labels), named(states), collate_fn=models.collate
        )
    assert len(calls) >= 6  # the plain model is tried once more where the fast one fails
    assert set(calls) == {torch.float32}  # a snapshot was in the model
    assert_close(model_state(case.model), before, rtol=0, atol=0)
    assert_close(random_states(), streams, rtol=0, atol=0)
    handle.remove()


def test_a_scorer_called_under_no_grad_still_finds_gradients():
    """Evaluation loops run under no_grad or inference_mode; the scores are the same there."""
    case, states = family("mlp")
    expected = score(case, states).column("vog")
    with torch.no_grad():
        np.testing.assert_array_equal(score(case, states).column("vog"), expected)
    with torch.inference_mode():
        np.testing.assert_array_equal(score(case, states).column("vog"), expected)


# --- precision ------------------------------------------------------------------------------------------------------


def dtypes_seen(model):
    """A list that grows with the dtype of the weights and of the input at every forward pass."""
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((next(module.parameters()).dtype, kwargs["features"].dtype)),
        with_kwargs=True,
    )
    return seen


def test_a_bfloat16_model_is_scored_like_the_float32_cast_of_its_weights():
    """dtype='float32' casts small floats up while scoring and gives the bfloat16 weights back."""
    case = models.mlp()
    model = copy.deepcopy(case.model).bfloat16()
    states = models.perturbed_states(model, 4)
    rows = labeled(case.rows, case.labels)
    seen = dtypes_seen(model)
    scores = VoGScorer(model, batch_size=2).score(rows, named(states))
    assert set(seen) == {(torch.float32, torch.float32)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    cast = [{name: value.float() for name, value in state.items()} for state in states]
    expected = VoGScorer(copy.deepcopy(model).float(), batch_size=2).score(rows, named(cast))
    for column in expected.column_names:  # not bit for bit: the last bit depends on how a tensor lies in memory
        np.testing.assert_allclose(scores.column(column), expected.column(column), rtol=1e-6, atol=1e-6)


def test_dtype_model_keeps_bfloat16():
    """dtype='model' computes in the model's own precision, and keeps the moments in float32."""
    case = models.mlp()
    model = copy.deepcopy(case.model).bfloat16()
    states = models.perturbed_states(model, 4)
    rows = labeled(case.rows, case.labels)
    seen = dtypes_seen(model)
    kept = VoGScorer(model, config=VoGConfig(dtype="model"), batch_size=2).score(rows, named(states)).column("vog")
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    cast = VoGScorer(model, batch_size=2).score(rows, named(states)).column("vog")
    assert kept.dtype == np.float32
    assert (kept != cast).any()
    np.testing.assert_allclose(kept, cast, rtol=0.05)


@pytest.mark.parametrize("dtype", ["float32", "model"])
def test_float64_stays_float64(dtype):
    """Nothing is cast down: neither weights, nor inputs, nor scores."""
    case = models.mlp()
    model = copy.deepcopy(case.model).double()
    seen = dtypes_seen(model)
    rows = labeled(case.rows, case.labels)
    scores = VoGScorer(model, config=VoGConfig(dtype=dtype)).score(rows, named(models.perturbed_states(model, 3)))
    assert set(seen) == {(torch.float64, torch.float64)}
    assert scores.column("vog").dtype == np.float64


@pytest.mark.parametrize(("model_dtype", "stored"), [(torch.float64, torch.float32), (torch.bfloat16, torch.float32)])
def test_snapshots_of_another_precision_are_read_into_the_models(model_dtype, stored):
    """dtype='model' is that of the model at hand, also where its checkpoints were saved in another one."""
    case = models.mlp()
    model = copy.deepcopy(case.model).to(model_dtype)
    states = models.perturbed_states(copy.deepcopy(case.model).to(stored), 3)
    seen = dtypes_seen(model)
    VoGScorer(model, config=VoGConfig(dtype="model")).score(labeled(case.rows, case.labels), named(states))
    assert set(seen) == {(model_dtype, model_dtype)}


def test_rows_collated_in_bfloat16_are_accepted():
    """A collator may hand out the dtype the model was trained in."""
    case, states = family("mlp", torch.float32)
    rows = [{**row, "features": row["features"].bfloat16()} for row in labeled(case.rows, case.labels)]
    assert (VoGScorer(case.model).score(rows, named(states)).column("vog") > 0).all()


# --- what is said and refused ---------------------------------------------------------------------------------------


def test_the_log_line_after_the_dry_run_states_what_is_to_come(caplog, tmp_path):
    """Rows, snapshots, memory, disk, time and the folder, at INFO, before the first block."""
    case, states = family("mlp")
    with caplog.at_level(logging.INFO, logger="vog_hf"):
        score(case, states, output_dir=tmp_path / "scores")
    (line,) = [record.getMessage() for record in caplog.records if "snapshots" in record.getMessage()]
    for part in ("53 rows x 9 snapshots", "14 rows", "of memory", "on disk", "0:00:0", str(tmp_path / "scores")):
        assert part in line


@pytest.mark.parametrize("name", ["me/net", "", "folder"])
def test_the_manifest_names_the_model_and_no_folder_of_the_machine(name, tmp_path, monkeypatch):
    """An id on the Hub as it is; of a model from a local folder the folder's name, because manifests are published."""
    case, states = family("bert")
    (tmp_path / "folder").mkdir()
    local = str(tmp_path / "folder")
    monkeypatch.setattr(case.model.config, "name_or_path", local if name == "folder" else name)
    assert score(case, states).manifest["model"]["name"] == (name or None)


def test_a_model_that_does_not_leave_padding_out_is_named(caplog):
    """A text model that ignores the mask is scored with a warning that advises a fixed length; BERT without one."""

    class Bag(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(models.VOCABULARY, 4)
            self.out = torch.nn.Linear(4, 3)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, attention_mask):
            return self.out(self.embedding(input_ids).mean(1).tanh())

    bert, states = family("bert")
    score(bert, states[:2])
    assert not caplog.records
    bag = Bag()
    score(models.Case(bag, bert.rows, bert.labels), models.perturbed_states(bag, 2))
    assert "when it is padded to the length of its batch" in caplog.records[0].getMessage()
    assert "padding='max_length'" in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("option", "value", "accepted"), [("batch_size", 0, 1), ("num_workers", -1, 0), ("memory_budget", 0, 1)]
)
def test_impossible_options_are_refused(option, value, accepted):
    """No rows per batch, no bytes, fewer than no workers: refused by name; the least possible value is accepted."""
    with pytest.raises(ConfigError, match=option):
        VoGScorer(models.MLP(), **{option: value})
    VoGScorer(models.MLP(), **{option: accepted})


@pytest.mark.parametrize("kind", [np.int64, torch.tensor, float], ids=["numpy", "torch", "float"])
def test_options_may_be_numbers_of_other_libraries(kind):
    """A whole number is one whoever made it, and Python's own in the end; a half is refused."""
    scorer = VoGScorer(models.MLP(), batch_size=kind(7), memory_budget=kind(1), num_workers=kind(0), progress=False)
    assert [type(value) for value in (scorer.batch_size, scorer.memory_budget, scorer.num_workers)] == [int] * 3
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        VoGScorer(models.MLP(), batch_size=2.5)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got '8'"):
        VoGScorer(models.MLP(), batch_size="8")


def test_the_default_batch_is_scored_in_one_block_and_a_tiny_budget_still_holds_a_batch(tmp_path):
    """memory_budget is a wish: one batch is always taken."""
    case, states = family("mlp")
    rows = labeled(case.rows, case.labels)
    default = VoGScorer(case.model).score(rows, named(states), output_dir=tmp_path / "default")
    tiny = VoGScorer(case.model, batch_size=7, memory_budget=1).score(rows, named(states), output_dir=tmp_path / "tiny")
    assert (blocks_of(tmp_path / "default"), blocks_of(tmp_path / "tiny")) == (1, 8)
    np.testing.assert_allclose(tiny.column("vog"), default.column("vog"), rtol=1e-9)


def test_re_entrant_checkpointing_is_refused_and_the_other_kind_accepted():
    """No input gradient goes through re-entrant checkpointing; the message names use_reentrant=False, which works."""
    case = models.conv_net(checkpointing=True)
    states = models.perturbed_states(case.model, 2)
    rows = labeled(case.rows, case.labels)
    with pytest.raises(ModelError, match="use_reentrant=False"):
        VoGScorer(case.model).score(rows, named(states))
    case.model.checkpointing = False
    assert (VoGScorer(case.model).score(rows, named(states)).column("vog") > 0).all()


def test_a_folder_of_a_refused_scoring_is_taken_over_by_the_corrected_one(tmp_path):
    """Snapshots that do not fit are refused after the folder was begun; the right ones are then scored into it."""
    case = models.mlp()
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    states = [(f"epoch-{i}", state) for i, state in enumerate(models.perturbed_states(case.model, 3))]
    scorer = VoGScorer(case.model, progress=False)
    with pytest.raises(SnapshotError, match="'extra'"):
        scorer.score(rows, [(name, {**s, "extra": torch.zeros(1)}) for name, s in states], output_dir=tmp_path / "s")
    assert (tmp_path / "s" / "plan.json").is_file()
    found = scorer.score(rows, states, output_dir=tmp_path / "s")
    np.testing.assert_array_equal(found.column("vog"), scorer.score(rows, states).column("vog"))
    with pytest.raises(OutputFolderError, match="holds scores from a different run"):  # a scored one is not
        scorer.score(rows, states[1:], output_dir=tmp_path / "s")
