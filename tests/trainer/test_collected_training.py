"""`collect="training"`: what the training's own passes say about each row, against an independent loop in float64."""

import copy
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import fields
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from collected import Noting, case_of, expected, expected_vog, labeled, noted_training
from datasets import Dataset, DatasetDict
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, WeightedRandomSampler
from trainers import BATCH, AtStep, digits, plain, trained
from trainings import PowerCutError, cut
from transformers import TrainingArguments
from transformers.models.bert.modeling_bert import BertEmbeddings

from vog_hf import VoGCallback, VoGConfig
from vog_hf.errors import ConfigError, NotScoredError, RowMismatchError, VoGError
from vog_hf.gradients import observed_passes, row_losses, training_passes
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring import observed_gradients, visits
from vog_hf.tracking.contents import contents

CHECKPOINTING = next(
    f.name for f in fields(TrainingArguments) if f.name in ("activation_checkpointing", "gradient_checkpointing")
)
BY_LENGTH = {"train_sampling_strategy": "group_by_length"}
if not {f.name for f in fields(TrainingArguments)} >= BY_LENGTH.keys():  # an older name
    BY_LENGTH = {"group_by_length": True}


def assert_as_the_loop(scores, found):
    """Trajectories and columns are those of the loop, with NaN where an epoch left a row out."""
    for name in ("loss", "confidence", "csg"):
        np.testing.assert_allclose(scores.trajectory(name), found[name], rtol=1e-6, atol=1e-12, err_msg=name)
    seen = ~np.isnan(found["loss"])
    mean = {name: np.nanmean(found[name], axis=1) for name in ("loss", "confidence", "csg", "correct")}
    for name, column in {"loss": "loss", "confidence": "confidence", "csg": "csg", "correct": "correctness"}.items():
        np.testing.assert_allclose(scores.column(column), mean[name], rtol=1e-6, atol=1e-12, err_msg=column)
    np.testing.assert_allclose(scores.column("variability"), np.nanstd(found["confidence"], axis=1), atol=1e-9)
    np.testing.assert_array_equal(scores.column("observations"), seen.sum(1))
    first = found["loss"][np.arange(len(seen)), seen.argmax(1)]
    np.testing.assert_allclose(scores.column("first_loss"), first, rtol=1e-6)
    vog = expected_vog(found["gradients"], len(seen))
    assert ("vog_loss" in scores.column_names) == bool(np.isfinite(vog).any())
    if "vog_loss" in scores.column_names:
        np.testing.assert_allclose(scores.column("vog_loss"), vog, rtol=1e-6, atol=1e-12)
    if "forgetting" in scores.column_names:
        np.testing.assert_array_equal(scores.column("prediction"), [_last(row) for row in found["prediction"]])
        np.testing.assert_array_equal(scores.column("forgetting"), [_forgetting(row) for row in found["correct"]])
    assert scores.manifest["collect"] == "training"
    assert [entry["step"] for entry in scores.manifest["snapshots"]] == found["last steps"]


def _last(of_row):
    seen = of_row[~np.isnan(of_row)]
    return seen[-1] if len(seen) else -1


def _forgetting(correct):
    seen = correct[~np.isnan(correct)]
    if not len(seen):
        return -1
    return int(((seen[:-1] == 1) & (seen[1:] == 0)).sum()) if seen.any() else len(seen)


class ClassWeighted(Noting):
    """A loss of the user's own, with a weight for each class; forward is given no labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
        loss = nn.functional.cross_entropy(outputs.logits, labels, weight=weight)
        return (loss, outputs) if return_outputs else loss


class Scaled(Noting):
    """A loss that is scaled, as for half precision."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return 1024 * super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)


class GradientScaler(Noting):
    """Scales the loss as Accelerate does for float16; it refuses to make a scaler without an accelerator."""

    scale = 2.0**16

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale)


class HalfPrecision(GradientScaler):
    """Trains in float16, with a scale that is too high at first, so that gradients overflow and steps are skipped."""

    scale = 2.0**26

    def compute_loss(self, *args, **kwargs):
        with torch.autocast("cpu", dtype=torch.float16):
            return super().compute_loss(*args, **kwargs)


