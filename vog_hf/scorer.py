"""VoGScorer: rows -> blocks -> gradients -> moments -> scores, under Accelerate."""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from vog_hf.accumulate import BatchAccumulator, RowResults, Windows
from vog_hf.batches import TRANSFORM_CHECK_ROWS, Batch, BatchReader, CollateFunction, preserved_rng
from vog_hf.blocks import Assembler, BlockFolder, BlockPlan, batches, gathered_blocks
from vog_hf.config import VoGConfig
from vog_hf.engine import (
    PADDING_TOLERANCE,
    ScoringPlan,
    check_labels,
    needs_prediction,
    padding_difference,
    plan_scoring,
    predictions,
    require_finite_rows,
    score_batch,
    to_numpy_labels,
    used_labels,
)
from vog_hf.errors import ConfigError, MemoryBudgetError
from vog_hf.files import format_bytes, locked, require_free, write_json
from vog_hf.gradients import model_device_and_dtype, placed, scoring_mode, unwrap
from vog_hf.metric import class_normalize, percentile
from vog_hf.rows import RowIdentity, identify_rows
from vog_hf.scores import FORMAT, MANIFEST_NAME, VoGScores, save_table
from vog_hf.snapshots import SnapshotSet, SnapshotSource, lend_weights, open_snapshots

logger = logging.getLogger(__name__)

FREE_MEMORY_SHARE = 0.25


