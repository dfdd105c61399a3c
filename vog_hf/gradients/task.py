"""The definition of a task: the scalar of a row, its companions and its labels, for one kind of head."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import DataError
from vog_hf.gradients.model_outputs import find_logits
from vog_hf.metric.unit_kinds import UnitKind

TARGETS = ("logit", "probability", "loss")
IGNORED_TOKEN = -100


@dataclass(frozen=True)
class Observations:
    """Observations of a batch at one snapshot.

    Attributes:
        rows: Of each row, ``[batch]`` by name.
        units: Of each place that may be a unit, ``[batch, places]`` by name, with ``label``.
        pixels: Of masks: `vog_hf.metric.pixel_maps.pixel_observation`.
    """

    rows: dict[str, Tensor]
    units: dict[str, Tensor] = field(default_factory=dict)
    pixels: dict[str, Tensor] = field(default_factory=dict)


class Task:
    """The meaning of a kind of model's logits and labels, row by row. `logits` and `labels` are of one batch."""

    name: ClassVar[str]
    has_classes: ClassVar[bool] = False  # each row has one class: scores are normalized within it
    can_predict_label: ClassVar[bool] = False  # a missing label can be replaced by the model's prediction
    needs_labels: ClassVar[bool] = True
    loss_needs_labels: ClassVar[bool] = True  # also where other targets do not
    is_observed_in_training: ClassVar[bool] = True  # the gradient of a training's loss tells the weight of each row's
    labels_need_room: ClassVar[bool] = False  # long labels need a long input
    label_advice: ClassVar[str] = "pass label_column= (a column of the rows)"  # where a batch has no labels
    targets: ClassVar[tuple[str, ...]] = TARGETS
    companions_of_callables: ClassVar[bool] = True  # also where every target is a callable
    unit: ClassVar[UnitKind | None] = None  # the parts of a row that are scored as well; None: it has none
    has_token_units: bool = False  # the label tokens of a row are scored as well with VoGConfig(token_units=True)

    @classmethod
    def for_model(cls, model: nn.Module) -> Self:  # noqa: ARG003 (of some tasks)
        """The task with what it has to know of a model."""
        return cls()

    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:  # noqa: ARG002 (of some tasks)
        """The logits in a model's outputs for its inputs, ``[batch, ...]``, as the other methods take them."""
        return find_logits(outputs)

    def n_outputs(self, logits: Tensor) -> int | None:
        """Number of classes, outputs or tokens in the vocabulary; None where labels are not numbers below it."""
        return logits.shape[-1] if logits.dim() > 1 else 1

    def prediction(self, logits: Tensor) -> Tensor:
        """The labels that the model predicts, for tasks with ``can_predict_label``."""
        return logits.argmax(-1)

    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        """Raise DataError, naming the row of the batch, where a label is not one that this task can have."""
        raise NotImplementedError

    def check_fit(self, labels: Tensor, batch: Mapping[str, object]) -> None:
        """Raise DataError, naming the row of the batch, where labels do not fit the inputs."""

    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:  # noqa: ARG002 (of some tasks)
        """Labels without those that only exist because rows of a batch are padded to one length."""
        return labels

    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        """The scalar to differentiate, ``[batch]``."""
        raise NotImplementedError

    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Observe each row at this snapshot, for `vog_hf.metric.training_dynamics.TrainingDynamics`."""
        raise NotImplementedError

    def unit_observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002 (of some tasks)
        """Observe each place ``[batch, places]`` that may be a unit, with its ``label``, -100 = none; {} without units.

        For `vog_hf.metric.row_units.UnitAccumulator`.
        """
        return {}

    def observations(
        self,
        logits: Tensor,
        labels: Tensor | None,
        outputs: object,  # noqa: ARG002 (of some tasks)
        inputs: Mapping[str, object],  # noqa: ARG002 (of some tasks)
    ) -> Observations:
        """Observe rows and their parts, as `observation` and `unit_observation`, where they share work or need more."""
        return Observations(self.observation(logits, labels), self.unit_observation(logits, labels))


class RowValue(Task):
    """A task whose outputs give one number per row, ``[batch]``, and whose rows hold all that it is compared with."""

    needs_labels = False
    loss_needs_labels = False
    is_observed_in_training = False
    targets: ClassVar[tuple[str, ...]] = ("logit",)

    @override
    def n_outputs(self, logits: Tensor) -> int | None:
        return None

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        """Accept any: they are not used."""

    @override
    def counted_labels(self, labels: Tensor | None, batch: Mapping[str, object]) -> Tensor | None:
        return None

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        return -logits if target == "loss" else logits


def required_labels(labels: Tensor | None, task: str) -> Tensor:
    """The labels; raises DataError where there are none."""
    if labels is None:
        raise DataError(f"{task} needs labels, and the batch has none")
    return labels
