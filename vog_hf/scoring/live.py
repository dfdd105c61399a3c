"""LiveScoring: the moments of all rows in memory, updated at every snapshot while a model trains."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import broadcast
from torch import nn

from vog_hf.data.batch_reader import Batch, BatchReader
from vog_hf.data.row_identity import RowIdentity, identify_rows
from vog_hf.errors import ConfigError, MemoryBudgetError, OutputFolderError
from vog_hf.gradients.batchnorm_folding import FastPathError
from vog_hf.gradients.model_mode import model_device_and_dtype
from vog_hf.metric.batch_accumulator import RowResults
from vog_hf.metric.windows import MIN_SNAPSHOTS, Windows
from vog_hf.runtime.files import format_bytes
from vog_hf.runtime.memory import AdaptiveBatchSize, free_memory
from vog_hf.runtime.processes import Processes, gathered, run_together
from vog_hf.runtime.progress import progress_bar
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.assembly import final_results, finish_folder
from vog_hf.scoring.block_folder import BlockFolder, BlockPlan, batches
from vog_hf.scoring.live_checkpoint import LiveBatch, load_batches, read_header, save_state
from vog_hf.scoring.live_ranking import current_ranking, gathered_heat_maps
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.run_manifest import make_fingerprint, make_manifest
from vog_hf.scoring.runner import ModelRunner, needs_prediction, require_finite
from vog_hf.scoring.shared_folder import folder_in_use, open_everywhere, output_folder
from vog_hf.scoring.skipped_rows import check_finite, require_skipping, rows_named, skipped_entry


class LiveScoring:
    """Moments, dynamics and trajectories of all rows of this process; rows are read again at each snapshot.

    Args:
        model: Model that trains, unwrapped.
        reader: Reader over all rows.
        plan: Plan of the scoring.
        n_snapshots: Number of planned snapshots: the windows early and late need to know it.
        processes: Processes that share the rows.
        shows_progress: Whether this process shows a progress bar.
        rows_per_pass: Rows that fit into one pass.
        tokenizer: Tokenizer to keep with heat maps of texts, as JSON.

    Raises:
        ConfigError: A label is needed that only the last snapshot can say.
        MemoryBudgetError: The moments do not fit; names both numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        reader: BatchReader,
        plan: ScoringPlan,
        n_snapshots: int,
        *,
        processes: Processes,
        shows_progress: bool,
        rows_per_pass: AdaptiveBatchSize,
        tokenizer: str | None = None,
    ) -> None:
        self._model = model
        self._reader = reader
        self._tokenizer = tokenizer
        self._runner = ModelRunner(model, plan, rows_per_pass=rows_per_pass)
        self._processes = processes
        self._shows_progress = shows_progress
        self._windows = Windows(n_snapshots)
        mine = range(len(reader.dataset))[processes.process_index :: processes.num_processes]
        self._batches = batches(mine, plan.batch_size)
        self._held: list[LiveBatch] = []
        self._snapshots: list[dict[str, Any]] = []
        if plan.config.label == "predicted":
            raise ConfigError(
                "collect='live' cannot use label='predicted': the last snapshot's prediction is not known during "
                "training; use collect='replay'",
                argument="label=",
            )
        self._check_all_labels()
        needed, free = self.memory_bytes(), free_memory(model_device_and_dtype(model)[0])
        if needed > free:
            raise MemoryBudgetError(
                f"collect='live' keeps the moments of {len(mine):,} rows, {format_bytes(needed)}, and "
                f"{format_bytes(free)} are free; use collect='replay', whose memory does not grow with the rows"
            )

    @property
    def _plan(self) -> ScoringPlan:
        """The plan, with the way that the model is run in now."""
        return self._runner.plan

    def memory_bytes(self) -> int:
        """Memory that the moments and trajectories of this process's rows will take."""
        per_row = self._plan.moment_bytes_per_row + self._plan.trajectory_bytes_per_row(self._windows.n_snapshots)
        return per_row * sum(map(len, self._batches))

    @property
    def n_snapshots(self) -> int:
        """Snapshots seen so far."""
        return len(self._snapshots)

    @property
    def steps(self) -> list[int]:
        """The steps of the snapshots seen so far."""
        return [snapshot["step"] or 0 for snapshot in self._snapshots]

    def save(self, folder: Path) -> None:
        """Write everything seen so far to a folder of its own; durable when this returns.

        Raises:
            OutputFolderError: The disk is full or cannot be written to; the folder then does not count.
        """
        processes = self._processes
        header = run_together(processes, "reading rows", self._header)
        skipped = {str(row): reason for part in gathered(processes, self._skipped) for row, reason in part.items()}
        save_state(folder, processes, self._held, header | {"skipped": skipped})

    def restore(self, folder: Path) -> None:
        """Continue from what `save` wrote, on as many processes as there are now, bit by bit.

        Raises:
            OutputFolderError: The folder is not whole, or holds moments from a different run.
        """
        run_together(self._processes, "restoring the moments", self._restore, folder)

    def _restore(self, folder: Path) -> None:
        saved = read_header(folder)
        self._identity = identify_rows(self._reader.dataset, like=RowIdentity.of_fingerprint(saved))
        own = json.loads(json.dumps(self._header()))
        differing = [name for name in own if name != "snapshots" and saved.get(name) != own[name]]
        if differing:
            raise OutputFolderError(
                f"{folder} holds moments from a different run (it differs in {', '.join(differing)}); resume with the "
                "data, configuration and number of epochs that training began with, or train again, with "
                "collect='replay' if the number of epochs may change between runs"
            )
        skipped = {int(row): reason for row, reason in saved.get("skipped", {}).items()}
        require_skipping(self._reader, len(skipped), folder)
        self._skipped.update(skipped)
        self._snapshots = saved["snapshots"]
        device = model_device_and_dtype(self._model)[0]
        if self._snapshots:
            make = partial(self._plan.accumulator_with, None, self._windows)  # a restored one brings its own mask
            self._held = load_batches(folder, self._processes, make, self.n_snapshots, device)
            self._batches = [batch.rows for batch in self._held]

    def _header(self) -> dict[str, Any]:
        """Header of the saved moments: data, configuration and the snapshots seen so far."""
        return self._data_fingerprint | {
            "snapshots": self._snapshots,
            "planned snapshots": self._windows.n_snapshots,
        }

    def update(self, name: str, step: int | None = None) -> None:
        """One pass over all rows with the model as it is now; the model is left as it was found."""
        run_together(self._processes, f"the pass at {name}", self._update, name)
        self._snapshots.append({"name": name, "step": step, "digest": None})

    def _update(self, name: str) -> None:
        first, runner = not self._snapshots, self._runner
        with (
            buffers_of_main(self._model, self._processes),
            runner,
            self._reader.trying(self._try_batch) if first else nullcontext(),
            progress_bar(sum(map(len, self._batches)), is_shown=self._shows_progress) as bar,
        ):
            bar.set_postfix(snapshot=name)
            for i, batch in enumerate(self._reader.read(self._batches)):
                self._check_labels(batch)
                if first:
                    runner.plan.require_elements(batch)
                on_device = runner.to_device(batch)
                if first:
                    accumulator = runner.plan.accumulator(on_device, self._windows)
                    is_single = batch.labels is not None and batch.labels.dim() == 1  # a mask takes memory for nothing
                    self._held.append(LiveBatch(self._batches[i], batch.labels if is_single else None, accumulator))
                with rows_named(self._reader, batch.rows, self._try_batch):
                    try:
                        observed = runner.observe(on_device)
                    except FastPathError as error:
                        runner.run_plainly(error)
                        observed = runner.observe(on_device)
                self._held[i].accumulator.update(*observed)
                bar.update(len(batch))
            check = partial(require_finite, runner.plan, snapshot=name)
            accumulators = [held.accumulator for held in self._held]
            check_finite(self._reader, [held.rows for held in self._held], accumulators, check, name)

    @property
    def _skipped(self) -> dict[int, str]:
        """The rows that are skipped, with their reasons."""
        return self._reader.bad_rows.skipped

    def _try_batch(self, batch: Batch) -> None:
        """Raise what is wrong with a row of a batch, by its labels and by the plain model as it is now."""
        self._check_labels(batch)
        self._runner.try_batch(batch)

    def ranking(self) -> VoGScores | None:
        """Scores of the snapshots seen so far, in memory and without heat maps; None but on the main process.

        All processes must call this.

        Raises:
            ConfigError: Fewer than two snapshots were seen.
        """
        self._require_two_snapshots()
        manifest = run_together(self._processes, "reading rows", self._manifest)
        return current_ranking(
            self._processes, self._plan, self._held, identity=self._identity, manifest=manifest, skipped=self._skipped
        )

    def with_heat_maps(self, ranking: VoGScores | None, rows: npt.NDArray[np.int64]) -> VoGScores | None:
        """Add heat maps of some rows to a `ranking`. All processes must call this, with the same rows."""
        if not self._plan.config.heat_maps:
            return ranking
        maps = gathered_heat_maps(self._processes, self._held, rows, n_rows=self._identity.n_rows)
        if ranking is None:
            return None
        ranking.tokenizer = self._tokenizer
        return ranking.with_heat_maps(maps)

    def finish(self, *, output_dir: str | Path | None = None) -> VoGScores:
        """The scores of the snapshots seen, written like those of a replay.

        Raises:
            ConfigError: Fewer than two snapshots were seen.
        """
        self._require_two_snapshots()
        processes = self._processes
        folder, temporary = output_folder(processes, output_dir)
        fingerprint = run_together(processes, "reading rows", self._header)
        identity = self._identity
        n_rows = identity.n_rows
        in_one_block = BlockPlan(n_rows, processes.num_processes, self._plan.batch_size, n_rows)
        manifest = self._manifest() | skipped_entry(self._reader, processes, n_rows)
        if self.n_snapshots < self._windows.n_snapshots:
            manifest["windows_missing"] = (
                f"training stopped after {self.n_snapshots} of {self._windows.n_snapshots} planned snapshots, and live "
                "moments of the windows early and late need to know the number in advance"
            )
        with folder_in_use(processes, folder):
            prepare = partial(BlockFolder.prepare, folder, fingerprint, in_one_block)
            blocks = open_everywhere(processes, folder, fingerprint, prepare)
            run_together(processes, "writing the moments", self._write, blocks)
            return finish_folder(
                processes, blocks, self._plan, identity, manifest, temporary=temporary, tokenizer=self._tokenizer
            )

    def _require_two_snapshots(self) -> None:
        if self.n_snapshots < MIN_SNAPSHOTS:
            raise ConfigError(f"VoG needs at least {MIN_SNAPSHOTS} snapshots, this training gave {self.n_snapshots}")

    def _manifest(self) -> dict[str, Any]:
        manifest = make_manifest(
            self._model, self._plan, self._reader, self._identity, n_processes=self._processes.num_processes
        )
        return manifest | {"collect": "live", "snapshots": list(self._snapshots)}

    @cached_property
    def _identity(self) -> RowIdentity:
        return identify_rows(self._reader.dataset)

    @cached_property
    def _data_fingerprint(self) -> dict[str, Any]:
        return make_fingerprint(self._plan.config, self._reader, self._identity, None)

    def _write(self, blocks: BlockFolder) -> None:
        if self._held:
            blocks.write(self._processes.process_index, 0, self._rows(), self._results())

    def _rows(self) -> npt.NDArray[np.int64]:
        return np.concatenate([np.asarray(batch.rows, dtype=np.int64) for batch in self._held])

    def _results(self) -> list[RowResults]:
        return [
            final_results(self._plan, batch.accumulator.results(), Batch(batch.rows, {}, batch.labels), self._skipped)
            for batch in self._held
        ]

    def _check_all_labels(self) -> None:
        """The labels of the first batch, and those of all rows where they are a column."""
        if self._reader.bad_rows.on_error == "skip":
            self._skip_unlabeled()
            return
        for batch in self._reader.read(self._batches[:1]):
            self._check_labels(batch)
            everything = None if batch.labels is None else self._reader.labels.whole_column(batch.rows, batch.labels)
            if everything is not None:
                self._check_labels(Batch(range(len(everything)), {}, torch.from_numpy(everything)))

    def _skip_unlabeled(self) -> None:
        """Choose the reference row among the first rows with a label."""
        rows = range(min(len(self._reader.dataset), self._plan.batch_size))
        with self._reader.trying(self._check_labels):
            self._reader.good_rows(rows)
            next(self._reader.read([rows]))

    def _check_labels(self, batch: Batch) -> None:
        self._plan.check_labels(batch)
        labels = self._plan.counted_labels(batch)
        if needs_prediction(self._plan, [labels]):
            row = batch.rows[0 if labels is None else int((labels < 0).nonzero()[0, 0])]
            raise ConfigError(
                f"row {row} has no label, and collect='live' cannot know its last prediction during training; "
                "use collect='replay', or leave rows without a label out"
            )


@contextmanager
def buffers_of_main(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Lend every process the buffers of the main one.

    Under data parallelism the statistics of batch normalization differ from process to process until the next forward
    pass, and what a row scores must not depend on which process has it.
    """
    if processes.num_processes == 1:
        yield
        return
    own = [(buffer, buffer.data) for buffer in model.buffers()]
    try:
        for buffer, data in own:
            buffer.data = broadcast(data.clone())
        yield
    finally:
        for buffer, data in own:
            buffer.data = data
