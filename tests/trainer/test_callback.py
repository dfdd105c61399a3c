import gc
import logging
import weakref
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

import models
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from reference import reference_gradients, reference_vog
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from trainers import (
    AtStep,
    WeightsByStep,
    arguments,
    augmented,
    digits,
    network,
    plain,
    texts,
    tokenizer,
    trained,
)
from trainings import PowerCutError, assert_same_scores, cut, pixel_rows, scores_of, steps_of
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, DataError, NotScoredError
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.block_folder import BlockFolder
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import open_folder
from vog_hf.trainer.callback import VoGCallback

BOTH = pytest.mark.parametrize("collect", ["replay", "live"])
CHECKPOINTING = next(
    f.name for f in fields(TrainingArguments) if f.name in ("activation_checkpointing", "gradient_checkpointing")
)
CORE = ["vog", "vog_class_normalized", "vog_percentile"]


# --- the number -----------------------------------------------------------------------------------------------------


def _logit_loss(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs, labels)


def speech():
    """A speech classifier that masks no spans of its rows: they are shorter than a span."""
    case = models.wav2vec2()
    case.model.config.apply_spec_augment = False
    return case


KINDS = {
    "images": (models.resnet, {}, {}),
    "images, bf16": (models.resnet, {"bf16": True}, {}),
    "images, compiled": (models.resnet, {"torch_compile": True, "torch_compile_backend": "eager"}, {}),
    "plain module": (models.conv_net, {}, {"compute_loss_func": _logit_loss}),
    "speech": (speech, {}, {}),
    "text": (models.bert, {}, {}),
    "text, gradient checkpointing": (models.bert, {CHECKPOINTING: True}, {}),
    "text, LoRA": (models.lora_bert, {}, {}),
    "several labels": (models.multi_label_bert, {}, {}),
    "regression": (models.regression_bert, {}, {}),
    "tokens": (models.token_bert, {}, {}),
    "causal language model": (models.gpt2, {}, {}),
    "sequence to sequence": (models.t5, {}, {}),
}


@BOTH
@pytest.mark.parametrize(("make", "options", "pieces"), KINDS.values(), ids=KINDS)
def test_scores_are_those_of_the_oracle_on_the_weights_of_the_training(make, options, pieces, collect, tmp_path):
    """For each kind of model: what autograd gives row by row on copies of the weights after each snapshot's step."""
    case, weights = make(), WeightsByStep()
    rows = [{**row, "labels": torch.as_tensor(label)} for row, label in zip(case.rows, case.labels, strict=True)]
    vog = VoGCallback(collect=collect, snapshots=[2, 3, 5, 6])
    trained(
        tmp_path,
        [weights, vog],
        rows=rows,
        model=case.model,
        pieces={"data_collator": models.collate, **pieces},
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=6,
        learning_rate=1e-3,
        **options,
    )
    states = [weights.weights[step] for step in (2, 3, 5, 6)]
    oracle = make().model  # not the one that Trainer has patched
    gradients = reference_gradients(oracle, states, case.rows, "logit", case.labels, task=case.task)
    images = next(iter(case.rows[0].values())).dim() == 3
    expected = reference_vog(gradients, channel_mean=images)
    assert steps_of(vog.scores) == [2, 3, 5, 6]
    assert_close(np.array(vog.scores.column("vog"), dtype=np.float64), expected, rtol=2e-3, atol=1e-7)


def test_live_and_replay_give_the_same_scores(tmp_path):
    """One pass per snapshot while training, or all of them afterwards: every column agrees."""
    replay, live = (
        scores_of(tmp_path / collect, VoGCallback(pixel_rows(), collect=collect)) for collect in ("replay", "live")
    )
    assert_same_scores(live, replay, tolerance=1e-5)
    for name in ("vog", "confidence", "prediction"):
        assert_close(np.array(live.trajectory(name)), np.array(replay.trajectory(name)), rtol=1e-5, atol=1e-6)
    assert live.manifest["collect"] == "live"
    assert steps_of(live) == steps_of(replay)


def test_the_callback_is_the_scorer_over_its_snapshots(tmp_path):
    """`VoGScorer.score` over the folder of snapshots, and over the run's ``checkpoint-*``, gives the same scores."""
    vog = VoGCallback(pixel_rows(), snapshots="epoch", batch_size=7)
    trainer = trained(
        tmp_path, [vog], rows=digits().with_transform(augmented), save_strategy="epoch", num_train_epochs=4
    )
    scorer = VoGScorer(trainer.model, batch_size=13)
    for source in (tmp_path / "_vog", tmp_path):
        scores = scorer.score(pixel_rows(), source, collate_fn=default_data_collator)
        assert len(steps_of(scores)) == 4
        assert_same_scores(scores, vog.scores)


