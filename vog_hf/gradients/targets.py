"""The scalar of a row that is differentiated: a task knows its logits and labels, a target picks the scalar."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.errors import ConfigError, ModelError
from vog_hf.gradients.class_tasks import (
    MultiLabelClassification,
    MultipleChoice,
    Regression,
    SingleLabelClassification,
)
from vog_hf.gradients.detection import ObjectDetection
from vog_hf.gradients.dual_encoders import PairSimilarity, has_similarities
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, base_model, find_logits
from vog_hf.gradients.preferences import ANSWERS, TEXTS_OF_ROW, PreferenceOptimization, RewardModeling
from vog_hf.gradients.question_answering import QuestionAnswering, has_answer
from vog_hf.gradients.reconstruction import PixelReconstruction, has_hidden_patches
from vog_hf.gradients.segmentation import SemanticSegmentation
from vog_hf.gradients.sentence_encoders import AS_MAPPING, task_of_sentences
from vog_hf.gradients.speech_recognition import SpeechRecognition
from vog_hf.gradients.task import Task
from vog_hf.gradients.tasks import TASKS
from vog_hf.gradients.token_tasks import CausalLanguageModel, TokenClassification, TokenPrediction

TargetFunction = Callable[[Any, Mapping[str, Any]], Tensor]
Target = str | TargetFunction
CAUSAL_LOSSES = ("ForCausalLM", "ForConditionalGeneration")  # transformers' `loss_type` of models that shift labels
HEADS = {  # endings of the names of classes
    "ForSemanticSegmentation": SemanticSegmentation.name,
    "ForObjectDetection": ObjectDetection.name,
    "ForCTC": SpeechRecognition.name,
    "ForMultipleChoice": MultipleChoice.name,
    "ForMaskedImageModeling": PixelReconstruction.name,
    "ForTokenClassification": TokenClassification.name,
}
BY_OUTPUTS: tuple[tuple[Callable[[object], bool], str], ...] = (
    (has_answer, QuestionAnswering.name),
    (has_hidden_patches, PixelReconstruction.name),
    (has_similarities, PairSimilarity.name),
)


def find_task(
    model: nn.Module,
    outputs: object,
    labels: Tensor | None,
    *,
    name: str | None = None,
    inputs: Collection[str] = (),
) -> Task:
    """The task of a model: as it is named, else by its outputs, ``config.problem_type``, its head or the labels' shape.

    Args:
        model: Model under an adapter or not.
        outputs: Outputs of its forward pass.
        labels: Labels of the batch.
        name: Name of the task, if it is known.
        inputs: Names of the inputs, which tell preferences and pairs from single texts.

    Raises:
        ModelError: None of these says what the outputs mean.
    """
    return TASKS[name or _task_name(model, outputs, labels, inputs)].for_model(model)


def _task_name(model: nn.Module, outputs: object, labels: Tensor | None, inputs: Collection[str]) -> str:
    if TEXTS_OF_ROW in inputs and AS_MAPPING not in inputs:
        return PreferenceOptimization.name if ANSWERS in inputs else RewardModeling.name
    by_outputs = next((task for is_one, task in BY_OUTPUTS if is_one(outputs)), task_of_sentences(outputs, inputs))
    if by_outputs is not None:
        return by_outputs
    classes = [cls.__name__ for cls in type(base_model(model)).__mro__]
    by_head = next((task for head, task in HEADS.items() if any(name.endswith(head) for name in classes)), None)
    if by_head is not None:
        return by_head
    logits = find_logits(outputs)
    if logits.dim() == 4 and labels is not None and labels.dim() == 3 and not labels.is_floating_point():
        return SemanticSegmentation.name
    return _name_by_logits(model, logits, labels)


def _name_by_logits(model: nn.Module, logits: Tensor, labels: Tensor | None) -> str:
    config = getattr(model, "config", None)
    problem_type = getattr(config, "problem_type", None)
    if problem_type is not None and logits.dim() <= 2:
        if problem_type not in TASKS:
            raise ModelError(
                f"the model's configuration has problem_type {problem_type!r}, expected one of {', '.join(TASKS)}"
            )
        return str(problem_type)
    has_boxes = labels is not None and labels.is_floating_point() and labels.dim() == 3
    if logits.dim() == 3 and not has_boxes:
        return CausalLanguageModel.name if _is_causal(model) else TokenPrediction.name
    n_outputs = logits.shape[1] if logits.dim() == 2 else 1
    if logits.dim() > 2:
        raise ModelError(
            f"logits of shape {tuple(logits.shape)} belong to no task that is known here; pass {CALLABLE_TARGET}"
        )
    if n_outputs == 1:
        return Regression.name
    if labels is not None and labels.is_floating_point():
        return MultiLabelClassification.name if labels.dim() == 2 else Regression.name
    if labels is not None and labels.dim() == 2 and labels.shape[1] > 1:
        return MultiLabelClassification.name
    return SingleLabelClassification.name


def check_target(target: Target, task: Task) -> None:
    """Raise ConfigError where a task has no such target."""
    if isinstance(target, str) and target not in task.targets:
        raise ConfigError(
            f"target {target!r} does not exist for {task.name}, which has {', '.join(task.targets)} or a callable"
        )


def row_scalar(
    target: Target, task: Task | None, outputs: object, batch: Mapping[str, object], labels: Tensor | None
) -> Tensor:
    """The scalar of each row that a target means, ``[batch]``.

    A callable gets the model's outputs and the batch as the model was fed, with the labels (if any) under ``labels``.
    """
    if isinstance(target, str):
        if task is None:
            raise ConfigError(f"target {target!r} needs a known task; pass VoGConfig(task=...) or a callable target")
        return task.scalar(target, task.logits(outputs, batch), labels)
    values: Any = target(outputs, batch if labels is None else {**batch, "labels": labels})
    rows = len(next(value for value in batch.values() if isinstance(value, Tensor)))
    if not isinstance(values, Tensor) or values.shape != (rows,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ConfigError(
            f"target {target_name(target)} must return one value per row, a tensor of shape ({rows},), got {got}"
        )
    return values


def fill_missing_labels(labels: Tensor | None, prediction: Tensor) -> Tensor:
    """The given labels, with the model's prediction where there is none (a negative label, or no labels at all)."""
    return prediction if labels is None else torch.where(labels < 0, prediction, labels)


def target_name(target: Target) -> str:
    """Name of a target in a manifest: itself, or a callable's qualified name."""
    if isinstance(target, str):
        return target
    owner: Any = target if hasattr(target, "__qualname__") else type(target)
    return f"{owner.__module__}.{owner.__qualname__}"


def _is_causal(model: nn.Module) -> bool:
    """Tell whether position i - 1 predicts label i: known by the name of the head, or of the model under an adapter.

    ``...ForConditionalGeneration`` is an encoder-decoder (T5, Whisper), or else a decoder of text that is also given
    images or sounds (Llava, Qwen-VL, Gemma 3).
    """
    inner = base_model(model)
    config = getattr(inner, "config", None)
    if any(getattr(c, "is_encoder_decoder", False) for c in (config, getattr(config, "text_config", None))):
        return False
    if getattr(inner, "loss_type", None) in CAUSAL_LOSSES:
        return True
    names = [cls.__name__ for cls in type(inner).__mro__]
    return any("CausalLM" in n or "LMHeadModel" in n or n.endswith("ForConditionalGeneration") for n in names)
