"""CheckFirst: a callback's checks before the trackers start, so that a refused training leaves no empty run behind."""

import inspect
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler

TRACKERS = tuple(INTEGRATION_TO_CALLBACK.values())


class CheckFirst(TrainerCallback):
    """Begins a training for a callback that stands behind the trackers; nothing once that callback is removed.

    Args:
        handler: Callbacks of the trainer.
        callback: The callback.
        begin: What it does when a training begins.
    """

    def __init__(self, handler: CallbackHandler, callback: TrainerCallback, begin: Callable[..., None]) -> None:
        self._handler = handler
        self._callback = callback
        self._begin = begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check, and raise what is wrong."""
        if any(other is self._callback for other in self._handler.callbacks):
            self._begin(args, state, control, **kwargs)


def check_before_trackers(callback: TrainerCallback, begin: Callable[..., None]) -> None:
    """Let a callback begin before the trackers of its trainer; call it in ``on_init_end``.

    `transformers` calls the trackers that ``report_to`` names before the callbacks that a user passes, and W&B's opens
    its run there. Nothing changes if a callback in between does something at that event: it may prepare the model.

    Args:
        callback: The callback.
        begin: What it does when a training begins, with the arguments of that event.
    """
    handler = _calling_handler(callback)
    if handler is None:
        return
    before = handler.callbacks[: next(i for i, other in enumerate(handler.callbacks) if other is callback)]
    first = next((i for i, other in enumerate(before) if isinstance(other, TRACKERS)), None)
    if first is None or any(_prepares(other) for other in before[first:] if not isinstance(other, TRACKERS)):
        return
    # a new list, because the handler is iterating over this one
    gate = CheckFirst(handler, callback, begin)
    handler.callbacks = [*handler.callbacks[:first], gate, *handler.callbacks[first:]]


def _prepares(callback: TrainerCallback) -> bool:
    return type(callback).on_train_begin is not TrainerCallback.on_train_begin


def _calling_handler(callback: TrainerCallback) -> CallbackHandler | None:
    """The handler that is calling a callback: the event does not pass it. None if somebody else calls."""
    frame = inspect.currentframe()
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler) and any(other is callback for other in handler.callbacks):
            return handler
        frame = frame.f_back
    return None
