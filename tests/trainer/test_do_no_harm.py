"""Training with the callback is, bit by bit, the training without it: a table of settings, for replay and for live."""

import hashlib
import itertools
import json
import logging
import os
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import models
import numpy as np
import optuna
import pytest
import torch
from trainers import arguments, augmented, digits, network, plain, texts, tokenizer
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from vog_hf.errors import NotScoredError
from vog_hf.trainer.callback import VoGCallback

CHECKPOINTING = next(
    f.name for f in fields(TrainingArguments) if f.name in ("activation_checkpointing", "gradient_checkpointing")
)
TIMINGS = ("runtime", "per_second")
NUMBERED = ("vog_rows", "vog_labels")  # what collect="training" adds to a batch, and takes out before forward


# --- what is watched ------------------------------------------------------------------------------------------------


def digest(value):
    """A hash of every bit of a nested value."""
    result = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor):
            result.update(f"{part.dtype}{tuple(part.shape)}".encode())
            result.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, np.ndarray):
            result.update(part.tobytes())
        elif isinstance(part, Mapping):
            for key in sorted(part, key=str):
                add((key, part[key]))
        elif isinstance(part, (list, tuple)):
            for item in part:
                add(item)
        else:
            result.update(repr(part).encode())

    add(value)
    return result.hexdigest()


class Trace(TrainerCallback):
    """Everything the callback must not touch, at every event of the Trainer, by aspect; to be placed after ours."""

    def __init__(self):
        self.seen = {}

    def note(self, aspect, value):
        self.seen.setdefault(aspect, []).append(value)

    def observe(self, event, state, control, model, optimizer=None):
        at = (event, state.global_step)
        parameters = list(model.parameters())
        self.note("rng", (*at, digest([random.getstate(), np.random.get_state(), torch.get_rng_state()])))
        self.note("modes", (*at, [module.training for module in model.modules()]))
        self.note("requires_grad", (*at, [p.requires_grad for p in parameters]))
        self.note("gradients", (*at, digest([p.grad for p in parameters])))
        self.note("weights", (*at, digest(dict(model.state_dict()))))
        self.note("optimizer", (*at, digest(optimizer.state_dict() if optimizer else None)))
        self.note("config", (*at, json.dumps(model.config.to_dict(), default=str, sort_keys=True)))
        self.note("control", (*at, repr(control)))
        self.note("modules", (*at, [(sorted(vars(m)), len(m._forward_hooks)) for m in model.modules()]))
        self.note("globals", (*at, global_settings()))

    def finish(self, trainer, folder):
        history = [{k: v for k, v in entry.items() if not k.endswith(TIMINGS)} for entry in trainer.state.log_history]
        self.note("losses", history)
        files = [path.relative_to(folder) for path in Path(folder).rglob("*")]
        self.note("files", sorted(str(path) for path in files if path.parts[0] != "_vog"))

    def on_train_begin(self, args, state, control, *, model, optimizer=None, **kwargs):
        self.observe("train begin", state, control, model, optimizer)

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        self.observe("step begin", state, control, model)

    def on_substep_end(self, args, state, control, *, model, **kwargs):
        self.observe("substep end", state, control, model)

    def on_step_end(self, args, state, control, *, model, optimizer, **kwargs):
        self.observe("step end", state, control, model, optimizer)

    def on_evaluate(self, args, state, control, *, model, **kwargs):
        self.observe("evaluate", state, control, model)

    def on_epoch_end(self, args, state, control, *, model, optimizer, **kwargs):
        self.observe("epoch end", state, control, model, optimizer)

    def on_train_end(self, args, state, control, *, model, optimizer, **kwargs):
        self.observe("train end", state, control, model, optimizer)


def global_settings():
    """What belongs to the whole process: switches of torch, environment, warnings, logging."""
    root = logging.getLogger()
    return repr(
        (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            sorted(item for item in os.environ.items() if "PYTEST" not in item[0] and "TORCHINDUCTOR" not in item[0]),
            # torch 2.8 adds a filter with this name when it compiles something for the first time in a process
            len([item for item in warnings.filters if "torch.distributed" not in str(item[3])]),
            (root.level, len(root.handlers), logging.getLogger("vog_hf").level),
        )
    )


