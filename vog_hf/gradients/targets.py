"""The scalar of a row that is differentiated: a task knows its logits and labels, a target picks the scalar."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vog_hf.errors import ConfigError, ModelError
from vog_hf.gradients.tasks import (
    CALLABLE_TARGET,
    CAUSAL_LOSSES,
    TASKS,
    CausalLanguageModel,
    MultiLabelClassification,
    Regression,
    SingleLabelClassification,
    Task,
    TokenPrediction,
)

TargetFunction = Callable[[Any, Mapping[str, Any]], Tensor]
Target = str | TargetFunction


def find_task(model: nn.Module, logits: Tensor, labels: Tensor | None, *, name: str | None = None) -> Task:
    """The task of a model: as it is named, else by ``config.problem_type``, its head, the shapes of logits and labels.

    Raises:
        ModelError: None of these says what the logits mean.
    """
    task = TASKS[name or _task_name(model, logits, labels)]
    virtual_tokens = _n_virtual_tokens(model)
    return type(task)(virtual_tokens) if virtual_tokens and isinstance(task, TokenPrediction) else task


def _n_virtual_tokens(model: nn.Module) -> int:
    """How many tokens PEFT puts before those of each row (prompt tuning, p-tuning)."""
    peft_model = getattr(sys.modules.get("peft"), "PeftModel", ())  # a model of PEFT's has had it imported
    config: Any = model.active_peft_config if isinstance(model, peft_model) else None
    return config.num_virtual_tokens if getattr(config, "is_prompt_learning", False) else 0


def _task_name(model: nn.Module, logits: Tensor, labels: Tensor | None) -> str:
    config = getattr(model, "config", None)
    problem_type = getattr(config, "problem_type", None)
    if problem_type is not None and logits.dim() <= 2:
        if problem_type not in TASKS:
            raise ModelError(
                f"the model's configuration has problem_type {problem_type!r}, expected one of {', '.join(TASKS)}"
            )
        return str(problem_type)
    if logits.dim() == 3:
        return CausalLanguageModel.name if _is_causal(model) else TokenPrediction.name
    outputs = logits.shape[1] if logits.dim() == 2 else 1
    if logits.dim() > 2:
        raise ModelError(
            f"logits of shape {tuple(logits.shape)} belong to no task that is known here; pass "
            f"{CALLABLE_TARGET}; docs/limitations.md has that of segmentation"
        )
    if outputs == 1:
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
        return task.scalar(target, find_logits(outputs), labels)
    values: Any = target(outputs, batch if labels is None else {**batch, "labels": labels})
    rows = len(next(value for value in batch.values() if isinstance(value, Tensor)))
    if not isinstance(values, Tensor) or values.shape != (rows,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ConfigError(
            f"target {target_name(target)} must return one value per row, a tensor of shape ({rows},), got {got}"
        )
    return values


def find_logits(outputs: object) -> Tensor:
    """The logits of a ModelOutput, a dict with ``logits``, a tuple (its first entry behind the loss) or a tensor."""
    if isinstance(outputs, Tensor) and outputs.dim() > 0:
        return outputs
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
        return outputs["logits"]
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(outputs, (tuple, list)):
        behind_loss = outputs[1:] if outputs and _is_no_logits(outputs[0]) else outputs
        if behind_loss and isinstance(behind_loss[0], Tensor):
            return behind_loss[0]
    found = f"a mapping with {sorted(outputs)}" if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
    found = "a single number (a loss?)" if isinstance(outputs, Tensor) else found
    raise ModelError(
        f"a model must return logits (a tensor, a tuple (loss, logits), or `logits` in its output), got {found}; for "
        f"other outputs (start_logits, boxes, reconstruction) pass {CALLABLE_TARGET}; docs/limitations.md has examples"
    )


def _is_no_logits(value: object) -> bool:
    """Tell whether a tuple's first entry is the loss: a single number, or None without labels."""
    return value is None or (isinstance(value, Tensor) and value.dim() == 0)


def fill_missing_labels(labels: Tensor | None, prediction: Tensor) -> Tensor:
    """The given labels, with the model's prediction where there is none (a negative label, or no labels at all)."""
    return prediction if labels is None else torch.where(labels < 0, prediction, labels)


def target_name(target: Target) -> str:
    """Name of a target in a manifest: itself, or a callable's qualified name."""
    if isinstance(target, str):
        return target
    owner: Any = target if hasattr(target, "__qualname__") else type(target)
    return f"{owner.__module__}.{owner.__qualname__}"


def base_model(model: nn.Module) -> nn.Module:
    """The model under an adapter (PEFT), else the model itself."""
    getter = getattr(model, "get_base_model", None)
    return getter() if callable(getter) else model


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