@BOTH
def test_the_batch_size_is_at_least_that_of_evaluation_and_changes_no_score(collect, tmp_path):
    """Memory is the user's to choose; the number is not touched."""
    evaluation = scores_of(tmp_path / "a", VoGCallback(pixel_rows(), collect=collect), per_device_eval_batch_size=77)
    chosen = scores_of(tmp_path / "b", VoGCallback(pixel_rows(), collect=collect, batch_size=5))
    assert (evaluation.manifest["batch_size"], chosen.manifest["batch_size"]) == (77, 5)
    assert_same_scores(chosen, evaluation, tolerance=1e-5)


@BOTH
def test_the_configuration_is_used(collect, tmp_path):
    """Several targets come out of one run, the first as ``vog``."""
    config = VoGConfig(target=("loss", "logit"), heat_maps=False)
    both = scores_of(tmp_path / "a", VoGCallback(pixel_rows(), collect=collect, config=config))
    alone = scores_of(tmp_path / "b", VoGCallback(pixel_rows(), collect=collect))
    assert both.manifest["config"]["target"] == ["loss", "logit"]
    assert not both.has_heat_maps
    np.testing.assert_allclose(both.column("vog_logit"), alone.column("vog"), rtol=1e-5, atol=1e-7)


# --- what can be scored ---------------------------------------------------------------------------------------------


@BOTH
def test_a_dataset_gets_its_columns(collect, tmp_path):
    """`scored_dataset` is the dataset that was passed, every row in place, with the core columns."""
    vog = VoGCallback(pixel_rows(), collect=collect)
    scores = scores_of(tmp_path, vog)
    scored = vog.scored_dataset()
    assert scored.column_names == ["image", "label", *CORE]
    assert scored["label"][:] == digits()["label"][:]
    assert_close(np.array(scored["vog"][:]), scores.column("vog").astype(np.float64))
    assert "forgetting" in vog.scored_dataset("all").column_names
    assert vog.scored_dataset(["loss"]).column_names == ["image", "label", "loss"]


@BOTH
def test_a_dataset_dict_gives_scores_per_split(collect, tmp_path):
    """Splits are scored apart, in folders of their own, also splits that are not trained on."""
    splits = DatasetDict({"train": digits(), "held-out": digits(23, 64)}).with_transform(plain)
    vog = VoGCallback(splits, collect=collect)
    scores = scores_of(tmp_path, vog, rows=splits["train"])
    assert {split: len(part) for split, part in scores.items()} == {"train": 64, "held-out": 23}
    scored = vog.scored_dataset()
    assert isinstance(scored, DatasetDict)
    for split, part in scores.items():
        assert scored[split].column_names == ["image", "label", *CORE]
        assert_close(np.array(scored[split]["vog"][:]), part.column("vog").astype(np.float64))
        assert VoGScores.load(tmp_path / "_vog" / "scores" / split).column_names == part.column_names
    alone = scores_of(tmp_path / "alone", VoGCallback(splits["held-out"], collect=collect), rows=splits["train"])
    assert_same_scores(scores["held-out"], alone)


