"""Snapshots: the weights that change as safetensors files, found again and lent to a model."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vog_hf.errors import ConfigError, SnapshotError
from vog_hf.files import read_json, write_atomically, write_json
from vog_hf.gradients import unwrap
from vog_hf.schedule import MIN_SNAPSHOTS

INDEX_NAME = "snapshots.json"


# --- the tensors of a model -----------------------------------------------------------------------------------------


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor that is shared (tied) stands once, under its first name."""
    kept = set(model.state_dict(keep_vars=True))
    tensors = {name: p for name, p in model.named_parameters() if name in kept}
    return tensors | {name: b for name, b in model.named_buffers() if name in kept}


def aliases(model: nn.Module) -> dict[str, str]:
    """Every name of a shared tensor, to the name under which `model_tensors` has it."""
    first = {id(tensor): name for name, tensor in model_tensors(model).items()}
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in everything if id(tensor) in first}


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """Stored weights of one moment of training."""

    name: str
    files: tuple[Path, ...]
    step: int | None = None
    digest: str | None = None  # of the file's bytes, recorded when it was written

    def content_digest(self) -> str:
        """SHA-256 over the files' bytes.

        Raises:
            SnapshotError: A file is missing or is not what was written.
        """
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            msg = f"snapshot {self.name!r} is missing its file {missing[0]}; restore it or leave the snapshot out"
            raise SnapshotError(msg)
        digests = [file_digest(path) for path in self.files]
        if self.digest is not None and digests != [self.digest]:
            msg = f"snapshot {self.name!r} ({self.files[0]}) is damaged: its bytes are not those that were written"
            raise SnapshotError(msg)
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class SnapshotSet:
    """Snapshots in the order of training, and a digest of every tensor that none of them stores."""

    snapshots: tuple[Snapshot, ...]
    frozen: dict[str, str]

    def __post_init__(self) -> None:
        names = [snapshot.name for snapshot in self.snapshots]
        if len(names) < MIN_SNAPSHOTS:
            msg = f"VoG needs at least {MIN_SNAPSHOTS} snapshots, got {len(names)} ({names}); pass more of them"
            raise SnapshotError(msg)
        if len(set(names)) < len(names):
            msg = f"snapshots must have different names, got {names}"
            raise SnapshotError(msg)

    def fingerprint(self) -> list[str]:
        """Content digest of each snapshot; reads every file once."""
        return [snapshot.content_digest() for snapshot in self.snapshots]

    def verify_frozen(self, model: nn.Module) -> None:
        """Raise SnapshotError where a tensor that no snapshot stores is not what it was in training."""
        tensors = model_tensors(model)
        for name, digest in self.frozen.items():
            if name not in tensors:
                msg = f"the snapshots were taken of a model with a frozen tensor {name!r}, which this model has not"
                raise SnapshotError(msg)
            if tensor_digest(tensors[name]) != digest:
                msg = (
                    f"the frozen tensor {name!r} is not what it was when the snapshots were taken (another base model, "
                    "dtype or initialisation); load the same base, or take snapshots with store='all'"
                )
                raise SnapshotError(msg)


