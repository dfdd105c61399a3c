"""Trainings that are observed by `collect="training"`, and an independent loop over what they trained on, in float64.

The loop knows a row by its content, not by a number that travels with it: `Noting` keeps each batch as the model is to
be given it, with the weights before the step.
"""

import copy

import models
import numpy as np
import torch
from reference import reference_csg_trajectory, reference_gradients, reference_logits
from trainers import trained
from transformers import Trainer

N = 23
LENGTHS = tuple(3 + 7 * i % 11 for i in range(N))
UNDROPPED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Noting(Trainer):
    """Notes every batch: its epoch, its inputs without labels, and the weights that it is trained with."""

    def training_step(self, model, inputs, *args, **kwargs):
        step = self.state.global_step
        if not hasattr(self, "states"):
            self.states, self.noted = {}, []
        if step not in self.states:
            self.states[step] = copy.deepcopy(self.model.state_dict())
        main = {
            name: inputs[name].clone() for name in ("pixel_values", "input_ids", "attention_mask") if name in inputs
        }
        self.noted.append((int(self.state.epoch or 0), step, main))
        return super().training_step(model, inputs, *args, **kwargs)


def case_of(name, n=N):
    """A model in float64 without dropout, rows that differ, and their labels."""
    rows = models._float_rows("pixel_values", (3, 8, 8), seed=3, n=n)
    if name != "vit":
        rows = models.token_rows(5, lengths=LENGTHS[:n])
    made = {
        "vit": models.vit,
        "bert": lambda: models.bert(**UNDROPPED),
        "llama": models.llama,
        "lora_bert": lora_bert,
    }[name]()
    labels = [(i * i + i // 3) % models.CLASSES for i in range(n)]
    if name == "llama":
        labels = models._prompted(rows)
    return models.Case(made.model.double(), rows, labels, made.task)


def lora_bert():
    """A text classifier without dropout, under an adapter."""
    from peft import LoraConfig, get_peft_model

    options = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.Case(get_peft_model(models.bert(**UNDROPPED).model, options), [], [])


def labeled(case):
    """The rows of a case with their labels; floats in the model's precision."""
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    return [
        {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in row.items()} for row in rows
    ]


def noted_training(folder, case, callbacks=(), *, rows=None, trainer_class=Noting, pieces=None, **options):
    """A Trainer that noted what it trained on: a copy of the model, two epochs, small batches."""
    defaults = {"per_device_train_batch_size": 5, "num_train_epochs": 2, "learning_rate": 1e-2}
    return trained(
        folder,
        list(callbacks),
        rows=labeled(case) if rows is None else rows,
        model=copy.deepcopy(case.model),
        trainer_class=trainer_class,
        pieces={"data_collator": models.collate, **(pieces or {})},
        **{**defaults, **options},
    )


def smoothed(label, smoothing):
    """The loss of one row whose label is smoothed, as a target of the oracle."""

    def target(outputs, _inputs):
        log_probability = outputs.logits.log_softmax(-1)
        return -(1 - smoothing) * log_probability[:, label] - smoothing * log_probability.mean(-1)

    return target


def expected(trainer, case, smoothing=0.0):
    """What the loop finds: ``loss``, ``csg``, ``confidence``, ``correct``, ``prediction`` and ``step``, [rows, epochs].

    NaN where an epoch did not visit a row; a row's first visit in an epoch counts. ``every`` has all (step, row), and
    ``gradients`` the gradient of each row's loss by (row, epoch).
    """
    n_epochs = 1 + max(epoch for epoch, _, _ in trainer.noted)
    names = ("loss", "csg", "confidence", "correct", "prediction", "step")
    found = {name: np.full((len(case.rows), n_epochs), np.nan) for name in names}
    found["every"], found["gradients"] = [], {}
    found["last steps"] = [max(1 + step for of, step, _ in trainer.noted if of == epoch) for epoch in range(n_epochs)]
    for epoch, step, inputs in trainer.noted:
        numbers = [_number(case, inputs, i) for i in range(len(next(iter(inputs.values()))))]
        found["every"] += [(step + 1, number) for number in numbers]
        numbers = [number for number in numbers if np.isnan(found["step"][number, epoch])]
        if not numbers:
            continue
        rows, labels = [case.rows[i] for i in numbers], [case.labels[i] for i in numbers]
        state = [trainer.states[step]]
        targets = ["loss" if not smoothing else smoothed(label, smoothing) for label in labels]
        gradients = [
            reference_gradients(case.model, state, [row], target, [label], task=case.task)[0]
            for row, label, target in zip(rows, labels, targets, strict=True)
        ]
        found["gradients"] |= {(i, epoch): of_row[0] for i, of_row in zip(numbers, gradients, strict=True)}
        csg = reference_csg_trajectory(gradients)[:, 0]
        for number, logits, label, squared in zip(
            numbers, reference_logits(case.model, state, rows), labels, csg, strict=True
        ):
            values = _observed(logits[0], label, case.task)
            for name, value in {**values, "csg": squared, "step": step + 1}.items():
                found[name][number, epoch] = value
    return found


def expected_vog(gradients, n_rows):
    """VoG of each row over the epochs that visited it, from the loop's gradients; NaN with fewer than two visits."""
    vog = np.full(n_rows, np.nan)
    for row in range(n_rows):
        visits = [gradient for (number, _), gradient in sorted(gradients.items(), key=_place) if number == row]
        if len(visits) > 1:
            visits = np.stack(visits)
            visits = visits.mean(1) if visits.ndim == 4 else visits  # channels of an image
            vog[row] = visits.std(0).mean()
    return vog


def _place(item):
    return item[0]


def _number(case, inputs, i):
    """The row that one example of a batch is: the only one with this content."""
    name = "pixel_values" if "pixel_values" in inputs else "input_ids"
    value = inputs[name][i]
    if "attention_mask" in inputs:
        value = value[inputs["attention_mask"][i].bool()]
    same = [k for k, row in enumerate(case.rows) if row[name].shape == value.shape and bool((row[name] == value).all())]
    assert len(same) == 1
    return same[0]


def _observed(logits, label, task):
    """Loss and the like of one row, in numpy."""
    if task == "causal_language_model":
        pairs = [(logits[i - 1], int(label[i])) for i in range(1, len(label)) if label[i] != -100]
        of_tokens = [_observed(z, y, "single_label_classification") for z, y in pairs]
        names = ("loss", "confidence", "correct")
        return {name: np.mean([values[name] for values in of_tokens]) for name in names}
    shifted = logits - logits.max()
    log_probability = shifted - np.log(np.exp(shifted).sum())
    prediction = int(logits.argmax())
    return {
        "loss": -log_probability[label],
        "confidence": np.exp(log_probability[label]),
        "correct": float(prediction == label),
        "prediction": prediction,
    }
