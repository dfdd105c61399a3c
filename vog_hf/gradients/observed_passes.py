"""Passes of a training: what is kept of each, and the numbers of its rows, computed for many passes at once.

For a few rows, an operation takes longer to start than to compute. So small logits are kept with their gradient, and
the rows of many batches are observed in as many operations as those of one.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from vog_hf.gradients.row_losses import RowLosses, row_losses
from vog_hf.gradients.task import Task
from vog_hf.gradients.token_tasks import TokenPrediction
from vog_hf.metric.vocabulary import CSG

KEPT_BYTES = 2**18  # logits of a batch that are kept


@dataclass(eq=False)
class ObservedPass:
    """A forward pass with numbered rows, and what its backward pass says.

    Attributes:
        rows: Number of each row, ``[batch]``.
        labels: Labels of the rows.
        inputs: What forward gets, until it is over.
        is_watched: Whether the gradient of an input is asked for.
        tokens_first: Whether the input's gradient is ``[tokens, batch, ...]``.
        mask: Mask of the elements of the input that count; None: all.
        element_mask: The same for gradients that are kept row by row: of tokens in any case.
        losses: Losses of the rows, unless their logits are kept.
        logits: Logits of the rows, with the labels that count.
        logits_gradient: Gradient of the training's loss with respect to the logits.
        weights: Weight of each row's own mean loss in the training's, ``[batch]``; known when the pass is settled.
        loss: The model's own loss, with its gradient.
        norms: Squared norm of each row's part of the input's gradient, ``[batch]``.
        values: What was observed, ``[batch]`` each; filled in when the pass is settled.
    """

    rows: Tensor
    labels: Tensor | None
    inputs: Mapping[str, Any]
    is_watched: bool = False
    tokens_first: bool = False
    mask: Tensor | None = None
    element_mask: Tensor | None = None
    losses: RowLosses | None = None
    logits: tuple[Tensor, Tensor] | None = None
    logits_gradient: Tensor | None = None
    weights: Tensor | None = None
    loss: tuple[Tensor, Tensor] | None = None
    norms: Tensor | None = None
    values: dict[str, Tensor] = field(default_factory=dict)

    def observe(self, task: Task, logits: Tensor, labels: Tensor, smoothing: float, *, at_once: bool) -> None:
        """Observe the rows, or keep their logits if they are small.

        Args:
            task: Task of the model.
            logits: Of the forward pass.
            labels: Labels that count.
            smoothing: Label smoothing of the training.
            at_once: Do not keep the logits.
        """
        if at_once or isinstance(task, TokenPrediction) or logits.nbytes > KEPT_BYTES:
            self.losses = row_losses(task, logits, labels, smoothing)
        else:
            self.logits = logits.detach().clone(), labels.clone()

    def weigh(self, logits_gradient: Tensor) -> None:
        """Weigh the rows by the gradient of their logits, or keep it as well."""
        if self.losses is not None and self.weights is None:
            self._set_weights(self.losses, self.losses.weights(logits_gradient))
        elif self.logits is not None and self.logits_gradient is None:
            self.logits_gradient = logits_gradient.clone()

    def weigh_by_loss(self) -> None:
        """Weigh the rows by the model's own loss, if no gradient has arrived at their logits."""
        if self.weights is None and self.losses is not None and self.loss is not None:
            value, of_loss = self.loss
            self._set_weights(self.losses, self.losses.weights_in_mean(value) * of_loss)

    def _set_weights(self, losses: RowLosses, weights: Tensor) -> None:
        self.weights, self.losses = weights, replace(losses, own_gradient=weights.new_empty(0))  # read by nobody now

    @property
    def has_weights(self) -> bool:
        """True if the weights are known, or will be when the pass is settled."""
        return any(known is not None for known in (self.weights, self.logits_gradient, self.loss))

    def of_own_losses(self, gradients: Tensor) -> Tensor:
        """Gradients of each row's own mean loss, from those of the training's loss; not finite where unknown."""
        assert self.weights is not None  # noqa: S101 (weighed)
        weights = self.weights.to(gradients.device, torch.promote_types(gradients.dtype, torch.float32))
        return gradients.to(weights.dtype) / weights.reshape(-1, *[1] * (gradients.dim() - 1))

    @property
    def nbytes(self) -> int:
        """Size of what is kept until the pass is settled, in bytes."""
        of_rows = None if self.losses is None else self.losses.own_gradient
        kept = (self.mask, self.element_mask, of_rows, *(self.logits or ()))
        return sum(tensor.nbytes for tensor in kept if tensor is not None)


