"""The worst units of all rows in one table: words, ends of answers, classes of masks, patches with the highest loss."""

from typing import Any

from vog_hf.metric.unit_kinds import CLASS, END, LABEL, POSITION, PREDICTION, TOKEN, UNIT_KINDS
from vog_hf.scores.pictures.row_view import RowViews
from vog_hf.scores.pictures.unit_lines import unit_name
from vog_hf.scores.unit_columns import class_of_unit


def worst_units(views: RowViews, count: int) -> dict[str, list[Any]] | None:
    """Columns ``row``, ``unit``, ``given``, ``predicted`` and ``loss`` of the units with the highest loss.

    Args:
        views: Views of the rows.
        count: Number of units.

    Returns:
        The highest loss first; without the columns that the units do not have. None for rows whose units have no loss.
    """
    units = views.scores.units
    kind = None if units is None else UNIT_KINDS.get(units.unit)
    if units is None or kind is None or units.named("loss") not in units.columns:
        return None
    worst = units.to_pandas().nlargest(count, units.named("loss"))
    if worst.empty:
        return None
    places = list(zip(worst["row"].tolist(), worst["unit"].tolist(), strict=True))
    columns: dict[str, list[Any]] = {"row": worst["row"].tolist()}
    columns["unit"] = [_name(views, row, at) for row, at in places]
    for name, heading in ((LABEL, "given"), (PREDICTION, "predicted")):
        if units.named(name) in worst and kind is not CLASS:
            labels = zip(worst["row"].tolist(), worst[units.named(name)].tolist(), strict=True)
            columns[heading] = [f"token {label}" if kind is END else _class(views, row, label) for row, label in labels]
    columns["loss"] = worst[units.named("loss")].astype(float).tolist()
    return columns


def _name(views: RowViews, row: int, at: int) -> str:
    """A word or the text of a token where it is known, else what the unit is called."""
    scores = views.scores
    if scores.units is None:
        return ""
    name = unit_name(scores.units, row, at, scores.facts.unit_class_names)
    if scores.units.unit != TOKEN.name:
        return name
    view, position = views.view(row), scores.units.named(POSITION)
    if view.listed_words is not None:
        return view.listed_words[at]
    text = view.token(int(scores.units.of_row(position, row)[at])) if position in scores.units.columns else None
    return text or name


def _class(views: RowViews, row: int, label: int) -> str:
    lists = views.view(row).label_lists
    return class_of_unit((() if lists is None else lists.names) or views.scores.facts.unit_class_names, label)
