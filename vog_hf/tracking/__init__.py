"""Scores in a tracker's run: Weights & Biases, or Trackio for people without an account.

Values come from `vog_hf.evaluation`, pictures from `vog_hf.scores.pictures`; `contents` puts together what is logged,
`row_tables` the part that shows rows, in the terms of `records`; `to_wandb` and `to_trackio` translate.
"""

from vog_hf.tracking.contents import MAX_TABLE_ROWS
from vog_hf.tracking.log import active_runs, log_scores, reopened
from vog_hf.tracking.row_tables import shown_rows

__all__ = ["MAX_TABLE_ROWS", "active_runs", "log_scores", "reopened", "shown_rows"]
