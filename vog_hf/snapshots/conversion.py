"""Checkpoints in the names and shapes of ``save_pretrained``, which for some architectures are not those in memory."""

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vog_hf.errors import SnapshotError
from vog_hf.snapshots.snapshot_set import Snapshot


def is_converted(model: nn.Module, snapshot: Snapshot, keys: Collection[str], names: Collection[str]) -> bool:
    """Whether ``from_pretrained`` decides what the keys of a snapshot's files mean.

    This holds for a model of transformers and a snapshot that ``save_pretrained`` wrote (it has a config next to it) or
    that has keys which are not ``names`` of the model. What `SnapshotWriter` wrote is in the model's own names.
    """
    pretrained = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", ())
    if not isinstance(model, pretrained) or snapshot.digest is not None:
        return False
    return snapshot.files[0].with_name("config.json").is_file() or not set(keys) <= set(names)


def converted_tensors(model: Any, snapshot: Snapshot) -> dict[str, Tensor]:
    """The tensors of a snapshot by the names they have in a transformers model, as ``from_pretrained`` converts them.

    transformers loads them into the model, which then gets its own parameters and buffers back: a second copy of the
    model is never made.

    Raises:
        SnapshotError: A key or shape that does not belong to the model, or a conversion that failed.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.modeling_utils import LoadStateDictConfig

    mapping: Any = get_model_conversion_mapping(model)
    config = LoadStateDictConfig(weight_mapping=mapping)
    with _tensors_given_back(model) as own, _without_progress_bar():
        loaded = type(model)._load_pretrained_model(model, None, [str(path) for path in snapshot.files], config)  # noqa: SLF001 (from_pretrained would build another model)
        info = loaded[0] if isinstance(loaded, tuple) else loaded  # transformers 5.0 returns the report alone
        _require_whole_report(model, snapshot, info)
        return {name: held[key].detach() for name, held, key, tensor in own if held[key] is not tensor}


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
    """Yield the place of each parameter and buffer (name, dictionary, key, tensor); put the same objects back."""
    own: list[tuple[str, dict[str, Any], str, Tensor]] = []
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):  # noqa: SLF001 (named_parameters does not tell where they are)
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
    """Hide the bar of transformers, which would appear for each snapshot and block of rows."""
    from transformers.utils import logging

    shown = vars(logging).get("_tqdm_active")
    vars(logging)["_tqdm_active"] = False
    try:
        yield
    finally:
        vars(logging)["_tqdm_active"] = shown
