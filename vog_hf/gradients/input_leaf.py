"""The input that is differentiated: a floating tensor, or the output of the token embedding."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vog_hf.errors import ConfigError, ForwardError, ModelError
from vog_hf.gradients.dual_encoders import main_input, other_input, text_encoder
from vog_hf.gradients.embedding_cut import EmbeddingCut
from vog_hf.gradients.foldable_modules import graph_nodes
from vog_hf.gradients.images_beside_texts import IMAGES, image_leaf, require_no_entries
from vog_hf.gradients.input_kind import InputKind, Pixels, Tokens
from vog_hf.gradients.model_inputs import MASK_NAMES, copied, forward_parameters, required_parameters, takes_any_input
from vog_hf.gradients.sentence_encoders import AS_MAPPING, TOKEN_IDS, sentence_encoder
from vog_hf.runtime.memory import is_out_of_memory


@dataclass(frozen=True)
class Forward:
    """One forward pass: what the model gave and was fed, and the leaf ``x`` inside.

    ``beside`` is the leaf of images beside a text, or of the other input of a dual encoder; None: there is none.
    """

    outputs: Any
    inputs: Mapping[str, Any]
    x: Tensor
    beside: Tensor | None = None


FLOATS, PIXELS, TOKENS = InputKind(), Pixels(), Tokens()


@dataclass(frozen=True)
class InputLeaf:
    """The input with respect to which the gradient is taken: a floating tensor, or an embedding's output."""

    name: str  # key in the batch
    embedding: nn.Module | None  # the leaf is its output; None: the tensor itself
    beside: "InputLeaf | None" = None  # the other input of a dual encoder, differentiated in the same pass
    is_paired: bool = False  # an image or a sound with a text of its own, which an attention mask belongs to

    @property
    def kind(self) -> InputKind:
        """The kind of this input: all in which it differs from others."""
        if self.embedding is not None:
            return TOKENS
        return PIXELS if self.name.startswith("pixel") else FLOATS

    def element_mask(self, inputs: Mapping[str, Any], shape: Sequence[int]) -> Tensor | None:
        """Mask of the elements of ``shape = [batch, *input']`` (after a channel mean) that count; None = all."""
        mask = self.padding_mask(inputs, shape)
        return self.kind.unpadded(inputs[self.name]) if mask is None else mask

    def padding_mask(self, inputs: Mapping[str, object], shape: Sequence[int]) -> Tensor | None:
        """As `element_mask`, of a batch that says what is padding; None where it does not."""
        mask = None if self.is_paired and self.kind is FLOATS else inputs.get(self.kind.mask_name)
        return self.kind.padding_mask(mask, shape) if isinstance(mask, Tensor) else None


def find_leaf(model: nn.Module, inputs: Mapping[str, Any]) -> InputLeaf:
    """Find the input to differentiate: ``main_input_name``, else the first parameter of forward in the batch."""
    main = main_input(model)
    names = [main] if main is not None and main in inputs else []
    if AS_MAPPING in inputs:
        names = [TOKEN_IDS]
    if "inputs_embeds" in inputs:
        names = ["inputs_embeds"]
    unnamed = inputs if takes_any_input(model) else ()
    candidates = sorted(dict.fromkeys([*forward_parameters(model), *unnamed]), key=_is_beside_the_input)
    names += [name for name in candidates if isinstance(inputs.get(name), Tensor)]
    if not names:
        raise ModelError(
            f"none of forward's parameters {list(forward_parameters(model))} is a tensor of the batch, which has "
            f"{sorted(inputs)}; name the batch's keys after forward's parameters in the collator"
        )
    name = names[0]
    require_no_entries(name, inputs)
    embedding = None if inputs[name].is_floating_point() else _input_embedding(model, name, inputs)
    is_paired = embedding is None and other_input(model, name) is not None
    return InputLeaf(name, embedding, _leaf_beside(model, name, inputs), is_paired)


def _leaf_beside(model: nn.Module, name: str, inputs: Mapping[str, Any]) -> InputLeaf | None:
    """The other input of a dual encoder.

    None for other models, where there are other numbers of both (prompts for all images), and for texts whose embedding
    has no name.
    """
    other = other_input(model, name)
    if other is None or not isinstance(inputs.get(other), Tensor) or len(inputs[other]) != len(inputs[name]):
        return None
    if inputs[other].is_floating_point():
        return InputLeaf(other, None, is_paired=True)
    embedding = _find_embedding(model)
    return None if embedding is None else InputLeaf(other, embedding)


def _is_beside_the_input(name: str) -> bool:
    """Tell whether a parameter is a mask or feeds a decoder: differentiated only if there is nothing else."""
    return name in MASK_NAMES or name.startswith("decoder_")


