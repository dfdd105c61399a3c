"""Tables of rows as a person reads them: image or text, heat map, label, prediction, a few scores; no more columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from vog_hf.evaluation import RANKING_COLUMNS, HardTail, RecommendedRanking, loss_spikes, recommended_ranking
from vog_hf.metric.vocabulary import PREDICTION_PROBABILITY
from vog_hf.runtime.files import format_bytes
from vog_hf.scores.descriptions import boxes_note, heat_note
from vog_hf.scores.formatting import escaped
from vog_hf.scores.pictures import RowView, RowViews
from vog_hf.scores.pictures.words import WORDS_STYLE, Word, beginning, words_markup
from vog_hf.scores.pictures.worst_units import worst_units
from vog_hf.scores.ranking import has_classes, most_extreme, ranking_column, row_values
from vog_hf.scores.unit_columns import coloring_column, unit_kind
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking.media import BoxedPicture, MaskedPicture, Page, Table

ROWS_PER_CLASS = 5
ROWS_PER_SPIKE = 5
MAX_SPIKES = 10
MAX_CLASS_ROWS = 400  # in a table over all classes; each is a picture to upload
MAX_TEXT = 2_000  # characters of a row's text in a cell
SOUND_BYTES = 64 * 2**20  # of all sounds that are uploaded, a row's once for each table that shows it
MAX_COLUMNS = 9  # fit on a screen; every other column of the scores is in the artifact
READ_COLUMNS = ("label", "prediction", PREDICTION_PROBABILITY, "confidence", "loss")  # then the score, then the row
OF_A_ROW = (
    "image",
    "sound",
    "text",
    "choices",
    "heat_map",
    "label",
    "prediction",
    "id",
    "file",
    "row",
)  # whatever scores it
TAIL_OF_END = {"highest": "high", "lowest": "low"}

Rows = npt.NDArray[np.int64]


def row_tables(views: RowViews, top_k: int, tail: HardTail, recommended: RecommendedRanking) -> dict[str, Table]:
    """``review_first``, ``highest`` and ``lowest``, and where rows have classes the last two of each class.

    Args:
        views: Views of the rows.
        top_k: Number of rows in each of the first two tables.
        tail: Hard end of the ranking, for the captions.
        recommended: Ranking to review first.
    """
    scores = views.scores
    first = review_first_rows(scores, recommended, top_k)
    caption = f"The {len(first):,} of {len(scores):,} rows to review first. {recommended}"
    tables = {"review_first": _table(views, first, caption, recommended.column)} | {
        end: _table(views, rows, extreme_caption(scores, end, len(rows), tail))
        for end, rows in extreme_rows(scores, top_k).items()
    }
    for end, rows in extreme_rows_of_classes(scores).items():
        caption = (
            f"The {end} rows of {_classes_in(scores, rows)} by {ranking_column(scores)}, {len(rows):,} of "
            f"{len(scores):,} rows. {_verdict_on(end, tail)}"
        )
        tables[f"{end}_by_class"] = _table(views, rows, caption)
    return tables


def spike_table(views: RowViews) -> Table | None:
    """The worst rows of the steps whose loss stood out, the worst step first; None without such a step.

    Args:
        views: Views of the rows; only scores with ``collect="training"`` know the rows of steps.
    """
    scores = views.scores
    if not scores.has_steps:
        return None
    steps = scores.steps()
    spikes = loss_spikes(steps["step"], steps["loss"])
    if spikes.empty:
        return None
    worst = [scores.rows_of_step(int(step))[:ROWS_PER_SPIKE] for step in spikes["step"][:MAX_SPIKES]]
    counts = [len(rows) for rows in worst]
    visits = pd.concat(worst)
    caption = (
        f"The rows with the highest loss in the {len(worst)} steps whose loss stood out most ({len(spikes):,} of "
        f"{steps['step'].nunique():,} steps are more than 6 robust standard deviations above the steps around them)."
    )
    table = _table(views, visits["row"].to_numpy(), caption)
    of_steps = {
        "step": np.repeat(spikes["step"][:MAX_SPIKES], counts).tolist(),
        "loss of the step": np.repeat(spikes["loss"][:MAX_SPIKES], counts).tolist(),
        "loss in the step": visits["loss"].astype(float).tolist(),
    }
    of_rows = {name: cells for name, cells in table.columns.items() if name in OF_A_ROW}
    return Table(of_steps | of_rows, table.caption)


def unit_table(views: RowViews, top_k: int) -> dict[str, Table]:
    """``worst_tokens``, or of what the units of rows are: those with the highest loss, whatever their rows.

    Args:
        views: Views of the rows.
        top_k: Number of units.
    """
    kind, worst = unit_kind(views.scores), worst_units(views, top_k)
    if kind is None or worst is None:
        return {}
    caption = f"The {len(worst['row']):,} {kind.plural} with the highest mean loss, whatever the score of their rows."
    return {f"worst_{kind.plural}": Table({name: list(map(_text, cells)) for name, cells in worst.items()}, caption)}


def _text(cell: object) -> object:
    return escaped(cell) if isinstance(cell, str) else cell


def extreme_caption(scores: VoGScores, end: str, count: int, tail: HardTail) -> str:
    """Caption for the rows at one end of the ranking, with the verdict of this run on it."""
    return f"The {count:,} {end} of {len(scores):,} rows by {ranking_column(scores)}. {_verdict_on(end, tail)}"


def review_first_rows(scores: VoGScores, recommended: RecommendedRanking, top_k: int) -> Rows:
    """Numbers of the first rows of the recommended ranking."""
    highest, lowest = most_extreme(scores, recommended.column, top_k)
    return highest if recommended.direction == "high" else lowest


def extreme_rows(scores: VoGScores, top_k: int) -> dict[str, Rows]:
    """Row numbers of the highest and the lowest rows, most extreme first; at most half of all rows at each end."""
    count = min(top_k, max(1, len(scores) // 2))
    return dict(zip(TAIL_OF_END, most_extreme(scores, ranking_column(scores), count), strict=True))


def extreme_rows_of_classes(scores: VoGScores) -> dict[str, Rows]:
    """The same for each class, in the order of class numbers; empty for rows without classes.

    `ROWS_PER_CLASS` rows per class, at most half of its rows; fewer if that would exceed `MAX_CLASS_ROWS`; with more
    classes than that, one row for each of the first ones.
    """
    if not has_classes(scores) or "label" not in scores.column_names or (scores.column("label") < 0).all():
        return {}
    label, values = scores.column("label"), scores.column(ranking_column(scores)).astype(np.float64)
    rows_by_end = {}
    for end, keys in (("highest", -values), ("lowest", values)):
        order = np.lexsort((keys, label))  # NaN last, ties in row order
        order = order[label[order] >= 0]
        classes, starts, sizes = np.unique(label[order], return_index=True, return_counts=True)
        count = min(ROWS_PER_CLASS, max(1, MAX_CLASS_ROWS // len(classes)))
        place = np.arange(len(order)) - np.repeat(starts, sizes)
        most = np.minimum(count, np.maximum(1, sizes // 2))
        rows_by_end[end] = order[place < np.repeat(most, sizes)][:MAX_CLASS_ROWS]
    return rows_by_end


def shown_rows(scores: VoGScores, top_k: int) -> Rows:
    """Row numbers ``[shown rows]`` of all rows in these tables, in order."""
    tables = (extreme_rows(scores, top_k), extreme_rows_of_classes(scores))
    first = review_first_rows(scores, recommended_ranking(scores), top_k)
    return np.unique(np.concatenate([first, *(rows for table in tables for rows in table.values())]))


def _classes_in(scores: VoGScores, rows: Rows) -> str:
    label = scores.column("label")
    shown, all_of_them = len(np.unique(label[rows])), len(np.unique(label[label >= 0]))
    return f"each of {shown:,} classes" if shown == all_of_them else f"the first {shown:,} of {all_of_them:,} classes"


def _verdict_on(end: str, tail: HardTail) -> str:
    """The verdict of this run on one end of its ranking."""
    if tail.tail == "unclear":
        return "Which end holds the hard rows is unclear in this run."
    if tail.named_tail == "unclear":
        name = "VoG" if tail.column in RANKING_COLUMNS else tail.column
        return f"In this run {name} is too weak a guide to call either end the hard one."
    hard = tail.tail in (TAIL_OF_END[end], "both")
    return f"In this run the hard rows are {'here' if hard else 'at the other end'}."


def _table(views: RowViews, rows: Rows, caption: str, ranked_by: str = "") -> Table:
    """A table of these rows, each column of one type; the caption also says where a cell is cut or what it shows.

    Args:
        views: Views of the rows.
        rows: Numbers of the rows of this table.
        caption: Beginning of the caption.
        ranked_by: Column that is shown as the score; default, and if it is shown anyway: that of the ranking by VoG.
    """
    scores, of_rows = views.scores, views.views(rows)
    score = ranking_column(scores) if ranked_by in ("", *READ_COLUMNS) else ranked_by
    names = [name for name in (*READ_COLUMNS, score) if name in scores.column_names]
    columns = _content(of_rows) | {name: list(row_values(scores, name, rows)) for name in names}
    if scores.ids is not None and len(columns) < MAX_COLUMNS - 1:
        columns["id"] = [escaped(str(view.id)) for view in of_rows]
    if any(view.file is not None for view in of_rows) and len(columns) < MAX_COLUMNS - 1:
        columns["file"] = [None if view.file is None else escaped(view.file) for view in of_rows]
    columns["row"] = rows.tolist()
    if "heat_map" in columns and coloring_column(scores) is not None:
        caption += f" {heat_note(scores, {'words'})}"
    elif "heat_map" in columns:
        what = "the gradient changed most between snapshots" if scores.pixels is None else "the loss was highest"
        caption += f" Heat maps: where {what}, within each row by itself."
    if any(view.boxes for view in of_rows):
        caption += boxes_note(scores)
    if any(view.text is not None and len(view.text) > MAX_TEXT for view in of_rows):
        caption += f" Texts end after {MAX_TEXT:,} characters."
    if "sound" in columns and views.n_unplayed:
        caption += f" Sounds beyond {format_bytes(SOUND_BYTES)} in all are left out."
    return Table(columns, caption)


def _content(views: Sequence[RowView]) -> dict[str, list[Any]]:
    """The columns ``image``, ``sound`` or ``text``, ``choices`` and ``heat_map``; each only if a row has a value."""
    columns: dict[str, list[Any]] = {
        "image": [_picture(view) for view in views],
        "sound": [view.sound for view in views],
        "text": [None if view.text is None else escaped(view.text[:MAX_TEXT]) for view in views],
    }
    known = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    heat = _heat(views)
    shown = dict(list(known.items())[:1])
    if any(view.choices is not None for view in views):
        shown["choices"] = [_choices(view) for view in views]
    return shown | ({"heat_map": heat} if any(value is not None for value in heat) else {})


def _choices(view: RowView) -> str | None:
    """The choices of a row, one below the other, each with what is known of it; None for a row without their texts."""
    return None if view.choices is None else escaped("\n".join(line.text for line in view.unit_lines))[:MAX_TEXT]


def _picture(view: RowView) -> Image.Image | MaskedPicture | BoxedPicture | None:
    """The row's picture, with the given and the predicted mask or boxes over it where the row has them."""
    names = {number: str(name) for number, name in enumerate(view.scores.facts.unit_class_names)}
    if view.picture is not None and view.masks:
        return MaskedPicture(view.picture, view.masks, names)
    if view.picture is not None and view.boxes:
        return BoxedPicture(view.picture, view.boxes, names | {box.label: box.name for box in view.boxes})
    return view.picture


def _heat(views: Sequence[RowView]) -> list[Any]:
    """Heat maps of rows: their texts with colored words if one of them has such, else pictures."""
    if all(view.words is None for view in views):
        return [view.heat_picture for view in views]
    return [None if view.words is None else _words_page(view.words) for view in views]


def _words_page(words: Sequence[Word]) -> Page:
    """A text with colored words as a document of its own, on white as the tables of W&B are."""
    style = f"body {{ margin: 4px; background: #fff; color: #1d2126; font: 14px/1.5 sans-serif; }} {WORDS_STYLE}"
    text = words_markup(beginning(words, MAX_TEXT))
    return Page(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Text</title><style>{style}</style></head>'
        f'<body><div class="words" style="white-space: pre-line">{escaped(text)}</div></body></html>'
    )