class WatchedTrainer(Trainer):
    """Notes every batch that is trained on."""

    trace: Trace

    def training_step(self, model, inputs, *args, **kwargs):
        self.trace.note("batches", digest({name: value for name, value in inputs.items() if name not in NUMBERED}))
        return super().training_step(model, inputs, *args, **kwargs)


def differing(trace, other):
    """The aspects in which two trainings differ."""
    assert trace.seen.keys() == other.seen.keys()
    return [aspect for aspect in trace.seen if trace.seen[aspect] != other.seen[aspect]]


# --- the settings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A way to train. Rows are (trained on, scored); scored None = `VoGCallback()` without data."""

    options: dict[str, Any]  # of TrainingArguments
    model: Callable[[], torch.nn.Module] = network
    rows: Callable[[], tuple[Any, Any]] = lambda: (digits().with_transform(augmented), digits().with_transform(plain))
    pieces: Callable[[], dict[str, Any]] = dict  # of the Trainer, made again for each training
    callback: dict[str, Any] = field(default_factory=dict)
    others: Callable[[], list[TrainerCallback]] = list


def text_pieces():
    """A collator that pads."""
    return {"data_collator": DataCollatorWithPadding(tokenizer())}


class Stream(torch.utils.data.IterableDataset):
    """Augmented digits without a length."""

    def __iter__(self):
        yield from digits().with_transform(augmented)


def half_frozen():
    """A network of which no snapshot stores the first weights."""
    model = network()
    model.resnet.embedder.requires_grad_(False)
    return model


def bert_in_bfloat16():
    """A model whose weights scoring casts up for a while."""
    return models.bert().model.bfloat16()


text = partial(
    Setting,
    model=lambda: models.bert().model,
    rows=lambda: (texts(), None),
    pieces=text_pieces,
)
AUGMENTED = {"per_device_train_batch_size": 8}
EVALUATED = {
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "steps",
    "save_steps": 3,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


def evaluation_pieces():
    """Other rows, and metrics of which the first are the best, so that not the last model is loaded at the end."""
    calls = itertools.count()
    return {
        "eval_dataset": digits(20, 64).with_transform(plain),
        "compute_metrics": lambda _: {"score": -float(next(calls))},
    }


SETTINGS = {
    # dropout and BatchNorm are in every model, augmentation in every training on digits
    "accumulation, evaluation, best model loaded": Setting(
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, **EVALUATED}, pieces=evaluation_pieces
    ),
    "bf16": Setting({"bf16": True}),
    "workers": Setting({"dataloader_num_workers": 2, "num_train_epochs": 2}),
    "epochs": Setting({"num_train_epochs": 6}),
    "steps end in an epoch": Setting({"max_steps": 7}, callback={"snapshots": 2}),
    "stopped early": Setting(
        {**EVALUATED, "num_train_epochs": 6},
        pieces=evaluation_pieces,
        callback={"snapshots": 2},
        others=lambda: [EarlyStoppingCallback(1)],
    ),
    "stream": Setting({"max_steps": 6}, rows=lambda: (Stream(), digits().with_transform(plain))),
    "label smoothing": Setting({"label_smoothing_factor": 0.1}),
    "half frozen": Setting({}, model=half_frozen),
    "torch_compile": Setting({"torch_compile": True, "torch_compile_backend": "eager"}),
    "text": text({"remove_unused_columns": True}),
    "text, bf16 weights": text({"remove_unused_columns": True}, model=bert_in_bfloat16),
    "text, checkpointing": text({"remove_unused_columns": True, CHECKPOINTING: True}),
    "text, NEFTune": text({"remove_unused_columns": True, "neftune_noise_alpha": 5.0}),
    "text, LoRA": text({"remove_unused_columns": True}, model=lambda: models.lora_bert().model),
}
SLOW_SETTINGS = {
    "persistent workers": Setting(
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "num_train_epochs": 2}
    ),
    "torch_compile with a code generator": Setting({"torch_compile": True}),
}