def _find_embedding(model: nn.Module) -> nn.Module | None:
    """The token embedding that runs on the model's input; None where it names none."""
    owners: list[Any] = [model]
    get_encoder: Any = getattr(model, "get_encoder", None)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and callable(get_encoder):
        owners.insert(0, get_encoder())
    owners += [text_encoder(model), sentence_encoder(model)]
    embedding = next((found for owner in owners if (found := _named_embedding(owner)) is not None), None)
    embedding = _only_embedding_of_words(text_encoder(model)) if embedding is None else embedding
    return None if embedding is None else _copy_in_use(model, embedding)


def _input_embedding(model: nn.Module, name: str, inputs: Mapping[str, Any]) -> nn.Module:
    embedding = _find_embedding(model)
    if embedding is None:
        floating = [n for n, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
        other = f"name another input: model.main_input_name = {floating[0]!r}" if floating else "feed a floating input"
        raise ModelError(
            f"the input {name!r} is {inputs[name].dtype}, which has no gradient, and {type(model).__name__} names no "
            f"embedding to differentiate instead; define get_input_embeddings() on it, or {other}"
        )
    return embedding


def _copy_in_use(model: nn.Module, module: nn.Module) -> nn.Module:
    """The module that runs instead of one inside a module that PEFT has copied to train it (``modules_to_save``).

    PEFT leaves the original in the wrapper, and may hang further wrappers on it, which never run.
    """
    wrapper_class: Any = getattr(sys.modules.get("peft.utils.other"), "ModulesToSaveWrapper", ())
    wrappers: Iterator[Any] = model.modules()  # outermost first
    for wrapper in wrappers:
        path = wrapper is not module and isinstance(wrapper, wrapper_class) and _path_to(wrapper, module)
        if not path:
            continue
        trained = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
        runs = (
            wrapper.modules_to_save[trained[0]] if trained and not wrapper.disable_adapters else wrapper.original_module
        )
        inner: nn.Module = runs.get_submodule(re.sub(r"^(original_module|modules_to_save\.[^.]+)(\.|$)", "", path))
        return inner
    return module


def _path_to(root: nn.Module, module: nn.Module) -> str | None:
    return next((path for path, found in root.named_modules() if found is module), None)


def _named_embedding(owner: object) -> nn.Module | None:
    """Module that ``get_input_embeddings()`` returns, None where there is no such method or no answer."""
    try:
        embedding = owner.get_input_embeddings() if hasattr(owner, "get_input_embeddings") else None
    except NotImplementedError:
        return None
    return embedding if isinstance(embedding, nn.Module) else None


def _only_embedding_of_words(encoder: nn.Module | None) -> nn.Module | None:
    """The embedding with an entry for each word, in an encoder that names none (transformers 5.0); None if several."""
    n_words = getattr(getattr(encoder, "config", None), "vocab_size", None)
    modules = () if encoder is None else encoder.modules()
    found = [module for module in modules if isinstance(module, nn.Embedding) and module.num_embeddings == n_words]
    return found[0] if len(found) == 1 else None


def forward_from_leaf(model: nn.Module, inputs: Mapping[str, Any], leaf: InputLeaf) -> Forward:
    """Run ``model(**inputs)`` with the leaf cut out of the graph, so that gradients stop there.

    The model is fed a copy of the leaf: autograd forbids a model to change a leaf in place, as some do.

    Raises:
        ModelError: The leaf is not one tensor ``[batch, *input]`` that the model uses once.
    """
    leaves = _floating_leaves(inputs, leaf)
    fed = copied({**inputs, **leaves} if leaves else inputs)
    tokens = leaf.beside if leaf.embedding is None else leaf
    if tokens is None or tokens.embedding is None:
        with explained_autograd_errors():
            return Forward(model(**fed), inputs, leaves[leaf.name])
    given = fed[inputs[AS_MAPPING]] if AS_MAPPING in inputs else fed
    cut = EmbeddingCut(given[tokens.name].view_as(inputs[tokens.name]))  # by row, where rows have several texts
    with cut.watching(tokens.embedding), explained_autograd_errors():
        outputs = model(**fed)
    if leaf.embedding is None:
        return Forward(outputs, inputs, leaves[leaf.name], cut.rows)
    x = cut.rows
    if x is None:
        raise _no_vector_per_token(model, leaf.embedding, leaf.name, inputs[leaf.name], cut.caught)
    return Forward(outputs, inputs, x, next(iter(leaves.values()), None))


def _floating_leaves(inputs: Mapping[str, Any], leaf: InputLeaf) -> dict[str, Tensor]:
    """The floating inputs to differentiate, by name, each as a leaf."""
    if leaf.embedding is None:
        return {leaf.name: inputs[leaf.name].detach().requires_grad_()}
    if leaf.beside is not None:
        return {leaf.beside.name: inputs[leaf.beside.name].detach().requires_grad_()}
    image = image_leaf(inputs)
    return {} if image is None else {IMAGES: image}


def _no_vector_per_token(
    model: nn.Module, embedding: nn.Module, name: str, ids: Tensor, caught: Sequence[Tensor]
) -> ModelError:
    """The error for a model whose input embedding does not give one vector per token, once."""
    if len(caught) != 1:
        return ModelError(
            f"the input embedding of {type(model).__name__} ({type(embedding).__name__}) was used {len(caught)} "
            "times in one forward pass, expected exactly once; pass inputs_embeds, or return the embedding that is "
            "really used from get_input_embeddings()"
        )
    return ModelError(
        f"the input embedding of {type(model).__name__} gave {tuple(caught[0].shape)} for {name!r} "
        f"{tuple(ids.shape)}, expected one vector per token, [batch, tokens, width]: the model flattens, pads or "
        f"reorders its tokens itself. {_advice_on_tokens(embedding, ids)}"
    )


def _advice_on_tokens(embedding: nn.Module, ids: Tensor) -> str:
    """Say what to do where an embedding does not give one vector per token."""
    if isinstance(embedding, nn.EmbeddingBag):
        return (
            "An EmbeddingBag pools the tokens of a row: use nn.Embedding, under the same name (snapshots still fit), "
            f"and take the {embedding.mode} over the tokens in forward"
        )
    if ids.dim() == 2:
        return (
            "Pad them in the collator to the length that it wants (Longformer: pad_to_multiple_of="
            "config.attention_window)"
        )
    return (
        "Of rows with several texts, a model must embed [batch * texts, tokens], the texts of a row in turn, as those "
        "for multiple choice do. Else score a model of one text per row (...ForSequenceClassification), with each text "
        "as a row of its own"
    )


def explained_forward(
    model: nn.Module, inputs: Mapping[str, object], leaf: InputLeaf, *, of: str = "the batch"
) -> Forward:
    """As `forward_from_leaf`, on a batch that the model may not take.

    Args:
        model: In evaluation mode.
        inputs: All that forward gets.
        leaf: What is differentiated.
        of: Name of the rows, for the message.

    Raises:
        ForwardError: The model fails on the batch.
        ModelError: The batch lacks what forward requires, or as `forward_from_leaf`.
    """
    try:
        return forward_from_leaf(model, inputs, leaf)
    except ModelError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):  # then fewer rows at a time are tried
            raise
        missing = [name for name in required_parameters(model) if name not in inputs]
        if missing and isinstance(error, TypeError):
            raise ModelError(
                f"forward of {type(model).__name__} requires {', '.join(map(repr, missing))}, and the batch has "
                f"{sorted(inputs)}; let the collator return what is missing, or give the parameter a default"
            ) from error
        shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, Tensor)}
        rows = {shape[0] for shape in shapes.values() if shape}
        raise ForwardError(
            f"the model's forward failed on {of} with inputs {shapes}"
            f"{', which differ in their number of rows' if len(rows) > 1 else ''}: {type(error).__name__}: {error}. "
            "The rows must be prepared as for evaluation (same channels, size and tokenizer as in training), in "
            "batches of a size that the model takes (batch_size=)"
        ) from error


