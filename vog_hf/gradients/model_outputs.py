"""The model whose outputs they are, and where its logits are."""

from collections.abc import Mapping

from torch import Tensor, nn

from vog_hf.errors import ModelError

CALLABLE_TARGET = "a callable target, VoGConfig(target=function(outputs, batch) -> [batch])"


def find_logits(outputs: object) -> Tensor:
    """The logits of a ModelOutput, a dict with ``logits``, a tuple (its first entry behind the loss) or a tensor.

    Or ``scores``, as a CrossEncoder of sentence-transformers adds them to its inputs.
    """
    if isinstance(outputs, Tensor) and outputs.dim() > 0:
        return outputs
    name = "scores" if isinstance(outputs, Mapping) and {"scores", "input_ids"} <= outputs.keys() else "logits"
    if isinstance(outputs, Mapping) and isinstance(outputs.get(name), Tensor):
        found_in_mapping: Tensor = outputs[name]
        return found_in_mapping
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
        f"other outputs (boxes, reconstruction) pass {CALLABLE_TARGET}; docs/limitations.md has examples"
    )


def _is_no_logits(value: object) -> bool:
    """Tell whether a tuple's first entry is the loss: a single number, or None without labels."""
    return value is None or (isinstance(value, Tensor) and value.dim() == 0)


def base_model(model: nn.Module) -> nn.Module:
    """The model under an adapter (PEFT), else the model itself."""
    getter = getattr(model, "get_base_model", None)
    return getter() if callable(getter) else model