class VoGScorer:
    """Scores the rows of a data set from stored snapshots of a model.

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

    Example:
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
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                msg = f"{name} must be at least {least}, got {value}"
                raise ConfigError(msg)
        if memory_budget is not None and memory_budget < 1:
            msg = f"memory_budget must be a number of bytes, got {memory_budget}"
            raise ConfigError(msg)
        self.model = unwrap(model)
        self.config = config or VoGConfig()
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self.num_workers = num_workers
        self.progress = progress
        self._processes = accelerator or PartialState()

    def score(
        self,
        dataset: Any,
        snapshots: SnapshotSource,
        *,
        collate_fn: CollateFunction | None = None,
        output_dir: str | Path | None = None,
    ) -> VoGScores:
        """The scores of every row of a data set.

        Args:
            dataset: A `datasets.Dataset` with a deterministic transform, or any map-style torch data set.
            snapshots: A folder (a callback's, or one with ``checkpoint-*`` in it), a list of model folders or
                safetensors files in the order of training, or an iterable of (name, state_dict).
            collate_fn: From a list of whole rows to a batch; default: transformers' or torch's default collator.
            output_dir: Where the scores are kept. An interrupted run continues there, and a finished one is returned
                as it is, if data, configuration and snapshots are the same. None: a temporary folder.

        Raises:
            VoGError: What is wrong with rows, labels, model, snapshots or folder; before the long work where possible.
        """
        with TemporaryDirectory(prefix="vog-spool-") as spool:
            snapshot_set = open_snapshots(snapshots, spool=Path(spool))
            return self.score_rows(self.reader(dataset, collate_fn=collate_fn), snapshot_set, output_dir=output_dir)

    def reader(self, dataset: Any, **options: Any) -> BatchReader:
        """A `BatchReader` of a data set for this scorer's model; options as there."""
        return BatchReader(
            dataset, self.model, label_column=self.config.label_column, num_workers=self.num_workers, **options
        )

    def plan(self, reader: BatchReader) -> ScoringPlan:
        """The dry run on the first rows: raises what is wrong with rows, labels, model or configuration."""
        rows = range(min(len(reader.dataset), max(TRANSFORM_CHECK_ROWS, self.batch_size)))
        plan = plan_scoring(self.model, reader, self.config, rows)
        difference = padding_difference(self.model, reader, plan, rows)
        if difference is not None and difference > PADDING_TOLERANCE:
            logger.warning(
                "the gradient of a row changes by %.1f %% when it is padded to the length of its batch: this model does "
                "not leave padding out. Pad every row to one fixed length (padding='max_length') for scores that do "
                "not depend on the batch",
                100 * difference,
            )
        return plan

    def score_rows(
        self, reader: BatchReader, snapshots: SnapshotSet, *, output_dir: str | Path | None = None
    ) -> VoGScores:
        """As `score`, of rows behind a reader and snapshots that are open."""
        temporary = TemporaryDirectory(prefix="vog-scores-") if output_dir is None else None
        folder = Path(temporary.name) if temporary else Path(output_dir or "")
        identity = identify_rows(reader.dataset)
        digests = snapshots.fingerprint()
        snapshots.verify_frozen(self.model)
        fingerprint = self._fingerprint(reader, identity) | {"snapshots": digests}
        with self._folder_in_use(folder):
            if not temporary and BlockFolder.is_finished(folder, fingerprint):
                return VoGScores.load(folder)
            plan = self.plan(reader)
            self._log_estimate(plan, len(reader.dataset), len(snapshots.snapshots), folder)
            require_free(folder, plan.disk_bytes(len(reader.dataset), len(snapshots.snapshots)), "the scores")
            blocks = BlockFolder(folder, fingerprint, self._block_plan(plan, len(reader.dataset)))
            with self._model_in_use():
                self._score_blocks(plan, reader, snapshots, blocks)
            manifest = self._manifest(plan, reader, identity) | {
                "collect": "replay",
                "snapshots": [
                    {"name": s.name, "step": s.step, "digest": d}
                    for s, d in zip(snapshots.snapshots, digests, strict=True)
                ],
            }
            return self._finished(blocks, plan, identity, manifest, temporary)

    def live(self, reader: BatchReader, plan: ScoringPlan, n_snapshots: int) -> "LiveScoring":
        """Moments of all rows in memory, to be updated while the model trains.

        Raises:
            ConfigError: A label is needed that only the last snapshot can say.
            MemoryBudgetError: The moments do not fit.
        """
        return LiveScoring(self, reader, plan, n_snapshots)

    # --- replay ---

    def _score_blocks(
        self, plan: ScoringPlan, reader: BatchReader, snapshots: SnapshotSet, folder: BlockFolder
    ) -> None:
        rank = self._processes.process_index
        blocks = folder.plan.blocks(rank)
        n_rows = sum(len(rows) for block in blocks for rows in block)
        with self._progress_bar(n_rows * len(snapshots.snapshots)) as bar:
            for number, block in enumerate(blocks):
                if folder.finished(rank, number):
                    bar.update(sum(map(len, block)) * len(snapshots.snapshots))
                    continue
                bar.set_postfix(block=f"{number + 1}/{len(blocks)}")
                rows, results = self._score_block(plan, reader, snapshots, block, bar)
                folder.write(rank, number, rows, results)

    def _score_block(
        self, plan: ScoringPlan, reader: BatchReader, snapshots: SnapshotSet, block: Sequence[range], bar: Any
    ) -> tuple[npt.NDArray[np.int64], list[RowResults]]:
        collated = self._read_block(plan, reader, block)
        windows = Windows(len(snapshots.snapshots))
        accumulators: list[BatchAccumulator] = []
        cast_up = self.config.dtype == "float32"
        with lend_weights(self.model, snapshots.frozen, cast_up=cast_up) as weights:
            last: list[Tensor | None] = [None] * len(collated)
            if needs_prediction(plan, collated):
                weights.load(snapshots.snapshots[-1])
                last = [predictions(self.model, batch) for batch in collated]
            for snapshot in snapshots.snapshots:
                weights.load(snapshot)
                bar.set_postfix_str(f"{bar.postfix.partition(', snapshot')[0]}, snapshot={snapshot.name}", refresh=False)
                for i, batch in enumerate(collated):
                    self._update(plan, batch, last[i], accumulators, i, windows, snapshot.name)
                    bar.update(len(batch))
        rows = np.concatenate([np.asarray(batch.rows, dtype=np.int64) for batch in collated])
        return rows, [with_label(plan, acc.results(), b) for acc, b in zip(accumulators, collated, strict=True)]

    def _update(
        self,
        plan: ScoringPlan,
        batch: Batch,
        prediction: Tensor | None,
        accumulators: list[BatchAccumulator],
        i: int,
        windows: Windows,
        snapshot: str,
    ) -> None:
        device, dtype = model_device_and_dtype(self.model)
        inputs = placed(batch.inputs, device, dtype)
        given = None if batch.labels is None else batch.labels.to(device)
        gradients, observation = score_batch(self.model, plan, inputs, used_labels(plan, given, prediction))
        if i == len(accumulators):
            accumulators.append(plan.accumulator(batch, inputs, windows))
        running = accumulators[i].update(gradients, observation)
        for target, values in zip(self.config.target_names, running, strict=True):
            require_finite_rows(values, batch.rows, snapshot, target)

    def _read_block(self, plan: ScoringPlan, reader: BatchReader, block: Sequence[range]) -> list[Batch]:
        collated = list(reader.read(block))
        if plan.task is not None:
            for batch in collated:
                if batch.labels is not None:
                    check_labels(plan.task, batch.labels, plan.n_outputs, batch.rows)
        return collated

    def _block_plan(self, plan: ScoringPlan, n_rows: int) -> BlockPlan:
        per_row = plan.moment_bytes_per_row + plan.batch_bytes // plan.first_rows
        budget = self.memory_budget or int(FREE_MEMORY_SHARE * free_memory(model_device_and_dtype(self.model)[0]))
        in_batches = max(1, budget // (per_row * self.batch_size))
        return BlockPlan(n_rows, self._processes.num_processes, self.batch_size, in_batches * self.batch_size)

    # --- what surrounds the work ---

    @contextmanager
    def _model_in_use(self) -> Iterator[None]:
        with preserved_rng(), scoring_mode(self.model):
            yield

    @contextmanager
    def _folder_in_use(self, folder: Path) -> Iterator[None]:
        """The main process holds the folder for all of them."""
        with locked(folder) if self._processes.is_main_process else nullcontext():
            yield

    def _progress_bar(self, total: int) -> Any:
        shown = self.progress and self._processes.is_main_process
        return tqdm(total=total, unit="row", desc="VoG", disable=None if shown else True, postfix={"block": ""})

    def _log_estimate(self, plan: ScoringPlan, n_rows: int, n_snapshots: int, folder: Path) -> None:
        if not self._processes.is_main_process:
            return
        mine = -(-n_rows // self._processes.num_processes)
        block_rows = min(self._block_plan(plan, n_rows).block_rows, mine)
        memory = block_rows * (plan.moment_bytes_per_row + plan.batch_bytes // plan.first_rows)
        seconds = plan.batch_seconds / plan.first_rows * mine * n_snapshots
        logger.info(
            "VoG: %s rows x %d snapshots in blocks of %s rows: about %s of memory, %s on disk in %s, %s",
            f"{n_rows:,}",
            n_snapshots,
            f"{block_rows:,}",
            format_bytes(memory),
            format_bytes(plan.disk_bytes(n_rows, n_snapshots)),
            folder,
            _format_seconds(seconds),
        )

    def _fingerprint(self, reader: BatchReader, identity: RowIdentity) -> dict[str, Any]:
        """What a row's scores depend on, apart from the snapshots."""
        first = range(min(len(reader.dataset), TRANSFORM_CHECK_ROWS))
        with preserved_rng():
            batch = next(reader.read([first]))
        digest = hashlib.sha256()
        for name, value in sorted(batch.inputs.items()):
            if isinstance(value, Tensor):
                digest.update(name.encode() + value.contiguous().numpy().tobytes())
        if batch.labels is not None:
            digest.update(batch.labels.numpy().tobytes())
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "rows": identity.n_rows,
            "data": identity.columns,
            "first batch": digest.hexdigest(),
        }

    def _manifest(self, plan: ScoringPlan, reader: BatchReader, identity: RowIdentity) -> dict[str, Any]:
        config = getattr(self.model, "config", None)
        return {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("vog-hf", "torch", "transformers", "datasets", "accelerate")},
            "n_rows": identity.n_rows,
            "config": self.config.to_dict(),
            "task": plan.task.name if plan.task else None,
            "class_names": class_names(reader, config) if plan.has_classes else None,
            "normalized_over": "class" if plan.has_classes else "data set",
            "model": {"class": type(self.model).__qualname__, "name": getattr(config, "name_or_path", "") or None},
            "input": {
                "name": plan.leaf.name,
                "embedding": plan.leaf.embedding is not None,
                "element_shape": list(plan.element_shape),
                "channels_averaged": plan.channel_axis is not None,
            },
            "data": {"columns": identity.columns},
            "batch_size": self.batch_size,
            "n_processes": self._processes.num_processes,
        }

    def _finished(
        self,
        folder: BlockFolder,
        plan: ScoringPlan,
        identity: RowIdentity,
        manifest: dict[str, Any],
        temporary: "TemporaryDirectory[str] | None",
    ) -> VoGScores:
        """Gather all blocks, prove coverage, write the folder; every process then reads it."""
        self._processes.wait_for_everyone()
        n_snapshots = len(manifest["snapshots"])
        assembler = Assembler(folder.folder, identity.n_rows, n_snapshots)
        for block in gathered_blocks(folder, self._processes.process_index):
            if self._processes.is_main_process:
                assembler.add(block)
        if self._processes.is_main_process:
            assembler.finish()
            columns = normalized_columns(assembler.columns, self.config, has_classes=plan.has_classes)
            windows = Windows(n_snapshots)
            names = [snapshot["name"] for snapshot in manifest["snapshots"]]
            if "vog_early" in columns:
                manifest["windows"] = {"early": names[: windows.width], "late": names[-windows.width :], "all": names}
            save_table(folder.folder, columns, identity.row_hash)
            write_json(folder.folder / MANIFEST_NAME, manifest)
            folder.remove_blocks()
        self._processes.wait_for_everyone()
        where = gather_object([folder.folder])[0]
        return VoGScores.load_temporary(temporary, where) if temporary else VoGScores.load(where)


class LiveScoring:
    """The moments of all rows of this process, updated at every snapshot of a training that goes on.

    Batches are read anew at each snapshot; nothing but moments, dynamics and trajectories is kept in memory.
    """

    def __init__(self, scorer: VoGScorer, reader: BatchReader, plan: ScoringPlan, n_snapshots: int) -> None:
        processes = scorer._processes
        rows = range(len(reader.dataset))[processes.process_index :: processes.num_processes]
        self._scorer = scorer
        self._reader = reader
        self._plan = plan
        self._batches = batches(rows, scorer.batch_size)
        self._windows = Windows(n_snapshots)
        self._accumulators: list[BatchAccumulator] = []
        self._labels: list[Batch] = []
        self._snapshots: list[dict[str, Any]] = []
        if scorer.config.label == "predicted":
            msg = (
                "collect='live' cannot use label='predicted': the last snapshot's prediction is not known yet; use "
                "collect='replay'"
            )
            raise ConfigError(msg)
        needed, free = self.memory_bytes(), free_memory(model_device_and_dtype(scorer.model)[0])
        if needed > free:
            msg = (
                f"collect='live' keeps the moments of {len(rows):,} rows, {format_bytes(needed)}, and "
                f"{format_bytes(free)} are free; use collect='replay', whose memory does not grow with the rows"
            )
            raise MemoryBudgetError(msg)

    def memory_bytes(self) -> int:
        """What the moments and trajectories of this process's rows will take."""
        per_row = self._plan.moment_bytes_per_row + 12 * self._windows.n_snapshots
        return per_row * sum(map(len, self._batches))

    def update(self, name: str, step: int | None = None) -> None:
        """One pass over all rows with the model as it is now; the model is left as it was found."""
        scorer, plan = self._scorer, self._plan
        cast_up = scorer.config.dtype == "float32"
        total = sum(map(len, self._batches))
        with (
            scorer._model_in_use(),
            lend_weights(scorer.model, {}, cast_up=cast_up),
            scorer._progress_bar(total) as bar,
        ):
            for i, batch in enumerate(self._reader.read(self._batches)):
                if plan.task is not None and batch.labels is not None:
                    check_labels(plan.task, batch.labels, plan.n_outputs, batch.rows)
                if needs_prediction(plan, [batch]):
                    row = batch.rows[0 if batch.labels is None else int((batch.labels < 0).nonzero()[0])]
                    msg = f"row {row} has no label, and collect='live' cannot know its last prediction; use 'replay'"
                    raise ConfigError(msg)
                scorer._update(plan, batch, None, self._accumulators, i, self._windows, name)
                if i == len(self._labels):
                    self._labels.append(Batch(batch.rows, {}, batch.labels))
                bar.update(len(batch))
        self._snapshots.append({"name": name, "step": step, "digest": None})

    def running(self) -> dict[str, npt.NDArray[np.generic]]:
        """The columns of this process's rows as of now, with ``row``; for watching a ranking while a model learns."""
        parts = [with_label(self._plan, a.results(), b) for a, b in zip(self._accumulators, self._labels, strict=True)]
        rows = np.concatenate([np.asarray(batch.rows, dtype=np.int64) for batch in self._labels])
        return {"row": rows} | {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns}

    @property
    def n_snapshots(self) -> int:
        """Snapshots seen so far."""
        return len(self._snapshots)

    def finish(self, *, output_dir: str | Path | None = None) -> VoGScores:
        """The scores of the snapshots seen, written like those of a replay."""
        scorer = self._scorer
        if self.n_snapshots < 2:
            msg = f"VoG needs at least 2 snapshots, this training gave {self.n_snapshots}; take them more often"
            raise ConfigError(msg)
        temporary = TemporaryDirectory(prefix="vog-scores-") if output_dir is None else None
        folder = Path(temporary.name) if temporary else Path(output_dir or "")
        identity = identify_rows(self._reader.dataset)
        n_rows, rank = identity.n_rows, scorer._processes.process_index
        whole = BlockPlan(n_rows, scorer._processes.num_processes, scorer.batch_size, max(n_rows, 1))
        fingerprint = scorer._fingerprint(self._reader, identity) | {"snapshots": self._snapshots}
        with scorer._folder_in_use(folder):
            blocks = BlockFolder(folder, fingerprint, whole)
            if self._labels:
                rows = np.concatenate([np.asarray(batch.rows, dtype=np.int64) for batch in self._labels])
                results = [
                    with_label(self._plan, a.results(), b)
                    for a, b in zip(self._accumulators, self._labels, strict=True)
                ]
                blocks.write(rank, 0, rows, results)
            manifest = scorer._manifest(self._plan, self._reader, identity) | {
                "collect": "live",
                "snapshots": self._snapshots,
            }
            if self.n_snapshots < self._windows.n_snapshots:
                manifest["windows_missing"] = (
                    f"training stopped after {self.n_snapshots} of {self._windows.n_snapshots} planned snapshots, and "
                    "live moments of the windows early and late need to know the number in advance"
                )
            return scorer._finished(blocks, self._plan, identity, manifest, temporary)


def with_label(plan: ScoringPlan, results: RowResults, batch: Batch) -> RowResults:
    """Results with the given label as a column, -1 where a row has none."""
    label = to_numpy_labels(batch.labels, len(batch))
    if label is None and plan.has_classes:
        label = np.full(len(batch), -1, dtype=np.int32)
    if label is None:
        return results
    if plan.has_classes:
        label = np.where(label < 0, np.int32(-1), label)
    return RowResults({"label": label, **results.columns}, results.trajectories, results.heat_maps)


def normalized_columns(
    columns: dict[str, npt.NDArray[Any]], config: VoGConfig, *, has_classes: bool
) -> dict[str, npt.NDArray[Any]]:
    """The columns with each target's normalised score and percentile beside it.

    Normalised within the class that was differentiated (given label, else last prediction); over the whole data set
    where rows have no single class.
    """
    n_rows = len(next(iter(columns.values())))
    classes = np.zeros(n_rows, dtype=np.int64)
    if has_classes:
        given = columns["label"]
        classes = columns["prediction"] if config.label == "predicted" else np.where(
            given < 0, columns["prediction"], given
        )
    suffix = "class_normalized" if has_classes else "normalized"
    found: dict[str, npt.NDArray[Any]] = {}
    for name, values in columns.items():
        found[name] = values
        if name in config.column_names:
            normalized = class_normalize(torch.from_numpy(values), torch.from_numpy(classes.astype(np.int64)))
            found[f"{name}_{suffix}"] = normalized.numpy()
            found[f"{name}_percentile"] = percentile(normalized).numpy()
    return found


def class_names(reader: BatchReader, model_config: Any) -> list[str] | None:
    """Names of the classes: of the data set's ClassLabel, else of the model's ``id2label`` where somebody set it."""
    features = getattr(reader.dataset, "features", None) or {}
    for name in (reader.label_column, *reader.label_names):
        names = getattr(features.get(name), "names", None) if name else None
        if names:
            return [str(value) for value in names]
    id2label = getattr(model_config, "id2label", None) or {}
    names = [str(id2label[key]) for key in sorted(id2label)]
    return None if not names or names == [f"LABEL_{i}" for i in range(len(names))] else names


def free_memory(device: torch.device) -> int:
    """Free bytes of the device that scores are computed on."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _format_seconds(seconds: float) -> str:
    return f"about {time.strftime('%H:%M:%S', time.gmtime(seconds))} (h:m:s)"