def is_lonely(forward: Forward) -> bool:
    """Tell whether this is a pass over one row that must be scored as two copies (see `has_wrong_single_rows`)."""
    return len(forward.x) == 1 and has_wrong_single_rows(forward)


def has_wrong_single_rows(forward: Forward) -> bool:
    """Tell whether torch may give wrong gradients of a batch of one row: on a CPU, behind BatchNorm.

    In torch 2.15 they are wrong in evaluation mode where the gradient that comes in is in another memory format than
    the input.
    """
    return forward.x.device.type == "cpu" and any("BatchNorm" in node.name() for node in graph_nodes(forward.outputs))


@contextmanager
def explained_autograd_errors() -> Iterator[None]:
    """Turn torch's errors about gradients into a ModelError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "use_reentrant" in text or "Checkpointing is not compatible with .grad()" in text:
            raise ModelError(
                "the model uses re-entrant gradient checkpointing in evaluation mode, through which no input gradient "
                "can be taken; call torch.utils.checkpoint.checkpoint(..., use_reentrant=False), or checkpoint only "
                "while module.training"
            ) from error
        if "does not require grad and does not have a grad_fn" in text:
            raise ModelError(
                "the target has no gradient: the model computes its logits under no_grad or from detached or integer "
                "values; VoG needs a model that is differentiable from its input to its logits"
            ) from error
        raise


def averaged_axis(reduce_channels: bool | str, leaf: InputLeaf, shape: Sequence[int]) -> int | None:  # noqa: FBT001 (an option's value, not a switch)
    """The axis over which channels are averaged, None for none; raises where an input without channels is asked."""
    axis = leaf.kind.channel_axis(shape)
    if reduce_channels is True and axis is None:
        raise ConfigError(
            f"reduce_channels=True needs images [batch, channels, height, width], got {leaf.name!r} {tuple(shape)}"
        )
    return axis if reduce_channels else None
