"""Replay: blocks of rows, read once, gone over with every stored snapshot, finished and written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from vog_hf.accumulate import RowResults, Windows
from vog_hf.ahead import ahead
from vog_hf.batches import Batch, BatchReader
from vog_hf.blocks import BlockFolder
from vog_hf.engine import ScoringPlan, check_labels, needs_prediction
from vog_hf.gradients import drop_caches
from vog_hf.processes import run_together
from vog_hf.results import with_label
from vog_hf.session import Session, batch_digest
from vog_hf.snapshots import LentWeights, Snapshot, SnapshotSet

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Batches of one block that are in memory together, with the digest of the first one as it was read."""

    batches: list[Batch]
    note: str
    is_last: bool  # of its block


@dataclass(frozen=True)
class Replay:
    """What one scoring goes over: rows and snapshots, by a plan, into a folder, in so many bytes of memory.

    ``weights`` are those lent to the session's model for the time of the scoring.
    """

    session: Session
    plan: ScoringPlan
    reader: BatchReader
    snapshots: SnapshotSet
    folder: BlockFolder
    memory_budget: int
    weights: LentWeights

    def score_blocks(self) -> int:
        """Score all blocks that are not finished, on every process; the number of rows of them all."""
        processes, blocks = self.session.processes, self.folder.plan
        rank = processes.process_index
        own = blocks.blocks(rank)
        missing = {number for number in range(len(own)) if not self.folder.finished(rank, number)}
        groups: Iterator[Group] = chain.from_iterable(self.groups(own[number]) for number in sorted(missing))
        if self.plan.readings > 1:  # on a CPU, reading would take its time from computing
            groups = ahead(groups)
        with self.session.progress_bar(sum(len(rows) for block in own for rows in block) * self._n_snapshots) as bar:
            for number in range(blocks.n_blocks):  # the same rounds everywhere: a failure soon ends all
                bar.set_description(f"VoG, block {number + 1} of {blocks.n_blocks}")
                if number in missing:
                    finish = partial(self.finish_block, number, groups, bar)
                else:
                    n_finished = sum(map(len, blocks.block(rank, number)))
                    finish = partial(bar.update, n_finished * self._n_snapshots)
                run_together(processes, f"scoring block {number + 1}", finish)
        return blocks.n_rows

    def finish_block(self, number: int, groups: Iterator[Group], bar: Any) -> None:
        """Score and write one block of this process, the next one of ``groups``; the bar counts rows times snapshots.

        Raises:
            VoGError: What is wrong with a row, a label, a gradient, a snapshot or the disk.
        """
        rows: list[np.ndarray] = []
        results: list[RowResults] = []
        note = ""
        for group in groups:
            note = note or group.note
            rows += [np.asarray(batch.rows, dtype=np.int64) for batch in group.batches]
            results += self._score(group.batches, bar)
            if group.is_last:
                break
        self.folder.write(self.session.processes.process_index, number, np.concatenate(rows), results, note=note)

    def groups(self, block: Sequence[range]) -> Iterator[Group]:
        """The block's batches, read when they are needed, as many at a time as fit into memory; at least one.

        A block is planned from the first rows, and its own may be longer. All of it fits, as a rule.
        """
        group: list[Batch] = []
        held, note = 0, ""
        for batch in self.reader.read(block):
            if self.plan.task is not None and batch.labels is not None:
                check_labels(self.plan.task, batch.labels, self.plan.n_outputs, batch.rows)
            needed = self.plan.nbytes(batch)
            if group and held + needed > self.memory_budget:
                yield Group(group, note, is_last=False)
                group, held = [], 0
            note = note or batch_digest(batch)
            group.append(self.session.placed(self.plan, batch))
            held += needed
        yield Group(group, note, is_last=True)

    @property
    def _n_snapshots(self) -> int:
        return len(self.snapshots.snapshots)

    def _load(self, snapshot: Snapshot) -> None:
        self.weights.load(snapshot)
        drop_caches(self.session.model)
        self.plan.folding.refresh()

    def _score(self, batches: Sequence[Batch], bar: Any) -> list[RowResults]:
        session = self.session
        windows = Windows(self._n_snapshots)
        accumulators = [self.plan.accumulator(batch, windows) for batch in batches]
        last: list[Tensor | None] = [None] * len(batches)
        if needs_prediction(self.plan, batches):
            self._load(self.snapshots.snapshots[-1])
            last = [session.predictions(batch) for batch in batches]
        for snapshot in self.snapshots.snapshots:
            self._load(snapshot)
            bar.set_postfix(snapshot=snapshot.name, refresh=False)
            for batch, accumulator, prediction in zip(batches, accumulators, last, strict=True):
                session.update(self.plan, batch, accumulator, prediction=prediction)
                bar.update(len(batch))
            for accumulator, batch in zip(accumulators, batches, strict=True):
                session.require_finite(accumulator, batch.rows, snapshot.name)
        return [
            with_label(self.plan, accumulator.results(), batch)
            for accumulator, batch in zip(accumulators, batches, strict=True)
        ]