class Drawing(Noting):
    """Draws rows with replacement, the first ones more often."""

    def _get_train_sampler(self, *args):
        n = len(self.train_dataset)
        return WeightedRandomSampler([1.0 / (1 + i) for i in range(n)], n)


class CustomLoader(Noting):
    """Has a torch loader of its own, which Accelerate did not make."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=4, shuffle=True, collate_fn=models.collate)


SETTINGS = {
    "pixels": ("vit", {}, {}),
    "pixels, accumulation": ("vit", {"gradient_accumulation_steps": 2, "num_train_epochs": 3}, {}),
    "pixels, last batch dropped": ("vit", {"dataloader_drop_last": True, "num_train_epochs": 3}, {}),
    "pixels, max_steps within an epoch": ("vit", {"max_steps": 7}, {}),
    "pixels, less than an epoch": ("vit", {"max_steps": 2}, {}),
    "pixels, class weights in compute_loss": ("vit", {}, {"trainer_class": ClassWeighted}),
    "pixels, label smoothing": ("vit", {"label_smoothing_factor": 0.2}, {}),
    "pixels, scaled loss": ("vit", {"gradient_accumulation_steps": 2}, {"trainer_class": Scaled}),
    "pixels, gradient scaler": ("vit", {"max_grad_norm": 0.0}, {"trainer_class": GradientScaler}),
    "pixels, drawn with replacement": ("vit", {"num_train_epochs": 3}, {"trainer_class": Drawing}),
    "pixels, a loader of its own": ("vit", {}, {"trainer_class": CustomLoader}),
    "pixels, workers": ("vit", {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, {}),
    "tokens": ("bert", {}, {}),
    "tokens, by length": ("bert", BY_LENGTH, {}),
    "tokens, checkpointing": ("bert", {CHECKPOINTING: True}, {}),
    "tokens, compiled": ("bert", {"torch_compile": True, "torch_compile_backend": "eager"}, {}),
    "tokens, adapter": ("lora_bert", {}, {}),
    "language model, items in batch": ("llama", {"gradient_accumulation_steps": 2}, {}),
}


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
@pytest.mark.parametrize(("name", "options", "pieces"), SETTINGS.values(), ids=SETTINGS)
def test_values_are_those_of_a_loop_over_the_same_batches(name, options, pieces, tmp_path):
    """Each row's loss, confidence, prediction and gradient are taken from the step that trained on it."""
    case, vog = case_of(name), VoGCallback(collect="training")
    trainer = noted_training(tmp_path, case, [vog], **options, **pieces)
    with np.errstate(all="ignore"):
        found = expected(trainer, case, options.get("label_smoothing_factor", 0.0))
        assert len(found["every"]) > 0
        assert_as_the_loop(vog.scores, found)
    assert vog.scores.manifest["task"] == case.task
    hooks = [h for m in trainer.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not [hook for hook in hooks if hook.__module__.startswith("vog_hf")]


@pytest.mark.parametrize(("name", "options"), [("vit", {"bf16": True}), ("llama", {"bf16": True}), ("bert", {})])
def test_lower_precision_gives_the_values_within_its_rounding(name, options, tmp_path):
    """Under bfloat16 autocast the logits that come out are a cast of those of the loss; float32 is near the loop."""
    case, vog = case_of(name), VoGCallback(collect="training", log=False)
    case.model.float()
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    trainer = noted_training(tmp_path, case, [vog], rows=rows, **options)
    found, scores = expected(trainer, case), vog.scores
    assert scores.column("csg").dtype == scores.column("loss").dtype == np.float32
    np.testing.assert_allclose(scores.column("loss"), found["loss"].mean(1), rtol=3e-2 if options else 1e-4)
    np.testing.assert_allclose(scores.column("csg"), found["csg"].mean(1), rtol=0.2 if options else 1e-3)


def test_gradients_that_overflow_in_half_precision_are_not_observed(tmp_path):
    """Steps that the scaler skips give NaN and no infinity; the others give the values within their rounding."""
    case, vog = case_of("vit"), VoGCallback(collect="training", log=False)
    case.model.float()
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    options = {"trainer_class": HalfPrecision, "max_grad_norm": 0.0, "num_train_epochs": 5}
    found = expected(noted_training(tmp_path, case, [vog], rows=rows, **options), case)
    csg = vog.scores.trajectory("csg")
    known = np.isfinite(csg)
    assert 0 < known.sum() < csg.size
    assert np.isnan(csg[~known]).all()
    np.testing.assert_allclose(csg[known], found["csg"][known], rtol=0.2)
    assert np.isfinite(vog.scores.column("loss")).all()
    twice = known.sum(1) > 1
    np.testing.assert_array_equal(np.isfinite(vog.scores.column("vog_loss")), twice)


def test_a_loss_that_is_no_multiple_of_the_rows_own_has_no_csg(tmp_path):
    """With mixed labels the gradient belongs to no label: the column is left out, and the manifest says why."""

    class Mixed(Noting):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            mixed = 0.6 * nn.functional.one_hot(labels, 3) + 0.4 * nn.functional.one_hot(labels.roll(1), 3)
            return nn.functional.cross_entropy(model(**inputs).logits, mixed.double())

    case, vog = case_of("vit"), VoGCallback(collect="training", log=False)
    trainer = noted_training(tmp_path, case, [vog], trainer_class=Mixed)
    found, scores = expected(trainer, case), vog.scores
    np.testing.assert_allclose(scores.trajectory("loss"), found["loss"], rtol=1e-6)
    assert "csg" not in scores.column_names + scores.trajectory_names or np.isnan(scores.column("csg")).any()
    if "csg" not in scores.column_names:
        assert "not a multiple" in scores.manifest["csg"]


def test_a_model_that_changes_its_input_in_place_trains_and_is_observed_as_one_that_does_not(tmp_path):
    """The gradient is that of the input before the change, and nothing is kept from the change."""

    def scale_in_place(_module, args):
        args[0].mul_(2.0)

    def scale(_module, args):
        return (2.0 * args[0],)

    weights, columns = [], []
    for number, (hook, collect) in enumerate([(scale_in_place, True), (scale_in_place, False), (scale, True)]):
        case, vog = case_of("vit"), VoGCallback(collect="training", log=False)
        case.model.vit.embeddings.register_forward_pre_hook(hook)
        trainer = noted_training(tmp_path / str(number), case, [vog] if collect else [])
        weights.append(trainer.model.state_dict())
        columns += [[vog.scores.trajectory("csg"), vog.scores.column("vog_loss")]] if collect else []
    for others in weights[1:]:
        assert all(torch.equal(value, others[name]) for name, value in weights[0].items())
    assert np.isfinite(columns[0][0]).all()
    np.testing.assert_array_equal(columns[0][0], columns[1][0])
    np.testing.assert_array_equal(columns[0][1], columns[1][1])


class WithoutGraph(BertEmbeddings):
    """Embeddings that are computed without a graph."""

    @torch.no_grad()
    def forward(self, **inputs):
        return super().forward(**inputs)


class Checkpointed(BertEmbeddings):
    """Embeddings that are computed again in the backward pass; the first time without a graph."""

    def forward(self, **inputs):
        embedded = super().forward
        asks = torch.ones(1, requires_grad=True)  # a reentrant checkpoint without such an input has no gradient
        return checkpoint(lambda _: embedded(**inputs), asks, use_reentrant=True)


@pytest.mark.parametrize("embeddings", [WithoutGraph, Checkpointed])
def test_embeddings_without_a_graph_train_as_they_did_and_have_no_csg(embeddings, tmp_path):
    """Their gradient never comes: the loss of each row is observed, and the weights are those without the callback."""
    weights = []
    for collect in (True, False):
        case, vog = case_of("bert"), VoGCallback(collect="training", log=False)
        case.model.bert.embeddings.__class__ = embeddings
        trainer = noted_training(tmp_path / str(collect), case, [vog] if collect else [])
        weights.append(trainer.model.state_dict())
        if collect:
            assert np.isfinite(vog.scores.column("loss")).all()
            assert "csg" not in vog.scores.column_names
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_batch_is_freed_after_its_forward_pass_even_if_no_gradient_comes(tmp_path):
    """Its pixels are not kept until the epoch ends, under a backbone without a graph."""
    case, vog, batches, alive = case_of("vit"), VoGCallback(collect="training", log=False), [], []

    def note(_model, _args, inputs):
        alive.append(sum(batch() is not None for batch in batches))
        batches.append(weakref.ref(inputs["pixel_values"]))

    case.model.register_forward_pre_hook(note, with_kwargs=True)
    case.model.vit.register_forward_hook(lambda _module, _inputs, found: found.__class__(found[0].detach()))
    trained(tmp_path, [vog], rows=labeled(case), model=case.model, per_device_train_batch_size=2, num_train_epochs=1)
    assert "csg" not in vog.scores.column_names
    assert len(alive) == 12
    assert max(alive) <= 1


# --- where it stands next to other scores -----------------------------------------------------------------------------


def test_a_speech_encoder_that_asks_for_the_gradient_of_its_input_is_observed(tmp_path):
    """Waveforms have a gradient already; the weights are those of a training without the callback.

    An encoder that is frozen between two steps stays frozen.
    """
    case = models.wav2vec2()
    case.model.config.apply_spec_augment = False  # it would mask whole rows as short as these
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    vog = VoGCallback(collect="training")
    found = []
    asked = []

    def freeze(model, control):
        asked.append(model.wav2vec2.feature_extractor._requires_grad)
        model.freeze_feature_encoder()

    freezing = AtStep(2, freeze)
    for callbacks in ([vog, freezing], [freezing]):
        model, options = copy.deepcopy(case.model), {"num_train_epochs": 2, "per_device_train_batch_size": 2}
        found.append(
            trained(tmp_path, callbacks, rows=rows, model=model, pieces={"data_collator": models.collate}, **options)
        )
        assert model.wav2vec2.feature_extractor._requires_grad is False
    assert asked == [True, True]
    assert len(vog.scores) == 3
    assert (vog.scores.column("csg") > 0).all()
    for one, other in zip(*(trainer.model.state_dict().values() for trainer in found), strict=True):
        assert torch.equal(one, other)


def test_a_row_that_was_never_visited_has_no_value(tmp_path):
    """Two steps visit ten of 23 rows: the others have no observation, NaN, and -1 as prediction and label."""
    case, vog = case_of("vit"), VoGCallback(collect="training")
    noted_training(tmp_path, case, [vog], max_steps=2)
    count = vog.scores.column("observations")
    assert sorted(count) == [0] * 13 + [1] * 10
    blank = count == 0
    assert np.isnan(vog.scores.column("loss")).tolist() == blank.tolist()
    assert set(vog.scores.column("prediction")[blank]) == set(vog.scores.column("label")[blank]) == {-1}
    assert vog.scores.text_column_names == []  # one epoch has no pattern


def test_a_learning_pattern_is_over_the_epochs_that_visited_the_row(tmp_path):
    """With the last batch dropped, some rows have fewer predictions; their pattern is of those that there are."""
    case, vog = case_of("vit"), VoGCallback(collect="training")
    noted_training(tmp_path, case, [vog], num_train_epochs=4, dataloader_drop_last=True, learning_rate=3e-2)
    scores = vog.scores
    count, pattern = scores.column("observations"), scores.column("learning_pattern")
    assert set(count) == {2, 3, 4} or set(count) == {3, 4}
    for of_row, label, known in zip(scores.trajectory("prediction"), scores.column("label"), pattern, strict=True):
        correct = (of_row[of_row >= 0] == label).tolist()
        runs = sum(now and not before for now, before in zip(correct, [False, *correct], strict=False))
        assert (known == "never_learned") == (runs == 0)
        assert (known == "unstable") == (runs > 1)
        assert (known == "forgotten") == (runs == 1 and not correct[-1])


def test_a_resumed_training_has_the_uninterrupted_scores(tmp_path):
    """Cut after step 11 of 15, resumed from that of step 6 within an epoch: every visit once, bit by bit."""
    case = case_of("bert")
    options = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 3}
    whole = VoGCallback(collect="training")
    noted_training(tmp_path / "whole", case, [whole], **options)
    with pytest.raises(PowerCutError):
        noted_training(tmp_path / "cut", case, [VoGCallback(collect="training"), AtStep(11, cut)], **options)
    resumed = VoGCallback(collect="training")
    folder = tmp_path / "cut" / "checkpoint-6"
    trainer = noted_training(tmp_path / "cut", case, [resumed], resume=str(folder), **options)
    assert trainer.noted[0][1] == 6
    assert "vog_loss" in whole.scores.column_names
    for name in whole.scores.column_names:
        np.testing.assert_array_equal(resumed.scores.column(name), whole.scores.column(name), err_msg=name)
    for name in whole.scores.trajectory_names:
        np.testing.assert_array_equal(resumed.scores.trajectory(name), whole.scores.trajectory(name), err_msg=name)
    assert resumed.scores.steps().equals(whole.scores.steps())


