"""Replay: blocks of rows, read once, gone over with every stored snapshot, finished and written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vog_hf.accumulate import BatchAccumulator, RowResults, Windows
from vog_hf.batches import Batch, BatchReader
from vog_hf.blocks import BlockFolder
from vog_hf.engine import ScoringPlan, check_labels, needs_prediction
from vog_hf.gradients import drop_caches
from vog_hf.processes import run_together
from vog_hf.results import with_label
from vog_hf.session import Session, batch_digest
from vog_hf.snapshots import LentWeights, Snapshot, SnapshotSet, lend_weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Replay:
    """What one scoring goes over: rows and snapshots, by a plan, into a folder, in so many bytes of memory."""

    session: Session
    plan: ScoringPlan
    reader: BatchReader
    snapshots: SnapshotSet
    folder: BlockFolder
    memory_budget: int

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
        rows: list[np.ndarray] = []
        results: list[RowResults] = []
        note = ""
        for group in self._groups(block):
            note = note or batch_digest(group[0])
            rows += [np.asarray(batch.rows, dtype=np.int64) for batch in group]
            results += self._score(group, bar)
        rank = self.session.processes.process_index
        self.folder.write(rank, number, np.concatenate(rows), results, note=note)

    def _finish_if_needed(self, number: int, block: Sequence[range], bar: Any) -> None:
        if not block or self.folder.finished(self.session.processes.process_index, number):
            bar.update(sum(map(len, block)) * len(self.snapshots.snapshots))
        else:
            self.finish_block(number, block, bar)

    def _groups(self, block: Sequence[range]) -> Iterator[list[Batch]]:
        """The block's batches, read when they are needed, as many at a time as fit into memory; at least one.

        A block is planned from the first rows, and its own may be longer. All of it fits, as a rule.
        """
        group: list[Batch] = []
        held = 0
        for batch in self.reader.read(block):
            if self.plan.task is not None and batch.labels is not None:
                check_labels(self.plan.task, batch.labels, self.plan.n_outputs, batch.rows)
            needed = self.plan.nbytes(batch)
            if group and held + needed > self.memory_budget:
                yield group
                group, held = [], 0
            group.append(batch)
            held += needed
        yield group

    def _load(self, weights: LentWeights, snapshot: Snapshot) -> None:
        weights.load(snapshot)
        drop_caches(self.session.model)

    def _score(self, collated: Sequence[Batch], bar: Any) -> list[RowResults]:
        session, snapshots = self.session, self.snapshots
        windows = Windows(len(snapshots.snapshots))
        accumulators: list[BatchAccumulator | None] = [None] * len(collated)
        last: list[Tensor | None] = [None] * len(collated)
        with lend_weights(session.model, snapshots.frozen, cast_up=session.config.dtype == "float32") as weights:
            if needs_prediction(self.plan, collated):
                self._load(weights, snapshots.snapshots[-1])
                last = [session.predictions(batch) for batch in collated]
            for snapshot in snapshots.snapshots:
                self._load(weights, snapshot)
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
