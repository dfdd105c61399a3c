"""Tasks whose rows have one label each, or one value for each output: classification and regression."""

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from vog_hf.errors import DataError, LabelError
from vog_hf.gradients.task import IGNORED_TOKEN, Task, required_labels
from vog_hf.metric.training_dynamics import classification_observation
from vog_hf.metric.unit_kinds import CHOICE


class SingleLabelClassification(Task):
    """Logits ``[batch, classes]``, labels ``[batch]``; negative labels mean no label."""

    name = "single_label_classification"
    has_classes = True
    can_predict_label = True
    outputs_in_words = "classes"
    label_fix = "Give the model as many outputs (num_labels) as the data has classes"

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 1 or labels.is_floating_point():
            raise DataError(
                "labels of a single-label classifier must be one class number per row, got "
                f"{labels.dtype} of shape {tuple(labels.shape)}; for several labels per row or a regression set "
                "model.config.problem_type or VoGConfig(task=...)"
            )
        if n_outputs is None:
            return
        labels = labels.long()  # unsigned numbers would compare -1 as 255
        outside = (labels >= n_outputs) | ((labels < -1) & (labels != IGNORED_TOKEN))
        if bool(outside.any()):
            at = int(outside.nonzero()[0])
            raise LabelError(
                f"label {int(labels[at])} is outside the model's {self.outputs_in_words} 0..{n_outputs - 1}; only "
                f"None, -1 and -100 mean no label. {self.label_fix}, or fix the label",
                at,
            )

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        labels = required_labels(labels, self.name).long()
        if target == "loss":
            return F.cross_entropy(logits, labels, reduction="none")
        values = logits.softmax(-1) if target == "probability" else logits
        return values.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return classification_observation(logits, required_labels(labels, self.name).long())


class MultipleChoice(SingleLabelClassification):
    """Logits ``[batch, choices]``, labels ``[batch]``: the number of the right choice; negative labels mean no label.

    As single-label classification, but a number means another choice in each row: there are no classes of rows. The
    choices are the units of a row, the given one and the others alike.
    """

    name = "multiple_choice"
    has_classes = False
    is_observed_in_training = False
    outputs_in_words = "choices"
    label_fix = "Give each row all its choices"
    unit = CHOICE

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 1 or labels.is_floating_point():
            raise DataError(
                "labels of multiple choice must be the number of a choice per row, got "
                f"{labels.dtype} of shape {tuple(labels.shape)}"
            )
        super().check_labels(labels, n_outputs)

    @override
    def unit_observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {"label": torch.zeros_like(logits, dtype=torch.int64), "confidence": logits.softmax(-1)}


class MultiLabelClassification(Task):
    """Logits and labels ``[batch, labels]``, labels 0 or 1. The logit is the sum over the row's positive labels."""

    name = "multi_label_classification"

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 2 or (n_outputs is not None and labels.shape[1] != n_outputs):
            raise DataError(
                f"multi-label rows need one 0 or 1 for each of {n_outputs} labels, got shape {tuple(labels.shape)}"
            )
        wrong = ((labels != 0) & (labels != 1)).any(1)
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise LabelError(f"multi-label labels must be 0 or 1, got {labels[at].tolist()}", at)

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        wanted = required_labels(labels, self.name).to(logits.dtype)
        if target == "loss":
            return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
        values = logits.sigmoid() if target == "probability" else logits
        return (values * wanted).sum(-1)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        wanted = required_labels(labels, self.name).to(logits.dtype)
        given = torch.where(wanted > 0, logits, -logits).sigmoid()  # probability of each label's given value
        return {
            "loss": F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1),
            "confidence": given.mean(-1),
            "correct": (given > 0.5).to(logits.dtype).mean(-1),
        }


class Regression(Task):
    """Logits ``[batch]`` or ``[batch, outputs]``: the scalar is the prediction, summed over the outputs."""

    name = "regression"
    needs_labels = False
    targets = ("logit", "loss")

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        per_row = labels.reshape(len(labels), -1).shape[1]
        if n_outputs is not None and per_row != n_outputs:
            raise DataError(
                f"a regression with {n_outputs} outputs needs {n_outputs} numbers a row, got labels of shape "
                f"{tuple(labels.shape)}; if the numbers are classes, cast them to int64 (a missing one to -100) and "
                "set config.problem_type='single_label_classification'"
            )
        bad = ~torch.isfinite(labels.float()).reshape(len(labels), -1).all(1)
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise LabelError(f"regression labels must be finite, got {labels[at].tolist()}", at)

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        prediction = logits.reshape(len(logits), -1)
        if target == "loss":
            return self._loss(prediction, required_labels(labels, self.name))
        return prediction.sum(-1)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        prediction = logits.reshape(len(logits), -1)
        seen = {"prediction": prediction.sum(-1)}
        return seen if labels is None else seen | {"loss": self._loss(prediction, labels)}

    @staticmethod
    def _loss(prediction: Tensor, labels: Tensor) -> Tensor:
        return (prediction - labels.reshape(prediction.shape).to(prediction.dtype)).square().mean(-1)
