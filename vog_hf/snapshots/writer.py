"""SnapshotWriter: the weights that training changes, one safetensors file per snapshot."""

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vog_hf.errors import ConfigError, SnapshotError
from vog_hf.files import file_digest, write_atomically, write_json
from vog_hf.snapshots.gathering import full_tensors, is_main_process, is_sharded
from vog_hf.snapshots.records import INDEX_NAME, Snapshot, read_index
from vog_hf.snapshots.tensors import tensor_digest


class SnapshotWriter:
    """Writes the weights that training changes, one safetensors file per snapshot, and their index.

    Models may be sharded (FSDP 1 and 2, DTensors, DeepSpeed ZeRO-3): full tensors are stored. Then making a writer,
    `gather` and `take` are for all processes at once; only the first of them writes.

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
        self._stored: set[str] = set()
        self._frozen: dict[str, str] = {}
        self._bytes = 0
        trains = False
        for tensor in full_tensors(model):
            if store == "all" or tensor.requires_grad or not tensor.is_parameter:
                self._stored.add(tensor.name)
                self._bytes += tensor.nbytes
                trains |= tensor.is_parameter
            else:
                self._frozen[tensor.name] = tensor_digest(tensor.gather())
        if not trains:
            msg = "no parameter of the model is trainable, so nothing changes between snapshots and VoG would be 0"
            raise ConfigError(msg)
        self._snapshots: list[Snapshot] = []

    @property
    def steps(self) -> list[int]:
        """The steps of the snapshots taken so far."""
        return [snapshot.step or 0 for snapshot in self._snapshots]

    @property
    def snapshot_bytes(self) -> int:
        """Size of one snapshot, of a sharded model in full."""
        return self._bytes

    def continue_from(self, step: int) -> None:
        """Take over the snapshots of an interrupted training up to ``step``; newer ones are deleted.

        Raises:
            SnapshotError: They are of another base, or a file of one is missing.
        """
        if not (self.folder / INDEX_NAME).is_file():
            return
        earlier, frozen = read_index(self.folder)
        if frozen != self._frozen:
            msg = f"{self.folder} holds snapshots of a model with other frozen weights; choose another output_dir"
            raise SnapshotError(msg)
        kept = [s for s in earlier if s.step is not None and s.step <= step]
        missing = [str(s.files[0]) for s in kept if not s.files[0].is_file()]
        if missing:
            msg = (
                f"{missing[0]} is missing, a snapshot of this training before step {step}; restore it, or delete "
                f"{self.folder} to go on without the snapshots up to here"
            )
            raise SnapshotError(msg)
        self._snapshots = kept
        self._write_index()  # before files go that it names
        for path in set(self.folder.glob("step-*.safetensors")) - {s.files[0] for s in kept}:
            path.unlink()

    def take(self, model: nn.Module, step: int) -> Snapshot | None:
        """Store the model as it is after ``step``: `gather`, then `write` on the main process (None on others).

        Raises:
            SnapshotError: As `gather`.
            OutputFolderError: As `write`.
        """
        tensors = self.gather(model)
        return None if tensors is None else self.write(tensors, step)

    def gather(self, model: nn.Module) -> dict[str, Tensor] | None:
        """What a snapshot stores, on the main process; None on others. Of a sharded model all processes must call this.

        Tensors of an unsharded model are the model's own memory (write them before training goes on), those of a
        sharded model are copies on the CPU.

        Raises:
            SnapshotError: A parameter that was frozen at the start is trainable now, or the model has lost a tensor.
        """
        to_host = partial(torch.Tensor.to, device="cpu", copy=True) if is_sharded(model) else torch.Tensor.contiguous
        found: dict[str, Tensor | None] = {}
        for tensor in full_tensors(model):
            if tensor.name in self._frozen and tensor.requires_grad:
                msg = (
                    f"{tensor.name!r} was frozen when training began and is trainable now (last snapshot: step "
                    f"{max(self.steps, default=0)}), so earlier snapshots lack it; create the callback with store='all'"
                )
                raise SnapshotError(msg)
            if tensor.name in self._stored:
                value = tensor.gather()
                found[tensor.name] = to_host(value) if is_main_process() else None
        missing = sorted(self._stored - set(found))
        if missing:
            msg = f"the model had a tensor {missing[0]!r} when training began and has it no more; keep its architecture"
            raise SnapshotError(msg)
        return {name: value for name, value in found.items() if value is not None} if is_main_process() else None

    def write(self, tensors: dict[str, Tensor], step: int) -> Snapshot:
        """Write what `gather` gave, on the main process.

        Raises:
            OutputFolderError: The disk is full or cannot be written to; what was stored before stays whole.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09d}.safetensors"
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"step": str(step)}))
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
