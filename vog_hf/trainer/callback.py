"""VoGCallback: when a Trainer's model is snapshotted and scored; how is the scorer's business."""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from datasets import Dataset, DatasetDict
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vog_hf.config import VoGConfig
from vog_hf.data.batch_reader import CollateFunction, check_map_style
from vog_hf.data.streams import is_stream
from vog_hf.errors import ConfigError, NotScoredError, as_path, real_number, require_type, whole_number
from vog_hf.gradients.model_mode import preserved_rng
from vog_hf.runtime.processes import current_processes, from_main, meet
from vog_hf.scores.dataset_columns import add_vog_columns
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking import MAX_TABLE_ROWS, active_runs, log_scores, reopened
from vog_hf.trainer.training_run import ONLY_SPLIT, TrainingOptions, TrainingRun, splits_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class VoGCallback(TrainerCallback):
    """Scores the rows of a data set by Variance of Gradients while, or after, a `transformers.Trainer` trains.

    Training is bit-identical to training without the callback. What is wrong with data, labels, transform or
    configuration raises before the first step; a failure after that is logged once, training goes on, and `scores`
    raises it.

    Args:
        dataset: What to score: a `Dataset` (with its *evaluation* transform), a `DatasetDict`, any map-style torch
            data set; default: the trainer's own training rows, as the trainer sees them (without the columns that
            Trainer strips).
        config: What is computed.
        collate_fn: From a list of whole rows to a batch; default: the trainer's collator.
        output_dir: Folder for snapshots and scores; default ``<args.output_dir>/_vog``. A new training replaces what
            an earlier one left there; files of others are refused.
        collect: ``"replay"`` stores snapshots and scores at the end; ``"live"`` updates moments of all rows, in
            memory, at every snapshot.
        snapshots: ``"auto"`` (every epoch if there are 5 or more, else evenly spaced steps), ``"epoch"``, every n
            steps, or a list of steps.
        max_snapshots: More are thinned evenly.
        batch_size: Rows per forward pass of the scoring; default: the trainer's evaluation batch size.
        label_column: Column of the labels, over Trainer's label names.
        store: ``"trainable"`` parameters and buffers, or ``"all"`` tensors (if frozen ones thaw in mid-run).
        memory_budget: Bytes for a block of rows; default: a quarter of what is free.
        num_workers: Processes that read rows ahead; default: the trainer's ``dataloader_num_workers``.
        id_column: Of streams: key of each row that names it; kept beside its number (`VoGScores.ids`).
        fold: Score with BatchNorms folded into convolutions, if that is the same function (see `VoGScorer`).
        torch_compile: Score through ``torch.compile`` (see `VoGScorer`); training is not compiled by this.
        log: Whether to log to the active runs of Weights & Biases and Trackio; with ``collect="live"``, at every
            snapshot.
        top_k: Rows in each of the tables of highest and lowest rows that are logged.
        process_timeout: Seconds that the main process waits for the callback on the other processes when training
            begins (at most half of ``ddp_timeout``); they wait five times as long for it, since it may be logging in.

    Raises:
        ConfigError: An option that does not exist, or options that do not go together.

    Example:
        >>> callback = VoGCallback(snapshots="epoch", max_snapshots=5)
        >>> callback.scores
        Traceback (most recent call last):
        ...
        vog_hf.errors.NotScoredError: there are no scores yet: they come at the end of trainer.train()
    """

    def __init__(
        self,
        dataset: Any = None,
        *,
        config: VoGConfig | None = None,
        collate_fn: CollateFunction | None = None,
        output_dir: str | Path | None = None,
        collect: str = "replay",
        snapshots: str | int | Sequence[int] = "auto",
        max_snapshots: int = 10,
        batch_size: int | None = None,
        label_column: str | None = None,
        store: str = "trainable",
        memory_budget: int | None = None,
        num_workers: int | None = None,
        id_column: str | None = None,
        fold: bool = True,
        torch_compile: bool = False,
        log: bool = True,
        top_k: int = 50,
        process_timeout: float = 60.0,
    ) -> None:
        require_type("collect", collect, str, "pass 'replay' or 'live'")
        if collect not in ("replay", "live"):
            raise ConfigError(f"collect must be 'replay' or 'live', got {collect!r}")
        top_k = whole_number("top_k", top_k, 1, MAX_TABLE_ROWS)  # the rows that a W&B table can hold
        require_type("config", config, (VoGConfig, type(None)), "pass VoGConfig(...), or leave it out")
        for option, value in (("batch_size", batch_size), ("memory_budget", memory_budget)):
            if value is not None:
                whole_number(option, value, 1)
        if num_workers is not None:
            whole_number("num_workers", num_workers, 0)
        max_snapshots = whole_number("max_snapshots", max_snapshots)
        process_timeout = real_number("process_timeout", process_timeout, 0, threading.TIMEOUT_MAX)
        config = config or VoGConfig()
        if label_column is not None:
            config = dataclasses.replace(config, label_column=label_column)
        if collect == "live" and config.label == "predicted":
            raise ConfigError(
                "collect='live' cannot use label='predicted': the last snapshot's prediction is not known while "
                "training goes on; use collect='replay'"
            )
        for split in splits_of(dataset).values():
            _check_split(split, collect, id_column)
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
            is_live=collect == "live",
            snapshots=snapshots,
            max_snapshots=max_snapshots,
            batch_size=batch_size,
            store=store,
            memory_budget=memory_budget,
            num_workers=num_workers,
            id_column=id_column,
            fold=fold,
            torch_compile=torch_compile,
        )
        self._run: TrainingRun | None = None  # while training goes on
        self._datasets: dict[str, Any] = {}
        self._trackers: dict[str, Any] = {}  # runs that were active when training began
        self._scores: dict[str, VoGScores] | None = None
        self._failure: Exception | None = None

    # --- results ---

    @property
    def scores(self) -> VoGScores | dict[str, VoGScores]:
        """The scores, of a `DatasetDict` one per split.

        Raises:
            NotScoredError: Training has not ended, or scoring failed (then the cause is chained).
        """
        if self._failure is not None:
            raise NotScoredError(f"scoring failed: {self._failure}") from self._failure
        if self._scores is None:
            raise NotScoredError("there are no scores yet: they come at the end of trainer.train()")
        return self._scores.get(ONLY_SPLIT, self._scores)

    def scored_dataset(self, columns: str | Sequence[str] = "core", *, prefix: str = "") -> Dataset | DatasetDict:
        """The data set that was scored, with its scores as columns (see `add_vog_columns`).

        Raises:
            NotScoredError: As for `scores`.
            DataError: A torch data set was scored, which has no columns.
        """
        scores = self.scores
        dataset = self._datasets[ONLY_SPLIT] if self.dataset is None else self.dataset
        return add_vog_columns(dataset, scores, columns, prefix=prefix)

    # --- Trainer's events ---

    def on_train_begin(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Resolve and check everything, so that what is wrong raises before the first step."""
        self._run = self._scores = self._failure = None
        patience = self.process_timeout * (1 if state.is_world_process_zero else 5)
        meet(current_processes(), "VoGCallback", min(patience, args.ddp_timeout / 2))
        with preserved_rng():
            run = TrainingRun(self._options, args, state, model, train_dataloader)
            run.begin(state, model)
            self._run, self._datasets, self._trackers = run, run.datasets, active_runs()

    def on_step_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take a planned snapshot; that of the last step waits for the end of the epoch."""
        run = self._run
        if run is None:
            return
        if state.global_step in run.plan and state.global_step < state.max_steps:
            self._take(run, model, state, control)
        self._save_moments(control, state)

    def on_epoch_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take the last snapshot here: in on_train_end the best model may have been loaded already."""
        self._take_if_stopping(state, control, model)
        run = self._run
        if run is not None and state.global_step in run.plan:
            self._take(run, model, state, control)
        self._save_moments(control, state)

    def on_evaluate(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take a last snapshot where an evaluation has ended the training."""
        self._take_if_stopping(state, control, model)

    def on_save(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """The same, for a callback behind this one that ended it; drop the moments of checkpoints that are gone."""
        self._take_if_stopping(state, control, model)
        self._save_moments(control, state, of_checkpoint=True)

    def on_train_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Score, then log; the scores are on disk before anything is logged."""
        run = self._run
        if run is None:
            return
        # Trainer logs train_runtime just before a real end; a trial that is pruned ends without.
        if state.is_hyper_param_search and not any("train_runtime" in entry for entry in state.log_history):
            logger.info("VoG: training was ended by a hyper-parameter search; this trial is not scored")
        else:
            if not args.load_best_model_at_end:
                self._take_if_stopping(state, control, model)
            self._guarded("scoring", self._score, run, model)
        run.close()
        self._run = None
        if self._scores is not None and self.log and state.is_world_process_zero:
            self._log(run, state.global_step)

    def _take_if_stopping(self, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        """The last snapshot of a training that ends before its plan does."""
        run = self._run
        if run is not None and control.should_training_stop and state.global_step < run.plan[-1]:
            self._take(run, model, state, control)

    def _take(self, run: TrainingRun, model: nn.Module, state: TrainerState, control: TrainerControl) -> None:
        """A snapshot; of a live ranking what it is now is logged, unless the end of training will do so at once."""
        before = run.n_snapshots
        self._guarded("taking a snapshot", run.take, model, state)
        is_new = run.n_snapshots > before and self._failure is None
        is_last = control.should_training_stop or state.global_step >= run.plan[-1]
        if is_new and self.log and run.is_live and not is_last:
            self._watch(run, state.global_step)

    def _watch(self, run: TrainingRun, step: int) -> None:
        processes = current_processes()
        try:
            with preserved_rng():
                if not from_main(processes, "looking for a tracker", active_runs):
                    return
                scores = run.current_scores(self.top_k)
                if scores:
                    log = partial(log_scores, _only(scores), _only(run.datasets), step=step, top_k=self.top_k)
                    for to in active_runs():
                        log(to=to, artifact=False)
        except Exception:
            logger.exception("VoG: logging the ranking of step %d failed; training and scoring go on", step)

    def _score(self, run: TrainingRun, model: nn.Module) -> None:
        self._scores = run.finish(model)

    def _guarded(self, what: str, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run ``work``; a failure must not end the training, so it is kept for `scores` and logged once."""
        if self._failure is not None:
            return
        try:
            with preserved_rng():
                work(*args, **kwargs)
        except Exception as error:
            logger.exception("VoG: %s failed; training goes on, callback.scores raises the cause", what)
            self._failure = _without_tracebacks(error)
            if self._run is not None:
                self._run.close()

    def _save_moments(self, control: TrainerControl, state: TrainerState, *, of_checkpoint: bool = False) -> None:
        """Keep live moments beside the checkpoint that is about to be written, so that none is there without them.

        A failure costs the way back to this checkpoint, not the scores.
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
                "VoG: saving the moments of step %d failed; training and scoring go on, resuming here will not",
                state.global_step,
            )

    def _log(self, run: TrainingRun, step: int) -> None:
        log = partial(log_scores, self.scores, _only(_shown(run.datasets)), step=step, top_k=self.top_k)
        trackers = self._trackers | active_runs()
        for to, tracker in (trackers or {"wandb": None}).items():  # without any, log_scores says how to get one
            try:
                with preserved_rng(), reopened(to, tracker) as opened:
                    log(to=to, run=opened)
            except Exception:
                logger.exception("VoG: logging failed; the scores are whole, in callback.scores and in %s", run.folder)


def _shown(splits: dict[str, Any]) -> dict[str, Any]:
    """What can show its rows, by split: a stream cannot, it is read once."""
    return {name: None if is_stream(rows) else rows for name, rows in splits.items()}


def _only(splits: dict[str, T]) -> T | dict[str, T]:
    """What there is of the only split, or of all of several by name."""
    return splits.get(ONLY_SPLIT, splits)


def _check_split(split: Any, collect: str, id_column: str | None) -> None:
    """Raise where what is to be scored does not go with the other options; None: the Trainer's own data set."""
    if is_stream(split) and collect == "live":
        raise ConfigError("collect='live' keeps moments by row number, which a stream has not; use collect='replay'")
    if id_column is not None and not is_stream(split):
        raise ConfigError("id_column names the rows of a stream; other rows have their number, leave it out")
    if split is not None and not is_stream(split):
        check_map_style(split)


def _without_tracebacks(error: Exception) -> Exception:
    """An error to keep, which holds no frames and so no tensors; its traceback is in the log."""
    behind: BaseException | None = error
    while behind is not None:
        behind.__traceback__ = None
        behind = behind.__cause__ or behind.__context__
    return error
