"""The value of a ranking: its errors, detection rates and agreement with other rankings. May import only `errors`.

`error_tables` has the error by decile and by class, and `detection` measures how well columns find given rows;
`ranking_agreement` compares rankings, and `rank_stability` those of one run from snapshot to snapshot; `tail_verdict`
determines the hard tail from the resamples of `bootstrap`, and `guide_strength` how good a guide it is;
`recommendation` names the ranking to review first, and `review_yield` estimates what a review of a `reviewed_queue` may
still find, by `yield_forecast`; `trajectories` has the changes of single rows and `learning_patterns` when they were
learned; `loss_spikes` finds the steps whose loss stands out; `validation` checks the input tables and `ties` shares
places among tied rows.
"""

from vog_hf.evaluation.bootstrap import TailMeasure
from vog_hf.evaluation.detection import auroc, detection_table
from vog_hf.evaluation.error_tables import class_table, early_late_table, error_by_decile
from vog_hf.evaluation.guide_strength import Strength
from vog_hf.evaluation.learning_patterns import PATTERNS, learning_pattern, learning_pattern_table
from vog_hf.evaluation.loss_spikes import loss_spikes
from vog_hf.evaluation.rank_stability import ranking_stability, stability_in_words
from vog_hf.evaluation.ranking_agreement import agreement_table, merge_rankings, rank_agreement, rank_correlations
from vog_hf.evaluation.recommendation import RecommendedRanking, recommended_ranking
from vog_hf.evaluation.review_yield import PlaceShare, ReviewYield, review_yield
from vog_hf.evaluation.tail_verdict import RANKING_COLUMNS, HardTail, hard_tail
from vog_hf.evaluation.trajectories import total_change
from vog_hf.evaluation.yield_forecast import Forecast

__all__ = [
    "PATTERNS",
    "RANKING_COLUMNS",
    "Forecast",
    "HardTail",
    "PlaceShare",
    "RecommendedRanking",
    "ReviewYield",
    "Strength",
    "TailMeasure",
    "agreement_table",
    "auroc",
    "class_table",
    "detection_table",
    "early_late_table",
    "error_by_decile",
    "hard_tail",
    "learning_pattern",
    "learning_pattern_table",
    "loss_spikes",
    "merge_rankings",
    "rank_agreement",
    "rank_correlations",
    "ranking_stability",
    "recommended_ranking",
    "review_yield",
    "stability_in_words",
    "total_change",
]
