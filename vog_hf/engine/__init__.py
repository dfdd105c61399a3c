"""One pass over a batch, and the dry run that resolves once what all passes do.

- `passes`: forward and gradients of a batch, by a plan.
- `fast_path`: the model folded or compiled, where batches show that it is the same function.
- `tolerance`: how much two ways of the same computation may differ by rounding.
- `dry_run`: the plan, made on the first rows; what would go wrong raises, what is unusual is said.
"""

from vog_hf.engine.dry_run import plan_scoring, unusual
from vog_hf.engine.fast_path import require_same_function
from vog_hf.engine.passes import (
    PassLabels,
    ScoringPlan,
    joined,
    needs_prediction,
    predictions,
    require_finite_rows,
    score_batch,
    sliced,
    to_numpy_labels,
)

__all__ = [
    "PassLabels",
    "ScoringPlan",
    "joined",
    "needs_prediction",
    "plan_scoring",
    "predictions",
    "require_finite_rows",
    "require_same_function",
    "score_batch",
    "sliced",
    "to_numpy_labels",
    "unusual",
]