class SnapshotWriter:
    """Writes the weights that training changes, one safetensors file per snapshot, and their index.

    Args:
        folder: For the snapshots; made if it is missing.
        model: As it is when training begins: what is trainable now (and every persistent buffer) is stored.
        store: ``"trainable"``, or ``"all"`` for every tensor (then frozen weights may become trainable later).

    Raises:
        ConfigError: Nothing would be stored, or `store` is unknown.
    """

    def __init__(self, folder: Path, model: nn.Module, *, store: str = "trainable") -> None:
        if store not in ("trainable", "all"):
            msg = f"store must be 'trainable' or 'all', got {store!r}"
            raise ConfigError(msg)
        self.folder = folder
        self.store = store
        tensors = model_tensors(unwrap(model))
        self._stored = [
            name
            for name, tensor in tensors.items()
            if store == "all" or tensor.requires_grad or not isinstance(tensor, nn.Parameter)
        ]
        if not any(isinstance(tensors[name], nn.Parameter) for name in self._stored):
            msg = "no parameter of the model is trainable, so nothing changes between snapshots and VoG would be 0"
            raise ConfigError(msg)
        self._frozen = {name: tensor_digest(t) for name, t in tensors.items() if name not in set(self._stored)}
        self._snapshots: list[Snapshot] = []

    @property
    def snapshot_set(self) -> SnapshotSet:
        """The snapshots taken so far; raises SnapshotError while there are fewer than two."""
        return SnapshotSet(tuple(self._snapshots), self._frozen)

    @property
    def steps(self) -> list[int]:
        """The steps of the snapshots taken so far."""
        return [snapshot.step or 0 for snapshot in self._snapshots]

    def snapshot_bytes(self, model: nn.Module) -> int:
        """Size of one snapshot."""
        tensors = model_tensors(unwrap(model))
        return sum(tensors[name].nbytes for name in self._stored)

    def continue_from(self, step: int) -> None:
        """Take over the snapshots of an interrupted training up to ``step``; newer ones are deleted."""
        if not (self.folder / INDEX_NAME).is_file():
            return
        earlier, frozen = read_index(self.folder)
        if frozen != self._frozen:
            msg = f"{self.folder} holds snapshots of a model with other frozen weights; choose another output_dir"
            raise SnapshotError(msg)
        self._snapshots = [s for s in earlier if s.step is not None and s.step <= step]
        for snapshot in earlier:
            if snapshot not in self._snapshots:
                snapshot.files[0].unlink(missing_ok=True)
        self._write_index()

    def take(self, model: nn.Module, step: int) -> Snapshot:
        """Store the model as it is after ``step``.

        Raises:
            SnapshotError: A parameter that was frozen at the start is trainable now.
            OSError: The disk is full or cannot be written to; what was stored before stays whole.
        """
        tensors = model_tensors(unwrap(model))
        thawed = [name for name in self._frozen if tensors[name].requires_grad]
        if thawed:
            msg = (
                f"{thawed[0]!r} was frozen when training began and is trainable at step {step}, so earlier snapshots "
                "lack it; create the callback with store='all'"
            )
            raise SnapshotError(msg)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09d}.safetensors"
        stored = {name: tensors[name].detach().contiguous() for name in self._stored}
        write_atomically(path, lambda temporary: save_file(stored, temporary, metadata={"step": str(step)}))
        snapshot = Snapshot(path.stem, (path,), step, file_digest(path))
        self._snapshots.append(snapshot)
        self._write_index()
        return snapshot

    def _write_index(self) -> None:
        write_json(
            self.folder / INDEX_NAME,
            {
                "format": 1,
                "store": self.store,
                "frozen": self._frozen,
                "snapshots": [
                    {"name": s.name, "file": s.files[0].name, "step": s.step, "digest": s.digest}
                    for s in self._snapshots
                ],
            },
        )


# --- finding --------------------------------------------------------------------------------------------------------

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


def read_index(folder: Path) -> tuple[tuple[Snapshot, ...], dict[str, str]]:
    """The snapshots that a `SnapshotWriter` wrote in ``folder``, and the digests of the tensors it did not store."""
    index = read_json(folder / INDEX_NAME)
    snapshots = tuple(
        Snapshot(entry["name"], (folder / entry["file"],), entry["step"], entry["digest"])
        for entry in index["snapshots"]
    )
    return snapshots, index["frozen"]


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
        tuple(Snapshot(name, _weight_files(path), _step_of(path)) for name, path in zip(names, paths, strict=True)), {}
    )


def _weight_files(path: Path) -> tuple[Path, ...]:
    if path.is_file() and path.suffix == ".safetensors":
        return (path,)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return tuple(path / name for name in sorted(set(read_json(index)["weight_map"].values())))
    if (path / "model.safetensors").is_file():
        return (path / "model.safetensors",)
    if (path / "adapter_model.safetensors").is_file():
        msg = (
            f"{path} holds an adapter without the model under it; snapshots of adapters are those that VoGCallback or "
            "SnapshotWriter stored"
        )
        raise SnapshotError(msg)
    pickled = [path] if path.is_file() else sorted(path.glob("*model*.bin")) + sorted(path.glob("*model*.pt*"))
    if pickled:
        msg = (
            f"{pickled[0]} is not safetensors, and pickled weights are not read because unpickling runs code; load the "
            "model once where you trust the file and save it with model.save_pretrained(folder)"
        )
        raise SnapshotError(msg)
    msg = f"{path} holds no model.safetensors; pass a model folder or a .safetensors file"
    raise SnapshotError(msg)


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
        stored = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
        write_atomically(path, partial(save_file, stored))
        snapshots.append(Snapshot(str(name), (path,)))
    return SnapshotSet(tuple(snapshots), {})


