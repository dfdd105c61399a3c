"""Contents for any tracker: tables, charts, images and scalars, computed once from the same rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vog_hf.evaluation import auroc
from vog_hf.evaluation.learning_patterns import PATTERN_MEANINGS
from vog_hf.metric.vocabulary import COMPANIONS
from vog_hf.scores.descriptions import DETECTION_NOTE, NUMBERS_NOTE
from vog_hf.scores.findings import DECILES, Findings
from vog_hf.scores.pictures import RowViews, data_map, draw_contact_sheet
from vog_hf.scores.ranking import class_names
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.tracking.about import About, about_split
from vog_hf.tracking.media import BarChart, Histogram, LineChart, Picture, Record, Table
from vog_hf.tracking.row_tables import SOUND_BYTES, TAIL_OF_END, extreme_caption, row_tables, spike_table, unit_table

MAX_TABLE_ROWS = 10_000  # wandb.Table.MAX_ROWS: it cuts longer tables with no more than a line in its log
MAX_BARS = 100
SHEET_ROWS = 25  # at each end


@dataclass(frozen=True)
class Contents:
    """Contents logged for one split.

    Attributes:
        values: Values by name, without the prefix ``vog/``.
        about: What a person reads first.
        summary: Texts by which runs are compared, in addition to the scalars among the values.
        tables: Tables that are too wide to be read next to the others; kept with the scores.
    """

    values: dict[str, Record]
    about: About
    summary: dict[str, str]
    tables: dict[str, pd.DataFrame]


def contents(split: ScoredSplit, top_k: int) -> Contents:
    """Compute what to log.

    Args:
        split: Scores, finished or of the snapshots up to now; without rows, tables have no pictures and texts.
        top_k: Number of rows in the tables of highest and lowest rows.
    """
    findings, views = Findings(split), RowViews(split, sound_bytes=SOUND_BYTES)
    tail = findings.tail
    tables = row_tables(views, top_k, tail, findings.recommended)
    (scalars, values), (of_classes, values_of_classes) = _of_all_rows(findings), _of_classes(findings)
    scalars, values = scalars | of_classes, values | values_of_classes
    count = min(SHEET_ROWS, len(tables["highest"].columns["row"]))
    if any(picture is not None for end in TAIL_OF_END for picture in tables[end].columns.get("image", [])[:count]):
        sheet = draw_contact_sheet(views, count=count)
        caption = " ".join(extreme_caption(split.scores, end, count, tail) for end in TAIL_OF_END)
        values["contact_sheet"] = Picture(sheet, caption)
    stability = findings.stability
    if (spikes := spike_table(views)) is not None:
        tables["loss_spikes"] = spikes
    tables |= unit_table(views, top_k)
    values = {**tables, **values, **_of_patterns(findings), **_of_stability(stability)}
    if not (numbers := tail.table()).empty:
        values["hard_tail_numbers"] = Table(_table(numbers).columns, f"Difficulty by {findings.column}. {NUMBERS_NOTE}")
    of_rows = {name: value for name, value in values.items() if isinstance(value, Table)}
    about = about_split(findings, of_rows, np.asarray(tables["review_first"].columns["row"], np.int64))
    return Contents(
        {**values, **scalars},
        about,
        {
            "headline": about.headline,
            "hard_tail": tail.tail,
            "hard_tail_strength": tail.strength,
            "hard_tail_evidence": tail.evidence,
            "review_first": str(findings.recommended),
        },
        {} if stability is None else {"ranking_stability": stability},
    )


def _of_all_rows(findings: Findings) -> tuple[dict[str, float], dict[str, Record]]:
    """Scalars, histogram, data map, and the detection of rows known to be mislabeled."""
    scores, table = findings.scores, findings.table
    scalars: dict[str, float] = {
        "n_rows": len(scores),
        "n_snapshots": len(scores.facts.snapshots),
    }
    if table.empty:
        return scalars, {}
    ranked = table[findings.raw].to_numpy(dtype=np.float64)
    scalars |= {"mean": float(ranked.mean()), "std": float(ranked.std()), **_rank_correlations(findings)}
    values: dict[str, Record] = {"histogram": Histogram(ranked)}
    if {"variability", "confidence"} <= set(table):
        points = (table[name].to_numpy() for name in ("variability", "confidence", findings.raw))
        values["data_map"] = Picture(*data_map(*points, name=findings.title))
    if findings.detection is not None:
        values["detection"] = Table(_table(findings.detection).columns, DETECTION_NOTE)
    return scalars, values


def _rank_correlations(findings: Findings) -> dict[str, float]:
    """Spearman correlation of VoG (or the loss) with each companion, and of early with late; none for constants."""
    if findings.correlations is None:
        return {}
    of_ranked = findings.correlations[findings.raw]
    others = [name for name in COMPANIONS if name in of_ranked and name != findings.raw]
    known = {f"spearman_{name}": float(of_ranked[name]) for name in others}
    if {"vog_early", "vog_late"} <= set(of_ranked.index):
        known["spearman_early_late"] = float(findings.correlations["vog_early"]["vog_late"])
    return known


def _of_classes(findings: Findings) -> tuple[dict[str, float], dict[str, Record]]:
    """Tables of classes and of errors by decile: of the ranking column, and of early and late VoG."""
    if findings.classes is None:
        return {}, {}
    names = class_names(findings.scores, findings.classes["class"])
    shown, cut = findings.classes[:MAX_TABLE_ROWS], ""
    if len(shown) < len(findings.classes):
        cut = f"The first {len(shown):,} of {len(findings.classes):,} classes, the maximum that a W&B table can hold."
    values: dict[str, Record] = {
        "classes": Table({**_table(shown).columns, "class": names[: len(shown)]}, cut),
        "mean_by_class": _class_bars(findings.classes, names, findings.title),
    }
    deciles = findings.deciles
    if deciles is None:
        return {}, values
    values["error_by_decile"] = _table(deciles)
    values["error_by_decile_chart"] = LineChart(
        f"Error by decile of {findings.column} (95 % interval)",
        "decile (1 = lowest)",
        deciles["decile"].tolist(),
        {"error": deciles["error"].tolist()} | {end: deciles[f"error_{end}"].tolist() for end in ("low", "high")},
    )
    if (both := findings.early_late) is not None:
        values["early_late_chart"] = LineChart(
            "Error by decile of early and late VoG",
            "decile (1 = lowest)",
            both["decile"].tolist(),
            {name: both[f"error_{name}"].tolist() for name in ("early", "late")},
        )
    scalars = {f"error_decile_{decile}": float(deciles["error"][decile - 1]) for decile in (1, DECILES)}
    area = auroc(findings.labeled[findings.column], findings.is_error)
    return scalars | ({"auroc_misclassified": area} if np.isfinite(area) else {}), values


def _class_bars(classes: pd.DataFrame, names: list[str | int | None], title: str) -> BarChart:
    """Mean score of each class, highest first."""
    bars: dict[str, float] = {}
    for number, name, mean in zip(classes["class"], names, classes["vog_mean"], strict=True):
        if name is not None:
            bars[str(name) if str(name) not in bars else f"{name} ({number})"] = float(mean)
    highest = sorted(bars.items(), key=lambda bar: -bar[1])[:MAX_BARS]
    cut = f" ({MAX_BARS} highest of {len(bars):,})" if len(bars) > MAX_BARS else ""
    return BarChart(f"Mean {title} by class{cut}", "class", f"mean {title}", dict(highest))


def _of_patterns(findings: Findings) -> dict[str, Record]:
    """Table and chart of rows by learning pattern, and a chart of the rows known to be mislabeled; none without."""
    table = findings.learning_patterns
    if table is None:
        return {}
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in PATTERN_MEANINGS.items())
    values: dict[str, Record] = {
        "learning_patterns": Table(_table(table).columns, f"Rows by learning pattern. {meanings}."),
        "learning_patterns_chart": BarChart(
            "Rows by learning pattern", "pattern", "rows", _bars(table["pattern"], table["rows"])
        ),
    }
    if "known_wrong" in table:
        known = table[table["rows"] > 0]
        values["mislabeled_by_learning_pattern"] = BarChart(
            "Share of rows known to be mislabeled, by learning pattern",
            "pattern",
            "share",
            _bars(known["pattern"], known["known_wrong"]),
        )
    return values


def _bars(names: pd.Series, values: pd.Series) -> dict[str, float]:
    return {str(name): float(value) for name, value in zip(names, values, strict=True)}


def _of_stability(table: pd.DataFrame | None) -> dict[str, Record]:
    """Chart of the stability of the ranking by raw VoG from snapshot to snapshot; none without."""
    if table is None:
        return {}
    lines = ("spearman_previous", "spearman_final", "overlap_top_10_previous", "overlap_top_10_final")
    chart = LineChart(
        "Stability of the ranking by VoG",
        "snapshots",
        table["snapshots"].tolist(),
        {name: _cells(table[name]) for name in lines},
    )
    return {"ranking_stability_chart": chart}


def _table(frame: pd.DataFrame) -> Table:
    return Table({str(name): _cells(values) for name, values in frame.items()})


def _cells(values: Any) -> list[Any]:
    """Values as Python objects, None for missing ones."""
    return [None if pd.isna(value) else value for value in values.tolist()]
