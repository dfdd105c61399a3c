"""Question answering: the answer is a span of the row's tokens, which is a class with two parts."""

from collections.abc import Mapping
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.gradients.model_outputs import CALLABLE_TARGET
from vog_hf.gradients.task import IGNORED_TOKEN, Task, required_labels
from vog_hf.metric.training_dynamics import classification_observation
from vog_hf.metric.unit_kinds import END

ANSWER_LOGITS = ("start_logits", "end_logits")
ANSWER_LABELS = ("start_positions", "end_positions")
LEFT_OUT = torch.iinfo(torch.int32).max  # a position outside of every row


class QuestionAnswering(Task):
    """Logits ``[batch, 2, tokens]`` of start and end, minus infinity at padding; labels ``[batch, 2]``, token numbers.

    The logit is that of the given start plus that of the given end; the probability is that of both, under a softmax
    over the row's own tokens (transformers' loss also counts padding); the loss is the mean of the two, in nats. Start
    and end are the units of a row.

    As in transformers' loss, a position before the row is its first token, and an end behind the row (an answer that
    was cut off), or at padding, is left out: then only the other one counts.
    """

    name = "question_answering"
    can_predict_label = True
    unit = END
    is_observed_in_training = False
    label_advice = f"let the rows have {' and '.join(ANSWER_LABELS)}"

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        if not has_answer(outputs):
            raise ModelError(
                f"question answering needs outputs with {' and '.join(ANSWER_LOGITS)}, got {type(outputs).__name__}; "
                f"for other outputs pass {CALLABLE_TARGET}"
            )
        logits = torch.stack([outputs[name] for name in ANSWER_LOGITS], dim=1)
        mask = inputs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != logits[:, 0].shape:
            return logits
        return logits.masked_fill(~mask.bool().unsqueeze(1), float("-inf"))

    @override
    def n_outputs(self, logits: Tensor) -> int | None:
        return None

    @override
    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:
        if labels is None or labels.dim() != 2 or labels.is_floating_point():
            return labels
        positions = labels.long().clamp(min=0)
        is_token = _token_mask(batch)
        if is_token is None:
            return positions
        last = is_token.shape[1] - 1
        is_in_row = (positions <= last) & is_token.to(labels.device).gather(1, positions.clamp(max=last))
        return positions.masked_fill(~is_in_row, LEFT_OUT)

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 2 or labels.shape[1] != 2 or labels.is_floating_point():
            raise DataError(
                f"an answer is two whole numbers, {' and '.join(ANSWER_LABELS)}, got labels of {labels.dtype} "
                f"{tuple(labels.shape)}; let the rows have these two columns"
            )
        outside = (labels == LEFT_OUT).all(1)
        if bool(outside.any()):
            raise LabelError(
                "a row has neither start nor end of its answer among its tokens, so it has no target; leave such rows "
                "out, or label them with the position of the first token, as rows without an answer",
                int(outside.nonzero()[0]),
            )

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        labels = required_labels(labels, self.name).long()
        if target == "logit":
            return _at_ends(logits, labels).sum(-1)
        log_probability = _at_ends(F.log_softmax(logits, -1), labels)
        if target == "loss":
            return -log_probability.sum(-1) / _is_counted(logits, labels).sum(-1)
        return log_probability.sum(-1).exp()

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        labels = required_labels(labels, self.name).long()
        is_counted = _is_counted(logits, labels)
        right = (logits.argmax(-1) == labels) | ~is_counted
        return {
            "loss": self.scalar("loss", logits, labels),
            "confidence": self.scalar("probability", logits, labels),
            "correct": right.all(-1).to(logits.dtype),
            "margin": _at_ends(logits, labels).sum(-1) - _best_other(logits, labels, is_counted),
        }

    @override
    def unit_observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        labels = required_labels(labels, self.name).long()
        observed = classification_observation(logits.flatten(0, 1), _index(logits, labels).flatten())
        label = labels.masked_fill(~_is_counted(logits, labels), IGNORED_TOKEN)
        return {"label": label, **{name: values.view_as(labels) for name, values in observed.items()}}


def has_answer(outputs: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Tell whether a model's outputs have logits of a start and of an end, ``[batch, tokens]`` each."""
    return isinstance(outputs, Mapping) and all(isinstance(outputs.get(name), Tensor) for name in ANSWER_LOGITS)


def _token_mask(batch: Mapping[str, object]) -> Tensor | None:
    """``[batch, tokens]``, true where there is no padding; None where the batch does not say how long rows are."""
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    return torch.ones_like(ids, dtype=torch.bool) if isinstance(ids, Tensor) and ids.dim() == 2 else None


def _is_counted(logits: Tensor, labels: Tensor) -> Tensor:
    return labels < logits.shape[-1]


def _index(logits: Tensor, labels: Tensor) -> Tensor:
    return labels.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)


def _at_ends(values: Tensor, labels: Tensor) -> Tensor:
    """The values at start and end, ``[batch, 2]``; 0 where an end is left out."""
    at = values.gather(-1, _index(values, labels)).squeeze(-1)
    return at.masked_fill(~_is_counted(values, labels), 0.0)


def _best_other(logits: Tensor, labels: Tensor, is_counted: Tensor) -> Tensor:
    """The largest sum of a start's and an end's logit of all spans but the given one, ``[batch]``."""
    top = logits.amax(-1).masked_fill(~is_counted, 0.0)
    other = logits.scatter(-1, _index(logits, labels), float("-inf")).amax(-1).masked_fill(~is_counted, float("-inf"))
    return torch.maximum(other[:, 0] + top[:, 1], top[:, 0] + other[:, 1])
