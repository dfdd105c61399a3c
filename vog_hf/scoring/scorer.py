"""VoGScorer: rows -> blocks -> gradients -> moments -> scores, under Accelerate."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator
from torch import nn

from vog_hf.config import VoGConfig
from vog_hf.data.arrow_columns import list_lengths
from vog_hf.data.bad_rows import OnError, require_on_error
from vog_hf.data.batch_collator import CollateFunction
from vog_hf.data.batch_reader import BatchReader
from vog_hf.data.packed_rows import require_one_document_per_row
from vog_hf.data.row_identity import RowIdentity, identify_rows
from vog_hf.data.rows import AnyDataset
from vog_hf.data.streams import UNKNOWN_LENGTH, StreamRows, is_stream
from vog_hf.data.tokenizer_json import tokenizer_json
from vog_hf.errors import ConfigError, SnapshotError, real_number, require_type, whole_number
from vog_hf.gradients.model_mode import model_device_and_dtype, require_module, require_weights, unwrap
from vog_hf.runtime.files import require_free
from vog_hf.runtime.memory import AdaptiveBatchSize
from vog_hf.runtime.processes import current_processes, from_main, meet, run_together, same_everywhere
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.assembly import finish_folder
from vog_hf.scoring.block_folder import BlockFolder
from vog_hf.scoring.finished_scores import load_finished
from vog_hf.scoring.live import LiveScoring
from vog_hf.scoring.memory_budget import MemoryBudget
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.planner import Planner
from vog_hf.scoring.replay import Replay
from vog_hf.scoring.run_manifest import make_fingerprint, make_manifest, replay_entries
from vog_hf.scoring.runner import ModelRunner
from vog_hf.scoring.shared_folder import folder_in_use, open_everywhere, output_folder
from vog_hf.scoring.skipped_rows import skipped_entry
from vog_hf.scoring.stream_replay import score_stream
from vog_hf.snapshots import SnapshotSet, SnapshotSource, open_snapshots

logger = logging.getLogger(__name__)


class VoGScorer:
    """Scores the rows of a dataset from stored snapshots of a model.

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
        fold: Run the model with each BatchNorm folded into the convolution before it: the same function, faster. The
            first batch is run both ways; where they differ by more than rounding, the model is run as it is.
        training_batch_size: Rows per step of the training, tried where the collator or the model does not take
            ``batch_size`` rows. Then the model is tried with one row at a time.
        torch_compile: Run the model through ``torch.compile``, after the same comparison. Worth its minute of compiling
            where much is to be scored.
        process_timeout: Seconds that `score` waits for the other processes of the run to call it, too.
        on_error: ``"skip"`` gives a row that cannot be read, collated, run or differentiated NaN as its score and
            lists it in the manifest; each batch then takes one more forward pass. Default: an error that names the row.
        processing_class: Tokenizer of the model, or a processor with one, kept with heat maps of texts, which then
            color the words. It does not change a score.

    Raises:
        ConfigError: An option of the wrong type or out of range.
        ModelError: Not a module, or one without weights.

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
        fold: bool = True,
        torch_compile: bool = False,
        training_batch_size: int | None = None,
        process_timeout: float = 300.0,
        on_error: OnError = "raise",
        processing_class: object = None,
    ) -> None:
        require_module(model)
        require_weights(model)
        require_type("config", config, (VoGConfig, type(None)), "pass VoGConfig(...), or leave it out")
        require_type("accelerator", accelerator, (Accelerator, type(None)), "pass accelerate.Accelerator()")
        self.config = config or VoGConfig()
        self.model = unwrap(model)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.training_batch_size = None
        if training_batch_size is not None:
            self.training_batch_size = whole_number("training_batch_size", training_batch_size, 1)
        self.memory_budget = None if memory_budget is None else whole_number("memory_budget", memory_budget, 1)
        self.num_workers = whole_number("num_workers", num_workers, 0)
        self.process_timeout = real_number("process_timeout", process_timeout, 0, threading.TIMEOUT_MAX)
        self.on_error = require_on_error(on_error)
        self._tokenizer = tokenizer_json(processing_class)
        self._processes = accelerator or current_processes()
        self._shows_progress = progress and self._processes.is_main_process
        self._rows_per_pass = AdaptiveBatchSize()  # of all passes: what did not fit once is not tried again
        self._planner = Planner(
            model=self.model,
            config=self.config,
            batch_size=self.batch_size,
            training_batch_size=self.training_batch_size,
            fold=fold,
            torch_compile=torch_compile,
            on_error=self.on_error,
            rows_per_pass=self._rows_per_pass,
            warns=self._processes.is_main_process,
        )

    def score(
        self,
        dataset: AnyDataset,
        snapshots: SnapshotSource,
        *,
        collate_fn: CollateFunction | None = None,
        output_dir: str | Path | None = None,
        id_column: str | None = None,
    ) -> VoGScores:
        """The scores of every row of a dataset.

        A stream (an `IterableDataset` of datasets or torch) is read once, every process reading all of it and scoring
        every n-th row; row numbers are places in the stream, which must give the same rows each time it is iterated.

        Args:
            dataset: A `datasets.Dataset` with a deterministic transform, any map-style torch dataset, or a stream.
            snapshots: A folder (a callback's, or one with ``checkpoint-*``, ``epoch_*`` or ``step_*`` in it), a list of
                model folders or safetensors files in the order of training, or an iterable of (name, state_dict), as
                for pickled checkpoints: ``((p, torch.load(p, weights_only=True)) for p in paths)``, and for those of
                timm ``((p, timm.models.load_state_dict(p)) for p in paths)``.
            collate_fn: From a list of whole rows to a batch; default: transformers' or torch's default collator.
            output_dir: Where the scores are kept. An interrupted run continues there, and a finished one is returned
                as it is, if data, configuration and snapshots are the same. None: a temporary folder.
            id_column: Of a stream: key of each row that names it; kept with its number (`VoGScores.ids`).

        Raises:
            ProcessError: Another process of the run did not call this.
            VoGError: What is wrong with rows, labels, model, snapshots or folder; before the long work where possible.
        """
        meet(self._processes, "VoGScorer.score", self.process_timeout)
        with TemporaryDirectory(prefix="vog-spool-") as spool:
            options: dict[str, Any] = {"collate_fn": collate_fn, "id_column": id_column, "spool": Path(spool)}
            reader, snapshot_set = run_together(
                self._processes, "opening rows and snapshots", self._opened, dataset, snapshots, **options
            )
            return self.score_rows(reader, snapshot_set, output_dir=output_dir)

    def _opened(
        self, dataset: AnyDataset, snapshots: SnapshotSource, *, spool: Path, **options: Any
    ) -> tuple[BatchReader, SnapshotSet]:
        return self.reader(dataset, **options), open_snapshots(snapshots, spool=spool)

    def check(
        self, dataset: AnyDataset, *, collate_fn: CollateFunction | None = None, id_column: str | None = None
    ) -> None:
        """Try the first rows, so that what is wrong is found before a training and not after it.

        Args:
            dataset: As for `score`.
            collate_fn: As for `score`.
            id_column: As for `score`.

        Raises:
            VoGError: What is wrong with rows, labels, model or configuration, as `score` would say it.
        """
        self.plan(self.reader(dataset, collate_fn=collate_fn, id_column=id_column))

    def reader(self, dataset: AnyDataset, *, id_column: str | None = None, **options: Any) -> BatchReader:
        """A `BatchReader` of a dataset or stream for this scorer's model; options as there.

        Raises:
            ConfigError: ``id_column`` for a dataset that is not a stream.
            DataError: Rows, labels or a collator that cannot be used.
        """
        require_one_document_per_row(dataset)
        if is_stream(dataset):
            dataset = StreamRows(dataset, id_column=id_column)
            dataset.head(self._planner.n_first_rows)
        elif id_column is not None:
            raise ConfigError(
                "id_column names the rows of a stream; rows of a map-style dataset have their number, leave it out"
            )
        # A stream is read by this process, its transform while it is iterated: nothing is left for workers to do.
        num_workers = 0 if isinstance(dataset, StreamRows) else self.num_workers
        return BatchReader(
            dataset,
            self.model,
            label_column=self.config.label_column,
            num_workers=num_workers,
            batch_size=self.batch_size,
            on_error=self.on_error,
            **options,
        )

    def plan(self, reader: BatchReader, *, require_finite: bool = True, roomy: bool = False) -> ScoringPlan:
        """The dry run on the first rows: raises what is wrong with rows, labels, model or configuration.

        Args:
            reader: Reader over all rows.
            require_finite: Whether the model as it is now will be scored, so that it must not have diverged.
            roomy: Whether batches may be larger than the reader's, where memory allows it.
        """
        roomy_bytes = self._budget.block_bytes if roomy else None
        return self._planner.plan(reader, require_finite=require_finite, roomy_bytes=roomy_bytes)

    def estimate(self, plan: ScoringPlan, n_rows: int | None, n_snapshots: int, *, collect: str = "replay") -> str:
        """One line for a person: what scoring this many rows (None: a stream) takes, on each process."""
        n_processes = self._processes.num_processes
        return self._budget.estimate(plan, n_rows, n_snapshots, n_processes, in_one_block=collect == "live")

    def score_rows(
        self,
        reader: BatchReader,
        snapshots: SnapshotSet,
        *,
        output_dir: str | Path | None = None,
        thinned: str | None = None,
    ) -> VoGScores:
        """Score the rows behind a reader from open snapshots, as `score` does.

        Args:
            reader: Reader over all rows.
            snapshots: The snapshots.
            output_dir: As for `score`.
            thinned: Reason, for the manifest, why other snapshots of the training are not among these.

        Raises:
            VoGError: As for `score`.
        """
        processes = self._processes
        folder, temporary = output_folder(processes, output_dir)
        stamps = snapshots.stamps()
        identity, fingerprint = run_together(
            processes, "reading rows and snapshots", self.identified, reader, snapshots, folder
        )
        same_everywhere(processes, "data, configuration and snapshots", fingerprint)
        from_main(processes, f"looking at {folder}", BlockFolder.require_own, folder)
        with folder_in_use(processes, folder):
            if from_main(processes, "looking for scores", BlockFolder.is_finished, folder, fingerprint):
                return load_finished(processes, reader, folder)
            plan = run_together(processes, "the dry run", self.plan, reader, require_finite=False)
            prepare = partial(self._prepared, plan, folder, fingerprint, identity.n_rows, len(snapshots.snapshots))
            blocks = open_everywhere(processes, folder, fingerprint, prepare)
            block_bytes = self._budget.bytes_of(blocks.plan, plan)
            with ModelRunner(
                self.model,
                plan,
                snapshots.frozen,
                resident_bytes=self._budget.resident_bytes,
                rows_per_pass=self._rows_per_pass,
            ) as runner:
                lengths = list_lengths(reader.dataset, plan.leaf.name) if plan.has_padding_mask else None
                replay = Replay(
                    runner, reader, snapshots, blocks, processes, block_bytes, lengths, self._shows_progress
                )
                with reader.trying(runner.try_batch):
                    n_rows = score_stream(replay) if isinstance(reader.dataset, StreamRows) else replay.score_blocks()
            if snapshots.stamps() != stamps:
                raise SnapshotError(
                    "a snapshot was changed while it was being scored; keep its file as it is, and score again"
                )
            blocks.end_at(n_rows)
            rows_digest = replay.rows_digest()
            identity = replace(identity, n_rows=n_rows)
            manifest = make_manifest(
                self.model, runner.plan, reader, identity, n_processes=processes.num_processes, snapshots=snapshots
            )
            manifest |= skipped_entry(reader, processes, n_rows)
            manifest |= replay_entries(blocks.plan, rows_digest, snapshots, fingerprint["snapshots"], thinned)
            return finish_folder(
                processes, blocks, plan, identity, manifest, temporary=temporary, tokenizer=self._tokenizer
            )

    def identified(
        self, reader: BatchReader, snapshots: SnapshotSet, folder: Path
    ) -> tuple[RowIdentity, dict[str, Any]]:
        """Identity of the rows, and the fingerprint of all that the scores depend on; reads every snapshot once.

        Args:
            reader: Reader over all rows.
            snapshots: The snapshots.
            folder: Folder of the scores; where an earlier version began it, rows are told apart as by that version.

        Raises:
            SnapshotError: A file is missing or damaged, or the model's frozen tensors are not those of the training.
        """
        rows = reader.dataset
        if isinstance(rows, StreamRows) and rows.has_begun:
            rows.head(self._planner.n_first_rows)
        if isinstance(rows, StreamRows):
            identity = RowIdentity(UNKNOWN_LENGTH, {}, None)
        else:
            identity = identify_rows(rows, like=BlockFolder.identity(folder))
        digests = snapshots.fingerprint(self.model)
        snapshots.verify(self.model)
        fingerprint = make_fingerprint(self.config, reader, identity, digests)
        return identity, fingerprint | ({"id_column": rows.id_column} if isinstance(rows, StreamRows) else {})

    def live(self, reader: BatchReader, plan: ScoringPlan, n_snapshots: int) -> LiveScoring:
        """Moments of all rows in memory, to be updated while the model trains (see `LiveScoring`)."""
        return LiveScoring(
            self.model,
            reader,
            plan,
            n_snapshots,
            processes=self._processes,
            shows_progress=self._shows_progress,
            rows_per_pass=self._rows_per_pass,
            tokenizer=self._tokenizer,
        )

    def _prepared(
        self, plan: ScoringPlan, folder: Path, fingerprint: Mapping[str, object], n_rows: int, n_snapshots: int
    ) -> None:
        """Begin or take up the folder, on the main process; all processes then open it."""
        block_plan = self._budget.block_plan(plan, n_rows, n_snapshots, self._processes.num_processes)
        blocks = BlockFolder.prepare(folder, fingerprint, block_plan)
        known = None if n_rows == UNKNOWN_LENGTH else n_rows
        needed = plan.disk_bytes(known or blocks.plan.block_rows, n_snapshots) - blocks.block_bytes
        require_free(folder, needed, "storing the scores")
        logger.info("VoG: %s; scores in %s", self.estimate(plan, known, n_snapshots), folder)

    @property
    def _budget(self) -> MemoryBudget:
        return MemoryBudget(model_device_and_dtype(self.model)[0], self.memory_budget)
