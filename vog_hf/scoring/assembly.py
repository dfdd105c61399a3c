"""From finished blocks to a folder of scores: labels, normalized columns, the manifest, the coverage proof."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from vog_hf.config import VoGConfig
from vog_hf.data.batch_reader import Batch
from vog_hf.data.row_identity import RowIdentity
from vog_hf.errors import CoverageError
from vog_hf.metric.batch_accumulator import RowResults
from vog_hf.metric.definition import class_normalize, percentile
from vog_hf.metric.vocabulary import CSG, PREDICTION_PROBABILITY
from vog_hf.metric.windows import Windows
from vog_hf.runtime.files import explained_disk_errors
from vog_hf.runtime.processes import Processes, from_main, gathered_on_main, run_together
from vog_hf.scores.storage import HEAT_MAP_FILES, TRAJECTORY, save_array, save_table, save_tokenizer, write_manifest
from vog_hf.scores.unit_table import PIXELS_NAME, UnitWriter
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.block_folder import BlockFolder
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.skipped_rows import without_skipped
from vog_hf.scoring.unit_blocks import PIXELS, UNITS, stored_units, units_of_block

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

logger = logging.getLogger(__name__)


def gathered_blocks(folder: BlockFolder, processes: Processes) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The blocks of all processes, round by round, rows ascending, on the main process; empty ones on the others.

    Every process must iterate to the end. A block that was damaged after it was finished is left out: the coverage
    proof will say so.
    """
    for block in range(folder.plan.n_blocks):
        parts = gathered_on_main(processes, folder.read(processes.process_index, block))
        yield _in_row_order([part for part in parts if part is not None])