@pytest.mark.parametrize(
    ("module", "limit"),
    [
        (training_passes, "FULL_BYTES"),
        (training_passes, "FULL_PASSES"),
        (observed_gradients, "PENDING_BYTES_ON_CPU"),
        (visits, "FLUSHED_VISITS"),
    ],
)
def test_scores_do_not_depend_on_what_is_kept_until_the_epoch_ends(module, limit, tmp_path, monkeypatch):
    """Logits, gradients and visits that are read after each step give what those of an epoch give, bit by bit."""
    case = case_of("vit")
    in_epochs, in_steps = VoGCallback(collect="training"), VoGCallback(collect="training")
    noted_training(tmp_path / "epochs", case, [in_epochs])
    monkeypatch.setattr(module, limit, 1)
    noted_training(tmp_path / "steps", case, [in_steps])
    assert "vog_loss" in in_epochs.scores.column_names
    for name in in_epochs.scores.column_names:
        expected_values = in_epochs.scores.column(name)
        np.testing.assert_array_equal(in_steps.scores.column(name), expected_values, err_msg=name)


def test_a_training_resumes_only_where_its_visits_are(tmp_path):
    """Another training's checkpoint has no visits: refused before the first step, with the steps that have."""
    case, options = case_of("vit"), {"save_strategy": "steps", "save_steps": 3}
    noted_training(tmp_path, case, **options)
    with pytest.raises(VoGError, match=r"cannot resume at step 6: .* only up to the steps \[\]; .*collect='replay'"):
        noted_training(tmp_path, case, [VoGCallback(collect="training")], resume=str(tmp_path / "checkpoint-6"))


