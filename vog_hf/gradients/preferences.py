"""Preferences: rows of a chosen and a rejected text, which go through the model as two texts and are one row.

TRL's collators put the chosen texts of B rows before the rejected ones, ``[2 * B, tokens]``. `paired` makes
``[B, 2, tokens]`` of them, under `TEXTS_OF_ROW`; the model gets ``[B * 2, tokens]``, the texts of a row in turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from vog_hf.errors import LabelError, ModelError
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, find_logits
from vog_hf.gradients.task import IGNORED_TOKEN, TARGETS, Observations, RowValue
from vog_hf.metric.unit_kinds import SIDE

CHOSEN, REJECTED = "chosen_ids", "rejected_ids"  # columns of rows as TRL prepares them
COLUMNS = ("prompt_ids", CHOSEN, REJECTED, "ref_chosen_logps", "ref_rejected_logps", "margin")
TASK_ONLY = "for_task:"  # beginning of the names of inputs that forward does not get
TEXTS_OF_ROW = f"{TASK_ONLY}texts_of_row"  # names of the inputs that have several texts per row
ANSWERS = f"{TASK_ONLY}answers"  # tokens of the answers, [rows, 2, tokens], -100 left out
REFERENCE = f"{TASK_ONLY}reference"  # what the margin of each row is compared with, [rows]


class RewardModeling(RowValue):
    """Logits ``[batch]``: the reward of the chosen text minus that of the rejected one, minus the row's margin, if any.

    The probability is the sigmoid of it, the loss minus its logarithm, as in TRL's RewardTrainer. The chosen and the
    rejected text are the units of a row.
    """

    name = "reward_modeling"
    targets = TARGETS
    unit = SIDE

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        rewards = find_logits(outputs)
        if rewards.flatten(1).shape[1:].numel() != 1 or TEXTS_OF_ROW not in inputs:
            raise ModelError(
                f"reward modeling needs rows with {CHOSEN} and {REJECTED}, and a model with one output (num_labels=1), "
                f"got outputs of shape {tuple(rewards.shape)}; for others pass {CALLABLE_TARGET}"
            )
        return _margin(rewards.reshape(-1, 2), inputs)

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        if target == "probability":
            return logits.sigmoid()
        return F.softplus(-logits) if target == "loss" else logits

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {
            "loss": F.softplus(-logits),
            "confidence": logits.sigmoid(),
            "correct": (logits > 0).to(logits.dtype),
            "margin": logits,
        }

    @override
    def observations(
        self, logits: Tensor, labels: Tensor | None, outputs: object, inputs: Mapping[str, object]
    ) -> Observations:
        rewards = find_logits(outputs).detach().to(logits.dtype).reshape(-1, 2)
        of_units = {"label": torch.zeros_like(rewards, dtype=torch.int64), "reward": rewards}
        return Observations(self.observation(logits, labels), of_units)


class PreferenceOptimization(RowValue):
    """Logits ``[batch]``: log-probability of the chosen answer minus that of the rejected one, in nats.

    Minus the same of the reference model where the rows have ``ref_chosen_logps`` and ``ref_rejected_logps``, as in
    TRL's DPOTrainer with ``precompute_ref_log_probs=True``; that changes the companion, not the gradient. The tokens of
    the prompt are left out. A loss would need the trainer's beta. The two answers are the units of a row; the loss of
    one is the mean over its tokens.
    """

    name = "preference_optimization"
    unit = SIDE

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        answers, logits = inputs.get(ANSWERS), find_logits(outputs)
        if not isinstance(answers, Tensor) or logits.dim() != 3:
            raise ModelError(
                f"preference optimization needs rows with {CHOSEN} and {REJECTED}, batches with completion_mask and "
                f"logits [texts, tokens, vocabulary], got {tuple(logits.shape)}; for others pass {CALLABLE_TARGET}"
            )
        return _margin(_log_probabilities(logits, answers), inputs)

    @override
    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:
        """The tokens of both answers, ``[batch, 2, tokens]``."""
        answers = batch.get(ANSWERS)
        return answers if isinstance(answers, Tensor) else None

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 3:
            return
        empty = (labels[..., 1:] == IGNORED_TOKEN).flatten(1).all(1)
        if bool(empty.any()):
            raise LabelError(
                "a row has no token of either answer (both are cut off, or empty), so it has no target; leave such "
                "rows out, or raise the trainer's max_length",
                int(empty.nonzero()[0]),
            )

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {"margin": logits}

    @override
    def observations(
        self, logits: Tensor, labels: Tensor | None, outputs: object, inputs: Mapping[str, object]
    ) -> Observations:
        answers: Any = inputs[ANSWERS]
        of_answers = _log_probabilities(find_logits(outputs), answers).to(logits.dtype)
        n_tokens = (answers[..., 1:] != IGNORED_TOKEN).sum(-1)
        label = torch.zeros_like(n_tokens).masked_fill(n_tokens == 0, IGNORED_TOKEN)
        of_units = {"label": label, "loss": -of_answers / n_tokens, "logp": of_answers}
        return Observations(self.observation(logits, labels), of_units)


def paired(batch: Mapping[str, object], fed: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of forward, of a batch of chosen texts followed by as many rejected ones, by row, ``[rows, 2, ...]``.

    Args:
        batch: As TRL's collators make it.
        fed: What forward gets of it.
    """
    n_texts = len(fed["input_ids"])
    per_text = tuple(name for name, value in fed.items() if isinstance(value, Tensor) and value.shape[:1] == (n_texts,))
    rows = {name: _by_row(value) if name in per_text else value for name, value in fed.items()}
    rows[TEXTS_OF_ROW] = per_text
    counts = batch.get("completion_mask")
    if isinstance(counts, Tensor):
        rows[ANSWERS] = rows["input_ids"].masked_fill(_by_row(counts) == 0, IGNORED_TOKEN)
    chosen, rejected, margin = (batch.get(name) for name in ("ref_chosen_logps", "ref_rejected_logps", "margin"))
    if isinstance(chosen, Tensor) and isinstance(rejected, Tensor):
        rows[REFERENCE] = chosen - rejected
    elif isinstance(margin, Tensor):
        rows[REFERENCE] = margin
    return rows


