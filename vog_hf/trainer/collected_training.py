"""CollectedTraining: scores at no extra pass, from the forward and backward passes that train the rows."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerState, TrainingArguments

from vog_hf.data.batch_reader import BatchReader
from vog_hf.data.numbered_rows import INSTEAD, LABELS_KEY, ROWS_KEY, NumberedLoader
from vog_hf.data.row_identity import identify_rows
from vog_hf.errors import ConfigError
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.gradients.model_mode import require_module
from vog_hf.gradients.observed_passes import ObservedPass
from vog_hf.gradients.training_passes import TrainingPasses
from vog_hf.runtime.files import format_bytes
from vog_hf.runtime.processes import current_processes, from_main, gathered, run_together, together
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.observed_gradients import Noted, ObservedGradients
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.run_manifest import make_manifest
from vog_hf.scoring.training_scores import ROW_BYTES, TRAJECTORIES, write_training_scores
from vog_hf.scoring.visits import FLUSHED_VISITS, VISIT_BYTES, VisitLog
from vog_hf.trainer.announcements import announce
from vog_hf.trainer.collected_rows import require_one_example_per_row, require_same_rows
from vog_hf.trainer.moments_plan import MomentsPlan, plan_moments
from vog_hf.trainer.options import TrainingOptions
from vog_hf.trainer.splits import ONLY_SPLIT
from vog_hf.trainer.training_length import checkpoints_kept

FIRST_ROWS = 2  # collated before training, to see that their numbers can travel


class CollectedTraining:
    """One training whose own passes are observed; the constructor raises what would keep the rows' numbers from it.

    Args:
        options: Options of the callback; their dataset shows the rows of the training.
        args: Arguments of the training.
        state: State of the training, whose steps are counted.
        model: Model that trains, unwrapped.
        train_dataloader: Loader of the training.

    Attributes:
        plan: Steps after which the callback closes an epoch: the last one.
    """

    is_live = False
    n_snapshots = 0

    def __init__(
        self,
        options: TrainingOptions,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        train_dataloader: object,
    ) -> None:
        require_module(model)
        config = replace(options.config, target="loss")
        self.folder = options.run_folder(args)
        self.plan = [state.max_steps]
        self._config, self._args, self._state, self._model = config, args, state, model
        self._label_names = tuple(dict.fromkeys([*(args.label_names or ()), *LABEL_NAMES]))
        self._loader = NumberedLoader(train_dataloader, self._label_names, config.label_column)
        self._rows = self._loader.dataset if options.dataset is None else options.dataset
        self.datasets = {ONLY_SPLIT: self._rows}
        self._reader = BatchReader(
            self._rows, model, label_names=args.label_names, label_column=config.label_column, batch_size=1
        )
        run_together(current_processes(), "preparing to score", self._check)
        self._moments_plan = self._planned_moments(options.memory_budget)
        self._gradients = ObservedGradients(
            len(self._rows),
            units=self._moments_plan.units,
            limit=self._moments_plan.limit,
            processes=current_processes(),
            why_not=self._moments_plan.why_not,
        )
        self._visits = VisitLog(self.folder.visits, current_processes().process_index)
        self._epoch: int | None = None
        self._failure: Exception | None = None
        self._saved: set[int] = set()
        self._passes = TrainingPasses(
            model,
            (ROWS_KEY, LABELS_KEY),
            label_names=self._label_names,
            task_name=config.task,
            smoothing=args.label_smoothing_factor,
            on_batch=self._visited,
            on_error=self._failed,
            on_gradient=self._differentiated if self._moments_plan.why_not is None else None,
            reduce_channels=config.reduce_channels,
        )

    def _planned_moments(self, budget: int | None) -> MomentsPlan:
        """The plan of the moments: none where one process has no room for them."""
        processes = current_processes()
        plan = run_together(
            processes,
            "preparing to score",
            plan_moments,
            self._model,
            self._loader,
            self._label_names,
            n_epochs=self._n_epochs,
            n_processes=processes.num_processes,
            budget=budget,
            reduce_channels=self._config.reduce_channels,
        )
        return next((other for other in gathered(processes, plan) if other.why_not is not None), plan)

    @property
    def _n_epochs(self) -> int:
        return max(1, math.ceil(self._state.num_train_epochs))

    def _check(self) -> None:
        """Raise unless the numbers of the rows can travel with them, and the rows shown are those of the training."""
        if self._args.n_gpu > 1:
            raise ConfigError(
                f"collect='training' observes one model per process, and DataParallel copies it to {self._args.n_gpu} "
                f"devices; start one process per device with torchrun, or {INSTEAD}"
            )
        batch = self._loader.first_batch(FIRST_ROWS)
        require_one_example_per_row(self._model, batch, min(FIRST_ROWS, len(self._loader.dataset)), self._label_names)
        if LABELS_KEY not in batch:
            raise ConfigError(
                f"collect='training' found no label: the collated batch has {sorted(map(str, batch))}, none of "
                f"{list(self._label_names)}; pass label_column=, or {INSTEAD}",
                argument="label_column=",
            )
        if self._rows is not self._loader.dataset:
            require_same_rows(self._rows, self._loader.dataset)

    def begin(self, state: TrainerState, model: nn.Module) -> None:  # noqa: ARG002 (as `TrainingRun`)
        """Prepare the folder, continue an interrupted training, and observe from now on.

        Raises:
            OutputFolderError: The folder is foreign, in use, too small, or lacks visits of the resumed training.
        """
        from_main(current_processes(), f"preparing {self.folder}", self._prepare_folder, state)
        if state.global_step > 0:
            self._gradients.restore(self._moments_at(state.global_step))
        self._loader.install()
        self._passes.attach()

    def _prepare_folder(self, state: TrainerState) -> None:
        n_rows, n_epochs, moments = len(self._rows), self._n_epochs, self._moments_plan
        disk = n_rows * n_epochs * (VISIT_BYTES + 4 * len(TRAJECTORIES)) + n_rows * ROW_BYTES
        disk += moments.nbytes * checkpoints_kept(self._args, state)
        self.folder.prepare(state, self.plan, disk, is_live=True)
        if state.global_step > 0:
            self._visits.continue_from(state.global_step)
        memory = min(n_rows, FLUSHED_VISITS) * VISIT_BYTES + 2 * n_rows * ROW_BYTES
        announce(
            f"{n_rows:,} rows x {n_epochs} epochs, observed in the passes that train them, at no extra pass; about "
            f"{format_bytes(memory)} of memory ({moments.in_words()}) and {format_bytes(disk)} on disk, all in "
            f"{self.folder}",
            self._args,
        )

    # --- while it trains ---

    def begin_epoch(self, state: TrainerState) -> None:
        """Count the epochs; the first one is that of the step from which training continues."""
        self._close_epoch(state)
        self._epoch = math.floor(state.epoch or 0) if self._epoch is None else self._epoch + 1
        self._visits.epoch = self._epoch
        self._gradients.begin_epoch(self._epoch)

    def _close_epoch(self, state: TrainerState) -> None:
        """Write all visits; raise on every process what went wrong in a pass on one of them."""
        with together(current_processes(), "observing the training"):
            self._passes.settle()
            if self._failure is not None:
                raise self._failure
            self._visits.flush(state.global_step)

    def require_observed(self) -> None:
        """Raise ConfigError if no numbered row came to the model before the first optimizer step."""
        if self._passes.n_batches == 0 and self._failure is None:
            self.close()
            raise ConfigError(
                "collect='training' saw no row in the first step: the trainer's compute_loss, training_step or loader "
                f"did not pass {ROWS_KEY!r}, the numbers of the rows, on to the model's forward; call model(**inputs) "
                f"with all of the batch, or {INSTEAD}"
            )

    def collect(self, state: TrainerState) -> None:
        """Write visits and move gradients if there are many; a failure is raised when the epoch is closed."""
        try:
            if self._visits.is_full or self._gradients.is_full or self._passes.is_full:
                self._passes.settle()
            if self._visits.is_full and self._failure is None:
                self._visits.flush(state.global_step)
            if self._gradients.is_full and self._failure is None:
                self._gradients.flush()
        except Exception as error:  # noqa: BLE001 (raised by `_close_epoch`)
            self._failed(error)

    def take(self, model: nn.Module, state: TrainerState) -> None:  # noqa: ARG002 (as `TrainingRun`)
        """Close an epoch."""
        self._close_epoch(state)
        self._gradients.close_epoch()

    def save_moments(self, step: int) -> None:
        """Write all visits and moments before a checkpoint, so that training can be resumed from it."""
        if step in self._saved:
            return
        with together(current_processes(), "saving the moments"):
            self._passes.settle()
            if self._failure is None:
                self._visits.flush(step)
                self._gradients.save(self._moments_at(step))
                self._visits.mark(step, current_processes().num_processes)
        self._saved.add(step)

    def drop_moments(self, step: int) -> None:
        """Delete moments of deleted checkpoints, and keep the visits: they are those of the whole training."""
        drop = self.folder.drop_moments
        from_main(current_processes(), "dropping old moments", drop, Path(self._args.output_dir or ""), step)

    def _moments_at(self, step: int) -> Path:
        """Folder of the moments of a checkpoint."""
        return self.folder.live / f"step-{step:09d}"

    def current_scores(self, top_k: int) -> dict[str, VoGScores]:  # noqa: ARG002 (as `TrainingRun`)
        """None: scores are computed at the end."""
        return {}

    def _visited(self, observed: ObservedPass) -> None:
        if self._failure is None:  # after it nothing is read any more
            self._visits.add(self._state.global_step + 1, observed.rows, observed.values)

    def _differentiated(
        self, rows: Tensor, gradients: Tensor, mask: Tensor | None, divisor: ObservedPass | None
    ) -> None:
        if self._failure is not None:
            return
        leaf = self._passes.leaf
        by_unit = leaf is not None and leaf.embedding is not None
        self._gradients.add(Noted(self._state.global_step + 1, rows, gradients, mask, by_unit, divisor))

    def _failed(self, error: Exception) -> None:
        self._failure = self._failure or error

    # --- at the end ---

    def finish(self, model: nn.Module) -> dict[str, VoGScores]:
        """Compute the scores."""
        processes = current_processes()
        self.take(model, self._state)
        if processes.num_processes > 1:
            run_together(processes, "writing moments", self._gradients.save, self._final_moments)
        folder = self.folder.scores
        from_main(processes, "writing the scores", self._write, folder)
        return {ONLY_SPLIT: run_together(processes, "loading the scores", VoGScores.load, folder)}

    @property
    def _final_moments(self) -> Path:
        """Folder in which the processes hand their moments to the main one."""
        return self.folder.live / "final"

    def close(self) -> None:
        """Leave model and loader as they were, and release the lock of the folder."""
        self._passes.detach()
        self._loader.restore()
        self.folder.release()

    def _write(self, folder: Path) -> None:
        identity = identify_rows(self._rows)
        plan = self._plan()
        manifest = make_manifest(
            self._model, plan, self._reader, identity, n_processes=current_processes().num_processes
        )
        manifest.pop("units", None)  # a pass that trains observes rows alone
        self._gradients.merge(self._final_moments)
        shutil.rmtree(self._final_moments, ignore_errors=True)
        write_training_scores(
            folder,
            self._visits.folder,
            identity,
            manifest | {"collect": "training", "training": self._conditions()},
            has_classes=plan.has_classes,
            vog_loss=self._gradients.scores(),
        )

    def _conditions(self) -> dict[str, Any]:
        """Conditions of the observed passes that a scoring afterwards does not have."""
        args = self._args
        return {
            "mode": "train",  # dropout, augmentation and batch statistics as in training
            "label_smoothing_of_csg": args.label_smoothing_factor,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "bf16": args.bf16,
            "fp16": args.fp16,
        }

    def _plan(self) -> ScoringPlan:
        """The plan that describes what was observed."""
        passes = self._passes
        assert passes.leaf is not None  # noqa: S101 (a batch was observed)
        return ScoringPlan(
            config=self._config,
            task=passes.task,
            leaf=passes.leaf,
            channel_axis=None,
            n_outputs=passes.n_outputs,
            element_shape=passes.element_shape,
            dtype=next(self._model.parameters()).dtype,
            batch_seconds=0.0,
            batch_bytes=0,
            dry_run_rows=1,
            batch_size=self._args.per_device_train_batch_size,
            module=self._model,
            has_padding_mask=False,
        )
