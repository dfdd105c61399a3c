"""Pictures of rows and of rankings: contents of rows, thumbnails, heat maps, contact sheets and charts.

`row_columns` finds the columns that show a row, `row_content` reads them (`decoding` within bounds of memory,
`rgb_pictures` in one mode), `words` finds the heat of a text's words (`unit_words` of words with labels of their own),
`unit_lines` says what is known of other units (`choice_texts` reads those of choices), and `row_view` is the one view
of a row that all outputs share; `worst_units` has the units with the highest loss, `heat_maps` thumbnails and heat
maps, `contact_sheet` both ends of a ranking as one picture, `charts` the decile plot and data map.
"""

from vog_hf.scores.pictures.charts import data_map, decile_plot, draw_data_map
from vog_hf.scores.pictures.contact_sheet import contact_sheet, draw_contact_sheet
from vog_hf.scores.pictures.heat_maps import (
    HEAT_COLORS,
    SMOOTHING,
    THUMBNAIL,
    heat_by_itself,
    overlay,
    row_overlay,
    strip,
    thumbnail,
)
from vog_hf.scores.pictures.row_content import ShownRows, row_picture, row_text, row_texts, show_rows
from vog_hf.scores.pictures.row_view import RowView, RowViews

__all__ = [
    "HEAT_COLORS",
    "SMOOTHING",
    "THUMBNAIL",
    "RowView",
    "RowViews",
    "ShownRows",
    "contact_sheet",
    "data_map",
    "decile_plot",
    "draw_contact_sheet",
    "draw_data_map",
    "heat_by_itself",
    "overlay",
    "row_overlay",
    "row_picture",
    "row_text",
    "row_texts",
    "show_rows",
    "strip",
    "thumbnail",
]
