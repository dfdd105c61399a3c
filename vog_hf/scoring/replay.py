"""Replay: blocks of rows, read once, gone over with every stored snapshot, finished and written."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from accelerate.utils.memory import clear_device_cache

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.batch_digests import batch_digest, joined_digest
from vog_hf.data.batch_reader import Batch, BatchReader
from vog_hf.errors import MemoryBudgetError, OutputFolderError
from vog_hf.gradients.batchnorm_folding import FastPathError
from vog_hf.metric.batch_accumulator import RowResults
from vog_hf.metric.windows import Windows
from vog_hf.runtime.memory import is_out_of_memory
from vog_hf.runtime.prefetch import prefetch
from vog_hf.runtime.processes import Processes, gathered, run_together, together
from vog_hf.runtime.progress import progress_bar
from vog_hf.scoring.assembly import final_results
from vog_hf.scoring.block_folder import BlockFolder
from vog_hf.scoring.runner import ModelRunner, needs_prediction, require_finite
from vog_hf.scoring.skipped_rows import check_finite, require_few_skipped, require_skipping, rows_named
from vog_hf.snapshots import SnapshotSet

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedBatches:
    """Batches of one block that are in memory together, on the device, with their labels and digests on the CPU."""

    batches: list[Batch]
    labels: list["Tensor | None"]
    digests: list[int]
    is_last: bool  # of its block

    def halves(self) -> list["LoadedBatches"]:
        """The first and the second half of the batches; both empty or one of them, if there are fewer than two."""
        middle = len(self.batches) // 2
        return [
            LoadedBatches(self.batches[part], self.labels[part], self.digests[part], self.is_last)
            for part in (slice(None, middle), slice(middle, None))
        ]


@dataclass(frozen=True)
class ScoredBlock:
    """Row numbers of a block, in the order of its results, and the digest of its batches."""

    rows: np.ndarray
    results: list[RowResults]
    digest: str


@dataclass(frozen=True)
class Replay:
    """One scoring of rows from snapshots, block by block, into a folder.

    Attributes:
        runner: Runner of the model, entered.
        reader: Reader over all rows.
        snapshots: Snapshots to score from.
        folder: Folder that is filled with blocks.
        processes: Processes that share the rows.
        memory_budget: Bytes for the batches that are in memory together.
        lengths: Length of each row, if padding can be saved by putting rows of similar length into a batch.
        shows_progress: Whether this process shows a progress bar.
    """

    runner: ModelRunner
    reader: BatchReader
    snapshots: SnapshotSet
    folder: BlockFolder
    processes: Processes
    memory_budget: int
    lengths: npt.NDArray[np.int64] | None = None
    shows_progress: bool = False

    def score_blocks(self) -> int:
        """Score all blocks that are not finished, on every process; the number of rows of them all.

        Raises:
            OutputFolderError: The rows of a finished block are not those that were scored.
        """
        processes, blocks = self.processes, self.folder.plan
        own = blocks.blocks(processes.process_index)
        missing = run_together(processes, "looking for finished blocks", self._missing, len(own))
        groups: Iterator[LoadedBatches] = chain.from_iterable(
            self.groups(self.reader.read(self._batches(own[number]))) for number in sorted(missing)
        )
        is_tried = self.reader.bad_rows.on_error == "skip"  # by the model, which computes something else meanwhile
        if self.runner.plan.block_copies > 1 and not is_tried:  # on a CPU, reading would take its time from computing
            groups = prefetch(groups)
        n_passes = sum(len(rows) for block in own for rows in block) * self._n_snapshots
        with progress_bar(n_passes, is_shown=self.shows_progress) as bar:
            for number in range(blocks.n_blocks):  # the same rounds everywhere: a failure soon ends all
                bar.set_description(f"VoG, block {number + 1} of {blocks.n_blocks}")
                with together(processes, f"scoring block {number + 1}"):
                    if number in missing:
                        self.write(number, self.score(groups, bar))
                    else:
                        self._pass_over(number, bar)
        return blocks.n_rows

    def score(self, groups: Iterator[LoadedBatches], bar: Any) -> ScoredBlock | None:
        """Score one block, the next one of ``groups``; the bar counts rows times snapshots. None: it has no rows.

        Raises:
            VoGError: A row, a label, a gradient or a snapshot is not sound.
        """
        rows: list[np.ndarray] = []
        results: list[RowResults] = []
        digests: list[int] = []
        for group in groups:
            digests += group.digests
            rows += [np.asarray(batch.rows, dtype=np.int64) for batch in group.batches]
            parts = [group]
            while parts:
                before, failed = bar.n, False
                try:
                    results += self._score(parts[0], bar)
                    del parts[0]
                except (FastPathError, RuntimeError) as error:
                    parts[:1] = self._parts_after(error, parts[0])
                    failed = True
                if failed:  # here, where the exception with its tensors is gone
                    bar.update(before - bar.n)
                    clear_device_cache(garbage_collection=True)
            if group.is_last:
                break
        require_few_skipped(self.skipped, self.folder.plan.n_rows)
        compared = (digest for digest, part in zip(digests, rows, strict=True) if not self.skips(part.tolist()))
        return ScoredBlock(np.concatenate(rows), results, joined_digest(compared)) if rows else None

    def groups(self, batches: Iterable[Batch]) -> Iterator[LoadedBatches]:
        """The batches of one block, read when they are needed, as many at a time as fit into memory; at least one.

        A block is planned from the first rows, and its own may be longer. All of it fits, as a rule.
        """
        plan = self.runner.plan
        group = LoadedBatches([], [], [], is_last=False)
        held = 0
        for batch in batches:
            plan.check(batch)
            needed = plan.nbytes(batch)
            if group.batches and held + needed > self.memory_budget:
                yield group
                group, held = LoadedBatches([], [], [], is_last=False), 0
            group.digests.append(batch_digest(batch))
            group.labels.append(plan.counted_labels(batch))
            group.batches.append(self.runner.to_device(batch))
            held += needed
        yield replace(group, is_last=True)

    def write(self, number: int, scored: ScoredBlock | None) -> None:
        """Make a block of this process durable, if it has rows."""
        rank = self.processes.process_index
        if scored is not None:
            skipped = {row: self.skipped[row] for row in scored.rows.tolist() if row in self.skipped}
            self.folder.write(rank, number, scored.rows, scored.results, batch_digest=scored.digest, skipped=skipped)

    def rows_digest(self) -> str:
        """The digest of all rows as they were read when their blocks were scored, on every process."""
        processes, blocks = self.processes, self.folder.plan
        own = blocks.blocks(processes.process_index)
        digests = run_together(processes, "looking for finished blocks", self._batch_digests, len(own))
        return joined_digest(int(digest, 16) for digest in chain.from_iterable(gathered(processes, digests)))

    def _batches(self, block: Sequence[range]) -> Sequence[Sequence[int]]:
        """The rows of a block, the shortest in the first batch; as they are where no length is known."""
        if self.lengths is None:
            return block
        rows = np.concatenate([np.asarray(batch, dtype=np.int64) for batch in block])
        ordered = rows[np.lexsort((rows, self.lengths[rows]))].tolist()
        size = self.folder.plan.batch_size
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def _batch_digests(self, n_blocks: int) -> list[str]:
        rank = self.processes.process_index
        return [self.folder.batch_digest(rank, number) for number in range(n_blocks)]

    def _missing(self, n_blocks: int) -> set[int]:
        rank = self.processes.process_index
        missing = {number for number in range(n_blocks) if not self.folder.finished(rank, number)}
        for number in set(range(n_blocks)) - missing:
            self.take_skipped(number)
        return missing

    def _pass_over(self, number: int, bar: Any) -> None:
        """Pass over a block that only other processes have, or a finished one, with the very rows that were scored."""
        rank = self.processes.process_index
        block = self.folder.plan.block(rank, number)
        if block and not has_table(self.reader.dataset):
            compared = [rows for rows in block if not self.skips(rows)]
            found = joined_digest(map(batch_digest, self.reader.read(compared)))
            require_same_rows(found, self.folder.batch_digest(rank, number), self.folder.folder)
        bar.update(sum(map(len, block)) * self._n_snapshots)

    @property
    def skipped(self) -> dict[int, str]:
        """The rows of this process that are skipped, with their reasons."""
        return self.reader.bad_rows.skipped

    def take_skipped(self, number: int) -> None:
        """Skip what was skipped in a finished block; raises OutputFolderError where rows are not to be skipped."""
        skipped = self.folder.skipped(self.processes.process_index, number)
        require_skipping(self.reader, len(skipped), self.folder.folder)
        self.skipped.update(skipped)

    def skips(self, rows: Sequence[int]) -> bool:
        """True if one of some rows is skipped: a batch with such a row is not compared when it is read again."""
        return bool(self.skipped) and not self.skipped.keys().isdisjoint(rows)

    @property
    def _n_snapshots(self) -> int:
        return len(self.snapshots.snapshots)

    def _parts_after(self, error: Exception, group: LoadedBatches) -> list[LoadedBatches]:
        """The parts to score from the first snapshot again, where the fast way did not fit or memory has run out.

        Raises:
            Exception: ``error``, if it was neither.
            MemoryBudgetError: Not even one batch and its moments fit into the device's memory.
        """
        if isinstance(error, FastPathError):  # all snapshots again: those before may have come close to the tolerance
            self.runner.run_plainly(error)
            return [group]
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            return _smaller(group, error)
        raise error

    def _score(self, group: LoadedBatches, bar: Any) -> list[RowResults]:
        runner, windows, batches = self.runner, Windows(self._n_snapshots), group.batches
        accumulators = [runner.plan.accumulator(batch, windows) for batch in batches]
        predictions: list[Tensor | None] = [None] * len(batches)
        if needs_prediction(runner.plan, group.labels):
            runner.load(self.snapshots.snapshots[-1])
            for at, batch in enumerate(batches):
                with rows_named(self.reader, batch.rows, runner.try_batch):
                    predictions[at] = runner.predict(batch)
        for snapshot in self.snapshots.snapshots:
            runner.load(snapshot)
            bar.set_postfix(snapshot=snapshot.name, refresh=False)
            for batch, accumulator, prediction in zip(batches, accumulators, predictions, strict=True):
                with rows_named(self.reader, batch.rows, runner.try_batch):
                    accumulator.update(*runner.observe(batch, prediction))
                bar.update(len(batch))
            check = partial(require_finite, runner.plan, snapshot=snapshot.name)
            check_finite(self.reader, [batch.rows for batch in batches], accumulators, check, snapshot.name)
        return [
            final_results(runner.plan, accumulator.results(), Batch(batch.rows, {}, labels), self.skipped)
            for batch, labels, accumulator in zip(batches, group.labels, accumulators, strict=True)
        ]


def _smaller(group: LoadedBatches, error: RuntimeError) -> list[LoadedBatches]:
    """Two halves of what did not fit into memory together."""
    if len(group.batches) < 2:
        raise MemoryBudgetError(
            f"a batch of {sum(map(len, group.batches))} rows and its moments do not fit into memory ({error}); pass a "
            "smaller batch_size, or use a larger device",
            argument="batch_size",
        ) from error
    logger.warning("VoG: out of memory with the moments of %d batches; retrying with half of them", len(group.batches))
    return group.halves()


def require_same_rows(found: str, scored: str, folder: Path) -> None:
    """Raise OutputFolderError where rows, read again, have another digest (see `joined_digest`) than when scored."""
    if found != scored:
        raise OutputFolderError(
            f"the rows are not those that the scores in {folder} were computed on: some were edited, or they come in "
            "another order each time; choose another output_dir, or delete the folder to score again",
            argument="output_dir",
        )
