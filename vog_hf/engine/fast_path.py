"""The fast path: a model with its BatchNorms folded, compiled if asked, once it was seen to be the same function."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vog_hf.engine.passes import PassLabels, ScoringPlan, score_forward, sliced
from vog_hf.engine.tolerance import rounding_tolerance
from vog_hf.folding import Folding, find_folding
from vog_hf.gradients import Forward, forward_from_leaf
from vog_hf.targets import find_logits

WATCHED_ROWS = 2  # enough to see what a model is made of
FULL_PRECISION = 4  # bytes


def fast_path(
    plan: ScoringPlan, first: Forward, labels: PassLabels, gradients: list[Tensor], *, fold: bool, compiled: bool
) -> tuple[ScoringPlan, str | None]:
    """The plan with its model run the fast way, if logits and gradients of the first batch say that it may be.

    Where they differ by more than `rounding_tolerance` (relative, in Euclidean norm), the plan stays as it is, and one
    line says why. Nothing is folded in low precision, where both ways are as far from the truth as from one another.

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
        watched = sliced(inputs, slice(0, WATCHED_ROWS), len(first.x))
        folding = find_folding(model, lambda: forward_from_leaf(model, watched, plan.leaf).outputs)
        folding = replace(folding, channels_last=bool(folding) and first.x.dim() == 4)
    if not folding and not compiled:
        return plan, None
    fast = replace(plan, folding=folding, module=_compiled(model) if compiled else model)
    with folding.installed():
        forward = forward_from_leaf(fast.module, fast.laid_out(inputs), plan.leaf)
        found = score_forward(fast, forward, labels)[0]
    names = [f"the gradients of {name}" for name in plan.config.target_names]
    pairs = dict(zip(names, zip(found, gradients, strict=True), strict=True))
    if plan.task is not None:
        pairs["the logits"] = find_logits(forward.outputs).detach(), find_logits(first.outputs).detach()
    for name, (value, expected) in pairs.items():
        difference, norm = float((value - expected).norm()), float(expected.norm())
        if not difference <= rounding_tolerance(model, plan.config) * norm:
            way = f"{folding}, compiled" if compiled else str(folding)
            return (
                plan,
                f"the model is run as it is: the faster way ({way}) changes {name} by {difference:.2g} of {norm:.2g}",
            )
    return fast, None


def _compiled(model: nn.Module) -> nn.Module:
    module: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return module
