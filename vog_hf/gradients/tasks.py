"""Tasks: the scalar of a row, its companions and its labels, one class per kind of head."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.metric.training_dynamics import classification_observation

TARGETS = ("logit", "probability", "loss")
IGNORED_TOKEN = -100
CALLABLE_TARGET = "a callable target, VoGConfig(target=function(outputs, batch) -> [batch])"
CAUSAL_LOSSES = ("ForCausalLM", "ForConditionalGeneration")  # transformers' `loss_type` of models that shift labels


class Task:
    """The meaning of a kind of model's logits and labels, row by row. `logits` and `labels` are of one batch."""

    name: ClassVar[str]
    has_classes: ClassVar[bool] = False  # each row has one class: scores are normalized within it
    can_predict_label: ClassVar[bool] = False  # a missing label can be replaced by the model's prediction
    needs_labels: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = TARGETS

    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        """Raise DataError, naming the row of the batch, where a label is not one that this task can have."""
        raise NotImplementedError

    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:  # noqa: ARG002 (of some tasks)
        """Labels without those that only exist because rows of a batch are padded to one length."""
        return labels

    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        """The scalar to differentiate, ``[batch]``."""
        raise NotImplementedError

    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Observe each row at this snapshot, for `vog_hf.metric.training_dynamics.TrainingDynamics`."""
        raise NotImplementedError


class SingleLabelClassification(Task):
    """Logits ``[batch, classes]``, labels ``[batch]``; negative labels mean no label."""

    name = "single_label_classification"
    has_classes = True
    can_predict_label = True

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
                f"label {int(labels[at])} is outside the model's classes 0..{n_outputs - 1}; only None, -1 and -100 "
                "mean no label. Give the model as many outputs (num_labels) as the data has classes, or fix the label",
                at,
            )

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        labels = _required(labels, self.name).long()
        if target == "loss":
            return F.cross_entropy(logits, labels, reduction="none")
        values = logits.softmax(-1) if target == "probability" else logits
        return values.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return classification_observation(logits, _required(labels, self.name).long())


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
        wanted = _required(labels, self.name).to(logits.dtype)
        if target == "loss":
            return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
        values = logits.sigmoid() if target == "probability" else logits
        return (values * wanted).sum(-1)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        wanted = _required(labels, self.name).to(logits.dtype)
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
            return self._loss(prediction, _required(labels, self.name))
        return prediction.sum(-1)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        prediction = logits.reshape(len(logits), -1)
        seen = {"prediction": prediction.sum(-1)}
        return seen if labels is None else seen | {"loss": self._loss(prediction, labels)}

    @staticmethod
    def _loss(prediction: Tensor, labels: Tensor) -> Tensor:
        return (prediction - labels.reshape(prediction.shape).to(prediction.dtype)).square().mean(-1)


class TokenPrediction(Task):
    """Logits ``[batch, tokens, vocabulary]``, labels ``[batch, tokens]`` at the same positions, -100 left out.

    The scalar is the mean over the row's label tokens: sequence-to-sequence and masked language models, token
    classification. Labels at padding do not count, whatever a collator puts there.

    Args:
        virtual_tokens: How many tokens the model puts before those of a row; they have logits and no label.
    """

    name = "token_prediction"

    def __init__(self, virtual_tokens: int = 0) -> None:
        self._virtual_tokens = virtual_tokens

    @override
    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:
        # The mask of an encoder's input says nothing of a decoder's labels, whatever their lengths.
        mask = batch.get("decoder_attention_mask" if "decoder_input_ids" in batch else "attention_mask")
        if labels is None or not isinstance(mask, Tensor) or mask.shape != labels.shape or labels.is_floating_point():
            return labels
        counts = self._label_positions(mask.bool())
        return labels.long().masked_fill(~counts.to(labels.device), IGNORED_TOKEN)

    def _label_positions(self, is_text: Tensor) -> Tensor:
        """Positions where a label counts, ``[batch, tokens]``, given those that are not padding."""
        return is_text

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 2 or labels.is_floating_point():
            raise DataError(
                f"token labels must be whole numbers [batch, tokens], got {labels.dtype} {tuple(labels.shape)}"
            )
        counted = self._label_tokens(labels).long()
        empty = (counted == IGNORED_TOKEN).all(1)
        if bool(empty.any()):
            raise LabelError(
                "a row has no label token (all are -100), so it has no target; leave such rows out",
                int(empty.nonzero()[0]),
            )
        too_high = torch.zeros_like(counted, dtype=torch.bool) if n_outputs is None else counted >= n_outputs
        outside = ((counted < 0) & (counted != IGNORED_TOKEN)) | too_high
        if bool(outside.any()):
            at = int(outside.any(1).nonzero()[0])
            raise LabelError(
                f"label token {int(counted[outside][0])} is outside the vocabulary of {n_outputs}; -100 = left out", at
            )

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        logits, labels, counts = self.aligned(logits, labels)
        index = labels.clamp(min=0).unsqueeze(-1)
        if target == "logit":
            values = logits.gather(-1, index).squeeze(-1)
        else:
            log_probability = F.log_softmax(logits, -1).gather(-1, index).squeeze(-1)
            values = -log_probability if target == "loss" else log_probability.exp()
        return (values * counts).sum(-1) / counts.sum(-1)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        per_token, counts = self.token_observation(logits, labels)
        return {name: (values * counts).sum(-1) / counts.sum(-1) for name, values in per_token.items()}

    def token_observation(self, logits: Tensor, labels: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Observe each token that may have a label, ``[batch, tokens]`` each; and which of them have one."""
        logits, labels, counts = self.aligned(logits, labels)
        index = labels.clamp(min=0).unsqueeze(-1)
        log_probability = F.log_softmax(logits, -1).gather(-1, index).squeeze(-1)
        per_token = {
            "loss": -log_probability,
            "confidence": log_probability.exp(),
            "correct": (logits.argmax(-1) == labels).to(logits.dtype),
        }
        return per_token, counts

    def _label_tokens(self, labels: Tensor) -> Tensor:
        """The labels that have a logit."""
        return labels

    def _label_logits(self, logits: Tensor) -> Tensor:
        """The logits that have a label."""
        return logits

    def aligned(self, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (or their gradient) and labels at the same positions, and which of them count."""
        labels = _required(labels, self.name)
        if self._virtual_tokens and logits.shape[1] == labels.shape[1] + self._virtual_tokens:
            labels = F.pad(labels, (self._virtual_tokens, 0), value=IGNORED_TOKEN)
        labels, logits = self._label_tokens(labels).long(), self._label_logits(logits)
        if logits.shape[:-1] != labels.shape:
            raise ModelError(
                f"logits for {tuple(logits.shape[:-1])} tokens do not fit labels for {tuple(labels.shape)}; where "
                f"the loss aligns them (CTC), pass {CALLABLE_TARGET}: docs/limitations.md has that of CTC"
            )
        return logits, labels, (labels != IGNORED_TOKEN).to(logits.dtype)


class CausalLanguageModel(TokenPrediction):
    """As `TokenPrediction`, with the logit at position i - 1 for the label at i."""

    name = "causal_language_model"

    @override
    def _label_positions(self, is_text: Tensor) -> Tensor:
        """As for any token; and the label behind padding is predicted from padding."""
        after_text = is_text.roll(1, -1)
        after_text[:, :1] = True  # the first position has no logit, and no label that counts
        return is_text & after_text

    @override
    def _label_tokens(self, labels: Tensor) -> Tensor:
        return labels[:, 1:]

    @override
    def _label_logits(self, logits: Tensor) -> Tensor:
        return logits[:, :-1]


TASKS: dict[str, Task] = {
    task.name: task()
    for task in (
        SingleLabelClassification,
        MultiLabelClassification,
        Regression,
        TokenPrediction,
        CausalLanguageModel,
    )
}


def _required(labels: Tensor | None, task: str) -> Tensor:
    if labels is None:
        raise DataError(f"{task} needs labels, and the batch has none")
    return labels
