"""Scores of the rows that a training visited: columns, trajectories and manifest, from the log of visits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vog_hf.data.row_identity import RowIdentity
from vog_hf.errors import ConfigError
from vog_hf.metric.batch_accumulator import OBSERVED_TRAJECTORIES
from vog_hf.metric.visit_dynamics import VisitDynamics
from vog_hf.metric.vocabulary import CSG, OBSERVATIONS, VOG_LOSS
from vog_hf.runtime.files import explained_disk_errors
from vog_hf.scores.storage import TRAJECTORY, save_table, write_manifest
from vog_hf.scores.visited_steps import STEPS_NAME
from vog_hf.scoring.visits import epochs_of, first_visits, visits_of

FIRST_COLUMNS = ("label", "prediction")
TRAJECTORIES = (*OBSERVED_TRAJECTORIES, CSG)
ROW_BYTES = 100  # of a row's columns, on disk and twice that in memory
NO_CSG = (
    "the training's loss is not a multiple of the mean loss of each row (such as mixed labels or a distillation), or "
    "no gradient arrived at the input"
)
NO_VOG = "no row has a gradient of its loss at two visits"
HOW_CSG = {"gradient_of": "loss", "channels": "all", "over_snapshots": "mean"}
HOW_VOG = {"gradient_of": "loss", "over": "the first visit of the row in each epoch"}

Column = npt.NDArray[Any]


def write_training_scores(
    folder: Path,
    visits: Path,
    identity: RowIdentity,
    manifest: Mapping[str, object],
    *,
    has_classes: bool,
    vog_loss: Column | str,
) -> None:
    """Write a folder of scores; for one process only.

    Args:
        folder: Folder for the scores.
        visits: Folder of the visits of all processes.
        identity: Identity of all rows.
        manifest: How the values were observed, without the epochs.
        has_classes: True if each row has one class.
        vog_loss: VoG of the loss, ``[rows]``, or why there is none.

    Raises:
        ConfigError: No row was visited.
        OutputFolderError: The disk is full, or visits are damaged.
    """
    n_rows, epochs = identity.n_rows, epochs_of(visits)
    if not epochs:
        raise ConfigError("collect='training' has no scores: no row was trained on")
    dynamics, last = VisitDynamics(n_rows), _LastValues(n_rows)
    snapshots = []
    with explained_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        trajectories = _Trajectories(folder, n_rows, len(epochs))
        steps = _Steps(folder)
        for place, epoch in enumerate(epochs):
            every = visits_of(visits, epoch)
            steps.add(every)
            snapshots.append({"name": f"epoch-{epoch + 1:04d}", "step": int(every["step"].max()), "digest": None})
            visited = first_visits(every)
            rows = visited["row"].astype(np.int64)
            dynamics.add(rows, visited)
            last.set(rows, visited)
            trajectories.set(place, rows, visited)
        columns = last.columns(has_classes=has_classes) | dynamics.columns()
        columns |= {} if isinstance(vog_loss, str) else {VOG_LOSS: vog_loss}
        columns = {name: columns[name] for name in _order(columns) if _is_observed(name, columns[name])}
        steps.finish()
        trajectories.finish(without=() if CSG in columns else (CSG,))
        save_table(folder, columns, identity.row_hash)
        count = columns[OBSERVATIONS]
        write_manifest(
            folder,
            {
                **manifest,
                "snapshots": snapshots,
                "observations": {"least": int(count.min()), "most": int(count.max())},
                "csg": HOW_CSG if CSG in columns else NO_CSG,
                "vog_loss": HOW_VOG if VOG_LOSS in columns else vog_loss if isinstance(vog_loss, str) else NO_VOG,
            },
        )


class _Steps:
    """The rows of each optimizer step with their losses, as a file of the scores."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f".{STEPS_NAME}"
        self._writer: pq.ParquetWriter | None = None

    def add(self, visits: Mapping[str, Column]) -> None:
        """Add an epoch's visits, whose steps come after those of the epochs before."""
        table = pa.table({"step": visits["step"], "row": visits["row"].astype(np.int64), "loss": visits["loss"]})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, write_page_checksum=True)
        self._writer.write_table(table, row_group_size=2**16)

    def finish(self) -> None:
        """Give the file its name."""
        if self._writer is not None:
            self._writer.close()
            self._path.replace(self._path.with_name(STEPS_NAME))


def _order(columns: Mapping[str, Column]) -> list[str]:
    """Names of the columns in the order of a file."""
    return [*(name for name in FIRST_COLUMNS if name in columns), *sorted(set(columns) - set(FIRST_COLUMNS))]


def _is_observed(name: str, values: Column) -> bool:
    """False for a column of gradients without any value."""
    return name not in (CSG, VOG_LOSS) or bool(np.isfinite(values).any())


class _LastValues:
    """Label and last prediction of each row."""

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self._values: dict[str, Column] = {}

    def set(self, rows: npt.NDArray[np.int64], visited: Mapping[str, Column]) -> None:
        for name in FIRST_COLUMNS:
            if name in visited:
                self._values.setdefault(name, _blank((self._n_rows,), visited[name].dtype))[rows] = visited[name]

    def columns(self, *, has_classes: bool) -> dict[str, Column]:
        """The columns; any negative label means no label."""
        values = dict(self._values)
        if has_classes and "label" in values:
            values["label"] = np.maximum(values["label"], np.int32(-1))
        return values


class _Trajectories:
    """Arrays ``[rows, epochs]`` in memory-mapped files, NaN or -1 for an epoch that left a row out."""

    def __init__(self, folder: Path, n_rows: int, n_epochs: int) -> None:
        self._folder = folder
        self._shape = (n_rows, n_epochs)
        self._values: dict[str, Column] = {}

    def set(self, place: int, rows: npt.NDArray[np.int64], visited: Mapping[str, Column]) -> None:
        for name in TRAJECTORIES:
            if name in visited:
                self._of(name, visited[name].dtype)[rows, place] = visited[name]

    def finish(self, without: tuple[str, ...]) -> None:
        """Give the files their names; drop those that are not wanted."""
        for name, values in self._values.items():
            values.flush()  # type: ignore[attr-defined]
            path = self._path(name)
            if name in without:
                path.unlink()
            else:
                path.replace(path.with_name(path.name.removeprefix(".")))

    def _of(self, name: str, dtype: np.dtype[Any]) -> Column:
        if name not in self._values:
            values = np.lib.format.open_memmap(self._path(name), mode="w+", dtype=dtype, shape=self._shape)
            values[:] = _fill(dtype)
            self._values[name] = values
        return self._values[name]

    def _path(self, name: str) -> Path:
        return self._folder / f".{TRAJECTORY}{name}.npy"


def _blank(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Column:
    return np.full(shape, _fill(dtype), dtype=dtype)


def _fill(dtype: np.dtype[Any]) -> float:
    """Value where nothing was observed."""
    return np.nan if np.issubdtype(dtype, np.floating) else -1
