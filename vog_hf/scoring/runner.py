"""ModelRunner: all state of a model while it is scored."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from vog_hf.data.batch_reader import Batch
from vog_hf.errors import MemoryBudgetError, NonFiniteError
from vog_hf.gradients.batchnorm_folding import FastPathError, FoldedModules, Folding
from vog_hf.gradients.model_inputs import to_device
from vog_hf.gradients.model_mode import drop_caches, model_device_and_dtype, preserved_rng, scoring_mode
from vog_hf.metric.batch_accumulator import BatchAccumulator
from vog_hf.runtime.memory import AdaptiveBatchSize, is_out_of_memory
from vog_hf.scoring.fast_path import FEW_ROWS, require_same_function
from vog_hf.scoring.passes import (
    ALL_ROWS,
    LabelsForPass,
    joined,
    observe_rows,
    predict_rows,
    score_rows,
    sliced,
    state_kept,
)
from vog_hf.scoring.plan import ScoringPlan, tensor_shapes
from vog_hf.scoring.skipped_rows import try_batch
from vog_hf.snapshots import Snapshot, temporary_weights

logger = logging.getLogger(__name__)


class ModelRunner:
    """A model while it is scored by a plan: a context manager that holds all of its state meanwhile.

    The model is in scoring mode and runs the fast way of the plan, until a batch shows that this does not fit; on
    leaving, its weights, modes, caches and the random states are as they were. It can be entered more than once.

    Args:
        model: Model to score, unwrapped.
        plan: Plan of the scoring.
        frozen: Digests of the tensors that no snapshot stores.
        resident_bytes: Bytes of snapshots that may stay in the device's memory.
        rows_per_pass: Rows that fit into one pass; default: whole batches, as long as they fit.

    Attributes:
        plan: Plan of the scoring, with the way that the model is run in now.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: ScoringPlan,
        frozen: Mapping[str, str] | None = None,
        *,
        resident_bytes: int = 0,
        rows_per_pass: AdaptiveBatchSize | None = None,
    ) -> None:
        self.plan = plan
        self._model = model
        self._frozen = frozen or {}
        self._resident_bytes = resident_bytes
        self._rows_per_pass = rows_per_pass or AdaptiveBatchSize()
        self._weights: Hashable = None  # of which snapshot the model's weights are
        self._compared: set[Hashable] = {plan.compared_shape}  # shapes, and weights, the fast way was compared for

    def __enter__(self) -> Self:
        config = self.plan.config
        with ExitStack() as stack:
            stack.enter_context(preserved_rng())
            stack.enter_context(scoring_mode(self._model, config.autocast))
            self._loader = stack.enter_context(
                temporary_weights(
                    self._model, self._frozen, cast_up=config.casts_up, resident_bytes=self._resident_bytes
                )
            )
            self._folded = stack.enter_context(self.plan.folding.installed())
            self._loader.record_state()
            self._stack = stack.pop_all()
        self._weights = object()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        del self._stack, self._loader, self._folded  # with the memory of resident snapshots and folded weights

    def load(self, snapshot: Snapshot) -> None:
        """Give the model a snapshot's weights; what it derived from others is dropped, and folded again.

        Raises:
            SnapshotError: The snapshot is not of this model, or cannot be read.
        """
        self._loader.load(snapshot)
        drop_caches(self._model)
        self.plan.derived.forget()
        self._folded.refresh()
        self._weights = snapshot.files

    def to_device(self, batch: Batch) -> Batch:
        """Move a batch to the device, in the dtype of the model's weights and in the memory format of the plan."""
        device, dtype = model_device_and_dtype(self._model)
        labels = self.plan.counted_labels(batch)
        return replace(
            batch,
            inputs=self.plan.to_memory_format(to_device(batch.inputs, device, dtype)),
            masks=to_device(batch.masks, device, None),
            labels=None if labels is None else labels.to(device, non_blocking=True),
        )

    def predict(self, batch: Batch) -> Tensor:
        """Predict the label of each row, ``[batch, ...]``, of a batch that is on the device, with the plain model."""
        predict = partial(predict_rows, self.plan, self._model, batch.inputs, len(batch))
        with self._folded.paused(), state_kept(self.plan):
            return torch.cat(self._rows_per_pass.run(len(batch), predict))

    def observe_forward(self, batch: Batch, labels: Tensor | None) -> dict[str, Tensor]:
        """Observe what the companions need, without a gradient, of a batch on the device, with the plain model."""
        observe = partial(observe_rows, self.plan, self._model, batch.inputs, labels)
        with self._folded.paused(), state_kept(self.plan):
            parts = self._rows_per_pass.run(len(batch), observe)
        return joined([([], part) for part in parts])[1]

    def observe(self, batch: Batch, prediction: Tensor | None = None) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Take the gradients of every target, and what the companions need, of a batch that is on the device.

        Nothing here waits for the device, but to compare the fast way with the plain one, once for each snapshot and
        shape: whether the gradients were finite, `require_finite` says after a pass.

        Args:
            batch: Batch from `to_device`.
            prediction: Predicted classes, where the plan needs them (see `needs_prediction`).

        Raises:
            FastPathError: The fast way failed, or is not the model's function: `run_plainly`, then observe again.
            MemoryBudgetError: The device has no room for a single row.
            RuntimeError: The device has no room for something else, or reports late that it had none.
        """
        labels = LabelsForPass.resolve(self.plan.config, self.plan.task, batch.labels, prediction)
        score = partial(score_rows, self.plan, batch.inputs, labels)
        observed: list[tuple[list[Tensor], dict[str, Tensor]]] | None = None
        try:
            self._compare_once(batch, labels)
            while observed is None:  # not `rows_per_pass.run`: this is in the traceback of every failure
                with self._rows_per_pass.halved_when_full(len(batch)):
                    observed = list(map(score, self._rows_per_pass.slices(len(batch))))
            self._folded.require_all_read()
        except (MemoryBudgetError, FastPathError):
            raise
        except Exception as error:
            if self.plan.way(self._model) is None or is_out_of_memory(error):
                raise
            raise FastPathError(  # if not the fast way but a row is wrong, the plain one says so
                f"it failed with {type(error).__name__}: {' '.join(str(error).split()):.200}"
            ) from error
        return joined(observed)

    def _compare_once(self, batch: Batch, labels: LabelsForPass) -> None:
        """Compare the fast way with the plain one on the first batch of each snapshot, and the first of each shape.

        Weights, and control flow that depends on the shape, can make of them what the batches before did not show. A
        few rows say as much as all, as what is folded is the same for each row. A compiled model is given whole
        batches, since it is compiled again for another number of rows.
        """
        is_compiled = self.plan.module is not self._model
        shape = tensor_shapes(batch.inputs, with_rows=is_compiled)
        if self.plan.way(self._model) is None or {self._weights, shape} <= self._compared:
            return
        rows = ALL_ROWS if is_compiled else slice(0, FEW_ROWS)
        few = sliced(batch.inputs, rows, len(batch))
        require_same_function(
            self.plan, self._model, self._folded, few, labels[rows], rows_per_pass=self._rows_per_pass
        )
        self._compared |= {self._weights, shape}

    def try_batch(self, batch: Batch) -> None:
        """Raise what is wrong with a row of a batch as it was read, by the plain model with the weights it has."""
        with self._folded.paused(), state_kept(self.plan):
            try_batch(self._model, self.plan, self._rows_per_pass, batch)

    def run_plainly(self, error: FastPathError) -> None:
        """Run the model as it is from here on, because a batch has shown that the fast way does not fit."""
        logger.warning(
            "VoG: the model is run as it is from here on: the faster way (%s) does not fit: %s",
            *(self.plan.way(self._model), error),
        )
        with self._loader.new_record():
            self._folded.remove()
            self._folded = FoldedModules(Folding())
            self.plan = self.plan.plain(self._model)


def needs_prediction(plan: ScoringPlan, labels: Sequence[Tensor | None]) -> bool:
    """Tell whether some rows need a label that the last snapshot predicts.

    Args:
        plan: Plan of the scoring.
        labels: Given labels of each batch that count, on the CPU: a device would have to be waited for.
    """
    if plan.task is None or not plan.task.can_predict_label:
        return False
    return plan.config.label == "predicted" or any(part is None or bool((part < 0).any()) for part in labels)


def require_finite(plan: ScoringPlan, accumulator: BatchAccumulator, rows: Sequence[int], snapshot: str) -> None:
    """Raise NonFiniteError, naming the row and the snapshot, where a gradient of the last pass was not finite."""
    for target, values in zip(plan.config.target_names, accumulator.running, strict=True):
        require_finite_rows(values, rows, snapshot, target)


def require_finite_rows(values: Tensor, rows: Sequence[int], snapshot: str, target: str = "the target") -> None:
    """Raise NonFiniteError, naming the row and the snapshot, where a row's value is NaN or infinite."""
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        row = rows[int(bad.nonzero()[0])]
        raise NonFiniteError(
            f"the gradient of {target} is not finite at row {row}, snapshot {snapshot!r} ({int(bad.sum())} rows of its "
            "batch); training may have diverged, or the row's input is extreme. Leave the snapshot or the row out"
        )
