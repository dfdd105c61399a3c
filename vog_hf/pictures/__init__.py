"""What a row looks like, and pictures of many: what is shown of rows, thumbnails, heat maps, contact sheets, charts.

`ranked` has rows by a column of the scores, `rows` their pictures and texts, `heat` small pictures and heat maps,
`sheet` contact sheets, `charts` the decile plot and the data map; `canvas` is for these.
"""

from vog_hf.pictures.charts import data_map, decile_plot, draw_data_map
from vog_hf.pictures.heat import (
    HEAT_COLORS,
    SMOOTHING,
    THUMBNAIL,
    heat_by_itself,
    overlay,
    row_heat,
    row_overlay,
    strip,
    thumbnail,
)
from vog_hf.pictures.ranked import class_names, has_classes, most_extreme, ranking_column, row_values
from vog_hf.pictures.rows import ShownRows, row_picture, row_text, row_texts, show_rows
from vog_hf.pictures.sheet import contact_sheet

__all__ = [
    "HEAT_COLORS",
    "SMOOTHING",
    "THUMBNAIL",
    "ShownRows",
    "class_names",
    "contact_sheet",
    "data_map",
    "decile_plot",
    "draw_data_map",
    "has_classes",
    "heat_by_itself",
    "most_extreme",
    "overlay",
    "ranking_column",
    "row_heat",
    "row_overlay",
    "row_picture",
    "row_text",
    "row_texts",
    "row_values",
    "show_rows",
    "strip",
    "thumbnail",
]
