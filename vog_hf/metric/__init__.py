"""The formula: tensors in, tensors out. May import only `errors`.

`definition` is Variance of Gradients in five lines and its class normalization, `moments` the same value streamed over
snapshots, `training_dynamics` the companions (loss, confidence, forgetting, ...), `visit_dynamics` those of rows that
some epochs left out, `visit_moments` the moments of such rows, `windows` the early and late snapshots,
`batch_accumulator` all of these for one batch, `heat_maps` the variance per element of a row, `row_units` the values
of its units (tokens), `input_parts` those of the parts of its input (an image beside a text, each text of a pair),
`host_copies` copies tensors of a device in one transfer, `vocabulary` has the names and meanings of the columns of
scores, each a `column`, and `unit_kinds` those of units; `pixel_maps` has the loss and the classes of masks, as maps.
"""

from vog_hf.metric.definition import class_normalize, vog
from vog_hf.metric.moments import GradientMoments

__all__ = ["GradientMoments", "class_normalize", "vog"]
