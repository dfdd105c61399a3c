"""Sources of snapshots: the folder of a callback, checkpoints, model folders and files, state dicts."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vog_hf.errors import SnapshotError, as_path, shown
from vog_hf.runtime.files import write_atomically
from vog_hf.snapshots.peft_adapters import WEIGHTS_NAME
from vog_hf.snapshots.snapshot_set import INDEX_NAME, Snapshot, SnapshotSet, plain_name, read_index
from vog_hf.snapshots.whole_tensors import apart, is_storable

PICKLED = (".bin", ".pt", ".pth", ".pth.tar", ".ckpt")
NUMBERED = re.compile(r"(checkpoint|epoch|step)[-_](\d+)")

SnapshotSource = str | Path | Sequence[str | Path] | Iterable[tuple[str, Mapping[str, Tensor]]]


def open_snapshots(source: SnapshotSource, *, spool: Path) -> SnapshotSet:
    """The snapshots of a source, in the order of training.

    Args:
        source: Folder written by a callback or `SnapshotWriter`, folder of a run (see `open_folder`), a list of
            model folders or safetensors files in the order of training, or an iterable of (name, state_dict).
        spool: Folder for the state dicts of an iterable, so that only one is in memory at a time.

    Raises:
        SnapshotError: No snapshots, pickled weights, or fewer than two snapshots.
    """
    if isinstance(source, (str, Path)):
        return open_folder(as_path("snapshots", source))
    given: Any = source
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Mapping)):
        raise SnapshotError(
            f"snapshots must be a folder, a list of model folders or files, or pairs (name, state_dict), got "
            f"{shown(source)}; pass the folder of a training"
        )
    if isinstance(source, Sequence) and all(isinstance(item, (str, Path)) for item in source):
        return _from_paths([as_path("snapshots", item) for item in source])
    return _spooled(source, spool)


def open_folder(folder: Path) -> SnapshotSet:
    """The snapshots in a folder written by a callback or `SnapshotWriter`, or the checkpoints in the folder of a run.

    Checkpoints are named ``checkpoint-<step>`` (Trainer) or ``epoch_<n>``, ``step_<n>`` or ``checkpoint_<n>``
    (accelerate), and are taken in the order of their numbers. Where accelerate saved several models, the first is read.

    Raises:
        SnapshotError: Fewer than two snapshots, or numbers of two kinds (epochs and steps).
    """
    if (folder / "snapshots" / INDEX_NAME).is_file():
        folder = folder / "snapshots"
    if (folder / INDEX_NAME).is_file():
        return SnapshotSet(*read_index(folder))
    checkpoints = _numbered_in(folder) or _numbered_in(folder / "checkpoints")  # accelerate's automatic naming
    if not checkpoints:
        raise SnapshotError(
            f"{folder} holds no snapshots: expected {INDEX_NAME} (VoGCallback writes it) or folders checkpoint-<step>, "
            "epoch_<n> or step_<n>; pass the folder of a run, or a list of model folders or .safetensors files"
        )
    if len(checkpoints) > 1:
        raise SnapshotError(
            f"{folder} holds checkpoints of several kinds ({', '.join(checkpoints)}); pass a list of some of them"
        )
    (paths,) = checkpoints.values()
    return _from_paths(paths)


def in_order(paths: Sequence[Path]) -> Sequence[Path] | None:
    """Checkpoints sorted by the numbers in their names; None without numbers, or with numbers of different kinds."""
    numbers = [NUMBERED.fullmatch(_bare_name(path)) for path in paths]
    if not all(numbers) or len({match[1] for match in numbers if match}) > 1:
        return None
    return sorted(paths, key=lambda path: int(re.sub(r"\D", "", _bare_name(path))))


def _numbered_in(folder: Path) -> dict[str, Sequence[Path]]:
    """The checkpoints in a folder by the kind of their numbers; only those of Trainer if there are any."""
    checkpoints: dict[str, list[Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = NUMBERED.fullmatch(_bare_name(path))
        if match and (_is_folder(path) or path.name.endswith((".safetensors", *PICKLED))):
            checkpoints.setdefault(match[1], []).append(path)
    if any(map(_is_folder, checkpoints.get("checkpoint", ()))):
        checkpoints = {"checkpoint": [path for path in checkpoints["checkpoint"] if _is_folder(path)]}
    return {kind: in_order(paths) or paths for kind, paths in checkpoints.items()}


def _is_folder(path: Path) -> bool:
    """True for a folder, and for a link that leads nowhere: leaving it out would leave a snapshot out of the scores."""
    return path.is_dir() or not path.exists()


def _bare_name(path: Path) -> str:
    return path.name if path.is_dir() else path.name.partition(".")[0]


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
        SnapshotError: No safetensors files, or an unreadable index of a sharded model.
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
    pickled = [path] if path.is_file() else _pickled_in(path)
    if pickled:
        raise SnapshotError(
            f"{pickled[0]} is not safetensors, and pickled weights are not read because unpickling runs code; load the "
            "model once where you trust the file and save it, a transformers model with model.save_pretrained(folder), "
            "another one with safetensors.torch.save_model(model, 'epoch-1.safetensors'); or pass pairs (name, "
            "state_dict): ((p.name, torch.load(p, weights_only=True)) for p in paths), for timm "
            "((p.name, timm.models.load_state_dict(p)) for p in paths)"
        )
    raise SnapshotError(f"{path} holds no model.safetensors; pass a model folder or a .safetensors file")


def _pickled_in(folder: Path) -> list[Path]:
    """Files with pickled weights in a folder, without the states of optimizer and random numbers."""
    files = [path for path in sorted(folder.glob("*")) if path.name.endswith(PICKLED)]
    weights = re.compile(r".*model.*|(?!rng_state|optimizer|scheduler|scaler).*\.(pt|pth|pth\.tar|ckpt)")
    return [path for path in files if weights.fullmatch(path.name)]


def _shards(index: Path) -> list[str]:
    """File names of a sharded model."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(plain_name(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotError(
            f"{index} is not an index of a sharded model ({type(error).__name__}: {error}); restore it or leave it out"
        ) from error


def _step_of(path: Path) -> int | None:
    match = re.search(r"(?:checkpoint-|step[-_])(\d+)", path.name)
    return int(match[1]) if match else None


def _spooled(states: Iterable[object], spool: Path) -> SnapshotSet:
    spool.mkdir(parents=True, exist_ok=True)
    snapshots = []
    for i, item in enumerate(states):
        if not isinstance(item, tuple) or len(item) != 2 or not _is_state(item[1]):
            raise SnapshotError(
                f"snapshots must be pairs (name, state_dict), got a {type(item).__name__} at position {i}; pass e.g. "
                '((f"epoch-{k}", load(k)) for k in range(n))'
            )
        name, state = item
        path = spool / f"{i:06d}.safetensors"
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        stored = {key: tensor.detach().cpu() for key, tensor in tensors.items() if is_storable(tensor)}
        write_atomically(path, partial(save_file, apart(stored)))
        snapshots.append(Snapshot(str(name), (path,)))
    return SnapshotSet(tuple(snapshots), {})


def _is_state(state: object) -> bool:
    """True for a state dict: a mapping by name, mostly of tensors."""
    return isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
