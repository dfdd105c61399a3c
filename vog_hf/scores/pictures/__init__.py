"""What a row looks like, and pictures of many: what is shown of rows, thumbnails, heat maps, contact sheets, charts.

`ranked` has rows by a column of the scores, `rows` their pictures and texts, `heat` small pictures and heat maps,
`sheet` contact sheets, `charts` the decile plot and the data map; `canvas` is for these.
"""

from vog_hf.scores.pictures.charts import data_map, decile_plot, draw_data_map
from vog_hf.scores.pictures.contact_sheet import contact_sheet
from vog_hf.scores.pictures.heat_maps import (
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
from vog_hf.scores.pictures.row_content import ShownRows, row_picture, row_text, row_texts, show_rows

__all__ = [
    "HEAT_COLORS",
    "SMOOTHING",
    "THUMBNAIL",
    "ShownRows",
    "contact_sheet",
    "data_map",
    "decile_plot",
    "draw_data_map",
    "heat_by_itself",
    "overlay",
    "row_heat",
    "row_overlay",
    "row_picture",
    "row_text",
    "row_texts",
    "show_rows",
    "strip",
    "thumbnail",
]
