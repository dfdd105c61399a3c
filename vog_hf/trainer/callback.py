"""VoGCallback: take snapshots at the Trainer's events, and score at the end through `VoGScorer`."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from datasets import Dataset, DatasetDict
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vog_hf.config import VoGConfig
from vog_hf.data.bad_rows import OnError, require_on_error
from vog_hf.data.batch_collator import CollateFunction
from vog_hf.data.rows import AnyDataset
from vog_hf.data.tokenizer_json import tokenizer_json
from vog_hf.errors import NotScoredError, as_path, real_number, whole_number, without_tracebacks
from vog_hf.gradients.model_mode import preserved_rng
from vog_hf.runtime.processes import current_processes, meet
from vog_hf.scores.dataset_columns import add_vog_columns
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.snapshots import require_store
from vog_hf.snapshots.schedule import MAX_SNAPSHOTS
from vog_hf.tracking import MAX_TABLE_ROWS, active_runs
from vog_hf.trainer.announcements import announce, tokens_lines
from vog_hf.trainer.check_first import check_before_trackers
from vog_hf.trainer.collected_training import CollectedTraining
from vog_hf.trainer.options import (
    TrainingOptions,
    require_collect,
    require_collectable,
    require_max_cost,
    resolved_config,
)
from vog_hf.trainer.publishing import Run, log_current, log_finished, summarize
from vog_hf.trainer.splits import ONLY_SPLIT, check_split, require_rows, splits_of
from vog_hf.trainer.training_run import TrainingRun

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class VoGCallback(TrainerCallback):
    """Scores the rows of a dataset by Variance of Gradients during or after a training with `transformers.Trainer`.

    Training is bit-identical to training without the callback. Invalid data, labels, transforms or options raise an
    error before the first step; a later failure is logged once, training continues, and `scores` raises it.

    Args:
        dataset: Rows to score: a `Dataset` (with its *evaluation* transform), a `DatasetDict`, or a map-style torch
            dataset; default: the trainer's own training rows, without the columns that Trainer removes.
        config: Definition of the scores.
        collate_fn: Function from a list of whole rows to a batch; default: the trainer's collator.
        output_dir: Folder for snapshots and scores; default: ``<args.output_dir>/_vog``. A new training replaces
            the results of an earlier one; a folder with other files is refused.
        collect: ``"replay"`` stores snapshots and scores at the end; ``"live"`` updates the moments of all rows in
            memory at every snapshot; ``"training"`` observes the passes that train the rows, at no extra pass: all
            columns but VoG itself, with ``csg``, ``first_loss`` and ``observations``, of the training rows only; and
            ``vog_loss`` (VoG of the loss) where rows are the same in each epoch and their moments fit into memory.
        snapshots: ``"auto"`` (every epoch if there are 8 or more, else evenly spaced steps), ``"epoch"``, every n
            steps, or a list of steps.
        max_snapshots: Maximum number of snapshots; more are thinned evenly. Of the numbers tried, 8 is the smallest
            that ranked rows like 20 (Spearman correlation 0.95 or more; benchmarks/README.md). A resumed training keeps
            the steps that it began with, if `snapshots` and this are the defaults.
        max_cost: Maximum time of scoring, as a share of the training's (0.5: half as long), in 0.001..10. Fewer of the
            snapshots are scored, evenly and at least two, if the times measured at the end of training ask for it; a
            line and the manifest (``"thinned"``) say so. All snapshots stay in the folder. For ``"replay"``.
        batch_size: Rows per forward pass of the scoring, which do not change a score; default: up to 64, as many as
            fit into ``memory_budget``, and at least the trainer's evaluation batch size.
        label_column: Label column; takes precedence over Trainer's label names.
        store: ``"trainable"`` parameters and buffers, or ``"all"`` tensors (if frozen ones are unfrozen later).
        memory_budget: Bytes for a block of rows, or with ``collect="training"`` for the moments of all rows (then it is
            an error if they do not fit); default: a quarter of the free memory.
        num_workers: Worker processes that prefetch rows; default: the trainer's ``dataloader_num_workers``.
        id_column: Column of a stream with an id per row, stored next to its number (`VoGScores.ids`).
        fold: Score with BatchNorms folded into convolutions, if the results agree (see `VoGScorer`).
        torch_compile: Score through ``torch.compile`` (see `VoGScorer`); does not affect training.
        on_error: ``"skip"`` gives a row that cannot be scored NaN instead of an error (see `VoGScorer`).
        log: Log to the active runs of Weights & Biases and Trackio; with ``collect="live"``, at every snapshot.
        top_k: Rows in each logged table of highest and lowest rows.
        process_timeout: Seconds that the main process waits for the callback on the other processes when training
            begins (at most half of ``ddp_timeout``). The others wait five times as long, since the main process may be
            logging in.

    Raises:
        ConfigError: An unknown option value, or options that cannot be combined.

    Example:
        >>> callback = VoGCallback(snapshots="epoch", max_snapshots=5)
        >>> callback.scores
        Traceback (most recent call last):
        ...
        vog_hf.errors.NotScoredError: no scores yet; they are computed when trainer.train() finishes
    """

    def __init__(
        self,
        dataset: AnyDataset = None,
        *,
        config: VoGConfig | None = None,
        collate_fn: CollateFunction | None = None,
        output_dir: str | Path | None = None,
        collect: str = "replay",
        snapshots: str | int | Sequence[int] = "auto",
        max_snapshots: int = MAX_SNAPSHOTS,
        max_cost: float | None = None,
        batch_size: int | None = None,
        label_column: str | None = None,
        store: str = "trainable",
        memory_budget: int | None = None,
        num_workers: int | None = None,
        id_column: str | None = None,
        fold: bool = True,
        torch_compile: bool = False,
        on_error: OnError = "raise",
        log: bool = True,
        top_k: int = 50,
        process_timeout: float = 60.0,
    ) -> None:
        require_collect(collect)
        require_store(store)
        top_k = whole_number("top_k", top_k, 1, MAX_TABLE_ROWS)  # the rows that a W&B table can hold
        config = resolved_config(config, collect, label_column)
        limits = (("batch_size", batch_size, 1), ("memory_budget", memory_budget, 1), ("num_workers", num_workers, 0))
        for option, value, least in limits:
            if value is not None:
                whole_number(option, value, least)
        process_timeout = real_number("process_timeout", process_timeout, 0, threading.TIMEOUT_MAX)
        if collate_fn is None:
            require_rows(dataset)
        for split in splits_of(dataset).values():
            check_split(split, collect, id_column, max_cost)
        self.dataset = dataset
        self.config = config
        self.log = log
        self.top_k = top_k
        self.process_timeout = process_timeout
        self._options = TrainingOptions(
            dataset=dataset,
            config=config,
            collate_fn=collate_fn,
            output_dir=as_path("output_dir", output_dir) if output_dir is not None else None,
            collect=collect,
            snapshots=snapshots,
            max_snapshots=whole_number("max_snapshots", max_snapshots),
            max_cost=require_max_cost(max_cost, collect),
            batch_size=batch_size,
            store=store,
            memory_budget=memory_budget,
            num_workers=num_workers,
            id_column=id_column,
            fold=fold,
            torch_compile=torch_compile,
            on_error=require_on_error(on_error),
        )
        if collect == "training":
            require_collectable(self._options)
        self._run: Run | None = None  # during training
        self._begun: TrainerState | None = None  # state of the training that was checked last
        self._datasets: dict[str, Any] = {}
        self._trackers: dict[str, Any] = {}  # runs that were active when training began
        self._tokenizer: str | None = None
        self._scores: dict[str, VoGScores] | None = None
        self._failure: Exception | None = None

    @property
    def scores(self) -> VoGScores | dict[str, VoGScores]:
        """The scores; for a `DatasetDict`, one per split.

        Raises:
            NotScoredError: Training has not ended, or scoring failed (then the cause is chained).
        """
        if self._failure is not None:
            raise NotScoredError(f"scoring failed: {self._failure}") from self._failure
        if self._scores is None:
            raise NotScoredError("no scores yet; they are computed when trainer.train() finishes")
        return self._scores.get(ONLY_SPLIT, self._scores)

    def scored_dataset(self, columns: str | Sequence[str] = "core", *, prefix: str = "") -> Dataset | DatasetDict:
        """The scored dataset with its scores as columns (see `add_vog_columns`).

        Raises:
            NotScoredError: As for `scores`.
            DataError: The scored dataset is a torch dataset, which has no columns.
        """
        scores = self.scores
        dataset = self._datasets[ONLY_SPLIT] if self.dataset is None else self.dataset
        return add_vog_columns(dataset, scores, columns, prefix=prefix)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Arrange for the checks to come before a tracker opens its run."""
        check_before_trackers(self, self._begin)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Resolve and check all options and rows, unless that came before the trackers; note the open runs."""
        if self._begun is not state:
            self._begin(args, state, control, **kwargs)
        self._trackers = active_runs()

    def _begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        train_dataloader: Any = None,
        processing_class: object = None,
        **kwargs: Any,
    ) -> None:
        """Resolve and check all options and rows, so that faults raise before the first step."""
        if self._run is not None:  # of a training that ended with an error, or begins again with smaller batches
            self._run.close()
        self._run = self._scores = self._failure = self._begun = None
        patience = self.process_timeout * (1 if state.is_world_process_zero else 5)
        meet(current_processes(), "VoGCallback", min(patience, args.ddp_timeout / 2))
        options = dataclasses.replace(self._options, processing_class=processing_class)
        with preserved_rng():
            kind = CollectedTraining if self._options.collect == "training" else TrainingRun
            run = kind(options, args, state, model, train_dataloader)
            run.begin(state, model)
            self._run, self._datasets, self._begun = run, run.datasets, state
            self._tokenizer = tokenizer_json(processing_class)
            for line in tokens_lines(run.datasets, processing_class) if state.is_world_process_zero else ():
                announce(line, args)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin to observe an epoch, with ``collect="training"``."""
        if isinstance(self._run, CollectedTraining):
            self._guarded("observing an epoch", self._run.begin_epoch, state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise before the first step if no row was observed, with ``collect="training"``."""
        if isinstance(self._run, CollectedTraining):
            self._run.require_observed()

    def on_step_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take a planned snapshot; the snapshot of the last step waits for the end of the epoch."""
        run = self._run
        if run is None:
            return
        if state.global_step in run.plan and state.global_step < state.max_steps:
            self._take(run, model, state, control)
        if isinstance(run, CollectedTraining):
            self._guarded("observing the training", run.collect, state)
        self._save_moments(control, state)

    def on_epoch_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take the last snapshot: in on_train_end the best model may already be loaded."""
        self._take_if_stopping(state, control, model)
        run = self._run
        if run is not None and state.global_step in run.plan:
            self._take(run, model, state, control)
        self._save_moments(control, state)

    def on_evaluate(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take a last snapshot if an evaluation ended the training."""
        self._take_if_stopping(state, control, model)

    def on_save(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take a last snapshot if a later callback ended the training; drop moments of deleted checkpoints."""
        self._take_if_stopping(state, control, model)
        self._save_moments(control, state, of_checkpoint=True)

    def on_train_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Score, then log; scores are on disk before logging starts."""
        run = self._run
        if run is None:
            return
        # Trainer logs train_runtime just before a real end; a trial that is pruned ends without.
        if state.is_hyper_param_search and not any("train_runtime" in entry for entry in state.log_history):
            logger.info("VoG: a hyperparameter search ended this training, so the trial is not scored")
        else:
            if not args.load_best_model_at_end:
                self._take_if_stopping(state, control, model)
            self._guarded("scoring", self._score, run, model)
        run.close()
        self._run = None
        if self._scores is not None and state.is_world_process_zero:
            summarize(self._scores, run, args)
            if self.log:
                log_finished(self._scores, run, self._trackers, args, step=state.global_step, top_k=self.top_k)

    def _take_if_stopping(self, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        """Take the last snapshot of a training that ends before its plan."""
        run = self._run
        if run is not None and control.should_training_stop and state.global_step < run.plan[-1]:
            self._take(run, model, state, control)

    def _take(self, run: Run, model: nn.Module, state: TrainerState, control: TrainerControl) -> None:
        """Take a snapshot, and log the current live ranking unless the end of training will log it immediately."""
        before = run.n_snapshots
        self._guarded("taking a snapshot", run.take, model, state)
        is_new = run.n_snapshots > before and self._failure is None
        is_last = control.should_training_stop or state.global_step >= run.plan[-1]
        if is_new and self.log and run.is_live and not is_last:
            log_current(run, state.global_step, self.top_k)

    def _score(self, run: Run, model: nn.Module) -> None:
        self._scores = run.finish(model)
        for scores in self._scores.values():
            scores.tokenizer = self._tokenizer  # also where it is not kept, to decode rows for tables

    def _guarded(self, what: str, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run ``work``; a failure does not end the training but is logged once and stored for `scores`."""
        if self._failure is not None:
            return
        try:
            with preserved_rng():
                work(*args, **kwargs)
        except Exception as error:
            logger.exception("VoG: %s failed; training continues, and callback.scores raises the cause", what)
            self._failure = without_tracebacks(error)
            if self._run is not None:
                self._run.close()

    def _save_moments(self, control: TrainerControl, state: TrainerState, *, of_checkpoint: bool = False) -> None:
        """Save live moments before each checkpoint, so that no checkpoint lacks them.

        After a failure, training cannot resume from this checkpoint, but scores are not lost.
        """
        run = self._run
        if run is None or self._failure is not None or not (control.should_save or of_checkpoint):
            return
        try:
            with preserved_rng():
                run.save_moments(state.global_step)
                if of_checkpoint:
                    run.drop_moments(state.global_step)
        except Exception:
            logger.exception(
                "VoG: saving the moments of step %d failed; training and scoring continue, but cannot resume from here",
                state.global_step,
            )
