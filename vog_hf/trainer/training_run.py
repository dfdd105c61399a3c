"""TrainingRun: the snapshot plan of one training, its folder, and the scorer with a reader per split."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import TrainerState, TrainingArguments

from vog_hf.data.batch_reader import BatchReader
from vog_hf.data.streams import is_stream
from vog_hf.errors import ConfigError, VoGError
from vog_hf.gradients.model_mode import require_module
from vog_hf.metric.windows import MIN_SNAPSHOTS
from vog_hf.runtime.processes import current_processes, from_main, run_together
from vog_hf.scores.dataset_columns import core_column_names, taken_columns
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.block_folder import BlockFolder
from vog_hf.scoring.live import LiveScoring
from vog_hf.scoring.pass_time import row_seconds
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import SnapshotSet, SnapshotWriter, is_sharded, open_folder, require_trainable
from vog_hf.snapshots.unsharded_copy import unsharded_copy
from vog_hf.tracking import shown_rows
from vog_hf.trainer.announcements import announce, plan_line
from vog_hf.trainer.options import TrainingOptions
from vog_hf.trainer.scoring_cost import Thinning, estimated_share, find_thinning
from vog_hf.trainer.splits import ONLY_SPLIT, splits_of, training_rows
from vog_hf.trainer.training_length import checkpoints_kept, steps_per_epoch, trained_rows

logger = logging.getLogger(__name__)

MARKER_NAME = "vog.json"
PREPARING = "preparing to score"


class TrainingRun:
    """One training: its plan, its folder, and the scorer with a reader per split.

    The constructor (on every process) is the dry run: faults of options, data, labels, transform or model raise here;
    `begin` then prepares the folder. Copies and full tensors of a sharded model are gathered between the parts that may
    fail on only one process.
    """

    def __init__(
        self,
        options: TrainingOptions,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        train_dataloader: object,
    ) -> None:
        self._options = options
        self._args = args
        require_module(model)
        self._is_sharded = is_sharded(model)
        processes = current_processes()
        self.folder = options.run_folder(args)
        begun = from_main(processes, PREPARING, self.folder.planned_steps) if state.global_step > 0 else []
        run_together(processes, PREPARING, self._resolve, state, train_dataloader, begun)
        to_score = self._whole(model)
        run_together(processes, PREPARING, self._dry_run, to_score)
        require_trainable(model)
        self._share = self._estimated_share(model, state)
        self._writer = None if options.is_live else SnapshotWriter(self.folder.snapshots, model, store=options.store)
        self._taken: list[int] = []
        self._saved: set[str] = set()

    def _resolve(self, state: TrainerState, train_dataloader: Any, begun: list[int]) -> None:
        """Resolve the plan and the datasets; `begun` is the plan of the training that is resumed."""
        options, args = self._options, self._args
        self._checkpoints_kept = checkpoints_kept(args, state)
        self.plan = options.plan(
            begun, max_steps=state.max_steps, steps_per_epoch=steps_per_epoch(args, train_dataloader)
        )
        self.datasets = splits_of(options.dataset)
        if options.dataset is None:
            self.datasets = {ONLY_SPLIT: training_rows(train_dataloader)}
        self._collating = options.collating(args, train_dataloader)
        if self._is_sharded and options.is_live:
            raise ConfigError(
                "collect='live' scores with the model that trains, and it is sharded (FSDP or ZeRO-3); use "
                "collect='replay', which scores a full copy of it at the end"
            )

    def _whole(self, model: nn.Module) -> nn.Module:
        """The training model, or an unsharded copy of it (a collective operation)."""
        return unsharded_copy(model) if self._is_sharded else model

    def _dry_run(self, model: nn.Module) -> None:
        """Run the first rows of each split through the model."""
        options = self._options
        self._scorer, self._readers = self._scorer_and_readers(model)
        self._plans = {split: self._planned(split, reader) for split, reader in self._readers.items()}
        for split, plan in self._plans.items():
            names = core_column_names(options.config.column_names, has_classes=plan.has_classes, unit=plan.unit)
            taken = taken_columns(self.datasets[split], names)
            if taken:
                logger.warning(
                    "the dataset already has columns %s, and its scores have the same names; pass prefix= to "
                    "scored_dataset, or read callback.scores",
                    taken,
                )
        self._batch_sizes = {split: reader.batch_size for split, reader in self._readers.items()}
        self._live = {
            split: self._scorer.live(self._readers[split], plan, len(self.plan))
            for split, plan in self._plans.items()
            if options.is_live
        }

    def _planned(self, split: str, reader: BatchReader) -> ScoringPlan:
        """The plan of one split; what is wrong with its rows names it."""
        try:
            return self._scorer.plan(reader, roomy=self._options.batch_size is None)
        except VoGError as error:
            if split == ONLY_SPLIT:
                raise
            raise type(error)(f"split {split!r}: {error}") from error

    def _scorer_and_readers(self, model: nn.Module) -> tuple[VoGScorer, dict[str, BatchReader]]:
        """The scorer and the reader of each split, for an unsharded model."""
        options, args = self._options, self._args
        scorer = VoGScorer(
            model,
            config=options.config,
            batch_size=args.per_device_eval_batch_size if options.batch_size is None else options.batch_size,
            memory_budget=options.memory_budget,
            num_workers=args.dataloader_num_workers if options.num_workers is None else options.num_workers,
            progress=not args.disable_tqdm,
            fold=options.fold,
            torch_compile=options.torch_compile,
            training_batch_size=args.per_device_train_batch_size,
            on_error=options.on_error,
            processing_class=options.processing_class,
        )
        readers = {
            split: scorer.reader(
                dataset,
                label_names=args.label_names,
                **self._collating,
                id_column=options.id_column,
            )
            for split, dataset in self.datasets.items()
        }
        return scorer, readers

    def begin(self, state: TrainerState, model: nn.Module) -> None:
        """Prepare the folder, after every process has checked its rows; continue an interrupted training.

        Raises:
            OutputFolderError: The folder is foreign, in use, too small, or has other snapshots.
            ConfigError: Live moments of the resumed step are missing.
        """
        step = state.global_step
        self._taken = from_main(current_processes(), f"preparing {self.folder}", self._prepare_folder, state)
        if self._live and step > 0:
            self._restore_moments(step)
        missing = [planned for planned in self.plan if planned < step and planned not in self._taken]
        if missing:
            steps = ", ".join(map(str, missing))
            logger.warning("VoG: no snapshots of steps %s in %s; training continues without them", steps, self.folder)
        if step in self.plan:  # interrupted between the last checkpoint and the end of its epoch
            self.take(model, state)
        if self._is_sharded:  # the copy was only for the dry run; free its memory for training
            del self._scorer, self._readers
        self._first_step, self._began = step, time.perf_counter()

    def take(self, model: nn.Module, state: TrainerState) -> None:
        """Take a snapshot of the model, once per step."""
        step = state.global_step
        if step in self._taken:
            return
        self._taken.append(step)
        for live in self._live.values():
            live.update(f"step-{step:09d}", step)
        if self._writer is not None:
            tensors = run_together(current_processes(), "gathering a snapshot", self._writer.gather, model)
            from_main(current_processes(), "storing a snapshot", self._writer.write, tensors or {}, step)

    @property
    def is_live(self) -> bool:
        """True if moments are kept in memory."""
        return bool(self._live)

    @property
    def n_snapshots(self) -> int:
        """Number of snapshots taken."""
        return len(self._taken)

    def current_scores(self, top_k: int) -> dict[str, VoGScores]:
        """Current live scores of each split on the main process; empty with too few snapshots.

        They include the heat maps of the rows that `log_scores` shows.
        """
        if self.n_snapshots < MIN_SNAPSHOTS:
            return {}
        current = {split: self._current_scores(live, top_k) for split, live in self._live.items()}
        return {split: scores for split, scores in current.items() if scores is not None}

    @staticmethod
    def _current_scores(live: LiveScoring, top_k: int) -> VoGScores | None:
        ranking = live.ranking()
        rows = from_main(current_processes(), "choosing rows to show", _rows_to_show, ranking, top_k)
        return live.with_heat_maps(ranking, rows)

    def save_moments(self, step: int) -> None:
        """Write live moments, once per step and number of snapshots; replay already has its snapshots on disk."""
        name = f"step-{step:09d}-snapshots-{len(self._taken):04d}"
        if self._live and name not in self._saved:
            for split, live in self._live.items():
                live.save(self.folder.live / name / split)
            self._saved.add(name)

    def drop_moments(self, step: int) -> None:
        """Delete live moments of deleted checkpoints; ``step`` still has one."""
        drop = self.folder.drop_moments
        from_main(current_processes(), "dropping old moments", drop, Path(self._args.output_dir or ""), step)

    def close(self) -> None:
        """Release the lock of the folder and the memory of live moments."""
        self.folder.release()
        self._live = {}

    def finish(self, model: nn.Module) -> dict[str, VoGScores]:
        """Compute the scores of each split."""
        processes, seconds = current_processes(), time.perf_counter() - self._began
        processes.wait_for_everyone()
        folders = {split: self.folder.scores / split for split in self.datasets}
        if self._live:
            return {split: live.finish(output_dir=folders[split]) for split, live in self._live.items()}
        if self._is_sharded:
            to_score = self._whole(model)
            scorer_and_readers = run_together(processes, "opening rows", self._scorer_and_readers, to_score)
            self._scorer, self._readers = scorer_and_readers
            for split, reader in self._readers.items():
                reader.batch_size = self._batch_sizes[split]
        snapshots = run_together(processes, "finding the snapshots", open_folder, self.folder.snapshots)
        thinning = from_main(processes, "measuring the cost", self._thinning, snapshots, seconds)
        scored = tuple(one for one in snapshots.snapshots if thinning is None or one.step in thinning.scored)
        snapshots, why = replace(snapshots, snapshots=scored), None if thinning is None else thinning.why
        from_main(processes, "looking for scores", self._remove_other_scores, folders, snapshots)
        return {
            split: self._scorer.score_rows(reader, snapshots, output_dir=folders[split], thinned=why)
            for split, reader in self._readers.items()
        }

    def _thinning(self, snapshots: SnapshotSet, seconds: float) -> Thinning | None:
        """Choose the snapshots that ``max_cost`` lets be scored, on the main process; None without ``max_cost``.

        ``seconds`` is the time of the steps since the training began, or was resumed.
        """
        max_cost, steps = self._options.max_cost, [snapshot.step or 0 for snapshot in snapshots.snapshots]
        if max_cost is None:
            return None
        trained = steps[-1] - self._first_step
        of_training = seconds * steps[-1] / trained if trained else None
        of_snapshot = partial(sum, map(self._seconds_per_snapshot, self._readers))
        thinning = find_thinning(self.folder.thinning, steps, max_cost, of_training, of_snapshot)
        if thinning is not None and thinning.why is not None:
            announce(thinning.why, self._args)
        return thinning

    def _seconds_per_snapshot(self, split: str) -> float:
        """Time that scoring a split takes for each snapshot, on each of the processes."""
        reader = self._readers[split]
        # the plan of a sharded model was that of another copy
        plan = self._scorer.plan(reader, require_finite=False) if self._is_sharded else self._plans[split]
        n_rows = len(self.datasets[split]) / current_processes().num_processes
        return row_seconds(self._scorer.model, plan, reader) * n_rows

    def _remove_other_scores(self, folders: Mapping[str, Path], snapshots: SnapshotSet) -> None:
        """Remove scores that do not belong to this training; keep those of its own interrupted scoring.

        Training may have continued from an older checkpoint, or with other options.
        """
        for split, folder in folders.items():
            if folder.exists():
                _, fingerprint = self._scorer.identified(self._readers[split], snapshots, folder)
                if not BlockFolder.is_of(folder, fingerprint):
                    BlockFolder.remove(folder)

    def _restore_moments(self, step: int) -> None:
        """Continue from the moments of the resumed checkpoint; newer ones will be replaced."""
        folder, steps = from_main(
            current_processes(), "looking for moments", self.folder.newest_moments, step, list(self._live)
        )
        if folder is not None:
            for split, live in self._live.items():
                live.restore(folder / split)
                self._taken = live.steps
        elif self.plan[0] < step:
            raise ConfigError(
                f"collect='live' cannot resume at step {step}: {self.folder.live} has no moments of it, only "
                f"of steps {steps}; resume from one of these checkpoints, train again, or use collect='replay'"
            )

    def _estimated_share(self, model: nn.Module, state: TrainerState) -> float | None:
        """Time of scoring as a share of the training's; None for a stream, since the number of its rows is unknown."""
        n_rows = list(map(self._n_rows, self.datasets))
        n_scored = len(self.plan) * sum(n or 0 for n in n_rows)
        n_trained, n_targets = trained_rows(self._args, state), len(self._options.config.targets)
        return None if None in n_rows else estimated_share(model, n_scored, n_trained, n_targets)

    def _n_rows(self, split: str) -> int | None:
        """Number of rows of a split; None for a stream."""
        return None if is_stream(self.datasets[split]) else len(self.datasets[split])

    def _needed_bytes(self) -> int:
        if self._writer is None:
            snapshots = sum(live.memory_bytes() for live in self._live.values()) * self._checkpoints_kept
        else:
            snapshots = self._writer.disk_bytes(len(self.plan))
        return snapshots + sum(
            plan.disk_bytes(self._n_rows(split) or 0, len(self.plan)) for split, plan in self._plans.items()
        )

    def _prepare_folder(self, state: TrainerState) -> list[int]:
        """Prepare the folder; returns the steps with snapshots."""
        self.folder.prepare(state, self.plan, self._needed_bytes(), is_live=self.is_live)
        self._announce_plan()
        if self._writer is None:
            return []
        if state.global_step > 0:
            self._writer.continue_from(state.global_step)
        return self._writer.steps

    def _announce_plan(self) -> None:
        collect = "live" if self._live else "replay"
        estimates = {
            split: self._scorer.estimate(plan, self._n_rows(split), len(self.plan), collect=collect)
            for split, plan in self._plans.items()
        }
        announce(plan_line(self.plan, estimates, self.folder.path, share=self._share), self._args)


def _rows_to_show(ranking: VoGScores | None, top_k: int) -> npt.NDArray[np.int64]:
    return np.zeros(0, np.int64) if ranking is None else shown_rows(ranking, top_k)
