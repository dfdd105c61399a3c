"""The table of planted tasks: one function for each value of `vog-hf demo --task` but ``digits``."""

from collections.abc import Callable

from vog_hf.cli.demos.boxes import boxed_objects
from vog_hf.cli.demos.names import tagged_names
from vog_hf.cli.demos.planted import PlantedTask
from vog_hf.cli.demos.questions import answered_questions
from vog_hf.cli.demos.shapes import masked_shapes

PLANTED_TASKS: dict[str, Callable[[int], PlantedTask]] = {
    "ner": tagged_names,
    "segmentation": masked_shapes,
    "detection": boxed_objects,
    "qa": answered_questions,
}
