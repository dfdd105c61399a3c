"""Checkpoints of ``save_pretrained`` with names or shapes that differ from the model in memory."""

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vog_hf.errors import SnapshotError
from vog_hf.snapshots.snapshot_set import Snapshot
from vog_hf.snapshots.whole_tensors import unwrapped_name

DATA_PARALLEL = "module."  # what DistributedDataParallel and DataParallel write before each name


def is_converted(model: nn.Module, snapshot: Snapshot, keys: Collection[str], names: Collection[str]) -> bool:
    """True if the keys of a snapshot need the conversion of ``from_pretrained``.

    This is the case for a transformers model if ``save_pretrained`` wrote the snapshot (a config is next to it) or if
    its keys are not all ``names`` of the model. `SnapshotWriter` always uses the names of the model in memory.
    """
    pretrained = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", ())
    if not isinstance(model, pretrained) or snapshot.digest is not None:
        return False
    return snapshot.files[0].with_name("config.json").is_file() or not set(keys) <= set(names)


def converted_tensors(model: Any, snapshot: Snapshot) -> dict[str, Tensor]:
    """The tensors of a snapshot by their names in a transformers model, converted as in ``from_pretrained``.

    transformers loads them into the model, and then the model's own parameters and buffers are restored, so no second
    copy of the model is needed.

    Raises:
        SnapshotError: A key or shape does not belong to the model, or a conversion failed.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.modeling_utils import LoadStateDictConfig

    mapping: Any = get_model_conversion_mapping(model)
    config = LoadStateDictConfig(weight_mapping=mapping)
    files = [str(path) for path in snapshot.files]
    state = _state_without_wrappers(model, files)
    with _tensors_given_back(model) as own, _without_progress_bar():
        loaded = type(model)._load_pretrained_model(model, state, files, config)  # noqa: SLF001 (from_pretrained would build another model)
        info = loaded[0] if isinstance(loaded, tuple) else loaded  # transformers 5.0 returns the report alone
        _require_whole_report(model, snapshot, info)
        return {name: held[key].detach() for name, held, key, tensor in own if held[key] is not tensor}


def _state_without_wrappers(model: nn.Module, files: Sequence[str]) -> dict[str, Tensor] | None:
    """The tensors of files that a compiled or data-parallel model wrote, by its own names; None of other files."""
    state = {key: file for file in files for key in _keys_of(file)}
    is_named_so = any(name.startswith(DATA_PARALLEL) for name in model.state_dict())
    plain = {key: unwrapped_name(key) for key in state}
    if not is_named_so and all(name.startswith(DATA_PARALLEL) for name in plain.values()):
        plain = {key: name.removeprefix(DATA_PARALLEL) for key, name in plain.items()}
    if all(key == name for key, name in plain.items()):
        return None
    return {plain[key]: tensor for file in files for key, tensor in load_file(file).items()}


def _keys_of(file: str) -> Collection[str]:
    with safe_open(file, framework="pt") as opened:
        return opened.keys()


def _require_whole_report(model: Any, snapshot: Snapshot, info: Any) -> None:
    stored = set(model.state_dict())
    computed = {name for name, _ in model.named_buffers()} - stored  # older releases stored some of these
    ignored = re.compile("|".join(f"({p})" for p in model._keys_to_ignore_on_load_unexpected or ()) or "$^")  # noqa: SLF001 (what from_pretrained ignores)
    unexpected = sorted(key for key in info.unexpected_keys - computed if not ignored.search(key))
    if unexpected:
        raise SnapshotError(
            f"snapshot {snapshot.name!r} has {len(unexpected)} tensors that the model does not have (first: "
            f"{unexpected[0]!r}); load the model that the snapshot was taken of"
        )
    for name, found, expected in sorted(info.mismatched_keys):
        raise SnapshotError(
            f"snapshot {snapshot.name!r}: {name!r} has shape {tuple(found)}, the model's {tuple(expected)}"
        )
    for name, error in sorted(info.conversion_errors.items()):
        reason = str(error).strip().splitlines()[-1]
        raise SnapshotError(
            f"snapshot {snapshot.name!r}: transformers cannot convert {name!r} ({reason}); restore the snapshot, or "
            "load the model that it was taken of"
        )


@contextmanager
def _tensors_given_back(model: nn.Module) -> Iterator[Sequence[tuple[str, dict[str, Any], str, Tensor]]]:
    """Yield each parameter and buffer (name, dictionary, key, tensor), and restore the same objects afterwards."""
    own: list[tuple[str, dict[str, Any], str, Tensor]] = []
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):  # noqa: SLF001 (named_parameters does not give their modules)
            own += [(f"{path}.{key}" if path else key, held, key, t) for key, t in held.items() if t is not None]
    noted = {key: value for key, value in vars(model).items() if key == "_weight_conversions"}
    try:
        yield own
    finally:
        for _, held, key, tensor in own:
            held[key] = tensor
        vars(model).pop("_weight_conversions", None)  # how save_pretrained names things
        vars(model).update(noted)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide the progress bar of transformers, which would appear for each snapshot and block."""
    from transformers.utils import logging

    shown = vars(logging).get("_tqdm_active")
    vars(logging)["_tqdm_active"] = False
    try:
        yield
    finally:
        vars(logging)["_tqdm_active"] = shown
