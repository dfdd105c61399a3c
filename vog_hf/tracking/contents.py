"""What is said of scores in any tracker: tables, charts, pictures and scalars, computed once from the same rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vog_hf.data_map import data_map
from vog_hf.evaluation import (
    auroc,
    class_table,
    early_late_table,
    error_by_decile,
    hard_tail,
    rank_agreement,
    rank_correlations,
    ranking_stability,
    stability_in_words,
)
from vog_hf.pictures import class_names, contact_sheet, has_classes, ranking_column
from vog_hf.scores import COMPANIONS, VoGScores
from vog_hf.tracking.records import BarChart, Histogram, LineChart, Picture, Record, Table
from vog_hf.tracking.row_tables import TAIL_OF_END, extreme_caption, row_tables

DECILES = 10
MAX_TABLE_ROWS = 10_000  # wandb.Table.MAX_ROWS: it cuts longer tables with no more than a line in its log
MAX_BARS = 100
SHEET_ROWS = 25  # at each end


@dataclass(frozen=True)
class Contents:
    """What is logged of one data set.

    Attributes:
        values: By name, without ``vog/`` before it.
        sentences: What a person reads first.
        summary: Words that runs are compared by, beside the scalars among the values.
    """

    values: dict[str, Record]
    sentences: list[str]
    summary: dict[str, str]


def contents(scores: VoGScores, dataset: Any, top_k: int) -> Contents:
    """What to log of some scores.

    Args:
        scores: Of the data set, finished or of the snapshots up to now.
        dataset: What shows the rows; None = tables without pictures and texts.
        top_k: Rows in the tables of highest and lowest rows.
    """
    tail = hard_tail(scores)
    tables = row_tables(scores, dataset, top_k, tail)
    scalars, values = _of_all_rows(scores)
    if has_classes(scores) and "label" in scores.column_names and (scores.column("label") >= 0).any():
        more_scalars, more_values = _of_classes(scores)
        scalars, values = scalars | more_scalars, values | more_values
    if "image" in tables["highest"].columns:
        count = min(SHEET_ROWS, top_k, len(scores))
        sheet = contact_sheet(scores, dataset, count=count)
        caption = " ".join(extreme_caption(scores, end, count, tail) for end in TAIL_OF_END)
        values["contact_sheet"] = Picture(sheet, caption)
    stability, words = _stability(scores)
    values = {**tables, **values, **stability}
    captions = [f"{name}: {v.caption}" for name, v in values.items() if isinstance(v, Table) and v.caption]
    return Contents(
        {**values, **scalars},
        [str(tail), *words, *captions],
        {"hard_tail": tail.tail, "hard_tail_evidence": tail.evidence},
    )


def _finite(scores: VoGScores) -> pd.DataFrame:
    """The rows with a VoG, and the columns that have a value for each of them."""
    table = scores.to_pandas().select_dtypes("number")
    table = table[np.isfinite(table["vog"])]
    return table.loc[:, np.isfinite(table).all()]


def _of_all_rows(scores: VoGScores) -> tuple[dict[str, float], dict[str, Record]]:
    """Scalars, histogram and data map."""
    table = _finite(scores)
    scalars: dict[str, float] = {
        "n_rows": len(scores),
        "n_snapshots": len(scores.manifest.get("snapshots", [])),
    }
    if table.empty:
        return scalars, {}
    vog = table["vog"].to_numpy(dtype=np.float64)
    scalars |= {"mean": float(vog.mean()), "std": float(vog.std()), **_rank_correlations(table)}
    values: dict[str, Record] = {"histogram": Histogram(vog)}
    if {"variability", "confidence"} <= set(table):
        percentile = 100 * (rankdata(table["vog"]) - 0.5) / len(table)
        map_of = data_map(table["variability"].to_numpy(), table["confidence"].to_numpy(), percentile)
        values["data_map"] = Picture(*map_of)
    return scalars, values


def _rank_correlations(table: pd.DataFrame) -> dict[str, float]:
    """Spearman correlation of VoG with each companion, and of early with late; none with equal values."""
    companions = [name for name in COMPANIONS if name in table]
    with_vog = rank_correlations(table[["vog", *companions]])["vog"]
    found = {f"spearman_{name}": float(with_vog[name]) for name in companions}
    if {"vog_early", "vog_late"} <= set(table):
        found["spearman_early_late"] = float(rank_agreement(table["vog_early"], table["vog_late"])["spearman"])
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _of_classes(scores: VoGScores) -> tuple[dict[str, float], dict[str, Record]]:
    """Classes, and the errors by decile of the column that the tables are ranked by, early and late."""
    table = _finite(scores)
    given = {name: table[name] for name in ("prediction", "confidence") if name in table}
    labelled = table[table["label"] >= 0]
    if labelled.empty:
        return {}, {}
    classes = class_table(table["label"], table["vog"], **given)
    names = class_names(scores, classes["class"])
    shown, cut = classes[:MAX_TABLE_ROWS], ""
    if len(shown) < len(classes):
        cut = f"The first {len(shown):,} of {len(classes):,} classes, as many as a table of W&B can hold."
    values: dict[str, Record] = {
        "classes": Table({**_table(shown).columns, "class": names[: len(shown)]}, cut),
        "mean_by_class": _class_bars(classes, names),
    }
    column = ranking_column(scores)
    if "prediction" not in table or column not in table or len(labelled) < DECILES:
        return {}, values
    wrong = labelled["prediction"] != labelled["label"]
    deciles = error_by_decile(labelled[column], wrong, bins=DECILES)
    values["error_by_decile"] = _table(deciles)
    values["error_by_decile_chart"] = LineChart(
        f"Error by decile of {column} (95 % interval)",
        "decile (1 = lowest)",
        deciles["decile"].tolist(),
        {"error": deciles["error"].tolist()} | {end: deciles[f"error_{end}"].tolist() for end in ("low", "high")},
    )
    if {"vog_early", "vog_late"} <= set(table):
        both = early_late_table(labelled["vog_early"], labelled["vog_late"], wrong, bins=DECILES)
        values["early_late_chart"] = LineChart(
            "Error by decile of early and late VoG",
            "decile (1 = lowest)",
            both["decile"].tolist(),
            {name: both[f"error_{name}"].tolist() for name in ("early", "late")},
        )
    scalars = {f"error_decile_{decile}": float(deciles["error"][decile - 1]) for decile in (1, DECILES)}
    found = auroc(labelled[column], wrong)
    return scalars | ({"auroc_misclassified": found} if np.isfinite(found) else {}), values


def _class_bars(classes: pd.DataFrame, names: list[str | int | None]) -> BarChart:
    """Mean VoG of each class, highest first."""
    bars = {str(name): float(mean) for name, mean in zip(names, classes["vog_mean"], strict=True) if name is not None}
    highest = sorted(bars.items(), key=lambda bar: -bar[1])[:MAX_BARS]
    cut = f" ({MAX_BARS} highest of {len(bars):,})" if len(bars) > MAX_BARS else ""
    return BarChart(f"Mean VoG by class{cut}", "class", "mean VoG", dict(highest))


def _stability(scores: VoGScores) -> tuple[dict[str, Record], list[str]]:
    """How the ranking by raw VoG changed from snapshot to snapshot, and what that says."""
    if "vog" not in scores.trajectory_names or scores.trajectory("vog").shape[1] < 2:
        return {}, []
    running = scores.trajectory("vog")
    finite = np.isfinite(running[:, -1])  # a moment that is not finite stays so
    if not finite.any():
        return {}, []
    table = ranking_stability(running if finite.all() else running[finite])
    lines = ("spearman_previous", "spearman_final", "overlap_top_10_previous", "overlap_top_10_final")
    chart = LineChart(
        "Stability of the ranking by VoG",
        "snapshots",
        table["snapshots"].tolist(),
        {name: _cells(table[name]) for name in lines},
    )
    return {"ranking_stability": _table(table), "ranking_stability_chart": chart}, [stability_in_words(table)]


def _table(frame: pd.DataFrame) -> Table:
    return Table({str(name): _cells(values) for name, values in frame.items()})


def _cells(values: Any) -> list[Any]:
    """Python values, None where there is none."""
    return [None if pd.isna(value) else value for value in values.tolist()]
