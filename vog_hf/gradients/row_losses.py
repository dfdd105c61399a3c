"""Each row's own mean loss and the weight that a training's loss gives it, by the gradient that reaches the logits.

A training differentiates one number: a mean over rows or tokens, divided by accumulation steps, scaled for mixed
precision, weighted by class. Whatever it does, the gradient of row i's logits is w_i times that of the row's own mean
loss as long as the loss is a sum of w_i * loss_i, and so w_i can be read off, with no need to know what was done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vog_hf.gradients.class_tasks import SingleLabelClassification
from vog_hf.gradients.task import Task
from vog_hf.gradients.token_tasks import TokenPrediction

# Share of the squared gradient that may not be along the row's own; bfloat16 rounds 4e-6 of it away.
OF_ANOTHER_LOSS = 1e-3


@dataclass(frozen=True)
class RowLosses:
    """Observations of a batch in its forward pass.

    Attributes:
        observation: ``[batch]`` each, as `Task.observation`.
        own_gradient: Gradient of each row's own mean loss with respect to its logits, ``[batch, logits]``; of tokens
            only that of the label's logit, ``[batch, tokens]``.
        counts: Number of terms of each row in a mean over the batch, ``[batch]``: its label tokens, else 1.
    """

    task: Task
    labels: Tensor
    observation: dict[str, Tensor]
    own_gradient: Tensor
    counts: Tensor

    def split(self, sizes: Sequence[int]) -> "list[RowLosses]":
        """The losses of several batches, in order; ``sizes`` are their numbers of rows."""
        values = [self.labels, self.own_gradient, self.counts, *self.observation.values()]
        parts = zip(*(tensor.split(list(sizes)) for tensor in values), strict=True)
        return [
            RowLosses(self.task, labels, dict(zip(self.observation, observed, strict=True)), own_gradient, counts)
            for labels, own_gradient, counts, *observed in parts
        ]

    def weights_in_mean(self, loss: Tensor) -> Tensor:
        """Weight of each row's own mean loss in a loss that is the mean over rows, or a sum over label tokens.

        For a model that computes its loss in one compiled piece, so that no gradient arrives at its logits.
        ``[batch]``; NaN where the value of ``loss`` is not such a mean.
        """
        own = torch.nan_to_num(self.observation["loss"]) * self.counts
        loss = loss.detach().to(own.dtype)
        number = own.sum() / loss if isinstance(self.task, TokenPrediction) else self.counts.sum()
        is_mean = torch.isclose(own.sum() / number, loss, rtol=1e-3)
        return torch.where(is_mean, self.counts / number, torch.nan)

    def weights(self, logits_gradient: Tensor) -> Tensor:
        """Weight of each row's own mean loss in the training's loss, ``[batch]``.

        Infinite where the row's own gradient is 0 (its share in the input's gradient is 0, too), NaN where the
        training's loss is not a multiple of the row's own.

        Args:
            logits_gradient: Gradient of the training's loss with respect to the logits, of their shape.
        """
        gradient = logits_gradient
        if isinstance(self.task, TokenPrediction):
            gradient, labels, counts = self.task.aligned(gradient, self.labels)
            gradient = gradient.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * counts
        gradient = gradient.to(self.own_gradient.dtype).reshape(self.own_gradient.shape)
        own_squared = self.own_gradient.square().sum(-1)
        weights = (gradient * self.own_gradient).sum(-1) / own_squared
        rest = (gradient - weights.unsqueeze(-1) * self.own_gradient).square().sum(-1)
        is_multiple = rest <= OF_ANOTHER_LOSS * gradient.square().sum(-1)
        weights = torch.where(is_multiple, weights, torch.nan)
        return torch.where(own_squared == 0, torch.inf, weights)


def row_losses(task: Task, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> RowLosses:
    """Observe a batch; random states and gradients stay as they are.

    Args:
        task: Task of the model.
        logits: Of the forward pass, with or without a graph.
        labels: Labels that count. A row without one is observed as NaN.
        smoothing: Label smoothing of the training. ``own_gradient`` is then of the smoothed loss; the observation is
            not.
    """
    with torch.no_grad():
        logits = logits.detach()
        if isinstance(task, TokenPrediction):
            return _of_tokens(task, logits, labels, smoothing)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not isinstance(task, SingleLabelClassification):
            observation, own_gradient = task.observation(logits, labels), _own_gradient(task, logits, labels)
            return RowLosses(task, labels, observation, own_gradient, logits.new_ones(len(logits)))
        has_label = labels >= 0
        observation = task.observation(logits, labels.clamp(min=0))
        for name, values in observation.items():
            if values.is_floating_point():
                observation[name] = torch.where(has_label, values, torch.nan)
        given = torch.zeros_like(logits).scatter(-1, labels.clamp(min=0).long().unsqueeze(-1), 1.0 - smoothing)
        own_gradient = logits.softmax(-1) - given - smoothing / logits.shape[-1]
        return RowLosses(task, labels, observation, own_gradient, has_label.to(logits.dtype))


def _own_gradient(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad(task.scalar("loss", leaf, labels).sum(), leaf)[0].reshape(len(logits), -1)


def _of_tokens(task: TokenPrediction, logits: Tensor, labels: Tensor, smoothing: float) -> RowLosses:
    per_token, counts = task.token_observation(logits, labels)
    n_tokens = counts.sum(-1)
    observation = {name: (values * counts).sum(-1) / n_tokens for name, values in per_token.items()}
    wanted = 1.0 - smoothing + smoothing / logits.shape[-1]
    own_gradient = (per_token["confidence"] - wanted) * counts / n_tokens.clamp(min=1).unsqueeze(-1)
    return RowLosses(task, labels, observation, own_gradient, n_tokens)
