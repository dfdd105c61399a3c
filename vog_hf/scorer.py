"""VoGScorer: rows -> blocks -> gradients -> moments -> scores, under Accelerate."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from vog_hf.accumulate import BatchAccumulator, RowResults, Windows
from vog_hf.batches import TRANSFORM_CHECK_ROWS, Batch, BatchReader, CollateFunction
from vog_hf.blocks import BlockFolder, BlockPlan
from vog_hf.config import VoGConfig
from vog_hf.engine import (
    PADDING_TOLERANCE,
    ScoringPlan,
    check_labels,
    needs_prediction,
    padding_difference,
    plan_scoring,
    predictions,
)
from vog_hf.errors import ConfigError
from vog_hf.files import require_free
from vog_hf.gradients import model_device_and_dtype, unwrap
from vog_hf.live import LiveScoring
from vog_hf.processes import current_processes, from_main, run_together, same_everywhere
from vog_hf.results import finish_folder, make_manifest, with_label
from vog_hf.rows import RowIdentity, identify_rows
from vog_hf.scores import VoGScores
from vog_hf.session import Session, free_memory
from vog_hf.snapshots import SnapshotSet, SnapshotSource, lend_weights, open_snapshots

logger = logging.getLogger(__name__)

FREE_MEMORY_SHARE = 0.25


class VoGScorer:
    """Scores the rows of a data set from stored snapshots of a model.

    Memory is that of one block of rows and one model, whatever the number of rows and snapshots; the model gets its
    own weights, modes and random states back.

    Args:
        model: The model that was trained, on the device to compute on; wrapped and compiled models are unwrapped.
        config: What is computed; default: the paper's choices.
        accelerator: Whose processes share the rows; default: the processes of this run.
        batch_size: Rows per forward pass. Does not change a score.
        memory_budget: Bytes for a block's rows and moments, at least one batch; default: a quarter of what is free.
        num_workers: Processes that read rows ahead.
        progress: Show a progress bar on the main process (where there is a terminal).

    Example:
        >>> import torch
        >>> model = nn.Linear(3, 2)
        >>> rows = [(torch.rand(3), i % 2) for i in range(5)]
        >>> states = [(f"epoch-{k}", {n: torch.rand_like(p) for n, p in model.named_parameters()}) for k in range(4)]
        >>> scores = VoGScorer(model).score(rows, states)
        >>> len(scores), bool((scores.column("vog") > 0).all())
        (5, True)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        config: VoGConfig | None = None,
        accelerator: Accelerator | None = None,
        batch_size: int = 64,
        memory_budget: int | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                msg = f"{name} must be at least {least}, got {value}"
                raise ConfigError(msg)
        if memory_budget is not None and memory_budget < 1:
            msg = f"memory_budget must be a number of bytes, got {memory_budget}"
            raise ConfigError(msg)
        self.config = config or VoGConfig()
        self.model = unwrap(model)
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self.num_workers = num_workers
        self._session = Session(self.model, self.config, accelerator or current_processes(), batch_size, progress)

    def score(
        self,
        dataset: Any,
        snapshots: SnapshotSource,
        *,
        collate_fn: CollateFunction | None = None,
        output_dir: str | Path | None = None,
    ) -> VoGScores:
        """The scores of every row of a data set.

        Args:
            dataset: A `datasets.Dataset` with a deterministic transform, or any map-style torch data set.
            snapshots: A folder (a callback's, or one with ``checkpoint-*`` in it), a list of model folders or
                safetensors files in the order of training, or an iterable of (name, state_dict).
            collate_fn: From a list of whole rows to a batch; default: transformers' or torch's default collator.
            output_dir: Where the scores are kept. An interrupted run continues there, and a finished one is returned
                as it is, if data, configuration and snapshots are the same. None: a temporary folder.

        Raises:
            VoGError: What is wrong with rows, labels, model, snapshots or folder; before the long work where possible.
        """
        with TemporaryDirectory(prefix="vog-spool-") as spool:
            snapshot_set = open_snapshots(snapshots, spool=Path(spool))
            return self.score_rows(self.reader(dataset, collate_fn=collate_fn), snapshot_set, output_dir=output_dir)

    def reader(self, dataset: Any, **options: Any) -> BatchReader:
        """A `BatchReader` of a data set for this scorer's model; options as there."""
        return BatchReader(
            dataset, self.model, label_column=self.config.label_column, num_workers=self.num_workers, **options
        )

    def plan(self, reader: BatchReader) -> ScoringPlan:
        """The dry run on the first rows: raises what is wrong with rows, labels, model or configuration."""
        rows = range(min(len(reader.dataset), max(TRANSFORM_CHECK_ROWS, self.batch_size)))
        plan = plan_scoring(self.model, reader, self.config, rows)
        difference = padding_difference(self.model, reader, plan, rows)
        if difference is not None and difference > PADDING_TOLERANCE:
            logger.warning(
                "the gradient of a row changes by %.1f %% when it is padded to the length of its batch: the model does "
                "not leave padding out. Pad every row to one fixed length (padding='max_length') for scores that do "
                "not depend on the batch",
                100 * difference,
            )
        return plan

    def estimate(self, plan: ScoringPlan, n_rows: int, n_snapshots: int, *, collect: str = "replay") -> str:
        """One line for a person: what scoring this many rows takes, on each process."""
        blocks = self._block_plan(plan, n_rows)
        mine = len(range(n_rows)[:: blocks.n_processes])
        line = plan.estimate(mine, n_snapshots, mine if collect == "live" else blocks.block_rows)
        return f"{line} on each of {blocks.n_processes} processes" if blocks.n_processes > 1 else line

    def score_rows(
        self, reader: BatchReader, snapshots: SnapshotSet, *, output_dir: str | Path | None = None
    ) -> VoGScores:
        """As `score`, of rows behind a reader and snapshots that are open."""
        session, processes = self._session, self._session.processes
        folder, temporary = session.output_folder(output_dir)
        identity, fingerprint = run_together(
            processes, "reading rows and snapshots", lambda: self._fingerprinted(reader, snapshots)
        )
        same_everywhere(processes, "data, configuration and snapshots", fingerprint)
        with session.folder_in_use(folder):
            if from_main(processes, "looking for scores", lambda: BlockFolder.is_finished(folder, fingerprint)):
                return VoGScores.load(folder)
            plan = run_together(processes, "the dry run", lambda: self.plan(reader))
            block_plan = from_main(
                processes,
                f"preparing {folder}",
                lambda: self._prepared(plan, folder, fingerprint, len(snapshots.snapshots)),
            )
            blocks = run_together(processes, f"opening {folder}", lambda: BlockFolder(folder, fingerprint, block_plan))
            with session.model_in_use():
                self._score_blocks(_Replay(plan, reader, snapshots, blocks))
            manifest = make_manifest(session, plan, reader, identity)
            digests = fingerprint["snapshots"]
            taken = zip(snapshots.snapshots, digests, strict=True)
            manifest |= {
                "collect": "replay",
                "batch_size": blocks.plan.batch_size,  # an interrupted run keeps its own
                "snapshots": [{"name": s.name, "step": s.step, "digest": digest} for s, digest in taken],
            }
            return finish_folder(session, blocks, plan, identity, manifest, temporary=temporary)

    def live(self, reader: BatchReader, plan: ScoringPlan, n_snapshots: int) -> LiveScoring:
        """Moments of all rows in memory, to be updated while the model trains (see `LiveScoring`)."""
        return LiveScoring(self._session, reader, plan, n_snapshots)

    def _fingerprinted(self, reader: BatchReader, snapshots: SnapshotSet) -> tuple[RowIdentity, dict[str, Any]]:
        identity = identify_rows(reader.dataset)
        digests = snapshots.fingerprint()
        snapshots.verify_frozen(self.model)
        return identity, self._session.fingerprint(reader, identity, digests)

    def _prepared(self, plan: ScoringPlan, folder: Path, fingerprint: dict[str, Any], n_snapshots: int) -> BlockPlan:
        """Begin or take up the folder (on the main process): the blocks that all processes then follow."""
        n_rows = fingerprint["rows"]
        blocks = BlockFolder(folder, fingerprint, self._block_plan(plan, n_rows))
        require_free(folder, plan.disk_bytes(n_rows, n_snapshots) - blocks.block_bytes, "storing the scores")
        logger.info("VoG: %s; scores in %s", self.estimate(plan, n_rows, n_snapshots), folder)
        return blocks.plan

    def _score_blocks(self, work: "_Replay") -> None:
        processes = self._session.processes
        blocks = work.folder.plan.blocks(processes.process_index)
        n_rows = sum(len(rows) for block in blocks for rows in block)
        with self._session.progress_bar(n_rows * len(work.snapshots.snapshots)) as bar:
            for number in range(work.folder.plan.n_blocks):  # the same rounds everywhere: a failure soon ends all
                block = blocks[number] if number < len(blocks) else []
                bar.set_description(f"VoG, block {number + 1} of {work.folder.plan.n_blocks}")
                finish = partial(self._finish_block, work, number, block, bar)
                run_together(processes, f"scoring block {number + 1}", finish)

    def _finish_block(self, work: "_Replay", number: int, block: Sequence[range], bar: Any) -> None:
        rank = self._session.processes.process_index
        if not block or work.folder.finished(rank, number):
            bar.update(sum(map(len, block)) * len(work.snapshots.snapshots))
            return
        collated = self._read_block(work, block)
        results = self._score_block(work, collated, bar)
        rows = [np.asarray(batch.rows, dtype=np.int64) for batch in collated]
        work.folder.write(rank, number, np.concatenate(rows), results)

    def _score_block(self, work: "_Replay", collated: Sequence[Batch], bar: Any) -> list[RowResults]:
        plan, snapshots = work.plan, work.snapshots
        windows = Windows(len(snapshots.snapshots))
        accumulators: list[BatchAccumulator | None] = [None] * len(collated)
        last: list[Tensor | None] = [None] * len(collated)
        with lend_weights(self.model, snapshots.frozen, cast_up=self.config.dtype == "float32") as weights:
            if needs_prediction(plan, collated):
                weights.load(snapshots.snapshots[-1])
                last = [predictions(self.model, batch) for batch in collated]
            for snapshot in snapshots.snapshots:
                weights.load(snapshot)
                bar.set_postfix(snapshot=snapshot.name, refresh=False)
                for i, batch in enumerate(collated):
                    accumulators[i] = self._session.update(
                        plan, batch, accumulators[i], prediction=last[i], windows=windows, snapshot=snapshot.name
                    )
                    bar.update(len(batch))
        return [
            with_label(plan, accumulator.results(), batch)
            for accumulator, batch in zip(accumulators, collated, strict=True)
            if accumulator is not None
        ]

    def _read_block(self, work: "_Replay", block: Sequence[range]) -> list[Batch]:
        collated = list(work.reader.read(block))
        for batch in collated:
            if work.plan.task is not None and batch.labels is not None:
                check_labels(work.plan.task, batch.labels, work.plan.n_outputs, batch.rows)
        return collated

    def _block_plan(self, plan: ScoringPlan, n_rows: int) -> BlockPlan:
        budget = self.memory_budget or int(FREE_MEMORY_SHARE * free_memory(model_device_and_dtype(self.model)[0]))
        in_batches = max(1, budget // (plan.bytes_per_row * self.batch_size))
        return BlockPlan(n_rows, self._session.processes.num_processes, self.batch_size, in_batches * self.batch_size)


@dataclass(frozen=True)
class _Replay:
    """What one scoring goes over: rows and snapshots, by a plan, into a folder."""

    plan: ScoringPlan
    reader: BatchReader
    snapshots: SnapshotSet
    folder: BlockFolder
