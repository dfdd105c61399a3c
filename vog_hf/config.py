"""VoGConfig: every option that changes a number, validated on creation, with conversion to and from JSON."""

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any
from uuid import uuid4

import torch

from vog_hf.errors import ConfigError, require_type, shown
from vog_hf.gradients.targets import Target, target_name
from vog_hf.gradients.task import TARGETS
from vog_hf.gradients.tasks import PREDICTING_TASKS, TASKS
from vog_hf.metric.vocabulary import ENDINGS, column_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VoGConfig:
    """The definition of the scores. Defaults follow the paper; speed and memory are options of the scorer.

    Attributes:
        target: Scalar to differentiate: ``"logit"`` (the paper), ``"probability"`` (softmax), ``"loss"`` or
            ``target(outputs, batch) -> [batch]``; several as a tuple, and the first fills the column ``vog``. With
            ``"loss"`` among them there is a column ``csg`` (Cumulative Sample Gradient).
        label: Class to differentiate: ``"given"`` (rows without a label use the prediction) or ``"predicted"`` (by the
            last snapshot, for every row). Companions and normalization always use the given label.
        label_column: Column or batch key of the label; default: Trainer's label names, else ``labels``, ``label``,
            ``label_ids`` of the collated batch.
        task: Meaning of the logits, one of `vog_hf.gradients.tasks.TASKS`; default: determined from the model (see
            `find_task`).
        reduce_channels: Average gradients over the channels first; ``"auto"`` does this for images only.
        dtype: Precision of the model while scoring: ``"float32"`` (lower-precision weights are cast up, float64 stays),
            ``"bfloat16"`` (the same weights under autocast: faster on some devices, two to three digits) or ``"model"``
            (unchanged, for large frozen bf16 models).
        heat_maps: Store one pooled VoG map per row (at most 32 x 32, or one value per token).
        token_units: Score each label token of causal and masked language models as a unit of its row (``loss_token``,
            ``vog_token``, ...): 28 bytes a token on disk, and in memory wherever the scores are read.

    Raises:
        ConfigError: An unknown value, or an unsupported combination.

    Example:
        >>> VoGConfig(target=("logit", "loss")).target_names
        ('logit', 'loss')
    """

    target: Target | tuple[Target, ...] = "logit"
    label: str = "given"
    label_column: str | None = None
    task: str | None = None
    reduce_channels: bool | str = "auto"
    dtype: str = "float32"
    heat_maps: bool = True
    token_units: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.target, list):
            object.__setattr__(self, "target", tuple(self.target))
        if not self.targets:
            raise ConfigError(
                f"target must name at least one of {', '.join(TARGETS)} or a callable, got {self.target!r}"
            )
        for target in self.targets:
            if not callable(target) and not any(_is_same(target, name) for name in TARGETS):
                raise ConfigError(
                    f"target must be {', '.join(TARGETS)} or a callable(outputs, batch) -> [batch], got {target!r}"
                )
        if len(set(self.target_names)) < len(self.targets):
            raise ConfigError(f"targets must differ from one another, got {self.target_names}")
        self._check_column_names()
        _check_choice("label", self.label, ("given", "predicted"))
        _check_choice("task", self.task, (None, *TASKS))
        _check_choice("reduce_channels", self.reduce_channels, ("auto", True, False))
        _check_choice("dtype", self.dtype, ("float32", "bfloat16", "model"))
        _check_choice("heat_maps", self.heat_maps, (True, False))
        _check_choice("token_units", self.token_units, (True, False))
        if self.task is not None and self.label == "predicted" and not TASKS[self.task].can_predict_label:
            raise ConfigError(
                f"label='predicted' needs a task that predicts one label per row ({', '.join(PREDICTING_TASKS)}), got "
                f"task={self.task!r}; use label='given'",
                argument=("label='predicted'", "label='given'"),
            )
        if self.task is not None:
            for target in self.targets:
                if isinstance(target, str) and target not in TASKS[self.task].targets:
                    raise ConfigError(
                        f"target {target!r} does not exist for task {self.task!r}: {TASKS[self.task].targets}"
                    )

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets as a tuple, even if there is only one."""
        return self.target if isinstance(self.target, tuple) else (self.target,)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of the targets; the qualified name of a callable."""
        return tuple(target_name(target) for target in self.targets)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The column of each target's VoG: ``vog`` for the first, then ``vog_loss``, ``vog_<function name>``."""
        return column_names(self.target_names)

    @property
    def loss_target(self) -> int | None:
        """Position of the target ``"loss"``, of which the column ``csg`` is computed; None without it."""
        return next((i for i, target in enumerate(self.targets) if _is_same(target, "loss")), None)

    @property
    def casts_up(self) -> bool:
        """True if weights of fewer than 32 bits are cast to float32 while scoring."""
        return self.dtype != "model"

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast while scoring, None for no autocast."""
        return torch.bfloat16 if self.dtype == "bfloat16" else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; callables become their qualified names. ``token_units`` is left out where it is false."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.token_units:  # as in folders of versions without it, which are continued
            del values["token_units"]
        return {**values, "target": list(self.target_names)}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VoGConfig":
        """The configuration from the result of `to_dict`.

        Raises:
            ConfigError: An unknown option, or a callable target, which cannot be restored from its name.
        """
        require_type("a configuration", values, Mapping, "pass the result of to_dict")
        unknown = sorted(map(str, set(values) - {field.name for field in fields(cls)}))
        if unknown:
            raise ConfigError(f"unknown options {unknown}; a VoGConfig has {[field.name for field in fields(cls)]}")
        target = values.get("target", "logit")
        target = target[0] if isinstance(target, list) and len(target) == 1 else target
        return cls(**{**values, "target": tuple(target) if isinstance(target, list) else target})

    @classmethod
    def from_json(cls, text: str) -> "VoGConfig":
        """The configuration from the result of `to_json`.

        Raises:
            ConfigError: Not JSON, or as for `from_dict`.
        """
        require_type("a configuration in JSON", text, (str, bytes), "pass the result of to_json")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"a configuration in JSON was expected, got {shown(text)}: {error}; pass the result of to_json"
            ) from error
        return cls.from_dict(values)

    def _check_column_names(self) -> None:
        """Raise unless the label column is a name and every target has its own columns, with these endings."""
        if self.label_column is not None and not isinstance(self.label_column, str):
            raise ConfigError(
                f"label_column must be the name of a column or None, got {self.label_column!r}", argument="label_column"
            )
        columns = [name + ending for name in self.column_names for ending in ENDINGS]
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"targets must give different column names, got {self.column_names}, and two of them give the column "
                f"{twice!r}; rename the function"
            )


def _check_choice(option: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(_is_same(value, choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{option} must be one of {listed}, got {value!r}", argument=option)


def _is_same(value: object, choice: object) -> bool:
    """True if a value is a choice; ``==`` fails here because arrays compare elementwise and 1 equals True."""
    return value is choice or (isinstance(value, str) and value == choice)


def target_digest(target: Callable[..., Any]) -> str:
    """A digest that changes when a callable target is edited: code, defaults, closure, bound arguments and state.

    Functions that it calls in an imported module contribute only their names.
    """
    from datasets.fingerprint import Hasher

    function: Any = target
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    try:
        return str(Hasher.hash((target, code)))  # without the code, a function that can be imported is only its name
    except Exception as error:  # noqa: BLE001 (whatever cannot be pickled)
        logger.warning(
            "edits of target %s cannot be detected (%s), so its scores are never resumed",
            target_name(target),
            error,
        )
        return uuid4().hex
