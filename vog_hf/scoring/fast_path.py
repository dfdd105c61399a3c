"""The fast path: a model with its BatchNorms folded, compiled if asked, once it was seen to be the same function."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.config import VoGConfig
from vog_hf.errors import ModelError
from vog_hf.gradients.batchnorm_folding import FastPathError, FoldedModules, Folding
from vog_hf.gradients.foldable_modules import find_folding
from vog_hf.gradients.input_gradients import target_gradients
from vog_hf.gradients.input_leaf import Forward, forward_from_leaf
from vog_hf.gradients.model_inputs import doubled
from vog_hf.gradients.model_mode import drop_caches, model_device_and_dtype
from vog_hf.gradients.model_outputs import find_logits
from vog_hf.runtime.memory import AdaptiveBatchSize, is_out_of_memory
from vog_hf.scoring.passes import LabelsForPass, graph_kept, sliced, state_kept
from vog_hf.scoring.plan import ScoringPlan, tensor_shapes
from vog_hf.snapshots import temporary_weights

TOLERANCE = 1e-3
ROUNDINGS = 8  # that a gradient may differ by in low precision, in units of its last digit
TF32 = 2.0**-10  # last digit of what float32 is rounded to on a GPU, where that is allowed


def rounding_tolerance(model: nn.Module, config: VoGConfig) -> float:
    """The relative difference that is still rounding: 0.001 in float32 and float64, more in lower precision."""
    device, dtype = model_device_and_dtype(model)
    last_digit = torch.finfo(config.autocast or dtype or torch.float32).eps
    return max(TOLERANCE, ROUNDINGS * (max(last_digit, TF32) if device.type == "cuda" else last_digit))


FEW_ROWS = 2
FULL_PRECISION = 4  # bytes
TOLERANCE_IN_DOUBLE = 1e-6


def fast_path(
    plan: ScoringPlan,
    first: Forward,
    labels: LabelsForPass,
    gradients: list[Tensor],
    *,
    fold: bool,
    torch_compile: bool,
) -> tuple[ScoringPlan, str | None]:
    """The plan with its model run the fast way, if logits and gradients of the first batch say that it may be.

    Else it is run as it is, or at least without compilation, and one line says why. Later batches are compared by
    `require_same_function`. Nothing is folded in low precision, where both ways are as far from the truth as from one
    another.

    Args:
        plan: The plain way.
        first: The first batch's forward pass, the plain way.
        labels: Of that pass.
        gradients: Of that pass, one per target.
        fold: Fold its BatchNorms.
        torch_compile: Run the model through ``torch.compile``.
    """
    folding = _find_folding(plan, first) if fold else Folding()
    expected = _Outcome(_logits(first), gradients)
    reason = None
    for fast in _ways(plan, folding, torch_compile=torch_compile):
        try:
            with fast.folding.installed() as folded:
                found = _outcome(fast, folded, first.inputs, labels)
                difference = _difference(plan, fast, folded, first.inputs, labels, expected=expected, found=found)
        except Exception as error:  # the plain way has passed on this batch, so it is the fast one's fault
            if is_out_of_memory(error):
                raise
            reason = reason or f"{fast.way(plan.module)}) failed ({_line(error)})"
            continue
        if difference is None:
            why_not = reason and f"the model is run without what failed: the faster way ({reason}"
            shape = tensor_shapes(first.inputs, with_rows=fast.module is not plan.module)
            return replace(fast, compared_shape=shape), why_not
        reason = reason or f"{fast.way(plan.module)}) changes logits or gradients by {difference:.2g}"
        if fast.module is plan.module:
            break
    return plan, reason and f"the model is run as it is: the faster way ({reason}"


def require_same_function(
    plan: ScoringPlan,
    model: nn.Module,
    folded: FoldedModules,
    inputs: Mapping[str, Any],
    labels: LabelsForPass,
    *,
    rows_per_pass: AdaptiveBatchSize,
) -> None:
    """Raise FastPathError where the plan's fast way, which is installed, and the plain model differ on a batch."""
    folded.require_as_found()
    n_rows = len(inputs[plan.leaf.name])
    plain = plan.plain(model)

    def outcome(way: ScoringPlan) -> _Outcome:
        return _Outcome.joined(
            rows_per_pass.run(n_rows, lambda rows: _outcome(way, folded, sliced(inputs, rows, n_rows), labels[rows]))
        )

    with folded.paused():
        expected = outcome(plain)
    difference = _difference(plain, plan, folded, inputs, labels, expected=expected, found=outcome(plan))
    if difference is not None:
        raise FastPathError(f"it changes logits or gradients by {difference:.2g}")


def _find_folding(plan: ScoringPlan, first: Forward) -> Folding:
    if plan.config.autocast is not None or first.x.dtype.itemsize < FULL_PRECISION:
        return Folding()
    watched = sliced(first.inputs, slice(0, FEW_ROWS), len(first.x))
    with state_kept(plan):
        folding = find_folding(plan.module, lambda: forward_from_leaf(plan.module, watched, plan.leaf).outputs)
    if any(map(callable, plan.config.targets)):  # may read what lies between a convolution and its BatchNorm
        folding = Folding((), [*(norm for _, norm in folding.pairs), *folding.affine])
    return replace(folding, channels_last=bool(folding) and first.x.dim() == 4)