def chosen_come_first(row: Mapping[str, Any], chosen: Sequence[int], rejected: Sequence[int]) -> bool:
    """Tell whether two texts of a batch are the chosen and the rejected one of a row, in this order."""
    prompt = list(row.get("prompt_ids", ()))
    return _is_part(chosen, prompt + list(row[CHOSEN])) and _is_part(rejected, prompt + list(row[REJECTED]))


def _is_part(text: Sequence[int], whole: Sequence[int]) -> bool:
    """Tell whether a text is a whole one, or begins or ends with it, or the other way round (one is cut off)."""
    n = min(len(text), len(whole))
    return list(text[:n]) == list(whole[:n]) or list(text[len(text) - n :]) == list(whole[len(whole) - n :])


def _by_row(texts: Tensor) -> Tensor:
    """``[2 * rows, ...]``, one half after the other, as ``[rows, 2, ...]``."""
    return torch.stack(texts.chunk(2), dim=1)


def _log_probabilities(logits: Tensor, answers: Tensor) -> Tensor:
    """Log-probability of each answer ``[rows, 2]``, of tokens ``[rows, 2, tokens]``, -100 left out."""
    tokens = answers.flatten(0, 1)[:, 1:]
    logits = logits[:, -answers.shape[-1] : -1]  # prompt tuning puts virtual tokens before those of a row
    of_tokens = logits.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return of_tokens.masked_fill(tokens == IGNORED_TOKEN, 0.0).sum(-1).reshape(-1, 2)


def _margin(values: Tensor, inputs: Mapping[str, object]) -> Tensor:
    """First value of each row minus its second, minus the row's reference."""
    reference = inputs.get(REFERENCE)
    margin = values[:, 0] - values[:, 1]
    return margin - reference if isinstance(reference, Tensor) else margin
