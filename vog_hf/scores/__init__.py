"""The result: scores as columns of a dataset, in words and in pictures. May import `data` and the rooms below it.

`vog_scores` holds the scores of a dataset, `storage` their files (`unit_table` that of units, `visited_steps` that of
optimizer steps) and `manifest` the shape of how they were made; `scored_rows` pairs them with the rows that they are
proven to belong to, and `dataset_columns` makes columns of them, with the features of `column_features` (`unit_columns`
lists of units, next to the `label_lists` of the data); `consistency` tells whether the parts of scores fit together,
and `learning` when each row was learned; `ranking` orders rows, `pictures` shows them (`audio` what can be heard of a
row); `findings` is what a run shows, `descriptions` has the name and meaning of every column, `formatting` the numbers
as text.
"""

from vog_hf.metric.row_units import RowUnits
from vog_hf.scores.dataset_columns import add_vog_columns, scores_from_columns
from vog_hf.scores.ranking import most_extreme
from vog_hf.scores.vog_scores import VoGScores

__all__ = ["RowUnits", "VoGScores", "add_vog_columns", "most_extreme", "scores_from_columns"]