def _ways(plan: ScoringPlan, folding: Folding, *, torch_compile: bool) -> Iterator[ScoringPlan]:
    """The fast ways, the fastest first: without channels last for a view of what is contiguous only otherwise."""
    foldings = [folding, replace(folding, channels_last=False)] if folding.channels_last else [folding]
    if torch_compile:
        yield from (replace(plan, folding=one, module=_compiled(plan.module)) for one in foldings)
    if folding:
        yield from (replace(plan, folding=one) for one in foldings)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


@dataclass(frozen=True)
class _Outcome:
    """Logits and gradients of a forward pass; a callable target may do without logits."""

    logits: Tensor | None
    gradients: list[Tensor]

    @classmethod
    def joined(cls, parts: Sequence["_Outcome"]) -> "_Outcome":
        """Join the outcomes of parts of a batch."""
        logits = [part.logits for part in parts if part.logits is not None]
        gradients = zip(*(part.gradients for part in parts), strict=True)
        return cls(torch.cat(logits) if logits else None, [torch.cat(several) for several in gradients])

    def difference(self, other: "_Outcome") -> float:
        """The largest relative difference, in Euclidean norm, among the logits (if there are any) and each gradient."""
        pairs = list(zip(other.gradients, self.gradients, strict=True))
        if self.logits is not None and other.logits is not None:
            pairs.append((other.logits, self.logits))
        differences = torch.stack([(found - expected).norm() for found, expected in pairs])
        norms = torch.stack([expected.norm() for _, expected in pairs])
        return float((differences / norms.where(norms > 0, 1)).max())  # NaN if one of them is


def _difference(
    plain: ScoringPlan,
    fast: ScoringPlan,
    folded: FoldedModules,
    inputs: Mapping[str, object],
    labels: LabelsForPass,
    *,
    expected: _Outcome,
    found: _Outcome,
) -> float | None:
    """Difference between two ways on a batch, None where that is rounding; the folding is installed.

    They may differ by `rounding_tolerance` (relative, in Euclidean norm). Where they differ by more, rounding may have
    switched a ReLU with an input next to zero, so that a few rows are compared again in float64, where it does not:
    there they may differ by a millionth.
    """
    difference = expected.difference(found)
    same = difference <= rounding_tolerance(plain.module, plain.config)
    return None if same or _agree_in_double(plain, fast, folded, inputs, labels) else difference


def _agree_in_double(
    plain: ScoringPlan, fast: ScoringPlan, folded: FoldedModules, inputs: Mapping[str, Any], labels: LabelsForPass
) -> bool:
    """Tell whether both ways are one function in float64, on a few rows; no if the model cannot compute in float64."""
    rows, model = slice(0, FEW_ROWS), plain.module
    few = sliced(inputs, rows, len(inputs[plain.leaf.name]))
    few = {name: _in_double(value) for name, value in few.items()}
    with temporary_weights(model, {}, cast_up=False):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = _in_double(tensor.data)
        drop_caches(model)
        try:
            folded.refresh()
            with folded.paused():
                expected = _outcome(plain, folded, few, labels[rows])
            found = _outcome(fast, folded, few, labels[rows])
        except (RuntimeError, TypeError, ModelError, FastPathError):  # a dtype of its own somewhere in the model
            return False
    drop_caches(model)
    folded.refresh()
    return expected.difference(found) <= TOLERANCE_IN_DOUBLE


def _outcome(plan: ScoringPlan, folded: FoldedModules, inputs: Mapping[str, Any], labels: LabelsForPass) -> _Outcome:
    n_rows = len(inputs[plan.leaf.name])
    if n_rows == 1 and plan.doubles_single_rows:
        inputs, labels = doubled(inputs), labels.doubled()
    with state_kept(plan), graph_kept(plan):
        forward = forward_from_leaf(plan.module, plan.to_memory_format(inputs), plan.leaf)
        folded.require_all_read()
        gradients = target_gradients(plan.config.targets, plan.task, forward, labels.target_labels)
    return _Outcome(_logits(forward), gradients)


def _logits(forward: Forward) -> Tensor | None:
    with suppress(ModelError):
        return find_logits(forward.outputs).detach()
    return None


def _in_double(value: object) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _compiled(model: nn.Module) -> nn.Module:
    """Compile the model, so that its backward pass can be run once for each of several targets."""

    def backend(graph: Any, example_inputs: Any) -> Any:
        from torch._functorch import config as functorch_config

        with functorch_config.patch(donated_buffer=False):  # else the first backward pass frees what the others need
            return torch._dynamo.lookup_backend("inductor")(graph, example_inputs)  # noqa: SLF001

    module: nn.Module = torch.compile(model, backend=backend)  # type: ignore[assignment]
    return module