# Settings that change the steps, in which replay only stores weights and live scores as well: replay is slow.
LIVE_DOES_MORE = {
    *("epochs", "label smoothing", "half frozen"),
    *("text, bf16 weights", "text, checkpointing", "text, NEFTune"),
}


def trace_of(setting, folder, collect=None):
    """Train once, with the callback (collect) or without it (None)."""
    trace, rows = Trace(), setting.rows()
    vog = VoGCallback(rows[1], collect=collect, **setting.callback) if collect in ("replay", "live") else None
    if collect == "training":
        vog = VoGCallback(collect=collect)
    trainer = WatchedTrainer(
        model=setting.model(),
        args=arguments(folder, **setting.options),
        train_dataset=rows[0],
        callbacks=[*setting.others(), *([vog] if vog else []), trace],
        **setting.pieces(),
    )
    trainer.trace = trace
    trainer.train()
    trace.finish(trainer, folder)
    if vog:
        scores = vog.scores
        assert scores.manifest["collect"] == collect
        names = ("loss", "csg") if collect == "training" else ("vog",)
        assert all(np.nanmax(scores.column(name)) > np.nanmin(scores.column(name)) for name in names)
    return trace


@pytest.fixture(scope="module")
def without_callback(tmp_path_factory):
    """The training without the callback, made once per setting."""
    made = {}

    def get(name, setting):
        if name not in made:
            made[name] = trace_of(setting, tmp_path_factory.mktemp("without"))
        return made[name]

    return get


# --- the promise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "setting", "collect"),
    [
        pytest.param(name, setting, collect, id=f"{name}-{collect}", marks=pytest.mark.slow if is_slow else ())
        for name, setting in {**SETTINGS, **SLOW_SETTINGS}.items()
        for collect in ("replay", "live")
        for is_slow in [name in SLOW_SETTINGS or (collect == "replay" and name in LIVE_DOES_MORE)]
    ],
)
def test_training_is_bit_identical_with_the_callback(name, setting, collect, tmp_path, without_callback):
    """At every event: weights, optimizer, gradients, random states, modes, configuration, batches and losses."""
    expected = without_callback(name, setting)
    trace = trace_of(setting, tmp_path, collect)
    assert len(trace.seen["batches"]) >= 6
    assert differing(trace, expected) == []


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(pytest.param(n, s, id=n) for n, s in SETTINGS.items() if n != "stream"),  # has no rows with numbers
        *(pytest.param(n, s, id=n, marks=pytest.mark.slow) for n, s in SLOW_SETTINGS.items()),
    ],
)
def test_training_is_bit_identical_while_its_passes_are_observed(name, setting, tmp_path, without_callback):
    """The same promise for collect="training", whose hooks are gone at the end."""
    expected = without_callback(name, setting)
    trace = trace_of(setting, tmp_path, "training")
    assert len(trace.seen["batches"]) >= 6
    assert [aspect for aspect in differing(trace, expected) if aspect != "modules"] == []
    assert trace.seen["modules"][-1] == expected.seen["modules"][-1]


def test_training_is_bit_identical_if_its_snapshots_are_thinned(tmp_path, without_callback):
    """The same promise for max_cost=, which times the training and leaves snapshots out of the scores."""
    setting = next(iter(SETTINGS.values()))
    trace = trace_of(replace(setting, callback={"max_cost": 0.001}), tmp_path, "replay")
    assert differing(trace, without_callback(next(iter(SETTINGS)), setting)) == []


def test_another_seed_is_another_training(tmp_path, without_callback):
    """The comparison does not pass whatever it is given: only the seed differs, and so do batches and losses."""
    setting = SETTINGS["epochs"]
    trace = trace_of(Setting({**setting.options, "seed": 1}), tmp_path)
    assert {"batches", "losses", "weights", "rng"} <= set(differing(trace, without_callback("epochs", setting)))


def _leave_a_gradient(model, loader):
    model(torch.ones(2, 1, 16, 16)).logits.sum().backward()