class Pairs(torch.utils.data.Dataset):
    """Digits as a map-style torch dataset of mappings."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        row = pixel_rows()[i]
        return {"pixel_values": row["pixel_values"], "labels": row["labels"], "name": f"digit {i}"}


@BOTH
@pytest.mark.parametrize("given", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_torch_data_set_is_scored_but_has_no_columns(given, collect, tmp_path):
    """Rows that are only numbered: scores in their order, and `scored_dataset` says what to use instead."""
    vog = VoGCallback(Pairs() if given else None, collect=collect)
    scores = scores_of(tmp_path / "a", vog, rows=Pairs(), remove_unused_columns=True)
    expected = scores_of(tmp_path / "b", VoGCallback(pixel_rows(), collect=collect), rows=Pairs())
    np.testing.assert_allclose(scores.column("vog"), expected.column("vog"), rtol=1e-5, atol=1e-7)
    with pytest.raises(DataError, match=r"got a Pairs; read the scores with \.to_pandas\(\)"):
        vog.scored_dataset()


def stored_pixels():
    """Digits whose pixels are a column, next to a column that no model takes."""
    rows = pixel_rows()[:]
    return Dataset.from_dict(
        {
            "pixel_values": torch.stack(rows["pixel_values"]).numpy(),
            "label": rows["labels"],
            "name": [f"digit {i}" for i in range(64)],
        }
    ).with_format("torch", columns=["pixel_values", "label"], output_all_columns=True)


@BOTH
@pytest.mark.parametrize("remove_unused_columns", [pytest.param(True, marks=pytest.mark.slow), False])
def test_without_data_the_trainers_own_rows_are_scored(remove_unused_columns, collect, tmp_path):
    """They are scored as the trainer has them: without the columns that it strips."""
    vog = VoGCallback(collect=collect)
    scores = scores_of(tmp_path / "a", vog, rows=stored_pixels(), remove_unused_columns=remove_unused_columns)
    given = VoGCallback(stored_pixels(), collect=collect)
    expected = scores_of(tmp_path / "b", given, rows=stored_pixels(), remove_unused_columns=remove_unused_columns)
    assert_same_scores(scores, expected)
    kept = ["pixel_values", "label"] + ([] if remove_unused_columns else ["name"])
    assert sorted(vog.scored_dataset().column_names) == sorted([*kept, *CORE])
    assert given.scored_dataset().column_names == ["pixel_values", "label", "name", *CORE]


class Watching:
    """A collator that notes the columns it is given."""

    def __init__(self):
        self.seen = set()

    def __call__(self, rows):
        self.seen |= {frozenset(row) for row in rows}
        return default_data_collator([{k: v for k, v in row.items() if k != "name"} for row in rows])


@pytest.mark.parametrize("remove_unused_columns", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("rows", [stored_pixels, lambda: [dict(row) for row in stored_pixels()]], ids=["hf", "list"])
def test_the_trainers_collator_gets_what_the_trainer_would_give_it(rows, remove_unused_columns, tmp_path):
    """Columns that forward does not take are held back exactly when the trainer does so."""
    collator = Watching()
    vog = VoGCallback(rows())
    scores_of(
        tmp_path,
        vog,
        rows=stored_pixels(),
        remove_unused_columns=remove_unused_columns,
        pieces={"data_collator": collator},
    )
    name = set() if remove_unused_columns else {"name"}
    assert collator.seen == {frozenset({"pixel_values", "label"} | name)}


@pytest.mark.parametrize("remove_unused_columns", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_collator_of_ones_own_gets_whole_rows(remove_unused_columns, tmp_path):
    """Whatever the trainer strips, ``collate_fn`` sees every column."""
    own = Watching()
    vog = VoGCallback(stored_pixels(), collate_fn=own)
    scores = scores_of(tmp_path, vog, rows=stored_pixels(), remove_unused_columns=remove_unused_columns)
    assert own.seen == {frozenset({"pixel_values", "label", "name"})}
    assert len(scores) == 64


@BOTH
@pytest.mark.parametrize("given", [pytest.param(True, marks=pytest.mark.slow), False])
def test_padded_text_with_its_string_column_left_in(given, collect, tmp_path):
    """The usual tokenized dataset: the string stays in the scored dataset and away from the collator."""
    rows = texts()
    train = partial(
        scores_of,
        rows=rows,
        pieces={"data_collator": DataCollatorWithPadding(tokenizer())},
        remove_unused_columns=True,
    )
    vog = VoGCallback(rows if given else None, collect=collect)
    scores = train(tmp_path / "a", vog, model=models.bert().model)
    assert ("text" in vog.scored_dataset().column_names) == given
    one_by_one = train(tmp_path / "b", VoGCallback(rows, batch_size=1), model=models.bert().model)
    assert_same_scores(scores, one_by_one, tolerance=1e-5)


def test_label_column_overrides_the_labels_of_training(tmp_path):
    """The class that is differentiated is the one in the column, here the true one next to a noisy one."""
    rows = digits().add_column("noisy", [(y + 1) % 10 for y in digits()["label"]])

    def transform(batch):
        return {**plain(batch), "labels": batch["noisy"], "label": batch["label"]}

    def collate(batch):
        return default_data_collator([{k: row[k] for k in ("pixel_values", "labels")} for row in batch])

    given = rows.with_transform(transform)
    by_column = VoGCallback(given, collate_fn=collate, label_column="label")
    noisy = scores_of(tmp_path / "a", VoGCallback(given, collate_fn=collate), rows=pixel_rows())
    true = scores_of(tmp_path / "b", by_column, rows=pixel_rows())
    plainly = scores_of(tmp_path / "c", VoGCallback(pixel_rows()))
    assert noisy.column("label").tolist() == rows["noisy"][:]
    assert true.column("label").tolist() == rows["label"][:]
    assert not np.allclose(true.column("vog"), noisy.column("vog"), rtol=1e-3)
    assert_same_scores(true, plainly)


class Renamed(nn.Module):
    """A model whose label has a name of its own."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, pixel_values, digit=None):
        return self.network(pixel_values=pixel_values, labels=digit)


