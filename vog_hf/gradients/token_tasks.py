"""Tasks whose rows have a label for each token: language models and token classification."""

import sys
from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, base_model
from vog_hf.gradients.task import IGNORED_TOKEN, Observations, Task, required_labels
from vog_hf.metric.training_dynamics import classification_observation
from vog_hf.metric.unit_kinds import TOKEN

# Logits of tokens that are looked at together. What is computed of them must not cost memory that training needs; and
# on a CPU, memory that stays in the cache is several times as fast as new memory for each batch.
PART, PART_ON_CPU = 2**22, 2**18


class TokenPrediction(Task):
    """Logits ``[batch, tokens, vocabulary]``, labels ``[batch, tokens]`` at the same positions, -100 left out.

    The scalar is the mean over the row's label tokens: sequence-to-sequence and masked language models. Labels at
    padding do not count, whatever a collator puts there.

    Args:
        virtual_tokens: How many tokens the model puts before those of a row; they have logits and no label.
        has_token_units: Whether labels are at the tokens of the input, so that each may be a unit of its row.
    """

    name = "token_prediction"

    def __init__(self, virtual_tokens: int = 0, *, has_token_units: bool = True) -> None:
        self._virtual_tokens = virtual_tokens
        self.has_token_units = has_token_units

    @override
    @classmethod
    def for_model(cls, model: nn.Module) -> Self:
        config: Any = getattr(base_model(model), "config", None)
        return cls(_n_virtual_tokens(model), has_token_units=not getattr(config, "is_encoder_decoder", False))

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
        return _means(*self.token_observation(logits, labels))

    @override
    def observations(
        self, logits: Tensor, labels: Tensor | None, outputs: object, inputs: Mapping[str, object]
    ) -> Observations:
        if self.unit is not None or not self.has_token_units:
            return super().observations(logits, labels, outputs, inputs)
        per_token, counts = self.token_observation(logits, labels)
        labels = required_labels(labels, self.name).long()
        behind_virtual = F.pad(labels, (counts.shape[1] - labels.shape[1], 0), value=IGNORED_TOKEN)
        dense = {"label": self._labels_with_logit(behind_virtual)}
        dense |= {name: self._at_labels(values) for name, values in per_token.items()}
        of_tokens = {name: values[:, -labels.shape[1] :] for name, values in dense.items()}
        return Observations(_means(per_token, counts), of_tokens)

    def token_observation(self, logits: Tensor, labels: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Observe each token that may have a label, ``[batch, tokens]`` each; and which of them have one."""
        logits, labels, counts = self.aligned(logits, labels)
        flat, given = logits.flatten(0, 1), labels.flatten()
        size = max(1, (PART_ON_CPU if logits.device.type == "cpu" else PART) // logits.shape[-1])
        parts = [_of_labeled(*part) for part in zip(flat.split(size), given.split(size), strict=True)]
        loss, prediction = (torch.cat(values).view_as(labels) for values in zip(*parts, strict=True))
        loss = loss.masked_fill(counts == 0, 0)  # NaN at padding does not count
        per_token = {
            "loss": loss,
            "confidence": loss.neg().exp(),
            "correct": (prediction == labels).to(counts.dtype),
        }
        return per_token, counts

    def _label_tokens(self, labels: Tensor) -> Tensor:
        """The labels that have a logit."""
        return labels

    def _label_of_logit(self, labels: Tensor) -> Tensor:
        """The label of each position's logit, ``[batch, tokens]``."""
        return labels

    def _labels_with_logit(self, labels: Tensor) -> Tensor:
        """The labels ``[batch, tokens]``, -100 where there is no logit."""
        return labels

    def _at_labels(self, values: Tensor) -> Tensor:
        """Values at the positions of logits ``[batch, tokens]``, at those of their labels."""
        return values

    def aligned(self, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (or their gradient), never copied, with the label of each position, and which of them count."""
        labels = required_labels(labels, self.name)
        if self._virtual_tokens and logits.shape[1] == labels.shape[1] + self._virtual_tokens:
            labels = F.pad(labels, (self._virtual_tokens, 0), value=IGNORED_TOKEN)
        labels = self._label_of_logit(labels).long()
        if logits.shape[:-1] != labels.shape:
            raise ModelError(
                f"logits for {tuple(logits.shape[:-1])} tokens do not fit labels for {tuple(labels.shape)}; where "
                f"the loss aligns them, pass VoGConfig(task='speech_recognition') (CTC), or {CALLABLE_TARGET}"
            )
        dtype = torch.promote_types(logits.dtype, torch.float32)  # bfloat16 counts to 256
        counts = (labels != IGNORED_TOKEN).to(dtype)
        return logits, labels, counts


def _of_labeled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `_loss_and_prediction`; on a CPU, a token without a label (padding, a prompt) takes no time and has 0 and -1.

    Elsewhere the host would have to wait for the number of labels.
    """
    has_label = labels != IGNORED_TOKEN
    if logits.device.type != "cpu" or bool(has_label.all()):
        return _loss_and_prediction(logits, labels)
    at = has_label.nonzero().squeeze(-1)
    loss, prediction = _loss_and_prediction(logits[at], labels[at])
    all_predictions = torch.full_like(labels, -1).index_copy_(0, at, prediction)
    return loss.new_zeros(len(labels)).index_copy_(0, at, loss), all_predictions


def _loss_and_prediction(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and predicted label of each token, ``[tokens]``; the loss in float32 or better."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    return loss, logits.max(-1).indices  # the first one if several are equal, as argmax, in half the time


class TokenClassification(TokenPrediction):
    """As `TokenPrediction`, of a class for each token; the labeled tokens are the units of a row.

    Where the first sub-token of each word has its label and the others have -100, as in transformers' examples, the
    units are the words.
    """

    name = "token_classification"
    unit = TOKEN

    @override
    def unit_observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        labels = required_labels(labels, self.name).long()
        logits = logits[:, logits.shape[1] - labels.shape[1] :]  # without virtual tokens, which have no label
        observed = classification_observation(logits.flatten(0, 1), labels.clamp(min=0).flatten())
        return {"label": labels, **{name: values.view_as(labels) for name, values in observed.items()}}


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
    def _label_of_logit(self, labels: Tensor) -> Tensor:
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED_TOKEN)

    @override
    def _labels_with_logit(self, labels: Tensor) -> Tensor:
        return F.pad(labels[:, 1:], (1, 0), value=IGNORED_TOKEN)

    @override
    def _at_labels(self, values: Tensor) -> Tensor:
        return values.roll(1, -1)  # what comes to the first token belongs to no label


def _means(per_token: Mapping[str, Tensor], counts: Tensor) -> dict[str, Tensor]:
    """Means over the tokens of each row that count, ``[batch]``."""
    return {name: (values * counts).sum(-1) / counts.sum(-1) for name, values in per_token.items()}


def _n_virtual_tokens(model: nn.Module) -> int:
    """Number of tokens that PEFT puts before those of each row (prompt tuning, p-tuning)."""
    peft_model = getattr(sys.modules.get("peft"), "PeftModel", ())  # a model of PEFT's has had it imported
    config: Any = model.active_peft_config if isinstance(model, peft_model) else None
    return config.num_virtual_tokens if getattr(config, "is_prompt_learning", False) else 0
