"""Tables of rows: the highest and the lowest of a data set and of each class: picture or text, heat map, all scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vog_hf.evaluation import HardTail
from vog_hf.scores.formatting import escaped
from vog_hf.scores.pictures import THUMBNAIL, row_heat, show_rows, thumbnail
from vog_hf.scores.ranking import has_classes, most_extreme, ranking_column, row_values
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking.media import Table

ROWS_PER_CLASS = 5
MAX_CLASS_ROWS = 400  # in a table over all classes; each is a picture to upload
MAX_TEXT = 2_000  # characters of a row's text in a cell
FIRST_COLUMNS = ("label", "prediction", "confidence", "vog", "vog_class_normalized", "vog_normalized", "vog_percentile")
TAIL_OF_END = {"highest": "high", "lowest": "low"}

Rows = npt.NDArray[np.int64]


def row_tables(scores: VoGScores, dataset: Any, top_k: int, tail: HardTail) -> dict[str, Table]:
    """``highest`` and ``lowest``, and where rows have classes ``highest_by_class`` and ``lowest_by_class``.

    Args:
        scores: Of the data set.
        dataset: What shows the rows; None = no pictures or texts.
        top_k: Rows in each of the first two tables.
        tail: Which end is the hard one, for the captions.
    """
    of_all = {
        end: _table(scores, dataset, rows, extreme_caption(scores, end, len(rows), tail))
        for end, rows in extreme_rows(scores, top_k).items()
    }
    of_classes = {
        f"{end}_by_class": _table(
            scores,
            dataset,
            rows,
            f"The {end} rows of {_classes_in(scores, rows)} by {ranking_column(scores)}, {len(rows):,} of "
            f"{len(scores):,} rows. {_said_of(end, tail)}",
        )
        for end, rows in extreme_rows_of_classes(scores).items()
    }
    return of_all | of_classes


def extreme_caption(scores: VoGScores, end: str, count: int, tail: HardTail) -> str:
    """Which rows are shown of one end of the ranking, and what this run says of it."""
    return f"The {count:,} {end} of {len(scores):,} rows by {ranking_column(scores)}. {_said_of(end, tail)}"


def extreme_rows(scores: VoGScores, top_k: int) -> dict[str, Rows]:
    """Numbers of the highest and the lowest rows, most extreme first; at most half of all rows at each end."""
    count = min(top_k, max(1, len(scores) // 2))
    return dict(zip(TAIL_OF_END, most_extreme(scores, ranking_column(scores), count), strict=True))


def extreme_rows_of_classes(scores: VoGScores) -> dict[str, Rows]:
    """The same of each class, classes in the order of their numbers; nothing where rows have no classes.

    `ROWS_PER_CLASS` rows of each, at most half of its rows; fewer where that would be more than `MAX_CLASS_ROWS`; of
    more classes than that, one row of each of the first.
    """
    if not has_classes(scores) or "label" not in scores.column_names or (scores.column("label") < 0).all():
        return {}
    label, values = scores.column("label"), scores.column(ranking_column(scores)).astype(np.float64)
    found = {}
    for end, keys in (("highest", -values), ("lowest", values)):
        order = np.lexsort((keys, label))  # NaN last, ties in row order
        order = order[label[order] >= 0]
        classes, starts, sizes = np.unique(label[order], return_index=True, return_counts=True)
        count = min(ROWS_PER_CLASS, max(1, MAX_CLASS_ROWS // len(classes)))
        place = np.arange(len(order)) - np.repeat(starts, sizes)
        most = np.minimum(count, np.maximum(1, sizes // 2))
        found[end] = order[place < np.repeat(most, sizes)][:MAX_CLASS_ROWS]
    return found


def shown_rows(scores: VoGScores, top_k: int) -> Rows:
    """Numbers of all rows in these tables, in order."""
    tables = (extreme_rows(scores, top_k), extreme_rows_of_classes(scores))
    return np.unique(np.concatenate([rows for table in tables for rows in table.values()]))


def _classes_in(scores: VoGScores, rows: Rows) -> str:
    label = scores.column("label")
    shown, all_of_them = len(np.unique(label[rows])), len(np.unique(label[label >= 0]))
    return f"each of {shown:,} classes" if shown == all_of_them else f"the first {shown:,} of {all_of_them:,} classes"


def _said_of(end: str, tail: HardTail) -> str:
    """What this run says of one end of its ranking."""
    if tail.tail == "unclear":
        return "Which end holds the hard rows is unclear in this run."
    hard = tail.tail in (TAIL_OF_END[end], "both")
    return f"In this run the hard rows are {'here' if hard else 'at the other end'}."


def _table(scores: VoGScores, dataset: Any, rows: Rows, caption: str) -> Table:
    """A table of these rows, each column of one type; the caption says, too, where a cell is cut or what it shows."""
    first = [name for name in FIRST_COLUMNS if name in scores.column_names]
    others = [name for name in scores.column_names if name not in first]
    shown = [None] * len(rows) if dataset is None else show_rows(dataset, rows, side=THUMBNAIL)
    columns = {
        "row": rows.tolist(),
        **({} if scores.ids is None else {"id": [escaped(str(scores.ids[row])) for row in rows]}),
        **_shown(shown),
        **_heat_maps(scores, rows, shown),
        **{name: list(row_values(scores, name, rows)) for name in (*first, *others)},
    }
    if "heat_map" in columns:
        caption += " Heat maps: where the gradient changed most between snapshots, within each row by itself."
    if any(isinstance(value, str) and len(value) > MAX_TEXT for value in shown):
        caption += f" Texts end after {MAX_TEXT:,} characters."
    return Table(columns, caption)


def _shown(shown: Sequence[Any]) -> dict[str, list[Any]]:
    """The column ``image`` or ``text``; none where the rows have neither."""
    if any(isinstance(value, Image.Image) for value in shown):
        return {"image": [thumbnail(value) if isinstance(value, Image.Image) else None for value in shown]}
    if any(isinstance(value, str) for value in shown):
        return {"text": [escaped(value[:MAX_TEXT]) if isinstance(value, str) else None for value in shown]}
    return {}


def _heat_maps(scores: VoGScores, rows: Rows, shown: Sequence[Any]) -> dict[str, list[Image.Image | None]]:
    """The column ``heat_map``: over a thumbnail of the row's picture, else by itself; none without heat maps."""
    small = [thumbnail(value) if isinstance(value, Image.Image) else None for value in shown]
    maps = [row_heat(scores, int(row), picture) for row, picture in zip(rows, small, strict=True)]
    return {"heat_map": maps} if any(map_of is not None for map_of in maps) else {}