@BOTH
def test_labels_are_found_under_the_trainers_label_names(collect, tmp_path):
    """``TrainingArguments(label_names=...)`` says which key of the batch is the label; it does not reach the model."""

    def transform(rows):
        pixels = plain(rows)
        return {"pixel_values": pixels["pixel_values"], "digit": pixels["labels"]}

    rows = digits().with_transform(transform)
    scores = scores_of(tmp_path / "a", VoGCallback(collect=collect), rows=rows, model=Renamed(), label_names=["digit"])
    expected = scores_of(tmp_path / "b", VoGCallback(collect=collect))
    assert scores.column("label").tolist() == digits()["label"][:]
    np.testing.assert_allclose(scores.column("vog"), expected.column("vog"), rtol=1e-5, atol=1e-7)


def test_rows_without_a_label_use_the_last_prediction(tmp_path):
    """None, -1 and -100 are not a label: replay scores such a row by what the trained model takes it for."""

    def transform(rows):
        return {**plain(rows), "labels": [-100 if y == 3 else y for y in rows["label"]]}

    rows = digits().with_transform(transform)
    scores = scores_of(tmp_path, VoGCallback(rows), rows=pixel_rows())
    unlabeled = np.array(digits()["label"][:]) == 3
    assert (scores.column("label")[unlabeled] == -1).all()
    assert scores.column("prediction")[unlabeled].tolist() == scores.trajectory("prediction")[unlabeled, -1].tolist()
    assert (scores.column("vog")[unlabeled] > 0).all()


# --- when snapshots are taken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("collect", ["replay", pytest.param("live", marks=pytest.mark.slow)])  # one plan for both
@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [  # 64 rows in batches of 16: 4 steps an epoch, 12 in all
        ({"snapshots": "epoch"}, {}, [4, 8, 12]),
        ({"snapshots": "epoch", "max_snapshots": 2}, {}, [4, 12]),
        ({"snapshots": "epoch"}, {"max_steps": 7}, [4, 7]),
        ({"snapshots": "epoch"}, {"gradient_accumulation_steps": 3}, [2, 4, 6]),
        ({"snapshots": "epoch"}, {"dataloader_drop_last": True, "per_device_train_batch_size": 24}, [2, 4, 6]),
        ({}, {}, [1, 3, 4, 6, 7, 9, 10, 12]),
        ({}, {"num_train_epochs": 5}, [2, 5, 7, 10, 12, 15, 17, 20]),
        ({}, {"num_train_epochs": 8}, [4, 8, 12, 16, 20, 24, 28, 32]),
        ({"max_snapshots": 3}, {}, [4, 8, 12]),
        ({"snapshots": 5}, {}, [5, 10]),
        ({"snapshots": 3}, {"max_steps": 10}, [3, 6, 9]),
        ({"snapshots": [3, 6]}, {}, [3, 6]),
        ({"snapshots": [9, 4, 8]}, {}, [4, 8, 9]),
        ({"snapshots": [11, 12]}, {}, [11, 12]),
    ],
)
def test_snapshots_are_taken_after_the_planned_steps(schedule, options, expected, collect, tmp_path):
    """Neither one more nor one less, also where the plan ends before the training does."""
    scores = scores_of(tmp_path, VoGCallback(pixel_rows(), collect=collect, **schedule), **options)
    assert steps_of(scores) == expected
    assert scores.trajectory("vog").shape == (64, len(expected))
    assert scores.manifest["windows"]["all"] == [f"step-{step:09d}" for step in expected]


def falling_score():
    """Evaluation whose first result is the best."""
    calls = []
    return {
        "eval_dataset": digits(20, 64).with_transform(plain),
        "compute_metrics": lambda _: {"score": -float(len(calls.append(1) or calls))},
    }


BEST = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


def test_snapshots_hold_the_weights_after_their_steps_and_not_the_best_model(tmp_path):
    """With ``load_best_model_at_end`` the model in hand is the best one, the last snapshot is the last step's."""
    weights, vog = WeightsByStep(), VoGCallback(pixel_rows(), snapshots=[2, 4, 7, 12])
    trainer = trained(tmp_path, [weights, vog], pieces=falling_score(), **BEST)
    for snapshot in open_folder(tmp_path / "_vog" / "snapshots").snapshots:
        assert_close(load_file(snapshot.files[0]), weights.weights[snapshot.step], rtol=0, atol=0)
    first = "resnet.embedder.embedder.convolution.weight"
    best = trainer.model.state_dict()[first]
    assert torch.equal(best, weights.weights[4][first])
    assert not torch.equal(best, weights.weights[12][first])
    assert steps_of(vog.scores) == [2, 4, 7, 12]


def test_live_scores_are_not_of_the_best_model_either(tmp_path):
    """With ``load_best_model_at_end`` live gives what replay gives from the snapshots compared above."""
    live, replay = (
        scores_of(tmp_path / collect, VoGCallback(pixel_rows(), collect=collect), pieces=falling_score(), **BEST)
        for collect in ("live", "replay")
    )
    assert_same_scores(live, replay, tolerance=1e-5)


def stop(model, control):
    """End the training."""
    control.should_training_stop = True


