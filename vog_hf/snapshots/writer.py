"""SnapshotWriter: write the weights that training changes, one safetensors file per snapshot."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vog_hf.errors import ConfigError, SnapshotError, as_path, whole_number
from vog_hf.gradients.model_mode import require_module
from vog_hf.runtime.files import explained_disk_errors, file_digest, remove_half_written, write_atomically, write_json
from vog_hf.snapshots.snapshot_set import INDEX_NAME, Snapshot, read_index
from vog_hf.snapshots.whole_tensors import FullTensor, apart, full_tensors, is_main_process, is_sharded, tensor_digest

FROZEN_NAME = "frozen-at-start"  # no .safetensors: it is not a snapshot


class SnapshotWriter:
    """Writes the weights that training changes, one safetensors file per snapshot, and their index.

    For sharded models (FSDP 1 and 2, DTensors, DeepSpeed ZeRO-3) full tensors are stored. All processes must then
    create the writer and call `gather` and `take` together; only the first process writes.

    Frozen tensors that nevertheless change (momentum encoders, averaged weights) are detected at each snapshot by their
    digest (SHA-256, about 1.7 GB/s) and stored from then on. Earlier snapshots get their initial values, which are
    stored once if the frozen tensors are not larger than one snapshot.

    Args:
        folder: Folder for the snapshots; created if missing.
        model: Model at the start of training; its trainable parameters and persistent buffers are stored.
        store: ``"trainable"``, or ``"all"`` for every tensor (then frozen weights may become trainable later).

    Raises:
        ConfigError: Nothing would be stored, or `store` is unknown.
        SnapshotError: Safetensors cannot store a trainable parameter (sparse, quantized, a wrapper).
    """

    def __init__(self, folder: str | Path, model: nn.Module, *, store: str = "trainable") -> None:
        require_store(store)
        require_trainable(model)
        self.folder = as_path("folder", folder)
        self.store = store
        self._stored: set[str] = set()
        self._frozen: dict[str, str] = {}
        self._bytes = self._frozen_bytes = 0
        for tensor in full_tensors(model):
            _require_storable(tensor)
            changes = store == "all" or tensor.requires_grad or not tensor.is_parameter
            if changes and tensor.is_storable:
                self._stored.add(tensor.name)
                self._bytes += tensor.nbytes
            else:
                self._frozen[tensor.name] = tensor_digest(tensor.gather())
                self._frozen_bytes += tensor.nbytes if tensor.is_storable else 0
        self._snapshots: list[Snapshot] = []

    @property
    def steps(self) -> list[int]:
        """The steps of all snapshots taken so far."""
        return [snapshot.step or 0 for snapshot in self._snapshots]

    @property
    def snapshot_bytes(self) -> int:
        """Size of one snapshot in bytes."""
        return self._bytes

    def disk_bytes(self, n_snapshots: int) -> int:
        """Size of ``n_snapshots`` in bytes, with the initial frozen tensors if they are stored."""
        return self._bytes * n_snapshots + (self._frozen_bytes if self._keeps_frozen else 0)

    @property
    def _keeps_frozen(self) -> bool:
        """True if the frozen tensors are small enough to be stored once, in case they change later."""
        return self._frozen_bytes <= self._bytes

    def continue_from(self, step: int) -> None:
        """Continue with the snapshots of an interrupted training up to ``step``; delete newer ones.

        Raises:
            SnapshotError: The snapshots have another base, or a file is missing.
        """
        remove_half_written(self.folder)
        if not (self.folder / INDEX_NAME).is_file():
            return
        earlier, frozen = read_index(self.folder)
        continued = [s for s in earlier if s.step is not None and s.step <= step]
        if continued and any(self._frozen.get(name) != digest for name, digest in frozen.items()):
            raise SnapshotError(
                f"{self.folder} holds snapshots of a model with other frozen weights; choose another output_dir",
                argument="output_dir",
            )
        self._store_from_now_on(self._frozen.keys() - frozen.keys())
        missing = [str(s.files[0]) for s in continued if not s.files[0].is_file()]
        if missing:
            raise SnapshotError(
                f"{missing[0]} is missing, a snapshot of this training before step {step}; restore it, or delete "
                f"{self.folder} to continue without the snapshots up to here"
            )
        self._snapshots = continued
        self._write_index()  # before deleting files that it lists
        for path in set(self.folder.glob("step-*.safetensors")) - {s.files[0] for s in continued}:
            path.unlink()

    def take(self, model: nn.Module, step: int) -> Snapshot | None:
        """Store the model after ``step``: `gather`, then `write` on the main process (None on others).

        Raises:
            ConfigError: ``step`` is not a whole number of at least 0.
            ModelError: ``model`` is not a torch module.
            SnapshotError: As for `gather`.
            OutputFolderError: As for `write`.
        """
        require_module(model)
        step = whole_number("step", step, 0)
        tensors = self.gather(model)
        return None if tensors is None else self.write(tensors, step)

    def gather(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The tensors of a snapshot on the main process, None on others; all processes must call this if sharded.

        Tensors of an unsharded model are the model's own memory (write them before training continues); tensors of a
        sharded model are copies on the CPU.

        Raises:
            SnapshotError: A parameter frozen at the start is now trainable, or a tensor of the model is gone.
        """
        to_host = partial(torch.Tensor.to, device="cpu", copy=True) if is_sharded(model) else torch.Tensor.detach
        names: set[str] = set()
        tensors: dict[str, Tensor] = {}
        for tensor in full_tensors(model):
            if tensor.name in self._frozen and tensor.requires_grad:
                raise SnapshotError(
                    f"{tensor.name!r} was frozen when training began and is trainable now (last snapshot: step "
                    f"{max(self.steps, default=0)}), so earlier snapshots lack it; create the callback with store='all'"
                )
            names.add(tensor.name)
            value = tensor.gather()
            if is_main_process() and self._is_wanted(tensor, value):
                tensors[tensor.name] = to_host(value)
        missing = sorted(self._stored - names)
        if missing:
            raise SnapshotError(
                f"the model has lost the tensor {missing[0]!r} since training began; keep its architecture"
            )
        return tensors if is_main_process() else None

    def _is_wanted(self, tensor: FullTensor, value: Tensor) -> bool:
        """True if `write` needs a tensor: it is stored, or frozen but changed, or its initial value must be stored."""
        digest = self._frozen.get(tensor.name)
        if digest is None or digest == tensor_digest(value):
            return tensor.name in self._stored or (
                digest is not None and tensor.is_storable and self._keeps_frozen and not self._snapshots
            )
        if not tensor.is_storable:
            raise SnapshotError(
                f"{tensor.name!r} has changed since training began, and a tensor of its kind ({tensor.dtype}, "
                f"{type(value).__name__}, {value.layout}) cannot be stored; use collect='live', or a dense tensor"
            )
        return True

    def write(self, tensors: dict[str, Tensor], step: int) -> Snapshot:
        """Write the result of `gather`, on the main process.

        Raises:
            OutputFolderError: The disk is full or not writable; earlier snapshots stay intact.
            SnapshotError: A frozen tensor changed after a snapshot, and its initial value is not stored.
        """
        with explained_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not self._snapshots:
            remove_half_written(self.folder)
        frozen = {n: t for n, t in tensors.items() if n in self._frozen and tensor_digest(t) == self._frozen[n]}
        if frozen:
            write_atomically(self.folder / FROZEN_NAME, partial(save_file, apart(frozen)))
        moved = self._frozen.keys() & tensors.keys() - frozen.keys()
        if moved and self._snapshots:
            self._complete_earlier(moved)
        self._store_from_now_on(moved)
        stored = {name: tensor for name, tensor in tensors.items() if name in self._stored}
        snapshot = self._written(f"step-{step:09d}", step, stored)
        self._snapshots.append(snapshot)
        self._write_index()
        return snapshot

    def _written(self, name: str, step: int, tensors: dict[str, Tensor], *, suffix: str = "") -> Snapshot:
        path = self.folder / f"{name}{suffix}.safetensors"
        write_atomically(path, partial(save_file, apart(tensors), metadata={"step": str(step)}))
        return Snapshot(name, (path,), step, file_digest(path))

    def _complete_earlier(self, moved: set[str]) -> None:
        """Add the initial values of changed tensors to the earlier snapshots."""
        initial_values = self.folder / FROZEN_NAME
        if not initial_values.is_file():
            raise SnapshotError(
                f"the frozen tensor {min(moved)!r} has changed since the snapshot of step {self.steps[-1]}, so earlier "
                "snapshots lack it; create the callback with store='all'"
            )
        with safe_open(initial_values, framework="pt") as file:
            values = {name: file.get_tensor(name) for name in moved}
        earlier, suffix = self._snapshots, f"-with-{len(self._stored | moved)}-tensors"
        self._snapshots = [
            self._written(s.name, s.step or 0, load_file(s.files[0]) | values, suffix=suffix) for s in earlier
        ]
        self._store_from_now_on(moved)
        self._write_index()
        for snapshot in earlier:
            snapshot.files[0].unlink()

    def _store_from_now_on(self, names: Iterable[str]) -> None:
        self._stored |= set(names)
        self._frozen = {name: digest for name, digest in self._frozen.items() if name not in self._stored}

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


def require_store(store: object) -> None:
    """Raise ConfigError where an option is not one of the two ways to store snapshots."""
    if store not in ("trainable", "all"):
        raise ConfigError(f"store must be 'trainable' or 'all', got {store!r}", argument="store")


def require_trainable(model: nn.Module) -> None:
    """Raise ConfigError where no parameter of a model is trained."""
    require_module(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "no parameter of the model is trainable, so nothing changes between snapshots and VoG would be 0"
        )


def _require_storable(tensor: FullTensor) -> None:
    if tensor.requires_grad and not tensor.is_storable:
        raise SnapshotError(
            f"the trainable parameter {tensor.name!r} ({tensor.dtype}) is sparse, quantized or made of other tensors, "
            "which a snapshot cannot hold; use collect='live', or make it a dense tensor of a real dtype"
        )
