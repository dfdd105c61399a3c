"""TrainingPasses: what a training's own forward and backward passes say about each row, by hooks on its model."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import ModelError
from vog_hf.gradients.embedding_cut import has_tokens_first
from vog_hf.gradients.input_leaf import InputLeaf, averaged_axis, find_leaf
from vog_hf.gradients.model_inputs import split_batch
from vog_hf.gradients.model_outputs import find_logits
from vog_hf.gradients.row_losses import RowLosses, row_losses
from vog_hf.gradients.targets import find_task
from vog_hf.gradients.token_tasks import TokenPrediction
from vog_hf.metric.definition import squared_norm
from vog_hf.metric.vocabulary import CSG

if TYPE_CHECKING:
    from vog_hf.gradients.task import Task

Hook = TypeVar("Hook", bound=Callable[..., Any])

# What autograd calls the last step to logits of which the model's own loss has those before it: mixed precision returns
# a cast, and DeepSpeed ZeRO-3 an identity.
COPIES = ("ToCopyBackward", "PreBackwardFunctionForModuleBackward")


@dataclass
class _Pass:
    """A forward pass with numbered rows, until its backward pass is over."""

    rows: Tensor
    labels: Tensor | None
    inputs: Mapping[str, Any]
    mask: Tensor | None = None
    losses: RowLosses | None = None
    weights: Tensor | None = None
    loss: tuple[Tensor, Tensor] | None = None  # of the model, with its gradient
    tokens_first: bool = False
    values: dict[str, Tensor] = field(default_factory=dict)


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
        on_batch: Gets the number of each row and what was observed, ``[batch]`` each. The tensor under ``csg``, NaN at
            first, is filled in by the backward pass.
        on_error: Gets an error of any batch but the first, after which nothing is observed any more.
        on_gradient: Gets the number of each row, the gradient of its own mean loss ``[batch, *input]``, not finite
            where it is unknown, and the mask of elements that count (None: all). Channels are averaged, or come last.
            None: gradients are not needed.
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
        on_batch: Callable[[Tensor, dict[str, Tensor]], None],
        on_error: Callable[[Exception], None],
        on_gradient: Callable[[Tensor, Tensor, Tensor | None], None] | None = None,
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
        self._current: _Pass | None = None
        self._last_rows: Tensor | None = None
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
        self._current = current = _Pass(rows, given if labels is None else labels, inputs)
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
        if current is None or self.leaf is None or current.values or not isinstance(output, Tensor):
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

    def _watched(self, current: _Pass, value: Tensor) -> Tensor:
        """``value`` as a tensor with a gradient, which the model may change in place, in the same memory."""
        watched = _WithGradient.apply(value.detach(), torch.empty(0, device=value.device, requires_grad=True))
        self._watch(current, watched)
        return watched

    def _watch(self, current: _Pass, leaf: Tensor) -> None:
        """Fill in the squared norm of the gradient when it is known."""
        current.values[CSG] = torch.full((len(current.rows),), torch.nan, device=leaf.device)

        def arrived(gradient: Tensor) -> None:
            self._guarded(self._norms, current, gradient)

        leaf.register_hook(arrived)

    def _after(self, _model: nn.Module, _args: tuple[object, ...], outputs: object) -> None:
        """Observe the logits."""
        current, self._current = self._current, None
        self._let_ask()
        if current is not None:
            self._guarded(self._observe, current, outputs)

    def _observe(self, current: _Pass, outputs: object) -> None:
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
        current.losses = row_losses(self.task, logits, given if counted is None else counted, self._smoothing)
        current.mask = self._mask(current)
        self._watch_logits(current, logits)
        loss = getattr(outputs, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad:
            self._watch_loss(current, loss)
        current.values.setdefault(CSG, torch.full((len(current.rows),), torch.nan, device=logits.device))
        current.values |= current.losses.observation
        if current.labels.shape == current.rows.shape:
            current.values["label"] = current.labels
        self._on_batch(current.rows, current.values)
        self.n_batches += 1

    def _mask(self, current: _Pass) -> Tensor | None:
        """Mask of the elements of the input that count; None: all."""
        leaf = self.leaf
        assert leaf is not None  # noqa: S101 (`_begin` has set it)
        shape = list(current.inputs[leaf.name].shape)
        axis = leaf.kind.channel_axis(shape)
        if axis is not None:
            del shape[axis]
        return leaf.padding_mask(current.inputs, shape)

    # --- the backward pass ---

    def _watch_logits(self, current: _Pass, logits: Tensor) -> None:
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

    def _watch_loss(self, current: _Pass, loss: Tensor) -> None:
        """Keep the gradient of the model's loss, from which rows are weighed if no gradient arrives at the logits."""
        value = loss.detach()

        def arrived(gradient: Tensor) -> None:
            current.loss = value, gradient.detach()

        loss.register_hook(arrived)

    def _weigh(self, current: _Pass, gradient: Tensor) -> None:
        if current.losses is not None:
            current.weights = current.losses.weights(gradient.detach())
            current.losses = None

    def _norms(self, current: _Pass, gradient: Tensor) -> None:
        """Squared norm of the gradient of each row's own mean loss."""
        if current.weights is None and current.losses is not None and current.loss is not None:
            value, of_loss = current.loss
            current.weights = current.losses.weights_in_mean(value) * of_loss
        current.losses = current.loss = None
        if current.weights is None or self.leaf is None:
            return
        gradient = gradient.detach().transpose(0, 1) if current.tokens_first else gradient.detach()
        axis = self.leaf.kind.channel_axis(gradient.shape)
        norms = squared_norm(gradient, current.mask, channel_axis=axis)
        weights = current.weights.to(norms)
        norms = norms / weights.square()
        current.values[CSG].copy_(torch.where(norms.isfinite(), norms, torch.nan))  # half precision overflows
        current.weights = None
        if self._on_gradient is not None:
            self._on_gradient(current.rows, self._of_rows(gradient, axis, weights), self._element_mask(current))

    def _of_rows(self, gradient: Tensor, channel_axis: int | None, weights: Tensor) -> Tensor:
        """Gradient of each row's own mean loss, from that of the training's loss."""
        assert self.leaf is not None  # noqa: S101 (`_begin` has set it)
        if channel_axis is not None:
            averaged = averaged_axis(self._reduce_channels, self.leaf, gradient.shape)
            gradient = gradient.movedim(channel_axis, -1) if averaged is None else gradient.mean(channel_axis)
        return gradient.to(weights.dtype) / weights.reshape(-1, *[1] * (gradient.dim() - 1))

    def _element_mask(self, current: _Pass) -> Tensor | None:
        assert self.leaf is not None  # noqa: S101 (`_begin` has set it)
        if current.mask is not None:
            return current.mask
        return self.leaf.kind.unpadded(current.inputs[self.leaf.name])

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
