"""TrainingPasses: what a training's own forward and backward passes say about each row, by hooks on its model."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import ModelError
from vog_hf.gradients.embedding_cut import has_tokens_first
from vog_hf.gradients.input_leaf import InputLeaf, averaged_axis, find_leaf
from vog_hf.gradients.model_inputs import split_batch
from vog_hf.gradients.model_outputs import find_logits
from vog_hf.gradients.observed_passes import ObservedPass, settle
from vog_hf.gradients.targets import find_task
from vog_hf.gradients.token_tasks import TokenPrediction
from vog_hf.metric.definition import squared_norm

if TYPE_CHECKING:
    from vog_hf.gradients.task import Task

Hook = TypeVar("Hook", bound=Callable[..., Any])

# What autograd calls the last step to logits of which the model's own loss has those before it: mixed precision returns
# a cast, and DeepSpeed ZeRO-3 an identity.
COPIES = ("ToCopyBackward", "PreBackwardFunctionForModuleBackward")

FULL_BYTES, FULL_PASSES = 2**20, 2**8  # after a step with more, rows are observed together


class _WithGradient(torch.autograd.Function):
    """A tensor without a graph as the result of an operation, which unlike a leaf may be changed in place."""

    @staticmethod
    @override
    def forward(ctx: Any, value: Tensor, _asks: Tensor) -> Tensor:
        ctx.mark_dirty(value)
        return value

    @staticmethod
    @override
    def backward(ctx: Any, *_gradients: Tensor) -> tuple[None, None]:
        return None, None


class TrainingPasses:
    """Observes each numbered batch in the passes that train on it, from `attach` to `detach`.

    The model computes what it would have computed. Floating inputs of a batch are given a gradient, in the same memory;
    the embeddings of tokens have one anyway. The number of rows and their labels are taken out of the batch before
    forward.

    Args:
        model: Unwrapped.
        keys: Keys of a batch with the rows' numbers and with their labels.
        label_names: Keys under which forward gets labels.
        task_name: Name of the task; None: as `find_task` finds it.
        smoothing: Label smoothing of the training.
        on_batch: Gets a pass, whose values are there once it is settled.
        on_error: Gets an error of any batch but the first, after which nothing is observed any more.
        on_gradient: Gets the number of each row, its gradient ``[batch, *input]``, the mask of elements that count
            (None: all), and the pass whose weights divide the gradients once it is settled (None: they are those of
            each row's own mean loss already). Channels are averaged, or come last. None: gradients are not needed.
        reduce_channels: Average that gradient over the channels (see `VoGConfig`).

    Attributes:
        leaf: Input whose gradient is taken; None before the first batch.
        task: Task of the model; None before the first batch.
        element_shape: Shape of one row's input in the first batch.
        n_outputs: Number of the model's outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        keys: tuple[str, str],
        *,
        label_names: Sequence[str],
        task_name: str | None,
        smoothing: float,
        on_batch: Callable[[ObservedPass], None],
        on_error: Callable[[Exception], None],
        on_gradient: Callable[[Tensor, Tensor, Tensor | None, ObservedPass | None], None] | None = None,
        reduce_channels: bool | str = "auto",
    ) -> None:
        self._model = model
        self._keys = keys
        self._label_names = label_names
        self._task_name = task_name
        self._smoothing = smoothing
        self._on_batch, self._on_error, self._on_gradient = on_batch, on_error, on_gradient
        self._reduce_channels = reduce_channels
        self._handles: list[Any] = []
        self._encoders: list[Any] = []  # of speech, which may ask
        self._asking: list[Any] = []
        self._current: ObservedPass | None = None
        self._last_rows: Tensor | None = None
        self._unsettled: list[ObservedPass] = []
        self._kept_bytes = 0
        self._is_observing = True
        self.n_batches = 0
        self.leaf: InputLeaf | None = None
        self.task: Task | None = None
        self.element_shape: tuple[int, ...] = ()
        self.n_outputs: int | None = None

    def attach(self) -> None:
        """Observe from now on."""
        before, after = _opaque(self._before), _opaque(self._after)
        self._handles.append(self._model.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(self._model.register_forward_hook(after))

    def detach(self) -> None:
        """Leave the model without a hook."""
        self._let_ask()
        for handle in self._handles:
            handle.remove()
        self._handles, self._current, self._last_rows = [], None, None
        self._unsettled, self._kept_bytes = [], 0

    @property
    def is_full(self) -> bool:
        """True if it is time to `settle`."""
        return self._kept_bytes >= FULL_BYTES or len(self._unsettled) >= FULL_PASSES

    def settle(self) -> None:
        """Settle all passes so far. Their backward passes must be over."""
        passes, self._unsettled, self._kept_bytes = self._unsettled, [], 0
        if self.task is not None:
            self._guarded(settle, passes, self.task, self._smoothing)

    # --- the forward pass ---

    def _before(self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """Take the numbers out, and let the input have a gradient."""
        rows_key, labels_key = self._keys
        if rows_key not in kwargs:
            return None
        kwargs = dict(kwargs)
        rows, labels = kwargs.pop(rows_key), kwargs.pop(labels_key, None)
        self._current = None
        self._let_ask()
        if self._is_observing and torch.is_grad_enabled() and rows is not self._last_rows:  # once per batch
            self._last_rows = rows
            self._guarded(self._begin, rows, labels, kwargs)
        return args, kwargs

    def _begin(self, rows: Tensor, labels: Tensor | None, kwargs: dict[str, Any]) -> None:
        inputs, given = split_batch(kwargs, self._model, self._label_names)
        self._current = current = ObservedPass(rows, given if labels is None else labels, inputs)
        if self.leaf is None:
            self.leaf = find_leaf(self._model, inputs)
            self.element_shape = tuple(inputs[self.leaf.name].shape[1:])
            self._encoders = [module for module in self._model.modules() if hasattr(module, "_requires_grad")]
            if self.leaf.embedding is not None:
                self._handles.append(self.leaf.embedding.register_forward_hook(_opaque(self._embedded)))
        value = inputs[self.leaf.name]
        if len(value) != len(rows):
            raise ModelError(
                f"a batch of {len(rows)} rows came to the model as {len(value)} examples, and scores need one example "
                "per row; pass a collator that pads rows instead of packing or splitting them, or use collect='replay'"
            )
        if self.leaf.embedding is None:
            self._keep_from_asking()
            kwargs[self.leaf.name] = self._watched(current, value)

    def _keep_from_asking(self) -> None:
        """Keep speech encoders from asking for a gradient of their input while it has one: torch refuses that."""
        self._asking = [module for module in self._encoders if getattr(module, "_requires_grad", None) is True]
        for module in self._asking:
            module._requires_grad = False  # noqa: SLF001 (of transformers' feature encoders)

    def _let_ask(self) -> None:
        """Let those ask again that were kept from it."""
        for module in self._asking:
            module._requires_grad = True  # noqa: SLF001 (of transformers' feature encoders)
        self._asking = []

    def _embedded(self, _module: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor | None:
        """Watch the embedding of the tokens, unless it is computed without a graph (frozen, or checkpointed)."""
        current = self._current
        if current is None or self.leaf is None or current.is_watched or not isinstance(output, Tensor):
            return None
        if not torch.is_grad_enabled():
            return None
        ids = current.inputs[self.leaf.name]
        if output.dim() <= ids.dim():
            return None
        current.tokens_first = has_tokens_first(ids, args, output)
        self.element_shape = (*tuple(ids.shape[1:]), output.shape[-1])
        if output.requires_grad:
            self._watch(current, output)
            return None
        return self._watched(current, output)  # of frozen weights, as under an adapter

    def _watched(self, current: ObservedPass, value: Tensor) -> Tensor:
        """``value`` as a tensor with a gradient, which the model may change in place, in the same memory."""
        watched = _WithGradient.apply(value.detach(), torch.empty(0, device=value.device, requires_grad=True))
        self._watch(current, watched)
        return watched

    def _watch(self, current: ObservedPass, leaf: Tensor) -> None:
        """Read off the squared norm of the gradient when it is known."""
        current.is_watched = True

        def arrived(gradient: Tensor) -> None:
            self._guarded(self._norms, current, gradient)

        leaf.register_hook(arrived)

    def _after(self, _model: nn.Module, _args: tuple[object, ...], outputs: object) -> None:
        """Observe the logits."""
        current, self._current = self._current, None
        self._let_ask()
        if current is not None:
            self._guarded(self._observe, current, outputs)

    def _observe(self, current: ObservedPass, outputs: object) -> None:
        if current.labels is None:
            raise ModelError(
                "the batch has no labels, and a row's loss needs one; pass label_column=, or use collect='replay'"
            )
        task = self.task or find_task(self._model, outputs, current.labels, name=self._task_name)
        if not task.is_observed_in_training:
            raise ModelError(
                f"collect='training' cannot observe the loss of {task.name} in the passes that train it; use "
                "collect='replay'"
            )
        logits = find_logits(outputs)
        if self.task is None:
            self.task, self.n_outputs = task, task.n_outputs(logits)
            if not isinstance(self.task, TokenPrediction):  # rows without a label token are not observed
                self.task.check_labels(current.labels, self.n_outputs)
        given = current.labels.to(logits.device)
        counted = self.task.counted_labels(given, current.inputs)
        counted = given if counted is None else counted
        current.observe(self.task, logits, counted, self._smoothing, at_once=self.n_batches == 0)
        current.mask, current.element_mask = self._masks(current)
        current.inputs = {}
        self._watch_logits(current, logits)
        loss = getattr(outputs, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad:
            self._watch_loss(current, loss)
        self._unsettled.append(current)
        self._kept_bytes += current.nbytes
        self._on_batch(current)
        self.n_batches += 1

    def _masks(self, current: ObservedPass) -> tuple[Tensor | None, Tensor | None]:
        """Mask of the elements of the input that count (None: all); and for gradients, one of tokens in any case."""
        leaf = self.leaf
        assert leaf is not None  # noqa: S101 (`_begin` has set it)
        value = current.inputs[leaf.name]
        shape = list(value.shape)
        axis = leaf.kind.channel_axis(shape)
        if axis is not None:
            del shape[axis]
        mask = leaf.padding_mask(current.inputs, shape)
        return mask, leaf.kind.unpadded(value) if mask is None and self._on_gradient is not None else mask

    # --- the backward pass ---

    def _watch_logits(self, current: ObservedPass, logits: Tensor) -> None:
        """Read off the weight of each row's loss when the gradient of the logits is known."""
        node, index = logits.grad_fn, logits.output_nr
        while node is not None and node.name().startswith(COPIES):
            node, index = node.next_functions[0]
        if node is None:
            return

        def arrived(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[index]
            if gradient is not None:
                self._guarded(self._weigh, current, gradient)

        node.register_prehook(arrived)

    def _watch_loss(self, current: ObservedPass, loss: Tensor) -> None:
        """Keep the gradient of the model's loss, from which rows are weighed if no gradient arrives at the logits."""
        value = loss.detach()

        def arrived(gradient: Tensor) -> None:
            current.loss = value, gradient.detach()

        loss.register_hook(arrived)

    def _weigh(self, current: ObservedPass, gradient: Tensor) -> None:
        current.weigh(gradient.detach())

    def _norms(self, current: ObservedPass, gradient: Tensor) -> None:
        """Squared norm of each row's part of the gradient of the training's loss."""
        if current.norms is not None or self.leaf is None:
            return
        current.weigh_by_loss()
        if not current.has_weights:  # of another loss than that of the logits
            current.norms = torch.full((len(current.rows),), torch.nan, device=gradient.device)
            return
        gradient = gradient.detach().transpose(0, 1) if current.tokens_first else gradient.detach()
        axis = self.leaf.kind.channel_axis(gradient.shape)
        current.norms = squared_norm(gradient, current.mask, channel_axis=axis)
        if self._on_gradient is not None:
            divisor = current if current.weights is None else None
            self._on_gradient(current.rows, self._of_rows(current, gradient, axis), current.element_mask, divisor)

    def _of_rows(self, current: ObservedPass, gradient: Tensor, channel_axis: int | None) -> Tensor:
        """Gradients of the rows in memory of their own, with averaged channels, divided by the weights if known."""
        assert self.leaf is not None  # noqa: S101 (`_begin` has set it)
        averaged = None if channel_axis is None else averaged_axis(self._reduce_channels, self.leaf, gradient.shape)
        if averaged is not None and channel_axis is not None:
            gradient = gradient.mean(channel_axis)
        elif channel_axis is not None:
            gradient = gradient.movedim(channel_axis, -1)
        if current.weights is not None:
            return current.of_own_losses(gradient)
        return gradient.clone() if averaged is None else gradient

    def _guarded(self, work: Callable[..., None], *args: object) -> None:
        """Run ``work``; an error in the first batch ends the training before its first step, a later one does not."""
        if not self._is_observing:
            return
        try:
            work(*args)
        except Exception as error:
            self._is_observing = False
            if self.n_batches == 0:
                raise
            self._on_error(error)


def _opaque(hook: Hook) -> Hook:
    """A hook that ``torch.compile`` does not look into, so that it runs as it is in each pass."""
    compiles = "torch._dynamo" in sys.modules  # importing it takes a second
    return torch.compiler.disable(hook) if compiles else hook
