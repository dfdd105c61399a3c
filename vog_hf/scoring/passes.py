"""One pass of a model over rows of a batch: forward, one backward per target, and what the companions observe."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.config import VoGConfig
from vog_hf.gradients.input_gradients import target_gradients
from vog_hf.gradients.input_leaf import Forward, forward_from_leaf
from vog_hf.gradients.model_inputs import copied, doubled
from vog_hf.gradients.model_state import kept_state
from vog_hf.gradients.targets import fill_missing_labels
from vog_hf.gradients.task import Task
from vog_hf.metric.pixel_maps import PIXEL
from vog_hf.metric.row_units import UNIT
from vog_hf.scoring.plan import ScoringPlan

ALL_ROWS = slice(0, None)


def predict_rows(
    plan: ScoringPlan, model: nn.Module, inputs: Mapping[str, object], n_rows: int, rows: slice = ALL_ROWS
) -> Tensor:
    """The predicted label of each of some rows of a batch, ``[rows, ...]``, of the model as it is."""
    some = sliced(inputs, rows, n_rows)
    with torch.no_grad():
        return plan.prediction(model(**copied(some)), some)


def observe_rows(
    plan: ScoringPlan, model: nn.Module, inputs: Mapping[str, Any], labels: Tensor | None, rows: slice = ALL_ROWS
) -> dict[str, Tensor]:
    """Observe what the companions are computed from, without a gradient, of some rows and the model as it is."""
    if plan.task is None:
        return {}
    some = sliced(inputs, rows, len(inputs[plan.leaf.name]))
    with torch.no_grad():
        logits = plan.task.logits(model(**copied(some)), some)
        return plan.task.observation(logits.to(plan.dtype), None if labels is None else labels[rows])


def score_rows(
    plan: ScoringPlan, inputs: Mapping[str, Any], labels: "LabelsForPass", rows: slice = ALL_ROWS
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients of every target and the observation for the companions, of rows of a batch and the model as it is."""
    inputs, labels = sliced(inputs, rows, len(inputs[plan.leaf.name])), labels[rows]
    n_rows = len(inputs[plan.leaf.name])
    if n_rows == 1 and plan.doubles_single_rows:
        inputs, labels = doubled(inputs), labels.doubled()
    with state_kept(plan), graph_kept(plan):
        forward = forward_from_leaf(plan.module, inputs, plan.leaf)
        gradients = target_gradients(plan.config.targets, plan.task, forward, labels.target_labels)
        return rows_of_pass(n_rows, gradients, observation(plan, forward, labels))


def observation(plan: ScoringPlan, forward: Forward, labels: "LabelsForPass") -> dict[str, Tensor]:
    """Observe what the companions of rows, of their units and of parts of their input are computed from.

    Without logits, only the parts; ``forward`` as `target_gradients` left it.
    """
    with torch.no_grad():
        of_parts = plan.observed_parts(forward)
        if plan.task is None:
            return of_parts
        logits = plan.task.logits(forward.outputs, forward.inputs).detach().to(plan.dtype)
        observed = plan.task.observations(logits, labels.companion_labels, forward.outputs, forward.inputs)
        of_units = {f"{UNIT}{name}": values for name, values in observed.units.items()}
        of_pixels = {f"{PIXEL}{name}": values for name, values in observed.pixels.items()}
        return of_parts | observed.rows | of_units | of_pixels


def rows_of_pass(
    n_rows: int, gradients: list[Tensor], observed: dict[str, Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The first rows of what a pass gave."""
    return [gradient[:n_rows] for gradient in gradients], {name: value[:n_rows] for name, value in observed.items()}


def state_kept(plan: ScoringPlan) -> AbstractContextManager[None]:
    """Keep the model's state over one pass, where a pass changes it: no row's score depends on rows before it."""
    return kept_state(plan.module) if plan.changes_state else nullcontext()


def graph_kept(plan: ScoringPlan) -> AbstractContextManager[object]:
    """Allow one backward pass per target through a compiled model, which was compiled so as to keep its graph.

    torch 2.15 refuses it by this setting of the thread, whatever the model was compiled with.
    """
    if len(plan.config.targets) == 1 or not hasattr(plan.module, "_orig_mod"):
        return nullcontext()
    from torch._functorch import config as functorch_config

    return functorch_config.patch(donated_buffer=False)


@dataclass(frozen=True)
class LabelsForPass:
    """Labels of one pass over a batch: those to differentiate the scalar of, and those to observe companions of.

    They are one and the same, but for ``label="predicted"``: companions are of the given label where a row has one.
    """

    target_labels: Tensor | None
    companion_labels: Tensor | None

    @classmethod
    def resolve(
        cls, config: VoGConfig, task: Task | None, given: Tensor | None, prediction: Tensor | None
    ) -> "LabelsForPass":
        """Given labels, with the prediction (of the last snapshot) where there is none."""
        if task is None or not task.can_predict_label or prediction is None:
            return cls(given, given)
        filled = fill_missing_labels(given, prediction)
        return cls(prediction if config.label == "predicted" else filled, filled)

    @property
    def _parts(self) -> tuple[Tensor | None, Tensor | None]:
        return self.target_labels, self.companion_labels

    def __getitem__(self, rows: slice) -> "LabelsForPass":
        return LabelsForPass(*(None if part is None else part[rows] for part in self._parts))

    def doubled(self) -> "LabelsForPass":
        """The labels of two copies of the one row."""
        return LabelsForPass(*(None if part is None else torch.cat([part, part]) for part in self._parts))


def sliced(inputs: Mapping[str, object], rows: slice, n_rows: int) -> Mapping[str, Any]:
    """Some rows of a batch of ``n_rows``: of what has a value per row; everything else is the same for all rows."""
    if rows.start == 0 and (rows.stop is None or rows.stop >= n_rows):
        return inputs
    return {
        name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (n_rows,) else value
        for name, value in inputs.items()
    }


def joined(parts: Sequence[tuple[list[Tensor], dict[str, Tensor]]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Join the results of `score_rows` for the parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    gradients = [torch.cat(several) for several in zip(*(part for part, _ in parts), strict=True)]
    return gradients, {name: torch.cat([observed[name] for _, observed in parts]) for name in parts[0][1]}
