"""The number: tensors in, tensors out. May import `errors` alone.

`definition` is VoG in five lines and the class normalization, `moments` the same streamed over snapshots,
`training_dynamics` the companions (loss, confidence, forgetting, ...), `windows` the early and the late snapshots,
`batch_accumulator` all of them for one batch, and `heat_maps` the variance per element of a row.
"""

from vog_hf.metric.definition import class_normalize, vog
from vog_hf.metric.moments import GradientMoments

__all__ = ["GradientMoments", "class_normalize", "vog"]