@BOTH
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("epoch", [4, 6]), (2, [2, 4, 6]), ([2, 3, 20], [2, 3, 6]), ([2, 3], [2, 3]), ("auto", [2, 5, 6])],
)
def test_a_training_that_is_stopped_is_scored_on_what_there_is(schedule, expected, collect, tmp_path):
    """Stopped after step 6 of 20: the snapshots up to there, and the weights it ended with where more were planned."""
    vog = VoGCallback(pixel_rows(), collect=collect, snapshots=schedule)
    trainer = trained(tmp_path, [vog, AtStep(6, stop)], num_train_epochs=5)
    assert trainer.state.global_step == 6
    assert steps_of(vog.scores) == expected
    as_planned = isinstance(schedule, list)  # as many as planned, if not after the planned steps
    assert ("vog_early" in vog.scores.column_names) == (collect == "replay" or as_planned)
    assert ("windows_missing" in vog.scores.manifest) == (collect == "live" and not as_planned)


@BOTH
def test_early_stopping_by_evaluation(collect, tmp_path):
    """`EarlyStoppingCallback` ends the run after two evaluations: two epochs are scored."""
    vog = VoGCallback(pixel_rows(), collect=collect, snapshots="epoch")
    callbacks = [EarlyStoppingCallback(1), vog]
    trained(tmp_path, callbacks, pieces=falling_score(), **{**BEST, "num_train_epochs": 7})
    assert steps_of(vog.scores) == [4, 8]


@BOTH
@pytest.mark.parametrize("first", ["EarlyStoppingCallback", "VoGCallback"])
def test_the_last_weights_of_a_run_that_an_evaluation_ends_are_a_snapshot(first, collect, tmp_path):
    """Where the plan had none at that step, one is taken, before the best model is loaded, whoever comes first."""
    vog, weights = VoGCallback(pixel_rows(), collect=collect, snapshots=[4, 12]), WeightsByStep()
    callbacks = [EarlyStoppingCallback(1), vog] if first == "EarlyStoppingCallback" else [vog, EarlyStoppingCallback(1)]
    trainer = trained(tmp_path, [weights, *callbacks], pieces=falling_score(), **{**BEST, "num_train_epochs": 7})
    assert trainer.state.global_step == 8
    assert steps_of(vog.scores) == [4, 8]
    if collect == "replay":
        stored = load_file(tmp_path / "_vog" / "snapshots" / "step-000000008.safetensors")
        assert_close(stored, {name: weights.weights[8][name] for name in stored}, rtol=0, atol=0)


