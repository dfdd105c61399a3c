"""Object detection: a class and a box for each object, which the matcher of the model's loss gives a query."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.gradients.detection_losses import DetectionLoss
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, base_model, find_logits
from vog_hf.gradients.task import IGNORED_TOKEN, Observations, Task, required_labels
from vog_hf.metric.row_units import GIVEN_BOX, PREDICTED_BOX
from vog_hf.metric.unit_kinds import LABEL, OBJECT
from vog_hf.metric.vocabulary import PREDICTION_PROBABILITY

CLASSES, BOXES = "class_labels", "boxes"  # keys of a row's objects, as image processors of transformers make them
N_BOX = 4
MEASURES = "a center, a width and a height as shares of the image"  # a box
FARTHEST = 2.0  # a coordinate beyond that is in pixels
QUERY_OPTIONS = ("num_queries", "num_detection_tokens")  # of configurations in transformers


class ObjectDetection(Task):
    """Logits ``[batch, queries, classes + 4]``: of classes, then the box; labels ``[batch, objects, 5]``: class, box.

    Labels of rows with fewer objects are filled up with the class -100. The objects of each row are matched to its
    queries without a gradient, by the matcher of transformers' loss, whatever other rows are in the batch. The logit is
    the mean over the objects of the logit of the given class at the matched query; the loss is that of transformers
    for the row alone, of the final predictions.

    Args:
        loss: Loss of the model.
        n_queries: Number of its queries; None: not known.
    """

    name = "object_detection"
    unit = OBJECT
    is_observed_in_training = False
    companions_of_callables = False  # a row without objects has a value of a callable target
    label_advice = f"let the collator return labels, the {CLASSES} and {BOXES} of each image, as image processors do"

    def __init__(self, loss: DetectionLoss | None = None, n_queries: int | None = None) -> None:
        self._loss_of_model = loss
        self._n_queries = n_queries

    @override
    @classmethod
    def for_model(cls, model: nn.Module) -> Self:
        config = getattr(base_model(model), "config", None)
        options = (getattr(config, name, None) for name in QUERY_OPTIONS)
        return cls(DetectionLoss.for_model(model), next((option for option in options if option is not None), None))

    @property
    def _loss(self) -> DetectionLoss:
        if self._loss_of_model is None:
            raise ModelError("objects are matched by the loss of a model; use ObjectDetection.for_model(model)")
        return self._loss_of_model

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        logits, boxes = find_logits(outputs), getattr(outputs, "pred_boxes", None)
        if not isinstance(boxes, Tensor) or logits.dim() != 3 or boxes.shape != (*logits.shape[:2], N_BOX):
            raise ModelError(
                f"object detection needs outputs with logits [batch, queries, classes] and pred_boxes [batch, queries, "
                f"{N_BOX}], got a {type(outputs).__name__} with logits {tuple(logits.shape)}; for others pass "
                f"{CALLABLE_TARGET}"
            )
        both = torch.cat([logits, boxes.clamp(0, 1) if self._loss.clips_boxes else boxes], dim=-1)
        return both.to(torch.promote_types(both.dtype, torch.float32))

    @override
    def n_outputs(self, logits: Tensor) -> int | None:
        return logits.shape[-1] - N_BOX - self._loss.has_no_object

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 3 or labels.shape[-1] != 1 + N_BOX or not labels.is_floating_point():
            raise DataError(
                f"labels of a detector must be the {CLASSES} and {BOXES} of each row, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}; let the collator return them as image processors make them"
            )
        counts, classes, boxes = _parts(labels)
        advice = f"leave such rows out, pass on_error='skip', or {CALLABLE_TARGET}"
        _refuse(~counts.any(1), f"a row has no object, so it has no target; {advice}")
        too_high = torch.zeros_like(counts) if n_outputs is None else classes >= n_outputs
        outside = counts & ((classes < 0) | too_high)
        _refuse(outside, f"class {{}} of an object is outside the model's {n_outputs} classes", classes)
        bad = (~torch.isfinite(boxes) | (boxes.abs() > FARTHEST)).any(-1) | (boxes[..., 2:] < 0).any(-1)
        normalized = "let the image processor make the labels of the annotations"
        _refuse(bad & counts, f"the box {{}} of an object is not {MEASURES}; {normalized}", boxes)
        if self._n_queries is not None:
            n_objects = counts.sum(1)
            too_many = f"a row has {{}} objects, and the model has {self._n_queries} queries for them; {advice}"
            _refuse(n_objects > self._n_queries, too_many, n_objects)

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        labels = required_labels(labels, self.name)
        counts, _, _ = _parts(labels)
        queries = self._matched(logits, labels)
        if target == "loss":
            return self._row_losses(logits, labels, queries)
        at_label, log_probability = self._at_label(logits, labels, queries)
        return _mean(at_label if target == "logit" else log_probability.exp(), counts)

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return self.observations(logits, labels, None, {}).rows

    @override
    def observations(
        self, logits: Tensor, labels: Tensor | None, outputs: object, inputs: Mapping[str, object]
    ) -> Observations:
        """Observe rows and their objects, matched once; ``iou`` is that of the matched query's box with the given box.

        The loss of an object is minus the log-probability of its class, plus the losses of its box with the weights of
        the model's loss.
        """
        labels = required_labels(labels, self.name)
        counts, classes, _ = _parts(labels)
        queries = self._matched(logits, labels)
        of_objects = self._observed(logits, labels, queries)
        means = {name: _mean(of_objects[name], counts) for name in ("confidence", "correct")}
        of_rows = {"loss": self._row_losses(logits, labels, queries), **means}
        return Observations(of_rows, {LABEL: classes.masked_fill(~counts, IGNORED_TOKEN), **of_objects})

    def _observed(self, logits: Tensor, labels: Tensor, queries: Tensor) -> dict[str, Tensor]:
        """Observations of each object, ``[batch, objects]``."""
        _, classes, boxes = _parts(labels)
        of_queries = _at(logits, queries)
        predicted, given = of_queries[..., -N_BOX:], boxes.to(logits.dtype)
        iou, giou = _overlap(predicted, given)
        log_probability = self._at_label(logits, labels, queries)[1]
        weights = self._loss.weights
        of_boxes = weights["loss_bbox"] * (predicted - given).abs().sum(-1) + weights["loss_giou"] * (1 - giou)
        probability, prediction = self._log_probabilities(of_queries[..., :-N_BOX]).exp().max(-1)
        return {
            "loss": of_boxes - log_probability,
            "confidence": log_probability.exp(),
            "correct": (prediction == classes).to(logits.dtype),
            "iou": iou,
            "prediction": prediction,
            PREDICTION_PROBABILITY: probability,
            GIVEN_BOX: given,
            PREDICTED_BOX: predicted,
        }

    def _at_label(self, logits: Tensor, labels: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Logit and log-probability of each object's given class at its query, ``[batch, objects]``."""
        index = _parts(labels)[1].clamp(min=0).unsqueeze(-1)
        of_classes = _at(logits, queries)[..., :-N_BOX]
        log_probability = self._log_probabilities(of_classes)
        return of_classes.gather(-1, index).squeeze(-1), log_probability.gather(-1, index).squeeze(-1)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """Of every class but "no object"."""
        return logits.log_softmax(-1)[..., :-1] if self._loss.has_no_object else nn.functional.logsigmoid(logits)

    def _matched(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Number of each object's query, ``[batch, objects]``, 0 where a row has fewer objects."""
        queries = torch.zeros(labels.shape[:2], dtype=torch.int64)
        for of_row, row_logits, row_labels in zip(queries, logits.detach().cpu(), labels.cpu(), strict=True):
            target = _target(row_labels, row_logits)
            n_objects = len(target[CLASSES])
            of_row[:n_objects] = self._loss.matched(row_logits[:, :-N_BOX], row_logits[:, -N_BOX:], target)
        return queries.to(logits.device)

    def _row_losses(self, logits: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        losses = []
        for row_logits, row_labels, of_row in zip(logits, labels, queries, strict=True):
            target = _target(row_labels, row_logits)
            matched = of_row[: len(target[CLASSES])]
            losses.append(self._loss.of_row(row_logits[:, :-N_BOX], row_logits[:, -N_BOX:], target, matched))
        return torch.stack(losses)


def object_labels(labels: Sequence[Mapping[str, Any]]) -> Tensor | None:
    """The objects of rows, ``[rows, most objects, 5]``: class and box, the class -100 where a row has fewer.

    Args:
        labels: ``class_labels`` and ``boxes`` of each row, as image processors of transformers make them.

    Returns:
        None where these are the labels of something else.

    Raises:
        DataError: A row has another number of boxes than of classes.

    Example:
        >>> box = torch.tensor([[0.5, 0.5, 0.25, 0.25]])
        >>> object_labels([{"class_labels": torch.tensor([3]), "boxes": box}])
        tensor([[[3.0000, 0.5000, 0.5000, 0.2500, 0.2500]]])
    """
    if not labels or any(not {CLASSES, BOXES} <= row.keys() for row in labels):
        return None
    rows = []
    for row in labels:
        classes, boxes = (torch.as_tensor(row[name]) for name in (CLASSES, BOXES))
        if classes.dim() != 1 or boxes.numel() != N_BOX * len(classes):
            raise DataError(
                f"the {CLASSES} of a row have the shape {tuple(classes.shape)} and its {BOXES} {tuple(boxes.shape)}; "
                f"expected [objects] and [objects, {N_BOX}]"
            )
        boxes = boxes.reshape(-1, N_BOX).to(torch.promote_types(boxes.dtype, torch.float32))
        rows.append(torch.cat([classes.unsqueeze(-1).to(boxes), boxes], dim=-1))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED_TOKEN)


def objects_as_tensor(labels: Any) -> Any:
    """Labels as they are, but a list of the objects of rows as `object_labels` gives it."""
    is_list_of_mappings = isinstance(labels, (list, tuple)) and all(isinstance(row, Mapping) for row in labels)
    objects = object_labels(labels) if is_list_of_mappings else None
    return labels if objects is None else objects


def _parts(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask of the places that are objects, their classes, and their boxes."""
    classes = labels[..., 0].long()
    return classes != IGNORED_TOKEN, classes, labels[..., 1:]


def _target(labels: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """Labels of one row as transformers takes them, in the dtype of its logits."""
    counts, classes, boxes = _parts(labels)
    return {CLASSES: classes[counts], BOXES: boxes[counts].to(logits.dtype)}


def _at(logits: Tensor, queries: Tensor) -> Tensor:
    """Logits and boxes at the query of each object, ``[batch, objects, classes + 4]``."""
    return logits.gather(1, queries.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of each row over its objects."""
    return values.masked_fill(~counts, 0.0).sum(1) / counts.sum(1)


def _overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the generalized one (https://giou.stanford.edu), of boxes one by one."""
    (low, high), (other_low, other_high) = _corners(boxes), _corners(others)
    shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    union = (high - low).prod(-1) + (other_high - other_low).prod(-1) - shared
    around = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(-1)
    iou = shared / union
    return iou, iou - (around - union) / around


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    center, size = boxes[..., :2], boxes[..., 2:]
    return center - size / 2, center + size / 2


def _refuse(bad: Tensor, message: str, values: Tensor | None = None) -> None:
    """Raise LabelError for the row of the first value that is bad; ``{}`` in the message is the value."""
    if bool(bad.any()):
        shown = message if values is None else message.format(values[bad][0].tolist())
        raise LabelError(shown, int(bad.nonzero()[0, 0]))
