"""The fast path: a model with its BatchNorms folded, compiled if asked, once it was seen to be the same function."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.engine.passes import PassLabels, ScoringPlan, score_forward, sliced
from vog_hf.engine.tolerance import rounding_tolerance
from vog_hf.errors import ModelError
from vog_hf.folding import Folding, find_folding
from vog_hf.gradients import Forward, drop_caches, forward_from_leaf
from vog_hf.snapshots import lend_weights
from vog_hf.targets import find_logits

FEW_ROWS = 2
FULL_PRECISION = 4  # bytes
TOLERANCE_IN_DOUBLE = 1e-6


def fast_path(
    plan: ScoringPlan, first: Forward, labels: PassLabels, gradients: list[Tensor], *, fold: bool, compiled: bool
) -> tuple[ScoringPlan, str | None]:
    """The plan with its model run the fast way, if logits and gradients of the first batch say that it may be.

    They may differ by `rounding_tolerance` (relative, in Euclidean norm). Where they differ by more, rounding may have
    switched a ReLU whose input is next to zero, so that a few rows are compared again in float64, where it does not:
    there they may differ by a millionth. Else the plan stays as it is, and one line says why. Nothing is folded in low
    precision, where both ways are as far from the truth as from one another.

    Args:
        plan: The plain way.
        first: The first batch's forward pass, the plain way.
        labels: Of that pass.
        gradients: Of that pass, one per target.
        fold: Fold its BatchNorms.
        compiled: Run the model through ``torch.compile``.
    """
    model, inputs, folding = plan.module, first.inputs, Folding()
    if fold and plan.config.autocast is None and first.x.dtype.itemsize >= FULL_PRECISION:
        watched = sliced(inputs, slice(0, FEW_ROWS), len(first.x))
        folding = find_folding(model, lambda: forward_from_leaf(model, watched, plan.leaf).outputs)
        if any(map(callable, plan.config.targets)):  # may read what lies between a convolution and its BatchNorm
            folding = Folding((), [*(norm for _, norm in folding.pairs), *folding.affine])
        folding = replace(folding, channels_last=bool(folding) and first.x.dim() == 4)
    if not folding and not compiled:
        return plan, None
    fast = replace(plan, folding=folding, module=_compiled(model) if compiled else model)
    try:
        outcome = _outcome(fast, inputs, labels)
    except RuntimeError:
        if not folding.channels_last:
            raise
        # a view of what is contiguous only with the channels first
        fast = replace(fast, folding=replace(folding, channels_last=False))
        outcome = _outcome(fast, inputs, labels)
    difference = _Outcome(first, gradients).difference(outcome)
    if difference <= rounding_tolerance(model, plan.config) or _agree_in_double(plan, fast, first, labels):
        return fast, None
    way = f"{folding}, compiled" if compiled else str(folding)
    return plan, f"the model is run as it is: the faster way ({way}) changes logits or gradients by {difference:.2g}"


@dataclass(frozen=True)
class _Outcome:
    """What a forward pass and its gradients gave."""

    forward: Forward
    gradients: list[Tensor]

    def difference(self, other: "_Outcome") -> float:
        """The largest relative difference, in Euclidean norm, among the logits (if there are any) and each gradient."""
        pairs = list(zip(other.gradients, self.gradients, strict=True))
        with suppress(ModelError):  # a callable target may do without logits
            pairs.append((find_logits(other.forward.outputs).detach(), find_logits(self.forward.outputs).detach()))
        differences = torch.stack([(found - expected).norm() for found, expected in pairs])
        norms = torch.stack([expected.norm() for _, expected in pairs])
        return float((differences / norms.where(norms > 0, 1)).max())  # NaN if one of them is


def _agree_in_double(plan: ScoringPlan, fast: ScoringPlan, first: Forward, labels: PassLabels) -> bool:
    """Whether both ways are one function in float64, on a few rows; no, where the model cannot compute in float64."""
    rows, model = slice(0, FEW_ROWS), plan.module
    few = {name: _in_double(value) for name, value in sliced(first.inputs, rows, len(first.x)).items()}
    with lend_weights(model, {}, cast_up=False):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = _in_double(tensor.data)
        drop_caches(model)
        try:
            outcomes = [_outcome(way, few, labels[rows]) for way in (plan, fast)]
        except (RuntimeError, TypeError, ModelError):  # a dtype of its own somewhere in the model
            return False
    drop_caches(model)
    return outcomes[0].difference(outcomes[1]) <= TOLERANCE_IN_DOUBLE


def _outcome(plan: ScoringPlan, inputs: Mapping[str, Any], labels: PassLabels) -> _Outcome:
    with plan.folding.installed():
        forward = forward_from_leaf(plan.module, plan.laid_out(inputs), plan.leaf)
        return _Outcome(forward, score_forward(plan, forward, labels)[0])


def _in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _compiled(model: nn.Module) -> nn.Module:
    module: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return module
