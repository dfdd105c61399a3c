"""Where snapshots come from: a callback's folder, checkpoints, model folders and files, state dicts."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vog_hf.errors import SnapshotError
from vog_hf.files import write_atomically
from vog_hf.snapshots.adapters import WEIGHTS_NAME
from vog_hf.snapshots.records import INDEX_NAME, Snapshot, SnapshotSet, plain_name, read_index
from vog_hf.snapshots.tensors import apart, is_storable

SnapshotSource = str | Path | Sequence[str | Path] | Iterable[tuple[str, Mapping[str, Tensor]]]


def open_snapshots(source: SnapshotSource, *, spool: Path) -> SnapshotSet:
    """The snapshots that ``source`` names, in the order of training.

    Args:
        source: A folder that a callback or `SnapshotWriter` filled, a run's folder with ``checkpoint-*`` in it, a list
            of model folders or safetensors files in the order of training, or an iterable of (name, state_dict).
        spool: Where the state dicts of an iterable are written, so that only one is in memory at a time.

    Raises:
        SnapshotError: Nothing to read, pickled weights, or fewer than two snapshots.
    """
    if isinstance(source, (str, Path)):
        return open_folder(Path(source))
    if isinstance(source, Sequence) and all(isinstance(item, (str, Path)) for item in source):
        return _from_paths([Path(item) for item in source])
    return _spooled(source, spool)


def open_folder(folder: Path) -> SnapshotSet:
    """The snapshots in a folder that a callback or `SnapshotWriter` filled, or in its ``checkpoint-*`` folders.

    Raises:
        SnapshotError: There are none, or fewer than two.
    """
    if (folder / "snapshots" / INDEX_NAME).is_file():
        folder = folder / "snapshots"
    if (folder / INDEX_NAME).is_file():
        return SnapshotSet(*read_index(folder))
    checkpoints = sorted(
        (path for path in folder.glob("checkpoint-*") if _step_of(path) is not None), key=lambda p: _step_of(p) or 0
    )
    if not checkpoints:
        msg = (
            f"{folder} holds no snapshots: expected {INDEX_NAME} (VoGCallback writes it) or folders checkpoint-<step>; "
            "pass the folder of a run, or a list of model folders or .safetensors files"
        )
        raise SnapshotError(msg)
    return _from_paths(checkpoints)


def _from_paths(paths: Sequence[Path]) -> SnapshotSet:
    names = [path.stem if path.suffix == ".safetensors" else path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return SnapshotSet(
        tuple(Snapshot(name, weight_files(path), _step_of(path)) for name, path in zip(names, paths, strict=True)), {}
    )


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder, or the one file that ``path`` is.

    Raises:
        SnapshotError: There are none, or the index of a sharded model cannot be read.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return (path,)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return tuple(path / name for name in _shards(index))
    if (path / "model.safetensors").is_file():
        return (path / "model.safetensors",)
    if (path / WEIGHTS_NAME).is_file():
        return (path / WEIGHTS_NAME,)
    pickled = [path] if path.is_file() else sorted(path.glob("*model*.bin")) + sorted(path.glob("*.pt*"))
    if pickled:
        msg = (
            f"{pickled[0]} is not safetensors, and pickled weights are not read because unpickling runs code; load the "
            "model once where you trust the file and save it, a transformers model with model.save_pretrained(folder), "
            "another one with safetensors.torch.save_model(model, 'epoch-1.safetensors')"
        )
        raise SnapshotError(msg)
    msg = f"{path} holds no model.safetensors; pass a model folder or a .safetensors file"
    raise SnapshotError(msg)


def _shards(index: Path) -> list[str]:
    """Names of the files of a sharded model."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(plain_name(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{index} is no index of a sharded model ({type(error).__name__}: {error}); restore it or leave it out"
        raise SnapshotError(msg) from error


def _step_of(path: Path) -> int | None:
    match = re.search(r"(?:checkpoint|step)-(\d+)", path.name)
    return int(match[1]) if match else None


def _spooled(states: Iterable[Any], spool: Path) -> SnapshotSet:
    spool.mkdir(parents=True, exist_ok=True)
    snapshots = []
    for i, item in enumerate(states):
        if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[1], Mapping):
            msg = (
                f"snapshots must be pairs (name, state_dict), got a {type(item).__name__} at position {i}; pass e.g. "
                '((f"epoch-{k}", load(k)) for k in range(n))'
            )
            raise SnapshotError(msg)
        name, state = item
        path = spool / f"{i:06d}.safetensors"
        stored = {key: tensor.detach().cpu() for key, tensor in state.items() if is_storable(tensor)}
        write_atomically(path, partial(save_file, apart(stored)))
        snapshots.append(Snapshot(str(name), (path,)))
    return SnapshotSet(tuple(snapshots), {})