def test_every_place_of_scores_takes_these(tmp_path):
    """Folder, columns of a dataset, report, card, review queue and comparison, ranked by the loss, without VoG."""
    from vog_hf import add_vog_columns
    from vog_hf.evaluation import hard_tail
    from vog_hf.report import write_report
    from vog_hf.review import Filter, Queue
    from vog_hf.scores.dataset_columns import scores_from_columns
    from vog_hf.scores.findings import Findings

    vog, rows = VoGCallback(collect="training", log=False), digits(160)
    trained(tmp_path / "run", [vog], rows=rows.with_transform(plain), learning_rate=1e-2)
    scores = VoGScores.load(vog.scores.folder)
    findings = Findings(ScoredSplit("", scores, rows))
    assert findings.column == findings.raw == "loss"
    assert findings.tail.headline.startswith("loss is a")
    assert findings.tail.measures["loss"] is None
    assert "the loss is the ranking itself" in hard_tail(scores, column="loss").evidence.lower()
    assert "csg" in findings.correlations
    assert add_vog_columns(rows, scores).column_names == ["image", "label", "loss", "csg"]
    everything = add_vog_columns(rows, scores, "all")
    assert {"first_loss", "observations", "learning_pattern"} <= set(everything.column_names)
    back = scores_from_columns(everything)
    np.testing.assert_array_equal(back.column("loss"), scores.column("loss"))
    html = write_report(scores, rows, tmp_path / "report.html").read_text()
    assert "Distribution of loss" in html
    assert "VoG by class" not in html
    queue = Queue(scores)
    assert queue.columns[0] == "loss"
    assert queue.rows(Filter())[0] == scores.column("loss").argmax()