def settle(passes: Sequence[ObservedPass], task: Task, smoothing: float) -> None:
    """Fill in values and weights, and drop what they are computed from.

    Args:
        passes: Passes whose backward pass is over. Rows whose input or logits got no gradient have NaN as ``csg``.
        task: Task of the model.
        smoothing: Label smoothing of the training.
    """
    if not passes:
        return
    for _, alike in groupby(passes, _likeness):
        _observe_together(list(alike), task, smoothing)
    losses = [of_pass.losses for of_pass in passes if of_pass.losses is not None]  # of all, as observed above
    for of_pass, of_rows, energies in zip(passes, losses, _energies(passes, losses), strict=True):
        of_pass.values |= {CSG: energies, **of_rows.observation}
        if of_pass.labels is not None and of_pass.labels.shape == of_pass.rows.shape:
            of_pass.values["label"] = of_pass.labels
        of_pass.losses = of_pass.logits = of_pass.logits_gradient = of_pass.loss = of_pass.norms = None
        of_pass.mask = of_pass.element_mask = None


def _likeness(of_pass: ObservedPass) -> Hashable:
    """Equal for passes that can be observed together."""
    if of_pass.logits is None or of_pass.logits_gradient is None:
        return id(of_pass)
    tensors = (*of_pass.logits, of_pass.logits_gradient)
    return tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in tensors)


def _observe_together(passes: Sequence[ObservedPass], task: Task, smoothing: float) -> None:
    """Observe and weigh the rows of like passes whose logits were kept."""
    kept = [of_pass.logits for of_pass in passes if of_pass.logits is not None]
    if not kept:
        return
    logits, labels = (torch.cat(tensors) for tensors in zip(*kept, strict=True))
    losses = row_losses(task, logits, labels, smoothing)
    sizes = [len(of_pass.rows) for of_pass in passes]
    for of_pass, of_rows in zip(passes, losses.split(sizes), strict=True):
        of_pass.losses = of_rows
    gradients = [of_pass.logits_gradient for of_pass in passes if of_pass.logits_gradient is not None]
    if not gradients:
        passes[0].weigh_by_loss()  # alone, by `_likeness`
        return
    weights = losses.weights(torch.cat(gradients))
    for of_pass, of_rows in zip(passes, weights.split(sizes), strict=True):
        of_pass.weights = of_rows


def _energies(passes: Sequence[ObservedPass], losses: Sequence[RowLosses]) -> Sequence[Tensor]:
    """Squared norm of the gradient of each row's own mean loss, ``[batch]`` for each pass; NaN where unknown."""
    norms, weights = [], []
    for of_pass, of_rows in zip(passes, losses, strict=True):
        if of_pass.weights is None:
            of_pass.weights = torch.full_like(of_rows.counts, torch.nan)
        weight, norm = of_pass.weights, of_pass.norms
        weights.append(weight)
        norms.append(torch.full_like(weight, torch.nan) if norm is None else norm.to(weight.device))
    joined = torch.cat(norms)
    energies = joined / torch.cat(weights).to(joined.dtype).square()
    energies = torch.where(energies.isfinite(), energies, torch.nan)  # half precision overflows
    return energies.split([len(of_pass.rows) for of_pass in passes])
