"""Session: which model is scored, by which processes, with which options; and what replay and live share."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vog_hf.accumulate import BatchAccumulator, Windows
from vog_hf.batches import TRANSFORM_CHECK_ROWS, Batch, BatchReader
from vog_hf.config import VoGConfig, target_digest
from vog_hf.engine import PassLabels, ScoringPlan, joined, predictions, require_finite_rows, score_batch, sliced
from vog_hf.files import locked
from vog_hf.gradients import model_device_and_dtype, placed, preserved_rng, scoring_mode
from vog_hf.memory import RowsAtATime
from vog_hf.processes import Processes, from_main, run_together
from vog_hf.rows import RowIdentity
from vog_hf.scores import FORMAT
from vog_hf.snapshots import tensor_digest


@dataclass(frozen=True)
class Session:
    """The model (unwrapped) and everything about a scoring that does not depend on the rows."""

    model: nn.Module
    config: VoGConfig
    processes: Processes
    batch_size: int
    progress: bool
    rows_at_a_time: RowsAtATime = field(default_factory=RowsAtATime)

    @contextmanager
    def model_in_use(self) -> Iterator[None]:
        """The model in scoring mode, all random states kept."""
        with preserved_rng(), scoring_mode(self.model):
            yield

    def output_folder(self, output_dir: str | Path | None) -> tuple[Path, "TemporaryDirectory[str] | None"]:
        """The folder for scores, the same on every process: as given, or a temporary one of the main process."""
        if output_dir is not None:
            return Path(output_dir), None
        temporary = TemporaryDirectory(prefix="vog-scores-") if self.processes.is_main_process else None
        return Path(
            from_main(self.processes, "making a folder", lambda: temporary.name if temporary else "")
        ), temporary

    @contextmanager
    def folder_in_use(self, folder: Path) -> Iterator[None]:
        """The main process holds the folder for all of them."""
        with ExitStack() as stack:
            lock = locked(folder) if self.processes.is_main_process else nullcontext()
            run_together(self.processes, f"locking {folder}", lambda: stack.enter_context(lock))
            yield

    def progress_bar(self, total: int | None) -> Any:
        """A bar that counts rows times snapshots (of how many, if known); on the main process, on a terminal."""
        shown = self.progress and self.processes.is_main_process
        return tqdm(total=total, unit="row", desc="VoG", disable=None if shown else True)

    def update(
        self,
        plan: ScoringPlan,
        batch: Batch,
        accumulator: BatchAccumulator | None,
        *,
        prediction: Tensor | None,
        windows: Windows,
        snapshot: str,
    ) -> BatchAccumulator:
        """Add the model as it is now to a batch's accumulator (None: a new one).

        Raises:
            DataError: A row is nothing but padding; names the row.
            NonFiniteError: A gradient is NaN or infinite; names the row and the snapshot.
        """
        device, dtype = model_device_and_dtype(self.model)
        inputs = placed(batch.inputs, device, dtype)
        given = None if batch.labels is None else batch.labels.to(device)
        labels = PassLabels.of(plan.config, plan.task, given, prediction)
        if accumulator is None:
            accumulator = plan.accumulator({**placed(batch.masks, device, None), **inputs}, windows, batch.rows)
        parts = self.rows_at_a_time.run(
            len(batch), lambda rows: score_batch(self.model, plan, sliced(inputs, rows, len(batch)), labels[rows])
        )
        gradients, observation = joined(parts)
        running = accumulator.update(gradients, observation)
        for target, values in zip(self.config.target_names, running, strict=True):
            require_finite_rows(values, batch.rows, snapshot, target)
        return accumulator

    def predictions(self, batch: Batch) -> Tensor:
        """The predicted class of each row, ``[batch]``, of the model as it is now."""
        inputs = placed(batch.inputs, *model_device_and_dtype(self.model))
        parts = self.rows_at_a_time.run(
            len(batch), lambda rows: predictions(self.model, sliced(inputs, rows, len(batch)))
        )
        return torch.cat(parts)

    def fingerprint(self, reader: BatchReader, identity: RowIdentity, snapshots: Any) -> dict[str, Any]:
        """What the scores depend on: configuration, rows (stored and as they are collated), snapshots."""
        with preserved_rng():
            n_rows = min(len(reader.dataset), TRANSFORM_CHECK_ROWS)
            first = [batch_digest(batch) for batch in reader.read([range(row, row + 1) for row in range(n_rows)])]
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "targets": [target_digest(target) for target in self.config.targets if callable(target)],
            "rows": identity.n_rows,
            "data": identity.columns,
            "first batch": hashlib.sha256(" ".join(first).encode()).hexdigest(),
            "snapshots": snapshots,
        }


def batch_digest(batch: Batch) -> str:
    """SHA-256 of a batch's tensors."""
    digest = hashlib.sha256()
    for name, value in sorted({**batch.masks, **batch.inputs}.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {tensor_digest(value)} ".encode())
    if batch.labels is not None:
        digest.update(tensor_digest(batch.labels).encode())
    return digest.hexdigest()
