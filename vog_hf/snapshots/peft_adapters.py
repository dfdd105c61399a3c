"""Adapter checkpoints of PEFT, which need the base model to be loaded."""

import hashlib
import json
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vog_hf.errors import SnapshotError
from vog_hf.snapshots.whole_tensors import model_tensors, tensor_digest

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
# Initialization, training, and settings visible in the tensor names; all other settings change the output.
NOT_COMPARED = re.compile(
    "dropout|init|modules|layers|target|megatron|_config$|version|revision|base_model|auto_mapping|inference|task_type"
    "|weight_tying"
)


def adapter_names(model: nn.Module, keys: Collection[str], snapshot: str) -> dict[str, str]:
    """The model's tensor name for each key of an adapter file, matched through PEFT itself.

    The tensor that PEFT would save under a key shares its memory with the tensor of the model.

    Raises:
        SnapshotError: The model has no such adapter, or the tensors do not match.
    """
    saved = dict(_saved_by_peft(model, snapshot, embeddings=False))
    missing = sorted(set(saved) - set(keys))
    if not set(keys) <= set(saved):
        saved |= _saved_by_peft(model, snapshot, embeddings=True)
    unexpected = sorted(set(keys) - set(saved))
    if unexpected or missing:
        fault = f"has {unexpected[0]!r}, which the model does not have" if unexpected else f"lacks {missing[0]!r}"
        raise SnapshotError(
            f"the adapter of snapshot {snapshot!r} {fault}; load the model with the adapter it was trained with: "
            "PeftModel.from_pretrained(base, folder)"
        )
    names = {_place(tensor): name for name, tensor in model_tensors(model).items()}
    unknown = sorted(key for key in keys if _place(saved[key]) not in names)
    if unknown:
        raise SnapshotError(
            f"snapshot {snapshot!r}: PEFT recreates {unknown[0]!r} whenever it saves the adapter, so it is not a "
            "tensor of the model and cannot be loaded; take snapshots with VoGCallback or SnapshotWriter"
        )
    return {key: names[_place(saved[key])] for key in keys}


def check_adapter(model: nn.Module, file: Path, snapshot: str) -> None:
    """Raise SnapshotError unless the tensors and config of an adapter file match the model's adapter."""
    adapter = _active_adapter(model, snapshot)
    keys = adapter_keys(file)
    adapter_names(model, keys, snapshot)
    path = file.with_name(CONFIG_NAME)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SnapshotError(
            f"{path} cannot be read ({error}); restore it, since it defines the scale of the adapter's weights"
        ) from error
    if config.get("bias", "none") != "none" and not any(key.endswith("bias") for key in keys):
        raise SnapshotError(
            f"snapshot {snapshot!r} ({file}) has no biases, which were trained (bias={config['bias']!r}): releases of "
            "peft before 0.20 leave some out when they save; train with another release, or with bias='none'"
        )
    peft_config: Any = model.peft_config[adapter]  # type: ignore[index]
    model_config = json.loads(json.dumps(peft_config.to_dict(), default=str))
    for name in sorted(config.keys() & model_config.keys()):
        if not NOT_COMPARED.search(name) and config[name] != model_config[name]:
            raise SnapshotError(
                f"the adapter of snapshot {snapshot!r} was trained with {name}={config[name]!r}, the model's has "
                f"{model_config[name]!r}; load the model with it: PeftModel.from_pretrained(base, {str(file.parent)!r})"
            )


def adapter_keys(file: Path) -> frozenset[str]:
    """The keys of an adapter file.

    Raises:
        SnapshotError: The file cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return frozenset(opened.keys())
    except (SafetensorError, OSError) as error:
        raise SnapshotError(f"{file} cannot be read: {error}; restore it or leave it out") from error


def base_digest(model: nn.Module, adapter: Collection[str]) -> str:
    """SHA-256 over the names and values of all tensors of a model outside the adapter."""
    tensors = model_tensors(model)
    held = [f"{name} {tensor_digest(tensor)}" for name, tensor in sorted(tensors.items()) if name not in adapter]
    return hashlib.sha256("\n".join(held).encode()).hexdigest()


def _active_adapter(model: nn.Module, snapshot: str) -> str:
    peft_model = getattr(sys.modules.get("peft"), "PeftModel", None)  # imported if the model is a PEFT model
    if peft_model is None or not isinstance(model, peft_model):
        raise SnapshotError(
            f"snapshot {snapshot!r} is an adapter, and {type(model).__name__} is not a PEFT model; load the base model "
            "with the adapter: PeftModel.from_pretrained(base, folder)"
        )
    active = list(model.active_adapters)
    if len(active) != 1:
        raise SnapshotError(
            f"adapter snapshots need a model with one active adapter, it has {active}; call model.set_adapter(name)"
        )
    if any(getattr(module, "merged", False) is True for module in model.modules()):
        raise SnapshotError(
            "the adapter is merged into the model, which then ignores its weights; call model.unmerge_adapter()"
        )
    return str(active[0])


def _saved_by_peft(model: nn.Module, snapshot: str, *, embeddings: bool) -> Mapping[str, Tensor]:
    adapter = _active_adapter(model, snapshot)
    from peft import get_peft_model_state_dict

    # "auto" would ask the Hub whether the vocabulary was resized.
    saved = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=embeddings)
    return {name: tensor for name, tensor in saved.items() if isinstance(tensor, Tensor)}


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """The memory location and layout of a tensor."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
