"""Session: which model is scored, by which processes, with which options; and what replay and live share."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from tqdm.auto import tqdm

from vog_hf.config import VoGConfig, target_digest
from vog_hf.data.batch_reader import TRANSFORM_CHECK_ROWS, Batch, BatchReader
from vog_hf.data.row_identity import RowIdentity
from vog_hf.errors import MemoryBudgetError, OutputFolderError, as_path
from vog_hf.gradients.batchnorm_folding import FastPathError
from vog_hf.gradients.model_inputs import to_device
from vog_hf.gradients.model_mode import model_device_and_dtype, preserved_rng, scoring_mode
from vog_hf.metric.batch_accumulator import BatchAccumulator
from vog_hf.runtime.files import locked
from vog_hf.runtime.memory import AdaptiveBatchSize
from vog_hf.runtime.processes import Processes, from_main, run_together
from vog_hf.scores.storage import FORMAT
from vog_hf.scoring.block_folder import PLAN_NAME
from vog_hf.scoring.fast_path import require_same_function
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.runner import LabelsForPass, joined, predictions, require_finite_rows, score_batch, sliced
from vog_hf.snapshots import SnapshotLoader, temporary_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """The model (unwrapped) and everything about a scoring that does not depend on the rows."""

    model: nn.Module
    config: VoGConfig
    processes: Processes
    progress: bool
    rows_per_pass: AdaptiveBatchSize = field(default_factory=AdaptiveBatchSize)

    @contextmanager
    def model_in_use(self) -> Iterator[None]:
        """The model in scoring mode, all random states kept."""
        with preserved_rng(), scoring_mode(self.model, self.config.autocast):
            yield

    @contextmanager
    def weights_lent(
        self, plan: ScoringPlan, frozen: Mapping[str, str], *, resident_bytes: int = 0
    ) -> Iterator[SnapshotLoader]:
        """The model, in use, to be given other weights and run the way of the plan; see `temporary_weights`."""
        cast_up = self.config.casts_up
        with (
            temporary_weights(self.model, frozen, cast_up=cast_up, resident_bytes=resident_bytes) as weights,
            plan.folding.installed(),
        ):
            weights.record_state()
            yield weights

    def output_folder(self, output_dir: str | Path | None) -> tuple[Path, "TemporaryDirectory[str] | None"]:
        """The folder for scores, the same on every process: as given, or a temporary one of the main process."""
        if output_dir is not None:
            return as_path("output_dir", output_dir), None
        temporary = TemporaryDirectory(prefix="vog-scores-") if self.processes.is_main_process else None
        name = from_main(self.processes, "making a folder", getattr, temporary, "name", "")
        return Path(name), temporary

    @contextmanager
    def folder_in_use(self, folder: Path) -> Iterator[None]:
        """The main process holds the folder for all of them."""
        with ExitStack() as stack:
            lock = locked(folder) if self.processes.is_main_process else nullcontext()
            run_together(self.processes, f"locking {folder}", stack.enter_context, lock)
            yield

    def progress_bar(self, total: int | None) -> Any:
        """A bar that counts rows times snapshots (of how many, if known); on the main process, on a terminal."""
        shown = self.progress and self.processes.is_main_process
        return tqdm(total=total, unit="row", desc="VoG", disable=None if shown else True)

    def to_device(self, plan: ScoringPlan, batch: Batch) -> Batch:
        """A batch on the device, in the dtype of the weights that the model has now and in the layout of the plan."""
        device, dtype = model_device_and_dtype(self.model)
        labels = plan.counted_labels(batch)
        return replace(
            batch,
            inputs=plan.to_memory_format(to_device(batch.inputs, device, dtype)),
            masks=to_device(batch.masks, device, None),
            labels=None if labels is None else labels.to(device, non_blocking=True),
        )

    def update(
        self,
        plan: ScoringPlan,
        batch: Batch,
        accumulator: BatchAccumulator,
        *,
        prediction: Tensor | None,
        snapshot: int,
    ) -> None:
        """Add the model as it is now, of this snapshot, to the accumulator of a batch that is placed.

        Nothing here waits for the device, but to compare the fast way with the plain one, once for each snapshot and
        shape: whether the gradients were finite, `require_finite` says after a pass.

        Raises:
            FastPathError: The fast way failed, or is another function than the model; the accumulator is as it was.
        """
        labels = LabelsForPass.resolve(plan.config, plan.task, batch.labels, prediction)
        rows_per_pass = self.rows_per_pass
        try:
            require_same_function(
                plan, self.model, batch.inputs, labels, snapshot=snapshot, rows_per_pass=rows_per_pass
            )
            parts = rows_per_pass.run(
                len(batch), lambda rows: score_batch(plan, sliced(batch.inputs, rows, len(batch)), labels[rows])
            )
        except (MemoryBudgetError, FastPathError):
            raise
        except Exception as error:
            if plan.module is self.model and not plan.folding:
                raise
            raise FastPathError(
                f"it failed with {type(error).__name__}: {' '.join(str(error).split()):.200}"
            ) from error  # if not the fast way but a row is wrong, the plain one says so
        accumulator.update(*joined(parts))

    def plain(self, plan: ScoringPlan, error: FastPathError) -> ScoringPlan:
        """A plan to go on by with the model as it is, when a batch has shown that the fast way does not fit."""
        way = f"{plan.folding}{'' if plan.module is self.model else ', compiled'}"
        logger.warning("VoG: the model is run as it is from here on: the faster way (%s) does not fit: %s", way, error)
        plan.folding.remove()
        return plan.plain(self.model)

    def require_finite(self, accumulator: BatchAccumulator, rows: Sequence[int], snapshot: str) -> None:
        """Raise NonFiniteError, naming the row and the snapshot, where a gradient of the last pass was not finite."""
        for target, values in zip(self.config.target_names, accumulator.running, strict=True):
            require_finite_rows(values, rows, snapshot, target)

    def predictions(self, plan: ScoringPlan, batch: Batch) -> Tensor:
        """The predicted class of each row, ``[batch]``, of a batch that is placed and the plain model as it is now."""
        with plan.folding.paused(), plan.state_kept():
            parts = self.rows_per_pass.run(
                len(batch), lambda rows: predictions(self.model, sliced(batch.inputs, rows, len(batch)))
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
            "first batch": joined_digest(first),
            "snapshots": snapshots,
        }


def require_shared(folder: Path) -> None:
    """Raise OutputFolderError where this process does not see the folder that the main process has prepared."""
    if not (folder / PLAN_NAME).is_file():
        raise OutputFolderError(
            f"this process does not see what the main process has written to {folder}: the machines do not share that "
            "disk; pass an output_dir on a disk that all of them see"
        )


def batch_digest(batch: Batch) -> int:
    """64 bits that tell a batch from another one: its row numbers, inputs, masks and labels, as they were read."""
    digest = xxhash.xxh3_64(str(batch.rows).encode())
    for name, value in sorted({**batch.masks, **batch.inputs, "": batch.labels}.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.intdigest()


def joined_digest(digests: Iterable[int]) -> str:
    """The digest of several batches, in whatever order."""
    return f"{sum(digests) % 2**64:016x}"
