"""Scores in a tracker: Weights & Biases, or Trackio. May import `scores` and the rooms below it.

`log` is `log_scores`; `contents` puts together what is logged, `row_tables` the tables of rows with their images, in
the terms of `media`, and `about` the panel that is read first; `artifacts` has the files of the scores;
`about_page` makes it a page of HTML; `wandb_backend` and `trackio_backend` translate.
"""

from vog_hf.tracking.contents import MAX_TABLE_ROWS
from vog_hf.tracking.log import active_runs, log_scores, reopened
from vog_hf.tracking.row_tables import shown_rows

__all__ = ["MAX_TABLE_ROWS", "active_runs", "log_scores", "reopened", "shown_rows"]