class Assembler:
    """Places gathered blocks by row: columns in memory, trajectories and heat maps in memory-mapped files.

    Columns and trajectories that a block lacks, because an earlier version wrote it, are left out.
    """

    def __init__(self, folder: Path, n_rows: int, n_snapshots: int) -> None:
        self.columns: dict[str, npt.NDArray[Any]] = {}
        self._folder = folder
        self._n_rows = n_rows
        self._n_snapshots = n_snapshots
        self._times_seen = np.zeros(n_rows, dtype=np.int64)
        self._common: set[str] | None = None  # columns and trajectories that every block has
        self._trajectories: dict[str, npt.NDArray[Any]] = {}
        self._map_values = folder / ".heat-map-values.npy"
        self._shapes: list[npt.NDArray[np.int32]] = []
        self._scales: list[npt.NDArray[np.float32]] = []
        self._units = UnitWriter(folder)
        self._pixels = UnitWriter(folder, PIXELS_NAME)

    def add(self, block: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Place one block."""
        with explained_disk_errors(self._folder):
            self._add(block)

    def _add(self, block: Mapping[str, npt.NDArray[Any]]) -> None:
        if not block:
            return
        rows = block["rows"]
        np.add.at(self._times_seen, rows, 1)
        named = {key for key in block if key.startswith(("columns/", "trajectories/"))}
        self._common = named if self._common is None else self._common & named
        for key, values in block.items():
            kind, _, name = key.partition("/")
            if kind == "columns":
                column = self.columns.setdefault(name, np.zeros(self._n_rows, dtype=values.dtype))
                column[rows] = values
            elif kind == "trajectories":
                self._trajectory(name, values)[rows] = values
        self._units.add(units_of_block(block))
        self._pixels.add(units_of_block(block, PIXELS))
        if "heat_maps/values" in block:
            if not self._shapes:
                self._map_values.unlink(missing_ok=True)  # of a killed run, or a link that leads elsewhere
            with self._map_values.open("ab" if self._shapes else "wb") as file:
                if not self._shapes:
                    _write_header(file, 0)
                file.write(block["heat_maps/values"].tobytes())
            self._shapes.append(block["heat_maps/shapes"])
            self._scales.append(block["heat_maps/scale"])

    @property
    def unit_columns(self) -> list[str]:
        """Columns of units, once finished."""
        return self._units.names

    def finish(self) -> None:
        """Prove that every row came exactly once, then give the files their names.

        Raises:
            CoverageError: A row is missing or came more than once; nothing is left behind.
        """
        if not (self._times_seen == 1).all():
            self._units.discard()
            self._pixels.discard()
            for path in (self._map_values, *self._folder.glob(f".{TRAJECTORY}*.npy")):
                path.unlink(missing_ok=True)
            row = int((self._times_seen != 1).argmax())
            wrong = int((self._times_seen != 1).sum())
            raise CoverageError(
                f"row {row} was scored {self._times_seen[row]} times, expected once ({wrong} of {self._n_rows} rows "
                "are wrong); nothing was written. Delete the folder's blocks and score again"
            )
        self._leave_out()
        for name, values in self._trajectories.items():
            values.flush()  # type: ignore[attr-defined]
            (self._folder / f".{TRAJECTORY}{name}.npy").replace(self._folder / f"{TRAJECTORY}{name}.npy")
        if self._shapes:
            with self._map_values.open("r+b") as file:
                _write_header(file, sum(int(shapes.prod(axis=1, dtype=np.int64).sum()) for shapes in self._shapes))
                file.flush()
                os.fsync(file.fileno())
            self._map_values.replace(self._folder / HEAT_MAP_FILES["values"])
            save_array(self._folder / HEAT_MAP_FILES["shapes"], np.concatenate(self._shapes))
            save_array(self._folder / HEAT_MAP_FILES["scale"], np.concatenate(self._scales))

    def _leave_out(self) -> None:
        """Drop the columns, trajectories and units that not every block has."""
        common = self._common or set()
        columns = [name for name in self.columns if f"columns/{name}" not in common]
        trajectories = [name for name in self._trajectories if f"trajectories/{name}" not in common]
        for name in columns:
            del self.columns[name]
        for name in trajectories:
            del self._trajectories[name]
            (self._folder / f".{TRAJECTORY}{name}.npy").unlink()
        units = [] if self._units.finish() else ["the scores of units"]
        units += [] if self._pixels.finish() else ["the maps of masks"]
        if columns or trajectories or units:
            logger.warning(
                "VoG: %s left out, because an earlier version of vog_hf finished some of the blocks without; for all "
                "rows to have them, score into another folder",
                ", ".join([*columns, *(f"the trajectory {name}" for name in trajectories), *units]),
            )

    def _trajectory(self, name: str, values: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
        if values.shape[1] != self._n_snapshots:
            raise CoverageError(
                f"a block holds {values.shape[1]} of {self._n_snapshots} snapshots; delete the folder and score again"
            )
        if name not in self._trajectories:
            path = self._folder / f".{TRAJECTORY}{name}.npy"
            path.unlink(missing_ok=True)  # of a killed run, or a link that leads elsewhere
            shape = (self._n_rows, self._n_snapshots)
            self._trajectories[name] = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):  # a full disk under a memory map would kill the process (SIGBUS)
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return self._trajectories[name]


def _write_header(file: BinaryIO, n_values: int) -> None:
    """The header of a .npy file of float16 values; numpy leaves room in it, so that its length never changes."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (n_values,)})


def _in_row_order(parts: Sequence[Mapping[str, npt.NDArray[np.generic]]]) -> dict[str, npt.NDArray[Any]]:
    if not parts:
        return {}
    if len(parts) == 1 and (np.diff(parts[0]["rows"]) > 0).all():  # live moments that were dealt out again are not
        return dict(parts[0])
    common = [key for key in parts[0] if all(key in part for part in parts)]  # an earlier version wrote fewer
    joined = {key: np.concatenate([part[key] for part in parts]) for key in common}
    order = np.argsort(joined["rows"], kind="stable")
    flat, units = joined.pop("heat_maps/values", None), {kind: units_of_block(joined, kind) for kind in (UNITS, PIXELS)}
    joined = {key: values for key, values in joined.items() if not key.startswith((UNITS, PIXELS))}
    ordered = {key: values[order] for key, values in joined.items()}
    if flat is not None:
        sizes = joined["heat_maps/shapes"].prod(axis=1, dtype=np.int64)
        start = np.concatenate([[0], np.cumsum(sizes)])
        ordered["heat_maps/values"] = np.concatenate([flat[start[i] : start[i + 1]] for i in order])
    for kind, of_rows in units.items():
        ordered |= {} if of_rows is None else stored_units([of_rows.select(order)], kind)
    return ordered


COLUMN_ORDER = ("label", "prediction", PREDICTION_PROBABILITY, "vog")  # then the other targets, then the companions


def finish_folder(
    processes: Processes,
    folder: BlockFolder,
    plan: ScoringPlan,
    identity: RowIdentity,
    manifest: dict[str, Any],
    *,
    temporary: "TemporaryDirectory[str] | None",
    tokenizer: str | None = None,
) -> VoGScores:
    """Gather the blocks of all processes, prove coverage, write the folder; every process then reads it.

    Args:
        processes: Processes that share the rows.
        folder: Folder of the blocks.
        plan: Plan of the scoring.
        identity: Identity of all rows.
        manifest: Record of how the scores were computed.
        temporary: The folder, if it is a temporary one.
        tokenizer: Tokenizer to keep with heat maps of texts, as JSON.

    Raises:
        CoverageError: A row was not scored exactly once; no scores are written.
    """
    processes.wait_for_everyone()
    names = [snapshot["name"] for snapshot in manifest["snapshots"]]
    assembler = Assembler(folder.folder, identity.n_rows, len(names))
    for block in gathered_blocks(folder, processes):
        from_main(processes, "assembling the scores", assembler.add, block)

    def write() -> None:
        assembler.finish()
        columns = normalized_columns(assembler.columns, plan.config, has_classes=plan.has_classes)
        if "vog_early" in columns:
            width = Windows(len(names)).width
            manifest["windows"] = {"early": names[:width], "late": names[-width:], "all": names}
        units = manifest.pop("units", {})
        if assembler.unit_columns:
            manifest["units"] = {**units, "columns": assembler.unit_columns}
        if CSG in columns:
            manifest["csg"] = {"gradient_of": "loss", "channels": "all", "over_snapshots": "mean"}
        _report_zeros(columns, plan.config)
        save_table(folder.folder, columns, identity.row_hash, folder.ids())
        if tokenizer is not None and plan.config.heat_maps and plan.leaf.embedding is not None:
            save_tokenizer(folder.folder, tokenizer)
        write_manifest(folder.folder, manifest)
        folder.remove_blocks()

    from_main(processes, "writing the scores", write)
    scores = run_together(processes, "loading the scores", VoGScores.load, folder.folder)
    return scores.own(temporary) if temporary else scores


def _report_zeros(columns: dict[str, npt.NDArray[np.generic]], config: VoGConfig) -> None:
    """Say which score is 0 in every row: no ranking at all."""
    for name in config.column_names:
        if not np.nan_to_num(columns[name]).any():
            logger.warning(
                "VoG: %s is 0 for every row: the gradient was the same at every snapshot. Either the snapshots hold "
                "the same weights, or the model does not use them (it keeps what it derived from earlier ones), or its "
                "gradient does not depend on what was trained; the ranking means nothing",
                name,
            )


def final_results(plan: ScoringPlan, results: RowResults, batch: Batch, skipped: Collection[int]) -> RowResults:
    """Results with the given label as a column, -1 where a row has none; blank for the rows that are skipped."""
    return without_skipped(_with_label(plan, results, batch), batch.rows, skipped)


def _with_label(plan: ScoringPlan, results: RowResults, batch: Batch) -> RowResults:
    """Results with the given label as a column, -1 where a row has none."""
    label = to_numpy_labels(batch.labels, len(batch))
    if label is None and plan.has_classes:
        label = np.full(len(batch), -1, dtype=np.int32)
    if label is None:
        return results
    if plan.task is not None and plan.task.can_predict_label:
        label = np.maximum(label, np.int32(-1))
    return replace(results, columns={"label": label, **results.columns})


def to_numpy_labels(labels: torch.Tensor | None, n_rows: int) -> npt.NDArray[np.generic] | None:
    """Given labels as a column, None where rows have no single one."""
    if labels is None or labels.shape != (n_rows,):
        return None
    return labels.to(torch.float32 if labels.is_floating_point() else torch.int32).cpu().numpy()


def normalized_columns(
    columns: dict[str, npt.NDArray[np.generic]], config: VoGConfig, *, has_classes: bool
) -> dict[str, npt.NDArray[Any]]:
    """The columns in reading order, with each target's normalized score and percentile behind it.

    Normalized within the given label's class, that of the last prediction where a row has no label; over the whole
    dataset where rows have no single class.
    """
    columns = _with_images(columns)
    classes = np.zeros(len(next(iter(columns.values()))), dtype=np.int64)
    if has_classes:
        given, predicted = columns["label"].astype(np.int64), columns["prediction"].astype(np.int64)
        classes = np.where(given < 0, predicted, given)
    suffix = "class_normalized" if has_classes else "normalized"
    found: dict[str, npt.NDArray[Any]] = {}
    for name in sorted(columns, key=lambda name: (_place(name), name)):
        found[name] = columns[name]
        if name in config.column_names:
            values = torch.from_numpy(columns[name])
            scored = torch.isfinite(values)
            normalized, percentiles = torch.full_like(values, torch.nan), torch.full_like(values, torch.nan)
            normalized[scored] = class_normalize(values[scored], torch.from_numpy(classes)[scored])
            percentiles[scored] = percentile(normalized[scored])
            found[f"{name}_{suffix}"] = normalized.numpy()
            found[f"{name}_percentile"] = percentiles.numpy()
    return found


def _with_images(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The columns without those of images beside texts, if no row has an image."""
    of_images = columns.get("vog_image")
    left_out = ("vog_image", "vog_text", "image_share") if of_images is not None and np.isnan(of_images).all() else ()
    return {name: values for name, values in columns.items() if name not in left_out}


def _place(name: str) -> int:
    if name in COLUMN_ORDER:
        return COLUMN_ORDER.index(name)
    return len(COLUMN_ORDER) + (0 if name.startswith("vog") else 1)
