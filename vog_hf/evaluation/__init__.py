"""What a ranking is worth in this run: where the errors are, what it detects, and how rankings agree.

`deciles` and `classes` are error rates by score and by class; `detection` is how well columns find given rows;
`agreement` compares two rankings, `stability` those of one run from snapshot to snapshot, `runs` those of several runs;
`verdict` says which tail is the hard one, from the resamples of `bootstrap`. `trajectories` is what single rows did;
`aligned` and `places` are for these.
"""

from vog_hf.evaluation.bootstrap import TailMeasure
from vog_hf.evaluation.detection import auroc, detection_table
from vog_hf.evaluation.error_tables import class_table, early_late_table, error_by_decile
from vog_hf.evaluation.rank_stability import ranking_stability, stability_in_words
from vog_hf.evaluation.ranking_agreement import agreement_table, merge_rankings, rank_agreement, rank_correlations
from vog_hf.evaluation.tail_verdict import RANKING_COLUMNS, HardTail, hard_tail
from vog_hf.evaluation.trajectories import total_change

__all__ = [
    "RANKING_COLUMNS",
    "HardTail",
    "TailMeasure",
    "agreement_table",
    "auroc",
    "class_table",
    "detection_table",
    "early_late_table",
    "error_by_decile",
    "hard_tail",
    "merge_rankings",
    "rank_agreement",
    "rank_correlations",
    "ranking_stability",
    "stability_in_words",
    "total_change",
]
