"""Companions from forward passes alone, at a fraction of the time of a scoring with gradients."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vog_hf.config import VoGConfig
from vog_hf.data.batch_collator import CollateFunction
from vog_hf.data.batch_reader import Batch, BatchReader
from vog_hf.data.rows import AnyDataset
from vog_hf.data.streams import is_stream
from vog_hf.errors import ConfigError, LabelError, NonFiniteError
from vog_hf.metric.host_copies import host_copies
from vog_hf.metric.training_dynamics import TrainingDynamics
from vog_hf.scoring.block_folder import batches
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.runner import ModelRunner
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.scoring.skipped_rows import rows_named
from vog_hf.snapshots import SnapshotSet, SnapshotSource, open_snapshots

IN_MEMORY = 16  # batches that each snapshot goes over before the next one is loaded
NO_LABEL = "row {row} has no label, and companions need one for every row; leave out the rows without a label"


def companions(
    model: nn.Module,
    dataset: AnyDataset,
    snapshots: SnapshotSource,
    *,
    collate_fn: CollateFunction | None = None,
    config: VoGConfig | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Loss, confidence and the other companions of every row over the snapshots, without a gradient.

    The same values as those columns of `VoGScorer.score`, without VoG, CSG and the mean gradient, in about the time of
    one forward pass for each row and snapshot. In the recorded experiments (recipes/experiments) the mean loss over the
    snapshots of one training is among the best columns for wrong labels.

    Args:
        model: Model that was trained; it gets its own weights, modes and random states back.
        dataset: As for `VoGScorer.score`, but not a stream. Every row needs a label.
        snapshots: As for `VoGScorer.score`.
        collate_fn: As for `VoGScorer.score`.
        config: Label column, task and dtype; targets are not used.
        batch_size: Rows per forward pass. Does not change a value.

    Returns:
        One line per row, in the order of the dataset: ``label``, ``prediction`` and ``prediction_probability`` of the
        last snapshot where the task has classes, and those columns of
        `vog_hf.metric.training_dynamics.training_dynamics` that the task has.

    Raises:
        ConfigError: The outputs have no logits, or the dataset is a stream.
        LabelError: A row has no label.
        VoGError: Invalid rows, model or snapshots, as for `VoGScorer.score`.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> rows = [(torch.rand(3), i % 2) for i in range(5)]
        >>> states = [(f"epoch-{k}", {n: torch.rand_like(p) for n, p in model.named_parameters()}) for k in range(4)]
        >>> sorted(companions(model, rows, states))[:4]
        ['confidence', 'correctness', 'el2n', 'forgetting']
    """
    if is_stream(dataset):
        raise ConfigError("a map-style dataset is expected, got a stream; score streams with VoGScorer.score")
    scorer = VoGScorer(model, config=config, batch_size=batch_size, progress=False)
    reader = scorer.reader(dataset, collate_fn=collate_fn)
    plan = scorer.plan(reader, require_finite=False)
    if plan.task is None:
        raise ConfigError("companions need outputs with logits, and these have none; use a model with a known task")
    with TemporaryDirectory(prefix="vog-spool-") as spool:
        opened = open_snapshots(snapshots, spool=Path(spool))
        with ModelRunner(scorer.model, plan, opened.frozen) as runner:
            parts = list(_parts(runner, reader, opened))
    return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _parts(runner: ModelRunner, reader: BatchReader, snapshots: SnapshotSet) -> Iterator[dict[str, np.ndarray]]:
    """Columns of one batch after another."""
    read = iter(reader.read(batches(range(len(reader.dataset)), reader.batch_size)))
    while group := _placed(runner, islice(read, IN_MEMORY)):
        dynamics = [TrainingDynamics() for _ in group]
        for snapshot in snapshots.snapshots:
            runner.load(snapshot)
            for batch, observed in zip(group, dynamics, strict=True):
                with rows_named(reader, batch.rows, runner.try_batch):
                    values = runner.observe_forward(batch, _labels(runner.plan, batch))
                observed.update(values)
            _require_finite([observed.last.get("loss") for observed in dynamics], group, snapshot.name)
        for batch, observed in zip(group, dynamics, strict=True):
            yield _columns(runner.plan, batch, observed)


def _require_finite(losses: Sequence[Tensor | None], batches: Sequence[Batch], snapshot: str) -> None:
    """Raise NonFiniteError, naming the row and the snapshot, where the loss of a row is NaN or infinite."""
    known = [(loss, batch.rows) for loss, batch in zip(losses, batches, strict=True) if loss is not None]
    if not known:
        return
    bad = ~torch.isfinite(torch.cat([loss for loss, _ in known]))
    if bool(bad.any()):  # the host waits once for all batches
        row = list(chain.from_iterable(rows for _, rows in known))[int(bad.nonzero()[0])]
        raise NonFiniteError(
            f"the loss of row {row} is not finite at snapshot {snapshot!r}; training may have diverged, or the row's "
            "input or label is extreme. Leave the snapshot or the row out"
        )


def _placed(runner: ModelRunner, read: Iterable[Batch]) -> list[Batch]:
    """The next batches on the device; raises LabelError where a row has no label."""
    group = []
    for batch in read:
        runner.plan.check_labels(batch)
        _labels(runner.plan, batch)
        task, labels = runner.plan.task, runner.plan.counted_labels(batch)
        if labels is not None and task is not None and task.can_predict_label and bool((labels < 0).any()):
            row = batch.rows[int((labels < 0).nonzero()[0, 0])]
            raise LabelError(NO_LABEL.format(row=row), row)
        group.append(runner.to_device(batch))
    return group


def _labels(plan: ScoringPlan, batch: Batch) -> Tensor | None:
    """Labels of a batch; raises LabelError where it has none and the task needs them."""
    if batch.labels is None and (plan.task is None or plan.task.loss_needs_labels):
        raise LabelError(NO_LABEL.format(row=batch.rows[0]), batch.rows[0])
    return batch.labels


def _columns(plan: ScoringPlan, batch: Batch, observed: TrainingDynamics) -> dict[str, np.ndarray]:
    """Label and companions of a batch."""
    labels = {"label": batch.labels} if plan.has_classes and batch.labels is not None else {}
    return {name: values.numpy() for name, values in host_copies(labels | observed.columns()).items()}
