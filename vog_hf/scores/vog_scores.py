"""VoGScores: values per row, with trajectories and heat maps on disk; saved to and loaded from a folder."""

import shutil
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.data.row_identity import RowIdentity
from vog_hf.errors import ConfigError, as_path, require_type, whole_number
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.metric.pixel_maps import LOSS_MAP, map_of_row
from vog_hf.metric.row_units import RowUnits
from vog_hf.metric.vocabulary import LEARNING_PATTERN
from vog_hf.scores.consistency import named_values, require_fitting, require_one_per_row, row_numbers
from vog_hf.scores.learning import learning_patterns, no_pattern
from vog_hf.scores.manifest import Manifest
from vog_hf.scores.storage import FORMAT, ROW_HASH, ROW_ID, Array, make_folder, read_parts, save_parts
from vog_hf.scores.unit_table import PIXELS_NAME, UNITS_NAME, read_units, save_units
from vog_hf.scores.visited_steps import STEPS_NAME, VisitedSteps

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory


class VoGScores:
    """The scores of a dataset, aligned with its rows.

    Columns (each ``[rows]``): ``vog`` (unit: target per input unit, >= 0, higher = the gradient changed more between
    snapshots), ``vog_class_normalized`` (or ``vog_normalized`` where rows have no class), ``vog_percentile``,
    ``vog_early``, ``vog_late``, ``gradient_magnitude``, the companions of
    `vog_hf.metric.training_dynamics.training_dynamics` and, with the target ``"loss"``, ``csg`` (Cumulative Sample
    Gradient: mean over the snapshots of the squared norm of the loss gradient, higher = harder).
    Single-label classification also has ``learning_pattern``, a column of texts: see
    `vog_hf.evaluation.learning_pattern`. The hard tail of ``vog`` depends on the run: see `vog_hf.evaluation`.

    Args:
        columns: Values by name, all of one length; including ``label`` if rows have one. A ``learning_pattern`` takes
            precedence over the one that follows from labels and trajectories.
        manifest: Record of how the values were computed; JSON-ready.
        trajectories: ``[rows, snapshots]`` by name: ``vog`` (up to that snapshot), ``confidence``, ``prediction``,
            ``loss``, and ``csg`` (squared norm at that snapshot) with the target ``"loss"``.
        heat_maps: One map per row.
        units: Values of the units of each row, of rows that have such (the labeled tokens of a text).
        pixels: Maps of masks: see `loss_map`.
        row_hash: ``[rows]`` 64-bit hashes of the rows' content.
        ids: ``[rows]`` names of the rows, in addition to their numbers.
        tokenizer: Content of the ``tokenizer.json`` of the model, which finds the words of heat maps of texts.

    Raises:
        ConfigError: No columns, or columns of different lengths.

    Example:
        >>> scores = VoGScores({"vog": np.array([0.2, 0.1])}, {"target": "logit"})
        >>> scores.column("vog").tolist()
        [0.2, 0.1]
    """

    def __init__(
        self,
        columns: Mapping[str, Array],
        manifest: Mapping[str, Any],
        *,
        trajectories: Mapping[str, Array] | None = None,
        heat_maps: RaggedMaps | None = None,
        units: RowUnits | None = None,
        pixels: RowUnits | None = None,
        row_hash: npt.NDArray[np.uint64] | None = None,
        ids: Array | None = None,
        tokenizer: str | None = None,
    ) -> None:
        require_type("columns", columns, Mapping, "pass arrays by name, e.g. {'vog': values}")
        require_type("manifest", manifest, Mapping, "pass {} if nothing is known about how the values were computed")
        require_type("trajectories", trajectories, (Mapping, type(None)), "pass arrays [rows, snapshots] by name")
        require_type("units", units, (RowUnits, type(None)), "pass the units of other scores")
        optional = {ROW_HASH: row_hash, ROW_ID: ids, "units": None if units is None else units.sizes}
        require_one_per_row(columns, optional)
        self._columns = dict(columns)
        self._given_texts = {name: self._columns.pop(name) for name in (LEARNING_PATTERN,) if name in columns}
        self.manifest = {"format": FORMAT, **manifest}
        self._trajectories = dict(trajectories or {})
        self._heat_maps = heat_maps
        self._parts = {UNITS_NAME: units, PIXELS_NAME: pixels}
        self.row_hash = row_hash
        self.ids = ids
        self.tokenizer = tokenizer
        self.folder: Path | None = None
        self._steps = VisitedSteps(None)
        self._part_files: dict[str, Path] = {}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __repr__(self) -> str:
        return f"VoGScores({len(self):,} rows, columns {', '.join(self._columns)})"

    def with_heat_maps(self, heat_maps: RaggedMaps | None) -> "VoGScores":
        """Return the same scores with other heat maps, one per row, or with none."""
        return VoGScores(
            {**self._columns, **self._given_texts},
            self.manifest,
            trajectories=self._trajectories,
            heat_maps=heat_maps,
            units=self.units,
            pixels=None if heat_maps is None else self.pixels,
            row_hash=self.row_hash,
            ids=self.ids,
            tokenizer=self.tokenizer,
        )

    @property
    def column_names(self) -> list[str]:
        """Names for `column`, of those that hold numbers."""
        return list(self._columns)

    @property
    def text_column_names(self) -> list[str]:
        """Names for `column`, of those that hold texts: ``learning_pattern``, or none."""
        return [LEARNING_PATTERN] if self._given_texts or no_pattern(self) is None else []

    @property
    def has_classes(self) -> bool:
        """True if each row has one class (then, and only then, scores are normalized within it)."""
        without_vog = "vog" not in self._columns and self.manifest.get("normalized_over") == "class"
        return "vog_class_normalized" in self._columns or bool(self.facts.class_names) or without_vog

    @property
    def trajectory_names(self) -> list[str]:
        """Names for `trajectory`."""
        return list(self._trajectories)

    @property
    def facts(self) -> Manifest:
        """The keys of the manifest that are read, with their types."""
        return Manifest.of(self.manifest)

    @property
    def identity(self) -> RowIdentity:
        """The identity of the rows, by which another dataset is verified to hold the same rows."""
        return RowIdentity(len(self), dict(self.facts.column_digests), self.row_hash)

    def column(self, name: str) -> Array:
        """A column as a numpy array ``[rows]``: numbers, or texts with None for a row without one.

        Raises:
            ConfigError: There is no such column.
        """
        if name == LEARNING_PATTERN:
            return self._patterns
        return named_values(self._columns, name, "column")

    def trajectory(self, name: str) -> Array:
        """A value per row and snapshot, ``[rows, snapshots]``, memory-mapped if the scores are on disk.

        Raises:
            ConfigError: There is no such trajectory.
        """
        return named_values(self._trajectories, name, "trajectory")

    def heat_map(self, row: int) -> npt.NDArray[np.float32]:
        """Heat map of a row, how much the gradient changed: ``[height, width]``, ``[tokens]`` or ``[positions]``.

        Pooled to at most 32 x 32 (1,024 positions); in the unit of ``vog``.

        Raises:
            ConfigError: The maps were turned off (``VoGConfig(heat_maps=False)``), or there is no such row.
        """
        if self._heat_maps is None:
            raise ConfigError(
                "these scores have no heat maps (VoGConfig(heat_maps=False)); score again with heat_maps=True"
            )
        return self._heat_maps.row(whole_number("row", row, 0, len(self) - 1))

    @property
    def has_heat_maps(self) -> bool:
        """True if there are heat maps."""
        return self._heat_maps is not None

    @property
    def longest_heat_map(self) -> int:
        """Number of values of the longest heat map of one axis; 0 without any."""
        shapes = None if self._heat_maps is None else np.asarray(self._heat_maps.shapes)
        return int(shapes.max(initial=0)) if shapes is not None and shapes.shape[1:] == (1,) else 0

    @property
    def units(self) -> RowUnits | None:
        """The values of the units of each row, e.g. the labeled tokens of a text; None for rows without units.

        Raises:
            OutputFolderError: Their file is damaged.
        """
        return self._part(UNITS_NAME)

    @property
    def pixels(self) -> RowUnits | None:
        """The maps of masks, at most 64 x 64, as units: loss, given and predicted class of each place; None without.

        Raises:
            OutputFolderError: Their file is damaged.
        """
        return self._part(PIXELS_NAME)

    def _part(self, name: str) -> RowUnits | None:
        """Parts of the rows, of a file that is read when it is first needed."""
        if self._parts[name] is None and name in self._part_files:
            self._parts[name] = read_units(self._part_files[name], len(self))
        return self._parts[name]

    def loss_map(self, row: int) -> npt.NDArray[np.float32]:
        """Mean loss over a row's mask, ``[height, width]``: at most 64 x 64, 0 where no pixel has a label.

        Raises:
            ConfigError: The task has no masks, maps were turned off (``VoGConfig(heat_maps=False)``), the row was
                skipped, or there is no such row.
        """
        row = whole_number("row", row, 0, len(self) - 1)
        found = None if self.pixels is None else map_of_row(self.pixels, LOSS_MAP, row)
        if found is None:
            raise ConfigError(
                f"there is no loss map of row {row}: only semantic segmentation has them, with heat_maps=True, of rows "
                "that were not skipped"
            )
        return found

    @property
    def has_steps(self) -> bool:
        """True if `steps` are known: of scores with ``collect="training"``."""
        return self._steps.path is not None

    def steps(self) -> pd.DataFrame:
        """Each visit of the training: ``step`` (from 1), ``row`` and ``loss`` in that step, in the order of steps.

        Raises:
            ConfigError: The scores were not observed while training.
        """
        return self._steps.table()

    def rows_of_step(self, step: int) -> pd.DataFrame:
        """The rows that an optimizer step trained on, highest loss first: to trace a spike of the loss.

        Args:
            step: Number of the step, from 1: Trainer's ``global_step`` after it.

        Returns:
            ``row`` and ``loss``, one line per row; empty for a step that no row was noted for.

        Raises:
            ConfigError: The scores were not observed while training, or ``step`` is not a whole number from 1.
        """
        rows = self._steps.table(whole_number("step", step, 1))[["row", "loss"]]
        return rows.sort_values("loss", ascending=False, kind="stable").reset_index(drop=True)

    def to_pandas(self) -> pd.DataFrame:
        """All columns as a table with one line per row: the row's number first, then its id if it has one."""
        ids = {} if self.ids is None else {ROW_ID: self.ids}
        texts = {name: self.column(name) for name in self.text_column_names}
        return pd.DataFrame({"row": np.arange(len(self)), **ids, **self._columns, **texts})

    def select(self, rows: npt.ArrayLike) -> "VoGScores":
        """The scores of some of the rows, in their order, as computed among all rows.

        The manifest stays, except for the digests of the dataset and the list of skipped rows, which are of all rows.

        Args:
            rows: Row numbers.

        Raises:
            ConfigError: Invalid row numbers.

        Example:
            >>> scores = VoGScores({"vog": np.array([0.2, 0.1, 0.3])}, {})
            >>> scores.select([2, 0]).column("vog").tolist()
            [0.3, 0.2]
        """
        chosen = row_numbers(rows, len(self))
        of_all = ("data", "rows_digest", "n_rows", "skipped")
        return VoGScores(
            {name: self.column(name)[chosen] for name in (*self._columns, *self.text_column_names)},
            {**{name: value for name, value in self.manifest.items() if name not in of_all}, "n_rows": len(chosen)},
            trajectories={name: values[chosen] for name, values in self._trajectories.items()},
            heat_maps=None if self._heat_maps is None else self._heat_maps.select(chosen),
            units=None if self.units is None else self.units.select(chosen),
            pixels=None if self.pixels is None else self.pixels.select(chosen),
            row_hash=None if self.row_hash is None else self.row_hash[chosen],
            ids=None if self.ids is None else self.ids[chosen],
            tokenizer=self.tokenizer,
        )

    @cached_property
    def _patterns(self) -> Array:
        """The learning patterns, given or derived."""
        given = self._given_texts.get(LEARNING_PATTERN)
        return learning_patterns(self) if given is None else given

    def save(self, folder: str | Path) -> None:
        """Write everything to a folder, which must be new or empty.

        Raises:
            OutputFolderError: The folder is not empty, or a file that these scores were loaded from is damaged.
        """
        folder = make_folder(folder, loaded_from=self.folder)
        if self._steps.path is not None:
            shutil.copyfile(self._steps.path, folder / STEPS_NAME)
        for name in self._parts:
            if (part := self._part(name)) is not None:
                save_units(folder / name, part)
        save_parts(
            folder,
            {**self._columns, **self._given_texts},
            self.manifest,
            trajectories=self._trajectories,
            heat_maps=self._heat_maps,
            row_hash=self.row_hash,
            ids=self.ids,
            tokenizer=self.tokenizer,
        )

    @classmethod
    def load(cls, folder: str | Path) -> "VoGScores":
        """Load the scores that `save`, a callback or a scorer wrote.

        Every file must have the size that was written, and files of up to 64 MiB the checksum. Larger
        arrays are memory-mapped without being read; `save`, and a scorer that continues the folder, verify them fully.

        Raises:
            OutputFolderError: No finished scores, scores of another version, or a damaged file.
        """
        folder = as_path("folder", folder)
        parts = read_parts(folder)
        scores = cls(**parts)
        require_fitting(scores, parts["heat_maps"], folder)
        scores.folder = folder
        scores._part_files = {name: folder / name for name in scores._parts if (folder / name).is_file()}
        scores._steps = VisitedSteps.of_folder(folder)
        return scores

    def own(self, folder: "TemporaryDirectory[str]") -> "VoGScores":
        """Keep a temporary folder for as long as these scores map its files into memory."""
        weakref.finalize(self, folder.cleanup)
        return self
