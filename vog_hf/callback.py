"""VoGCallback: when a Trainer's model is snapshotted and scored; how is the scorer's business."""

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vog_hf.batches import CollateFunction, check_map_style, preserved_rng
from vog_hf.columns import add_vog_columns
from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, DataError, NotScoredError, OutputFolderError
from vog_hf.files import locked, require_free, write_json
from vog_hf.processes import current_processes, from_main, run_together
from vog_hf.rows import has_table
from vog_hf.schedule import plan_snapshots
from vog_hf.scorer import VoGScorer
from vog_hf.scores import VoGScores
from vog_hf.snapshots import SnapshotWriter, open_folder
from vog_hf.tracking import MAX_TABLE_ROWS, log_scores

logger = logging.getLogger(__name__)

FOLDER_NAME = "_vog"  # Trainer's push_to_hub skips names that begin with an underscore
MARKER_NAME = "vog.json"
ONLY_SPLIT = ""


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
        log: Whether to log to the active Weights & Biases run.
        top_k: Rows in each of the tables of highest and lowest rows that are logged.

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
        log: bool = True,
        top_k: int = 50,
    ) -> None:
        if collect not in ("replay", "live"):
            msg = f"collect must be 'replay' or 'live', got {collect!r}"
            raise ConfigError(msg)
        if not 1 <= top_k <= MAX_TABLE_ROWS:
            msg = f"top_k must lie in 1..{MAX_TABLE_ROWS:,}, the rows that a W&B table can hold, got {top_k}"
            raise ConfigError(msg)
        config = config or VoGConfig()
        if label_column is not None:
            config = VoGConfig(**{**_options(config), "label_column": label_column})
        if collect == "live" and config.label == "predicted":
            msg = (
                "collect='live' cannot use label='predicted': the last snapshot's prediction is not known while "
                "training goes on; use collect='replay'"
            )
            raise ConfigError(msg)
        for split in _splits(dataset).values():
            if split is not None:
                check_map_style(split)
        self.dataset = dataset
        self.config = config
        self.collate_fn = collate_fn
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.collect = collect
        self.snapshots = snapshots
        self.max_snapshots = max_snapshots
        self.batch_size = batch_size
        self.store = store
        self.memory_budget = memory_budget
        self.num_workers = num_workers
        self.log = log
        self.top_k = top_k
        self._run: _Run | None = None
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
            msg = f"scoring failed: {self._failure}"
            raise NotScoredError(msg) from self._failure
        if self._scores is None:
            msg = "there are no scores yet: they come at the end of trainer.train()"
            raise NotScoredError(msg)
        return self._scores.get(ONLY_SPLIT, self._scores)

    def scored_dataset(self, columns: str | Sequence[str] = "core") -> Dataset | DatasetDict:
        """The data set that was scored, with its scores as columns (see `add_vog_columns`).

        Raises:
            NotScoredError: As for `scores`.
            DataError: A torch data set was scored, which has no columns.
        """
        scores = self.scores
        dataset = self.dataset
        if dataset is None and self._run is not None:
            dataset = self._run.datasets[ONLY_SPLIT]
        return add_vog_columns(dataset, scores, columns)

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
        self._scores = self._failure = None
        with preserved_rng():
            self._run = run_together(
                current_processes(), "preparing to score", lambda: _Run(self, args, state, model, train_dataloader)
            )
            self._run.begin(state, model)

    def on_step_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take a planned snapshot; that of the last step waits for the end of the epoch."""
        run = self._run
        if run is not None and state.global_step in run.plan and state.global_step < state.max_steps:
            self._guarded("taking a snapshot", lambda: run.take(model, state))

    def on_epoch_end(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Take the last snapshot here: in on_train_end the best model may have been loaded already."""
        run = self._run
        if run is None:
            return
        stopped_early = control.should_training_stop and state.global_step < run.plan[-1]
        if stopped_early or state.global_step in run.plan:
            self._guarded("taking a snapshot", lambda: run.take(model, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score, then log; the scores are on disk before anything is logged."""
        run = self._run
        if run is None or self._failure is not None:
            return
        if not any("train_runtime" in entry for entry in state.log_history):  # Trainer logs it just before a real end
            logger.info("VoG: training was ended by a hyper-parameter search; this trial is not scored")
            return
        self._guarded("scoring", lambda: self._set_scores(run.finish()))
        if self._scores is not None and self.log and state.is_world_process_zero:
            self._log(run, state.global_step)

    def _set_scores(self, scores: dict[str, VoGScores]) -> None:
        self._scores = scores

    def _guarded(self, what: str, work: Callable[[], object]) -> None:
        """Run ``work``; a failure must not end the training, so it is kept for `scores` and logged once."""
        if self._failure is not None:
            return
        try:
            with preserved_rng():
                work()
        except Exception as error:
            self._failure = error
            logger.exception("VoG: %s failed; training goes on, callback.scores raises the cause", what)

    def _log(self, run: "_Run", step: int) -> None:
        scores = self.scores
        dataset = run.datasets if isinstance(scores, Mapping) else run.datasets[ONLY_SPLIT]
        try:
            with preserved_rng():
                log_scores(scores, dataset, step=step, top_k=self.top_k)
        except Exception:
            logger.exception("VoG: logging failed; the scores are whole, in callback.scores and in %s", run.folder)


class _Run:
    """One training: its plan, its folder, and the scorer with a reader for each split.

    Making one is the dry run: what is wrong with options, data, labels, transform, model or folder raises here.
    """

    def __init__(
        self,
        options: VoGCallback,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        train_dataloader: Any,
    ) -> None:
        self._is_live = options.collect == "live"
        if self._is_live and state.global_step > 0:
            msg = (
                f"collect='live' cannot resume at step {state.global_step}: the moments of earlier snapshots are gone; "
                "use collect='replay', whose snapshots are on disk"
            )
            raise ConfigError(msg)
        self.plan = plan_snapshots(
            options.snapshots,
            max_snapshots=options.max_snapshots,
            max_steps=state.max_steps,
            steps_per_epoch=_steps_per_epoch(args, train_dataloader),
        )
        self.datasets = _splits(options.dataset)
        if options.dataset is None:
            self.datasets = {ONLY_SPLIT: getattr(train_dataloader, "dataset", None)}
        self._scorer = VoGScorer(
            model,
            config=options.config,
            batch_size=args.per_device_eval_batch_size if options.batch_size is None else options.batch_size,
            memory_budget=options.memory_budget,
            num_workers=args.dataloader_num_workers if options.num_workers is None else options.num_workers,
            progress=not args.disable_tqdm,
        )
        self._readers = {
            split: self._scorer.reader(
                dataset,
                collate_fn=options.collate_fn or getattr(train_dataloader, "collate_fn", None),
                only_model_columns=options.collate_fn is None and args.remove_unused_columns,
                label_names=args.label_names,
            )
            for split, dataset in self.datasets.items()
        }
        plans = {split: self._scorer.plan(reader) for split, reader in self._readers.items()}
        self.folder = options.output_dir or Path(args.output_dir or "") / FOLDER_NAME
        self._writer = SnapshotWriter(self.folder / "snapshots", model, store=options.store)
        self._live = {
            split: self._scorer.live(self._readers[split], plan, len(self.plan))
            for split, plan in plans.items()
            if self._is_live
        }
        self._plans = plans
        self._taken: list[int] = []

    def begin(self, state: TrainerState, model: nn.Module) -> None:
        """Prepare the folder, once every process has found its rows and model in order."""
        self._taken = from_main(
            current_processes(), f"preparing {self.folder}", lambda: self._prepare_folder(state, model)
        )

    def take(self, model: nn.Module, state: TrainerState) -> None:
        """A snapshot of the model as it is, once per step."""
        step = state.global_step
        if step in self._taken:
            return
        self._taken.append(step)
        for live in self._live.values():
            live.update(f"step-{step:09d}", step)
        if not self._is_live:
            from_main(current_processes(), "storing a snapshot", lambda: self._writer.take(model, step))

    def finish(self) -> dict[str, VoGScores]:
        """The scores of each split."""
        current_processes().wait_for_everyone()
        scores = {}
        for split, reader in self._readers.items():
            folder = self.folder / "scores" / split if split else self.folder / "scores"
            if self._is_live:
                scores[split] = self._live[split].finish(output_dir=folder)
            else:
                snapshots = run_together(
                    current_processes(), "finding the snapshots", lambda: open_folder(self._writer.folder)
                )
                scores[split] = self._scorer.score_rows(reader, snapshots, output_dir=folder)
        return scores

    def _needed_bytes(self, model: nn.Module) -> int:
        snapshots = 0 if self._is_live else self._writer.snapshot_bytes(model) * len(self.plan)
        return snapshots + sum(
            plan.disk_bytes(len(self.datasets[split]), len(self.plan)) for split, plan in self._plans.items()
        )

    def _log_plan(self) -> None:
        steps = ", ".join(map(str, self.plan))
        logger.info("VoG: %d snapshots after steps %s, kept in %s", len(self.plan), steps, self.folder)
        collect = "live" if self._is_live else "replay"
        for split, plan in self._plans.items():
            estimate = self._scorer.estimate(plan, len(self.datasets[split]), len(self.plan), collect=collect)
            logger.info("VoG%s: %s", f", split {split}" if split else "", estimate)

    def _prepare_folder(self, state: TrainerState, model: nn.Module) -> list[int]:
        """Check and empty the folder, or take up an interrupted training; returns the steps that are there."""
        folder, resumed = self.folder, state.global_step > 0
        if folder.exists() and not folder.is_dir():
            msg = f"output_dir {folder} is a file; pass a folder"
            raise OutputFolderError(msg)
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER_NAME).is_file():
            msg = f"{folder} holds files that vog_hf did not write; pass another output_dir (a folder of its own)"
            raise OutputFolderError(msg)
        require_free(folder, self._needed_bytes(model), "storing snapshots and scores")
        with locked(folder):
            write_json(folder / MARKER_NAME, {"format": 1, "planned steps": self.plan})
            shutil.rmtree(folder / "scores", ignore_errors=True)
            if not resumed:
                shutil.rmtree(folder / "snapshots", ignore_errors=True)
        if resumed:
            self._writer.continue_from(state.global_step)
        self._log_plan()
        return self._writer.steps


def _splits(dataset: Any) -> dict[str, Any]:
    """Data sets by split; a single one under `ONLY_SPLIT`."""
    if isinstance(dataset, Mapping) and not has_table(dataset):
        if not dataset:
            msg = "the DatasetDict is empty: there is no split to score"
            raise DataError(msg)
        unsafe = [name for name in dataset if not re.fullmatch(r"\w[\w.-]*", str(name))]
        if unsafe:
            msg = f"split names become folder names: letters, digits, '_', then also '.' and '-', got {unsafe}"
            raise DataError(msg)
        return dict(dataset)
    return {ONLY_SPLIT: dataset}


def _options(config: VoGConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def _steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int | None:
    try:
        batches = len(train_dataloader)
    except TypeError:
        return None
    return max(-(-batches // args.gradient_accumulation_steps), 1)