# --- what is refused, and its nearest accepted neighbor ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": VoGConfig(target="logit")}, r"the gradient of the training's loss, got target 'logit'"),
        ({"config": VoGConfig(target=("loss", "logit"))}, r"the gradient of the training's loss, got target"),
        (
            {"config": VoGConfig(target="loss", label="predicted")},
            r"the loss of the given label, got label='predicted'",
        ),
        ({"snapshots": "epoch"}, r"so snapshots= has no effect"),
        ({"batch_size": 4}, r"so batch_size= has no effect"),
        ({"on_error": "skip"}, r"so on_error= has no effect"),
        ({"torch_compile": True}, r"so torch_compile= has no effect"),
        ({"dataset": DatasetDict(train=digits(4), test=digits(4))}, r"a DatasetDict has other splits \('train'\)"),
        ({"dataset": digits(4).to_iterable_dataset()}, r"by their number, which a stream does not have"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    """Each message names the way out, collect='replay'; the loss as target, and defaults, are accepted."""
    with pytest.raises(ConfigError, match=message) as raised:
        VoGCallback(collect="training", **options)
    assert "collect='replay'" in str(raised.value)
    VoGCallback(digits(4), collect="training", config=VoGConfig(target="loss"), snapshots="auto")


class Forgetful(Noting):
    """Gives forward only what it names."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(pixel_values=inputs["pixel_values"], labels=inputs["labels"]).loss


class OtherLoader(Noting):
    """Has a loader that is not torch's."""

    def get_train_dataloader(self):
        return [super().get_train_dataloader()]


def pairs(rows):
    """A batch that is not a mapping."""
    return tuple(models.collate(rows).values())


def packed(rows):
    """All rows as one example."""
    batch = models.collate(rows)
    return {"pixel_values": batch["pixel_values"][:1], "labels": batch["labels"][:1]}


def unlabeled(rows):
    """A batch without labels."""
    return {"pixel_values": models.collate(rows)["pixel_values"].double()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer_class": Forgetful}, r"saw no row in the first step: .*compute_loss.* call model\(\*\*inputs\)"),
        ({"trainer_class": OtherLoader}, r"the training's loader is a list; return a DataLoader"),
        ({"pieces": {"data_collator": pairs}}, r"a collator that returns a mapping, got tuple"),
        (
            {"pieces": {"data_collator": packed}},
            r"the collator makes 1 examples of 2 rows; pad rows instead of packing",
        ),
        ({"pieces": {"data_collator": unlabeled}}, r"found no label: .*pass label_column="),
    ],
)
def test_what_keeps_numbers_from_the_model_is_said_before_the_first_step(options, message, tmp_path):
    """The error comes before a weight has changed; collect='replay' is named."""
    case = case_of("vit")
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    model = case.model
    with pytest.raises(VoGError, match=message) as raised:
        trained(
            tmp_path,
            [VoGCallback(collect="training")],
            rows=labeled(case) if options.get("pieces") != {"data_collator": unlabeled} else case.rows,
            model=model,
            **{"trainer_class": Noting, "pieces": {"data_collator": models.collate}, **options},
        )
    assert "collect='replay'" in str(raised.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_rows_shown_must_be_those_of_the_training(tmp_path):
    """Other rows, or the same in another order, are refused; the same with more columns are accepted, and shown."""
    rows = digits(20)
    labels = Dataset.from_dict({"label": rows["label"], "name": [f"digit {i}" for i in range(20)]})
    options = {"rows": rows.with_transform(plain), "num_train_epochs": 1}
    with pytest.raises(RowMismatchError, match=r"the rows of the training, 20, and VoGCallback was given 19; .*replay"):
        trained(tmp_path, [VoGCallback(labels.select(range(19)), collect="training")], **options)
    with pytest.raises(RowMismatchError, match=r"column 'label' .*differs from the training's; .*replay"):
        trained(tmp_path, [VoGCallback(labels.shuffle(0), collect="training")], **options)
    vog = VoGCallback(labels, collect="training")
    trained(tmp_path, [vog], **options)
    assert {"name", "loss"} <= set(vog.scored_dataset().column_names)


def test_a_later_failure_does_not_end_the_training(tmp_path, caplog):
    """The folder of visits cannot be written: one logged error, training ends well, and scores say why."""
    vog = VoGCallback(collect="training")

    def block(model, control):
        (tmp_path / "_vog" / "visits").write_text("in the way")

    trainer = trained(tmp_path, [vog, AtStep(2, block)])
    assert trainer.state.global_step == 12
    with pytest.raises(NotScoredError, match=r"scoring failed: .*visits"):
        vog.scores  # noqa: B018
    assert sum("training continues" in record.message for record in caplog.records) == 1


def test_rows_that_cannot_be_observed_later_do_not_end_the_training(tmp_path, monkeypatch):
    """The first batch can, the others cannot: training ends well, and scores say why."""
    vog, observed = VoGCallback(collect="training"), row_losses.row_losses

    def breaks(task, logits, labels, smoothing):
        if len(logits) > BATCH:  # several batches together
            raise ArithmeticError("no loss today")
        return observed(task, logits, labels, smoothing)

    monkeypatch.setattr(observed_passes, "row_losses", breaks)
    trainer = trained(tmp_path, [vog])
    assert trainer.state.global_step == 12
    with pytest.raises(NotScoredError, match=r"scoring failed: .*no loss today"):
        vog.scores  # noqa: B018


def test_nothing_is_kept_after_gradients_could_not_be_read(tmp_path, monkeypatch):
    """The gradients of later steps would fill the device until the epoch ends."""
    vog, sizes = VoGCallback(collect="training"), []
    monkeypatch.setattr(observed_gradients, "PENDING_BYTES_ON_CPU", 1)

    def breaks(self):
        sizes.append(len(self._noted))
        raise MemoryError("no room")

    def look(_model, _control):
        sizes.append(len(vog._run._gradients._noted))

    monkeypatch.setattr(observed_gradients.ObservedGradients, "flush", breaks)
    trained(tmp_path, [vog, AtStep(4, look)])
    assert sizes == [1, 1]
    with pytest.raises(NotScoredError, match="no room"):
        vog.scores  # noqa: B018


class TwoBackward(Noting):
    """Differentiates a loss of the hidden states on its own, before the training's loss."""

    def training_step(self, model, inputs, *_args, **_kwargs):
        outputs = model(**self._prepare_inputs(inputs), output_hidden_states=True)
        self.accelerator.backward(outputs.hidden_states[-1].square().mean(), retain_graph=True)
        self.accelerator.backward(outputs.loss)
        return outputs.loss.detach()


def test_the_gradient_of_another_loss_is_not_taken_for_the_rows_own(tmp_path):
    """It comes first and alone, so nothing is known of the energy of the rows' own."""
    vog = VoGCallback(collect="training")
    noted_training(tmp_path, case_of("vit"), [vog], trainer_class=TwoBackward)
    assert np.isfinite(vog.scores.column("loss")).all()
    assert not {"csg", "vog_loss"} & set(vog.scores.column_names)


# --- the rows of each step --------------------------------------------------------------------------------------------


def test_every_step_knows_its_rows(tmp_path):
    """Steps with accumulated batches hold the rows of all of them; a saved copy has them, too."""
    case, vog = case_of("vit"), VoGCallback(collect="training", log=False)
    trainer = noted_training(tmp_path / "run", case, [vog], gradient_accumulation_steps=2)
    found, scores = expected(trainer, case), vog.scores
    assert scores.steps()["step"].tolist() == [step for step, _ in found["every"]]
    scores.save(tmp_path / "copy")
    for loaded in (scores, VoGScores.load(tmp_path / "copy")):
        for step in range(1, trainer.state.global_step + 1):
            rows = loaded.rows_of_step(step)
            assert sorted(rows["row"]) == sorted(row for of, row in found["every"] if of == step)
            assert rows["loss"].is_monotonic_decreasing
    assert scores.rows_of_step(99).empty
    with pytest.raises(ConfigError, match=r"do not know the rows of steps; .*collect='training'"):
        scores.select([0, 1]).rows_of_step(1)


class Linear(nn.Module):
    """Logits that grow with the input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, models.CLASSES).double()
        nn.init.normal_(self.layer.weight, std=0.05, generator=torch.Generator().manual_seed(0))

    def forward(self, pixel_values, labels=None):
        logits = self.layer(pixel_values.flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_spike_of_the_loss_is_traced_to_its_row(tmp_path):
    """One picture with absurd values and the wrong label: the table of the tracker names its steps and the row."""
    case, vog = case_of("vit", 40), VoGCallback(collect="training", log=False)
    case = models.Case(Linear(), case.rows, case.labels)
    pixels = case.rows[17]["pixel_values"]
    case.rows[17]["pixel_values"] = 50 * pixels
    case.labels[17] = int(case.model.layer(pixels.double().flatten()).argmin())
    noted_training(tmp_path, case, [vog], num_train_epochs=8, learning_rate=1e-6, per_device_train_batch_size=4)
    scores = vog.scores
    worst = int(scores.steps().groupby("step")["loss"].mean().idxmax())
    table = contents(ScoredSplit("", scores), 5).values["loss_spikes"]
    assert scores.rows_of_step(worst)["row"][0] == 17
    assert table.columns["step"][0] == worst
    assert table.columns["row"][0] == 17
    assert table.columns["loss in the step"][0] == scores.rows_of_step(worst)["loss"][0]
    assert len(set(table.columns["step"])) == 8  # once per epoch


class OutOfMemory(Noting):
    """Has no memory for more than two rows, which shows in its third step."""

    def training_step(self, model, inputs, *args, **kwargs):
        if len(inputs["labels"]) > 2 and self.state.global_step >= 2:
            self.states, self.noted = {}, []
            raise RuntimeError("CUDA out of memory.")
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.mark.slow
def test_a_training_that_begins_again_with_smaller_batches_has_the_values_of_its_second_beginning(tmp_path):
    """auto_find_batch_size: what was seen of the larger batches is dropped, and the model has one set of hooks."""
    case, vog = case_of("vit", 12), VoGCallback(collect="training", log=False)
    options = {"per_device_train_batch_size": 4, "auto_find_batch_size": True}
    trainer = noted_training(tmp_path, case, [vog], trainer_class=OutOfMemory, **options)
    assert trainer.state.global_step == 12
    assert_as_the_loop(vog.scores, expected(trainer, case))


@pytest.mark.slow
def test_a_killed_training_resumes_with_the_uninterrupted_scores(tmp_path):
    """SIGKILL in the second epoch, in a process of its own: what was written after the checkpoint is written again."""
    program = (
        "import os, signal, sys; from pathlib import Path; from collected import case_of, noted_training; "
        "from trainers import AtStep; from vog_hf import VoGCallback; kill = int(sys.argv[3]); "
        "vog = VoGCallback(collect='training', log=False); "
        "noted_training(Path(sys.argv[1]), case_of('bert'), "
        "[vog, AtStep(kill, lambda *_: os.kill(os.getpid(), signal.SIGKILL))], resume=sys.argv[2] or None, "
        "save_strategy='steps', save_steps=3, num_train_epochs=3)"
    )
    folder, paths = tmp_path / "killed", [str(Path(__file__).parents[1] / "support")]

    def run(resume, kill):
        command = [sys.executable, "-c", program, str(folder), resume, str(kill)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)

    assert run("", 8).returncode == -signal.SIGKILL
    resumed = run(str(folder / "checkpoint-6"), 0)
    assert resumed.returncode == 0, resumed.stderr
    whole = VoGCallback(collect="training", log=False)
    options = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 3}
    noted_training(tmp_path / "whole", case_of("bert"), [whole], **options)
    scores = VoGScores.load(folder / "_vog" / "scores")
    for name in whole.scores.column_names:
        np.testing.assert_array_equal(scores.column(name), whole.scores.column(name), err_msg=name)
