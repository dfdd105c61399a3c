"""One pass of a model over a batch: forward, one backward per target, and the observation of the companions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vog_hf.config import VoGConfig
from vog_hf.data.batch_reader import Batch
from vog_hf.errors import NonFiniteError
from vog_hf.gradients.input_gradients import target_gradients
from vog_hf.gradients.input_leaf import Forward
from vog_hf.gradients.model_inputs import copied, doubled
from vog_hf.gradients.targets import fill_missing_labels, find_logits
from vog_hf.gradients.tasks import Task
from vog_hf.scoring.plan import ScoringPlan


def predictions(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The predicted class of each row, ``[batch]``, of the model as it is."""
    with torch.no_grad():
        return find_logits(model(**copied(inputs))).argmax(-1)


def score_batch(
    plan: ScoringPlan, inputs: Mapping[str, Any], labels: "LabelsForPass"
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradients of every target and the observation for the companions, of one batch and the model as it is."""
    n_rows = len(inputs[plan.leaf.name])
    if n_rows == 1 and plan.doubles_single_rows:
        inputs, labels = doubled(inputs), labels.doubled()
    with plan.state_kept():
        gradients, observation = score_forward(plan, plan.forward(inputs), labels)
    return rows_of_pass(n_rows, gradients, observation)


def rows_of_pass(
    n_rows: int, gradients: list[Tensor], observation: dict[str, Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The first rows of what a pass gave."""
    return [gradient[:n_rows] for gradient in gradients], {name: v[:n_rows] for name, v in observation.items()}


def score_forward(
    plan: ScoringPlan, forward: Forward, labels: "LabelsForPass"
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """As `score_batch`, after its forward pass."""
    gradients = target_gradients(plan.config.targets, plan.task, forward, labels.target_labels)
    if plan.task is None:
        return gradients, {}
    with torch.no_grad():
        logits = find_logits(forward.outputs).detach()
        return gradients, plan.task.observation(logits.to(plan.dtype), labels.companion_labels)


@dataclass(frozen=True)
class LabelsForPass:
    """The labels of one pass over a batch: whose scalar is differentiated, and whose companions are observed.

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


def sliced(inputs: Mapping[str, Any], rows: slice, n_rows: int) -> Mapping[str, Any]:
    """Some rows of a batch of ``n_rows``: of what has a value per row; everything else is the same for all rows."""
    if rows.start == 0 and rows.stop >= n_rows:
        return inputs
    return {
        name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (n_rows,) else value
        for name, value in inputs.items()
    }


def joined(parts: Sequence[tuple[list[Tensor], dict[str, Tensor]]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What `score_batch` would have given for all rows at once."""
    if len(parts) == 1:
        return parts[0]
    gradients = [torch.cat(several) for several in zip(*(part for part, _ in parts), strict=True)]
    return gradients, {name: torch.cat([observed[name] for _, observed in parts]) for name in parts[0][1]}


def needs_prediction(plan: ScoringPlan, batches: Sequence[Batch]) -> bool:
    """Whether the last snapshot has to say a class for some of the rows."""
    if plan.task is None or not plan.task.can_predict_label:
        return False
    return plan.config.label == "predicted" or any(b.labels is None or bool((b.labels < 0).any()) for b in batches)


def require_finite_rows(values: Tensor, rows: Sequence[int], snapshot: str, target: str = "the target") -> None:
    """Raise NonFiniteError, naming the row and the snapshot, where a row's value is NaN or infinite."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        row = rows[int(bad.nonzero()[0])]
        raise NonFiniteError(
            f"the gradient of {target} is not finite at row {row}, snapshot {snapshot!r} ({int(bad.sum())} rows of its "
            "batch); training may have diverged, or the row's input is extreme. Leave the snapshot or the row out"
        )


def to_numpy_labels(labels: Tensor | None, n_rows: int) -> npt.NDArray[np.generic] | None:
    """Given labels as a column, None where rows have no single one."""
    if labels is None or labels.shape != (n_rows,):
        return None
    return labels.to(torch.float32 if labels.is_floating_point() else torch.int32).cpu().numpy()