# --- lending to a model ---------------------------------------------------------------------------------------------


class LentWeights:
    """Puts snapshots into a model for a while; the model gets its own tensors back from `lend_weights`."""

    def __init__(self, model: nn.Module, frozen: Mapping[str, str], *, cast_up: bool) -> None:
        self._tensors = model_tensors(model)
        self._aliases = aliases(model)
        self._stored = set(self._tensors) - set(frozen)
        if cast_up:
            for tensor in (*self._tensors.values(), *model.buffers()):
                if _is_small_float(tensor):
                    tensor.data = tensor.data.float()

    def load(self, snapshot: Snapshot) -> None:
        """Let the model hold a snapshot's weights.

        Raises:
            SnapshotError: Names or shapes that are not the model's, tensors missing, or a file that cannot be read.
        """
        found: set[str] = set()
        for path in snapshot.files:
            try:
                self._load_file(snapshot.name, path, found)
            except (SafetensorError, OSError) as error:
                msg = f"snapshot {snapshot.name!r} ({path}) cannot be read: {error}; restore it or leave it out"
                raise SnapshotError(msg) from error
        missing = sorted(self._stored - found)
        if missing:
            msg = f"snapshot {snapshot.name!r} lacks {len(missing)} tensors of the model, the first is {missing[0]!r}"
            raise SnapshotError(msg)

    def _load_file(self, snapshot: str, path: Path, found: set[str]) -> None:
        device = str(next(iter(self._tensors.values())).device)
        with safe_open(path, framework="pt", device=device) as file:
            keys = set(file.keys())
            unexpected = sorted(key for key in keys if self._aliases.get(key) not in self._stored)
            if unexpected:
                msg = (
                    f"snapshot {snapshot!r} has {len(unexpected)} tensors that the model has not, the first is "
                    f"{unexpected[0]!r}; was it taken of another model?"
                )
                raise SnapshotError(msg)
            for key in sorted(keys):
                name = self._aliases[key]
                self._put(snapshot, name, file.get_tensor(key), again=name in found)
                found.add(name)

    def _put(self, snapshot: str, name: str, value: Tensor, *, again: bool) -> None:
        own = self._tensors[name]
        if own.shape != value.shape:
            msg = f"snapshot {snapshot!r}: {name!r} has shape {tuple(value.shape)}, the model's {tuple(own.shape)}"
            raise SnapshotError(msg)
        if again and not torch.equal(own, value.to(own.dtype)):
            msg = (
                f"snapshot {snapshot!r} holds two different values for {name!r}, which is one shared tensor in the "
                "model; load the model with its weights tied (or untied) as they were in training"
            )
            raise SnapshotError(msg)
        # A pointer is swapped, nothing is copied: the model's own storage stays untouched behind it.
        own.data = value.to(own.dtype)


@contextmanager
def lend_weights(model: nn.Module, frozen: Mapping[str, str], *, cast_up: bool) -> Iterator[LentWeights]:
    """Lend snapshots to a model; on leaving, it holds exactly the tensors it held before, in the same memory.

    Args:
        model: Unwrapped.
        frozen: Names of the tensors that no snapshot stores.
        cast_up: Hold floating tensors of fewer than 32 bits in float32 meanwhile.
    """
    own = [(tensor, tensor.data) for tensor in model_tensors(model).values()]
    own += [(b, b.data) for b in model.buffers()]
    try:
        yield LentWeights(model, frozen, cast_up=cast_up)
    finally:
        for tensor, data in own:
            tensor.data = data


def _is_small_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4
