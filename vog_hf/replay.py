"""Replay: blocks of rows, read once, gone over with every stored snapshot, finished and written."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vog_hf.accumulate import BatchAccumulator, RowResults, Windows
from vog_hf.batches import Batch, BatchReader
from vog_hf.blocks import BlockFolder
from vog_hf.engine import ScoringPlan, check_labels, needs_prediction
from vog_hf.processes import run_together
from vog_hf.results import with_label
from vog_hf.session import Session, batch_digest
from vog_hf.snapshots import SnapshotSet, lend_weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Replay:
    """What one scoring goes over: rows and snapshots, by a plan, into a folder."""

    session: Session
    plan: ScoringPlan
    reader: BatchReader
    snapshots: SnapshotSet
    folder: BlockFolder

    def score_blocks(self) -> int:
        """Score all blocks that are not finished, on every process; the number of rows of them all."""
        processes, blocks = self.session.processes, self.folder.plan
        mine = len(range(blocks.n_rows)[processes.process_index :: processes.num_processes])
        with self.session.progress_bar(mine * len(self.snapshots.snapshots)) as bar:
            for number in range(blocks.n_blocks):  # the same rounds everywhere: a failure soon ends all
                bar.set_description(f"VoG, block {number + 1} of {blocks.n_blocks}")
                block = blocks.block(processes.process_index, number)
                finish = partial(self._finish_if_needed, number, block, bar)
                run_together(processes, f"scoring block {number + 1}", finish)
        return blocks.n_rows

    def finish_block(self, number: int, block: Sequence[range], bar: Any) -> None:
        """Read, score and write one block of this process; the bar counts rows times snapshots.

        Raises:
            VoGError: What is wrong with a row, a label, a gradient, a snapshot or the disk.
        """
        collated = self._read(block)
        results = self._score(collated, bar)
        rows = np.concatenate([np.asarray(batch.rows, dtype=np.int64) for batch in collated])
        rank = self.session.processes.process_index
        self.folder.write(rank, number, rows, results, note=batch_digest(collated[0]))

    def _finish_if_needed(self, number: int, block: Sequence[range], bar: Any) -> None:
        if not block or self.folder.finished(self.session.processes.process_index, number):
            bar.update(sum(map(len, block)) * len(self.snapshots.snapshots))
        else:
            self.finish_block(number, block, bar)

    def _read(self, block: Sequence[range]) -> list[Batch]:
        collated = list(self.reader.read(block))
        for batch in collated:
            if self.plan.task is not None and batch.labels is not None:
                check_labels(self.plan.task, batch.labels, self.plan.n_outputs, batch.rows)
        return collated

    def _score(self, collated: Sequence[Batch], bar: Any) -> list[RowResults]:
        session, snapshots = self.session, self.snapshots
        windows = Windows(len(snapshots.snapshots))
        accumulators: list[BatchAccumulator | None] = [None] * len(collated)
        last: list[Tensor | None] = [None] * len(collated)
        with lend_weights(session.model, snapshots.frozen, cast_up=session.config.dtype == "float32") as weights:
            if needs_prediction(self.plan, collated):
                weights.load(snapshots.snapshots[-1])
                last = [session.predictions(batch) for batch in collated]
            for snapshot in snapshots.snapshots:
                weights.load(snapshot)
                bar.set_postfix(snapshot=snapshot.name, refresh=False)
                for i, batch in enumerate(collated):
                    accumulators[i] = session.update(
                        self.plan, batch, accumulators[i], prediction=last[i], windows=windows, snapshot=snapshot.name
                    )
                    bar.update(len(batch))
        return [
            with_label(self.plan, accumulator.results(), batch)
            for accumulator, batch in zip(accumulators, collated, strict=True)
            if accumulator is not None
        ]
