"""Scores in Weights & Biases: tables with pictures, histogram, classes, scalars and the scores as an artifact.

Nothing is computed here: values come from `vog_hf.evaluation`, pictures from `vog_hf.pictures`.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from vog_hf.batches import check_map_style
from vog_hf.columns import verify_rows
from vog_hf.errors import ConfigError
from vog_hf.evaluation import class_table, error_by_decile, rank_correlations
from vog_hf.files import write_json
from vog_hf.pictures import (
    class_names,
    has_classes,
    most_extreme,
    ranking_column,
    row_overlay,
    row_values,
    show_rows,
    thumbnail,
)
from vog_hf.rows import has_table, identify_rows
from vog_hf.scores import MANIFEST_NAME, TABLE_NAME, VoGScores, save_table

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

STEP = "train/global_step"  # the axis that transformers' WandbCallback defines for every metric
MAX_TABLE_ROWS = 10_000  # wandb.Table.MAX_ROWS: it cuts longer tables with no more than a line in its log
MAX_TEXT = 2_000  # characters of a row's text in a cell
MAX_METADATA = 4_000  # characters of JSON per entry
DECILES = 10
COMPANIONS = (
    "gradient_magnitude",
    "loss",
    "confidence",
    "variability",
    "correctness",
    "forgetting",
    "margin",
    "el2n",
)
FIRST_COLUMNS = ("label", "prediction", "confidence", "vog", "vog_class_normalized", "vog_normalized", "vog_percentile")


def log_scores(
    scores: VoGScores | Mapping[str, VoGScores],
    dataset: Any,
    *,
    to: str = "wandb",
    step: int | None = None,
    top_k: int = 50,
) -> bool:
    """Log scores to the active W&B run; call it on the main process.

    Logged are the tables ``vog/highest`` and ``vog/lowest`` (ranked by the class-normalised score: picture with the VoG
    heat map over it, or text, row, label, prediction, confidence and all scores), ``vog/classes``,
    ``vog/error_by_decile``, the histogram ``vog/histogram``, scalars ``vog/...``, and ``scores.parquet`` with
    ``manifest.json`` as the artifact ``vog-scores-<run id>``. Which tail is hard is for these tables to show.

    Args:
        scores: Of ``dataset``; or of each split of a `DatasetDict`, logged as ``vog/<split>/...``.
        dataset: What was scored, for the pictures or texts; None = tables without them.
        to: ``"wandb"``.
        step: ``train/global_step`` of the Trainer, on whose axis everything is put; None = no step is logged.
        top_k: Rows in each of the two tables, 1..10,000; each is a picture to upload.

    Returns:
        Whether there was a run. Without one nothing is logged but a warning that says how to get one.

    Raises:
        ConfigError: Another tracker, or ``top_k`` out of range.
        RowMismatchError: The data set's rows are not the ones that were scored.

    Example:
        >>> log_scores(VoGScores({"vog": np.array([0.2, 0.1])}, {}), None)  # no run is active: a warning
        False
    """
    if to != "wandb":
        msg = f"log_scores can log to 'wandb', got to={to!r}; elsewhere, use scores.to_pandas()"
        raise ConfigError(msg)
    if not 1 <= top_k <= MAX_TABLE_ROWS:
        msg = f"top_k must lie in 1..{MAX_TABLE_ROWS:,}, the rows that a W&B table can hold, got {top_k}"
        raise ConfigError(msg)
    import wandb

    run = wandb.run
    if run is None:
        logger.warning(
            "the VoG scores are not logged, because no W&B run is active: set report_to='wandb' in TrainingArguments, "
            "or call wandb.init() before log_scores(scores, dataset)"
        )
        return False
    splits = scores if isinstance(scores, Mapping) else {"": scores}
    logged: dict[str, Any] = {}
    for split, part in splits.items():
        rows = dataset[split] if split and dataset is not None else dataset
        if rows is not None:
            _verify(rows, part)
        values = _row_tables(part, rows, top_k) | _summaries(part)
        logged |= {f"vog/{split}/{name}" if split else f"vog/{name}": value for name, value in values.items()}
    # never run.log(step=...): that is W&B's own counter, which the Trainer's later records would fall behind
    run.log(logged if step is None else {**logged, STEP: step})
    for split, part in splits.items():
        _log_artifact(run, part, f"vog-scores-{split}-{run.id}" if split else f"vog-scores-{run.id}")
    return True


def _verify(dataset: Any, scores: VoGScores) -> None:
    check_map_style(dataset)
    if has_table(dataset):
        verify_rows(dataset, scores)
    else:  # rows without a table: their number is all there is to compare
        scores.identity.verify(identify_rows(dataset))


def _row_tables(scores: VoGScores, dataset: Any, top_k: int) -> dict[str, Any]:
    highest, lowest = most_extreme(scores, ranking_column(scores), top_k)
    return {
        "highest": _table(_rows_table(scores, dataset, highest)),
        "lowest": _table(_rows_table(scores, dataset, lowest)),
    }


def _rows_table(scores: VoGScores, dataset: Any, rows: npt.NDArray[np.int64]) -> dict[str, list[Any]]:
    """Columns of a table of these rows, each of one type."""
    first = [name for name in FIRST_COLUMNS if name in scores.column_names]
    others = [name for name in scores.column_names if name not in first]
    return {
        "row": rows.tolist(),
        **_shown(scores, dataset, rows),
        **{name: list(row_values(scores, name, rows)) for name in (*first, *others)},
    }


def _shown(scores: VoGScores, dataset: Any, rows: npt.NDArray[np.int64]) -> dict[str, list[Any]]:
    """The column ``image`` or ``text``; none where the data set has neither."""
    import wandb

    shown = [] if dataset is None else show_rows(dataset, rows)
    if any(isinstance(value, Image.Image) for value in shown):
        small = [thumbnail(value) if isinstance(value, Image.Image) else None for value in shown]
        overlaid = [p if p is None else row_overlay(scores, int(row), p) for row, p in zip(rows, small, strict=True)]
        return {"image": [picture if picture is None else wandb.Image(picture) for picture in overlaid]}
    if any(isinstance(value, str) for value in shown):
        return {"text": [value[:MAX_TEXT] if isinstance(value, str) else None for value in shown]}
    return {}


def _summaries(scores: VoGScores) -> dict[str, Any]:
    """Histogram, scalars, and where rows have labels the tables of classes and deciles."""
    import wandb

    table = scores.to_pandas()
    table = table[np.isfinite(table["vog"])]
    table = table.loc[:, np.isfinite(table).all()]  # what is compared with VoG has a value for each of these rows
    summaries = {
        "histogram": wandb.Histogram(table["vog"].to_numpy()),
        "n_rows": len(scores),
        "n_snapshots": len(scores.manifest.get("snapshots", [])),
        "mean": float(table["vog"].mean()),
        "std": float(table["vog"].std(ddof=0)),
        **_rank_correlations(table),
    }
    if has_classes(scores) and "label" in table:
        summaries |= _class_summaries(scores, table)
    return summaries


def _rank_correlations(table: pd.DataFrame) -> dict[str, float]:
    """Spearman correlation of VoG with each companion; none with one whose values are all equal."""
    companions = [name for name in COMPANIONS if name in table]
    with_vog = rank_correlations(table[["vog", *companions]])["vog"]
    return {f"spearman_{name}": float(with_vog[name]) for name in companions if np.isfinite(with_vog[name])}


def _class_summaries(scores: VoGScores, table: pd.DataFrame) -> dict[str, Any]:
    """The table of classes, and the error by decile of the column that the tables are ranked by."""
    given = {name: table[name] for name in ("prediction", "confidence") if name in table}
    classes = class_table(table["label"], table["vog"], **given)
    cells = _cells(classes) | {"class": class_names(scores, classes["class"])}
    summaries: dict[str, Any] = {"classes": _table(cells)}
    labelled = table[table["label"] >= 0]
    column = ranking_column(scores)
    if "prediction" in table and column in table and len(labelled) >= DECILES:
        deciles = error_by_decile(labelled[column], labelled["prediction"] != labelled["label"], bins=DECILES)
        summaries["error_by_decile"] = _table(_cells(deciles))
        for decile in (1, DECILES):
            summaries[f"error_decile_{decile}"] = float(deciles["error"][decile - 1])
    return summaries


def _cells(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns as Python values, None where there is none."""
    return {str(name): [None if pd.isna(v) else v for v in values.tolist()] for name, values in frame.items()}


def _table(columns: dict[str, list[Any]]) -> "wandb.Table":
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in zip(*columns.values(), strict=True)])


def _log_artifact(run: "wandb.Run", scores: VoGScores, name: str) -> None:
    """The scores as files; as metadata every entry of the manifest that is short enough to be read there."""
    import wandb

    metadata = {name: value for name, value in scores.manifest.items() if len(json.dumps(value)) <= MAX_METADATA}
    artifact = wandb.Artifact(name, type="dataset", metadata=metadata)
    with TemporaryDirectory(prefix="vog-artifact-") as folder:
        save_table(Path(folder), {name: scores.column(name) for name in scores.column_names}, scores.row_hash)
        write_json(Path(folder) / MANIFEST_NAME, scores.manifest)
        for file in (TABLE_NAME, MANIFEST_NAME):
            artifact.add_file(str(Path(folder) / file), file)  # copied into W&B's staging folder at once
        run.log_artifact(artifact)