def test_after_the_scoring_nothing_of_it_is_held(tmp_path):
    """The callback keeps scores and data, and lets moments and model go; after a failure, too."""
    vog = VoGCallback(pixel_rows(), collect="live")
    model = network()
    alive = weakref.ref(model)
    trained(tmp_path / "whole", [vog], model=model)
    del model
    gc.unfreeze()  # `arguments` freezes what there is
    gc.collect()
    assert alive() is None
    assert len(vog.scored_dataset()) == 64
    failing = VoGCallback(pixel_rows(), snapshots="epoch")
    model = network()
    alive = weakref.ref(model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vog_hf.scoring.replay.Replay.score", lambda self, *rest: torch.ones(3)[7])
        patched.setattr(
            logging.getLogger("vog_hf.trainer.callback"), "disabled", True
        )  # pytest keeps records with tracebacks
        trained(tmp_path / "failing", [failing], model=model)
    del model
    gc.unfreeze()  # `arguments` freezes what there is
    gc.collect()
    assert alive() is None
    with pytest.raises(NotScoredError, match="scoring failed"):
        _ = failing.scores


class Quiet(Trainer):
    """A trainer that keeps its logs to itself."""

    def log(self, logs, *args, **kwargs):
        pass


def test_a_trainer_that_logs_nothing_is_scored(tmp_path):
    """Whether training came to its end is not read from the log of an ordinary run."""
    vog = VoGCallback(pixel_rows(), snapshots="epoch")
    trained(tmp_path, [vog], trainer_class=Quiet)
    assert steps_of(vog.scores) == [4, 8, 12]


# --- streams --------------------------------------------------------------------------------------------------------


def tensor_rows():
    """Rows of pixel_values and labels, without a transform."""
    made = [plain({"image": [row["image"]], "label": [row["label"]]}) for row in digits()]
    return Dataset.from_list([{"pixel_values": row["pixel_values"][0], "labels": row["labels"][0]} for row in made])


def test_a_stream_is_scored_as_its_rows_are(tmp_path):
    """An IterableDataset next to the training data gives the scores of the same rows by number."""
    rows = tensor_rows()
    expected = scores_of(tmp_path / "rows", VoGCallback(rows, snapshots="epoch"), rows=rows)
    vog = VoGCallback(rows.to_iterable_dataset(num_shards=2), snapshots="epoch")
    assert_same_scores(scores_of(tmp_path / "stream", vog, rows=rows), expected)
    with pytest.raises(DataError, match="columns"):
        vog.scored_dataset()


def test_rows_of_a_stream_keep_their_names(tmp_path):
    """`id_column` is kept next to the row numbers; rows that have numbers of their own are refused at construction."""
    rows = tensor_rows()
    named = rows.add_column("name", [f"digit {i}" for i in range(len(rows))])
    vog = VoGCallback(named.to_iterable_dataset(), snapshots="epoch", id_column="name", collate_fn=pixels_and_labels)
    scores = scores_of(tmp_path, vog, rows=rows)
    assert scores.ids.tolist() == named["name"][:]
    for others in (rows, None, {"stream": named.to_iterable_dataset(), "rows": named}):
        with pytest.raises(ConfigError, match="id_column is only for streams, since other rows have numbers"):
            VoGCallback(others, id_column="name")


def pixels_and_labels(rows):
    """Whole rows to a batch without names."""
    return default_data_collator([{k: row[k] for k in ("pixel_values", "labels")} for row in rows])


def test_streams_that_cannot_be_scored_are_refused_before_training(tmp_path):
    """Live moments need row numbers; the trainer's own stream has an order that only it knows."""
    stream = tensor_rows().to_iterable_dataset()
    with pytest.raises(ConfigError, match="a stream does not have; use collect='replay'"):
        VoGCallback(stream, collect="live")
    with pytest.raises(DataError, match=r"the training data is a stream .*pass the rows to score"):
        trained(tmp_path, [VoGCallback()], rows=stream, max_steps=4)
    vog = VoGCallback(tensor_rows())
    trained(tmp_path, [vog], rows=stream, max_steps=4)
    assert len(vog.scores) == 64


# --- folders --------------------------------------------------------------------------------------------------------


def test_the_folder_is_vog_in_the_trainers_output(tmp_path):
    """Snapshots and scores lie in ``<output_dir>/_vog``, which Trainer's push to the Hub leaves out."""
    scores = scores_of(tmp_path, VoGCallback(pixel_rows(), snapshots="epoch"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_vog"]
    found = {path.name for path in (tmp_path / "_vog" / "snapshots").iterdir()}
    assert found == {"snapshots.json", *(f"step-{step:09d}.safetensors" for step in (4, 8, 12))}
    assert scores.folder == tmp_path / "_vog" / "scores"
    assert_same_scores(VoGScores.load(scores.folder), scores)


@BOTH
def test_a_folder_of_ones_own_is_used_as_it_is(collect, tmp_path):
    """``output_dir`` of the callback is the folder itself; nothing goes to the trainer's."""
    vog = VoGCallback(pixel_rows(), collect=collect, output_dir=tmp_path / "mine")
    trained(tmp_path / "trainer", [vog])
    assert not (tmp_path / "trainer" / "_vog").exists()
    assert vog.scores.folder == tmp_path / "mine" / "scores"
    assert (tmp_path / "mine" / "snapshots").exists() == (collect == "replay")


@BOTH
def test_a_second_training_replaces_the_first(collect, tmp_path):
    """The same callback in two trainings, the second shorter: scores and snapshots are those of the second alone."""
    vog = VoGCallback(pixel_rows(), collect=collect, snapshots=2)
    first = scores_of(tmp_path, vog)
    second = scores_of(tmp_path, vog, model=network(seed=1), num_train_epochs=2)
    assert (steps_of(first), steps_of(second)) == ([2, 4, 6, 8, 10, 12], [2, 4, 6, 8])
    assert not np.allclose(first.column("vog"), second.column("vog"))
    snapshots = tmp_path / "_vog" / "snapshots"
    assert len(list(snapshots.glob("*.safetensors"))) == (4 if collect == "replay" else 0)
    alone = VoGCallback(pixel_rows(), collect=collect, snapshots=2)
    assert_same_scores(second, scores_of(tmp_path / "x", alone, model=network(seed=1), num_train_epochs=2))


@BOTH
def test_the_same_trainer_can_train_twice(collect, tmp_path):
    """``train()`` again continues from the weights in hand and is scored again, the model's state left as it is."""
    vog = VoGCallback(pixel_rows(), collect=collect, snapshots="epoch")
    trainer = trained(tmp_path, [vog])
    first = vog.scores
    trainer.train()
    assert steps_of(vog.scores) == [4, 8, 12]
    assert not np.allclose(first.column("vog"), vog.scores.column("vog"))


# --- interrupted and resumed ----------------------------------------------------------------------------------------


class Files(TrainerCallback):
    """Notes the snapshots on disk when training begins; to be placed after ours."""

    def __init__(self, folder):
        self.folder, self.at_begin = folder / "_vog" / "snapshots", None

    def on_train_begin(self, args, state, control, **kwargs):
        self.at_begin = sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*"))


@pytest.mark.parametrize(("schedule", "kept", "steps"), [("epoch", [4], [4, 8, 12]), ([2, 4, 7, 9, 11], [2, 4], None)])
def test_a_resumed_training_is_scored_as_if_it_had_never_stopped(schedule, kept, steps, tmp_path):
    """Earlier snapshots are kept, those after the checkpoint are dropped and taken again; scores are equal."""
    options = {"save_strategy": "epoch", "rows": digits().with_transform(augmented)}
    whole = scores_of(tmp_path / "whole", VoGCallback(pixel_rows(), snapshots=schedule), **options)
    folder = tmp_path / "cut"
    vog = VoGCallback(pixel_rows(), snapshots=schedule)
    with pytest.raises(PowerCutError):
        trained(folder, [vog, AtStep(10, cut)], **options)
    with pytest.raises(NotScoredError):
        _ = vog.scores
    files, again = Files(folder), VoGCallback(pixel_rows(), snapshots=schedule)
    trained(folder, [again, files], resume=str(folder / "checkpoint-4"), **options)
    assert files.at_begin == kept
    assert steps_of(again.scores) == (steps or schedule)
    assert_same_scores(again.scores, whole, tolerance=0)


TEN_OF_TWELVE = [1, 2, 3, 4, 6, 7, 8, 9, 10, 12]  # the default plan of an earlier version


@BOTH
def test_a_resumed_training_keeps_the_plan_that_another_version_began(collect, tmp_path):
    """With the default schedule; the scores are those of a training that was never cut."""
    options = {"save_strategy": "epoch", "rows": digits().with_transform(augmented)}
    begun = partial(VoGCallback, pixel_rows(), collect=collect, max_snapshots=10)
    whole = scores_of(tmp_path / "whole", begun(), **options)
    with pytest.raises(PowerCutError):
        trained(tmp_path / "cut", [begun(), AtStep(10, cut)], **options)
    again = VoGCallback(pixel_rows(), collect=collect)
    trained(tmp_path / "cut", [again], resume=str(tmp_path / "cut" / "checkpoint-8"), **options)
    assert steps_of(again.scores) == steps_of(whole) == TEN_OF_TWELVE
    assert_same_scores(again.scores, whole, tolerance=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (None, TEN_OF_TWELVE),
        ("options", [1, 2, 3, 4, 7, 9, 12]),  # five snapshots: 2, 4, 7, 9, 12
        ("epochs", [1, 2, 3, 4, 6, 8, 10, 12, 14, 16]),  # eight of 16 steps
        ("damaged", [1, 2, 3, 4, 6, 7, 9, 10, 12]),  # eight of 12 steps
    ],
)
def test_another_plan_is_made_where_the_first_does_not_hold(change, expected, tmp_path):
    """Options of the callback, another length and a damaged record of the plan give the rest of a new plan."""
    with pytest.raises(PowerCutError):
        trained(tmp_path, [VoGCallback(pixel_rows(), max_snapshots=10), AtStep(7, cut)], save_strategy="epoch")
    if change == "damaged":
        (tmp_path / "_vog" / "vog.json").write_text('{"format": 1, "planned ste')
    vog = VoGCallback(pixel_rows(), **({"max_snapshots": 5} if change == "options" else {}))
    trained(tmp_path, [vog], resume=str(tmp_path / "checkpoint-4"), num_train_epochs=4 if change == "epochs" else 3)
    assert steps_of(vog.scores) == expected


@contextmanager
def blocks_written(*, cut_before=None):
    """The numbers of the blocks that are finished meanwhile; the process ends before one of them."""
    write, numbers = BlockFolder.write, []

    def counted(self, rank, block, *args, **options):
        if block == cut_before:
            raise KeyboardInterrupt
        numbers.append(block)
        write(self, rank, block, *args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BlockFolder, "write", counted)
        yield numbers


def in_blocks(rows=None):
    """16 blocks of 4 rows."""
    return VoGCallback(rows or pixel_rows(), snapshots="epoch", batch_size=4, memory_budget=1)


@pytest.fixture
def cut_while_scoring(tmp_path):
    """The folder of a training that ended in the scoring of block 5."""
    with blocks_written(cut_before=5) as numbers, pytest.raises(KeyboardInterrupt):
        trained(tmp_path, [in_blocks()], save_strategy="epoch")
    assert numbers == [0, 1, 2, 3, 4]
    return tmp_path


def test_a_scoring_that_was_cut_goes_on_when_training_is_resumed(cut_while_scoring):
    """From the last checkpoint: finished blocks are left as they are, and the scores are those of a whole run."""
    blocks = sorted((cut_while_scoring / "_vog" / "scores" / "blocks").iterdir())
    written = [path.stat().st_mtime_ns for path in blocks]
    with blocks_written(cut_before=7) as numbers, pytest.raises(KeyboardInterrupt):
        trained(cut_while_scoring, [in_blocks()], resume=True, save_strategy="epoch")
    assert numbers == [5, 6]
    assert [path.stat().st_mtime_ns for path in blocks] == written
    vog = in_blocks()
    with blocks_written() as numbers:
        trained(cut_while_scoring, [vog], resume=True, save_strategy="epoch")
    assert numbers == list(range(7, 16))
    whole = scores_of(cut_while_scoring / "whole", in_blocks(), save_strategy="epoch")
    assert_same_scores(vog.scores, whole, tolerance=0)


@pytest.mark.parametrize("other", ["snapshots", "rows"])
def test_blocks_of_something_else_are_scored_anew_when_training_is_resumed(other, cut_while_scoring):
    """Training that continues otherwise from an older checkpoint gives other snapshots, other rows other gradients."""
    folder = cut_while_scoring
    others = digits(64, start=64).with_transform(plain)
    vog = in_blocks(others if other == "rows" else None)
    with blocks_written() as numbers:
        if other == "rows":
            trainer = trained(folder, [vog], resume=True)
        else:
            trainer = trained(folder, [vog], rows=others, resume=str(folder / "checkpoint-4"))
    assert numbers == list(range(16))
    expected = VoGScorer(trainer.model, batch_size=4).score(vog.dataset, folder / "_vog")
    assert_same_scores(vog.scores, expected, tolerance=0)


# --- before the end, and what is said -------------------------------------------------------------------------------


@BOTH
def test_there_are_no_scores_before_the_end(collect, tmp_path):
    """Before, and in the midst of, training: NotScoredError, for `scores` and for `scored_dataset`."""
    vog = VoGCallback(pixel_rows(), collect=collect)
    asked = []

    def ask(*_):
        for get in (lambda: vog.scores, vog.scored_dataset):
            with pytest.raises(NotScoredError, match=r"no scores yet; they are computed when trainer\.train\(\)"):
                get()
            asked.append(get)

    ask()
    trained(tmp_path, [vog, AtStep(11, ask)])
    assert len(asked) == 4
    assert len(vog.scores) == 64


def test_one_line_before_training_and_the_verdict_after_it(tmp_path, caplog, capsys):
    """At INFO as log records, else on stderr, never twice; nothing about trackers where none is reported to."""

    def lines():
        logged = [r.getMessage() for r in caplog.records if r.name.startswith("vog_hf.trainer")]
        printed = capsys.readouterr().err.splitlines()
        return logged, [line for line in printed if line.startswith("VoG: ")]

    vog = VoGCallback(pixel_rows(), snapshots="epoch")
    with caplog.at_level(logging.INFO, logger="vog_hf"):
        trained(tmp_path, [vog])
    logged, printed = lines()
    assert printed == []
    assert logged[0].startswith("VoG: 64 rows x 3 snapshots, ")
    planned = "snapshots after steps 4, 8, 12; scoring takes about 67 % of the training's time"
    assert logged[0].endswith(f"of computing; {planned}; all in {tmp_path / '_vog'}")
    assert logged[1] == "VoG: scored 64 rows from 3 snapshots"
    assert "guide in this run" in logged[2]
    assert logged[3].startswith("VoG: Start with loss, highest first: ")
    scores = tmp_path / "_vog" / "scores"
    assert logged[4:] == [f"VoG: the scores are in {scores}; next: vog-hf review {scores} --dataset YOUR_DATASET"]
    caplog.clear()
    trained(tmp_path, [VoGCallback(pixel_rows(), snapshots="epoch")])
    assert [record for record in caplog.records if record.name.startswith("vog_hf")] == []
    _, printed = lines()
    assert len(printed) == 5
    before = transformers.utils.logging.get_verbosity()
    trained(tmp_path, [VoGCallback(pixel_rows(), snapshots="epoch")], log_level="error")
    transformers.utils.logging.set_verbosity(before)  # which the trainer has changed for the process
    assert lines() == ([], [])


def test_options_are_taken_from_the_trainers_arguments(tmp_path):
    """The folder, the batch size and the workers default to what the trainer was told."""
    args = arguments(tmp_path, dataloader_num_workers=1, per_device_eval_batch_size=99, max_steps=2)
    vog = VoGCallback(pixel_rows())
    Trainer(model=network(), args=args, train_dataset=pixel_rows(), callbacks=[vog]).train()
    assert vog.scores.manifest["batch_size"] == 99
    assert vog.scores.folder == tmp_path / "_vog" / "scores"