def _move_a_weight_by_one_bit(model, loader):
    weight = next(model.parameters()).data.flatten()
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))


def _update_batch_norm(model, loader):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model(torch.ones(4, 1, 16, 16))


HARMS = {
    "draws from torch": ("rng", lambda model, loader: torch.rand(1)),
    "draws from numpy": ("rng", lambda model, loader: np.random.random()),
    "draws from python": ("rng", lambda model, loader: random.random()),
    "switches to evaluation": ("modes", lambda model, loader: model.eval()),
    "switches one module": ("modes", lambda model, loader: model.classifier.train(mode=False)),
    "freezes a weight": ("requires_grad", lambda model, loader: next(model.parameters()).requires_grad_(False)),
    "leaves a gradient": ("gradients", _leave_a_gradient),
    "moves a weight": ("weights", _move_a_weight_by_one_bit),
    "updates BatchNorm": ("weights", _update_batch_norm),
    "writes the configuration": ("config", lambda model, loader: setattr(model.config, "name_or_path", "me/mine")),
    "leaves a hook": ("modules", lambda model, loader: model.register_forward_hook(lambda *_: None)),
    "leaves an attribute": ("modules", lambda model, loader: setattr(model, "vog", 1)),
    "filters warnings": ("globals", lambda model, loader: warnings.simplefilter("ignore")),
    "reads the training loader": ("rng", lambda model, loader: next(iter(loader))),
}


@pytest.mark.parametrize(("aspect", "harm"), HARMS.values(), ids=HARMS)
def test_every_kind_of_harm_is_noticed(harm, aspect, tmp_path, without_callback):
    """The table above can fail: a callback that does one of these things once is caught, under the right name."""
    options = {"max_steps": 3}
    trace = trace_of(Setting(options, others=lambda: [Harmful(harm)]), tmp_path)
    assert aspect in differing(trace, without_callback("three steps", Setting(options)))


class Harmful(TrainerCallback):
    def __init__(self, harm):
        self.harm = harm

    def on_step_end(self, args, state, control, *, model, train_dataloader, **kwargs):
        if state.global_step == 2:
            self.harm(model, train_dataloader)


# --- search for hyper-parameters ------------------------------------------------------------------------------------


class PruneTheSecond(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number == 1


class ScoredTrials(TrainerCallback):
    """Notes after each trial whether it has scores; to be placed after ours."""

    def __init__(self, vog):
        self.vog, self.scored = vog, []

    def on_train_end(self, args, state, control, **kwargs):
        try:
            self.scored.append(self.vog.scores.column("vog"))
        except NotScoredError as error:
            self.scored.append(str(error))


def searched(folder, collect=None):
    """Three trials, the second of which is pruned after its first epoch."""
    trace, rows = Trace(), digits()
    vog = VoGCallback(rows.with_transform(plain), collect=collect) if collect else None
    trials = ScoredTrials(vog)
    trainer = WatchedTrainer(
        model_init=lambda trial: network(),
        args=arguments(folder, num_train_epochs=2, eval_strategy="epoch"),
        train_dataset=rows.with_transform(augmented),
        eval_dataset=digits(20, 64).with_transform(plain),
        callbacks=[vog, trials, trace] if vog else [trace],
    )
    trainer.trace = trace
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=3,
        direction="minimize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=PruneTheSecond(),
    )
    trace.finish(trainer, folder)
    trace.note("best", repr(best))
    return trace, trials.scored, vog


@pytest.mark.parametrize("collect", ["replay", "live"])
def test_a_search_for_hyper_parameters_is_the_same_and_its_pruned_trial_is_not_scored(collect, tmp_path):
    """Every trial trains as without the callback; finished ones are scored again, the pruned one has no scores."""
    without, _, _ = searched(tmp_path / "without")
    trace, scored, vog = searched(tmp_path / "with", collect)
    assert differing(trace, without) == []
    assert len(scored) == 3
    assert scored[1] == "no scores yet; they are computed when trainer.train() finishes"
    assert not np.array_equal(scored[0], scored[2])
    assert np.array_equal(vog.scores.column("vog"), scored[2])
