"""Snapshot and SnapshotSet: files, steps and integrity checks."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vog_hf.errors import OutputFolderError, SnapshotError
from vog_hf.metric.windows import MIN_SNAPSHOTS
from vog_hf.runtime.files import file_digest, read_json
from vog_hf.snapshots.peft_adapters import WEIGHTS_NAME, adapter_keys, adapter_names, base_digest, check_adapter
from vog_hf.snapshots.whole_tensors import model_tensors, require_whole, tensor_digest

INDEX_NAME = "snapshots.json"


@dataclass(frozen=True)
class Snapshot:
    """Stored weights from one step of training."""

    name: str
    files: tuple[Path, ...]
    step: int | None = None
    digest: str | None = None  # of the file's bytes, recorded at writing

    @property
    def is_adapter(self) -> bool:
        """True for the weights of an adapter, which do not record their base model."""
        return [path.name for path in self.files] == [WEIGHTS_NAME]

    def manifest_entry(self, fingerprint: str) -> dict[str, Any]:
        """The entry for a manifest."""
        entry = {"name": self.name, "step": self.step, "digest": fingerprint}
        return entry | ({"base": "as loaded for scoring; the adapter does not record it"} if self.is_adapter else {})

    def content_digest(self) -> str:
        """SHA-256 over the files' bytes.

        Raises:
            SnapshotError: A file is missing or differs from the one written.
        """
        missing = [str(path) for path in self.files if not path.is_file()]
        if missing:
            raise SnapshotError(
                f"snapshot {self.name!r} is missing its file {missing[0]}; restore it or leave the snapshot out"
            )
        digests = [file_digest(path) for path in self.files]
        if self.digest is not None and digests != [self.digest]:
            raise SnapshotError(
                f"snapshot {self.name!r} ({self.files[0]}) is damaged: its bytes are not those that were written"
            )
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class SnapshotSet:
    """Snapshots in the order of training, with digests of the tensors that none of them stores."""

    snapshots: tuple[Snapshot, ...]
    frozen: dict[str, str]

    def __post_init__(self) -> None:
        names = [snapshot.name for snapshot in self.snapshots]
        if len(names) < MIN_SNAPSHOTS:
            raise SnapshotError(
                f"VoG needs at least {MIN_SNAPSHOTS} snapshots, got {len(names)} ({names}); pass more of them"
            )
        if len(set(names)) < len(names):
            raise SnapshotError(f"snapshots must have different names, got {names}")
        adapters = [snapshot.name for snapshot in self.snapshots if snapshot.is_adapter]
        if adapters and len(adapters) < len(names):
            raise SnapshotError(
                f"snapshots must be whole models or adapters, not both; of {names} these are adapters: {adapters}"
            )

    def stamps(self) -> list[tuple[int, int]]:
        """Size and modification time of each file, to detect changes."""
        stats = [path.stat() for snapshot in self.snapshots for path in snapshot.files if path.is_file()]
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]

    def fingerprint(self, model: nn.Module) -> list[str]:
        """Content digest of each snapshot, including the base model of an adapter; reads every file once."""
        digests = [snapshot.content_digest() for snapshot in self.snapshots]
        first = self.snapshots[0]
        if not first.is_adapter:
            return digests
        require_whole(model)
        names = adapter_names(model, adapter_keys(first.files[0]), first.name)
        base = base_digest(model, set(names.values()))
        return [hashlib.sha256(f"{digest} {base}".encode()).hexdigest() for digest in digests]

    def verify(self, model: nn.Module) -> None:
        """Verify the snapshots as far as possible before loading.

        Raises:
            SnapshotError: A tensor that is not stored differs from training, or adapters do not match the model's.
            ModelError: The model is sharded.
        """
        require_whole(model)
        if self.snapshots[0].is_adapter:
            self._verify_adapters(model)
        tensors = model_tensors(model)
        for name, digest in self.frozen.items():
            if name not in tensors:
                raise SnapshotError(
                    f"the snapshots were taken of a model with a frozen tensor {name!r} that this model does not have"
                )
            if tensor_digest(tensors[name]) != digest:
                raise SnapshotError(
                    f"the frozen tensor {name!r} is not what it was when the snapshots were taken (another base model, "
                    "dtype or initialization); load the same base, or take snapshots with store='all'"
                )

    def _verify_adapters(self, model: nn.Module) -> None:
        first = self.snapshots[0]
        for snapshot in self.snapshots:
            check_adapter(model, snapshot.files[0], snapshot.name)
            differing = sorted(adapter_keys(first.files[0]) ^ adapter_keys(snapshot.files[0]))
            if differing:
                raise SnapshotError(
                    f"snapshots {first.name!r} and {snapshot.name!r} differ in what they store: {differing[0]!r}"
                )


def read_index(folder: Path) -> tuple[tuple[Snapshot, ...], dict[str, str]]:
    """The snapshots written by `SnapshotWriter` in ``folder``, and the digests of the tensors that are not stored.

    Raises:
        SnapshotError: The index is damaged.
    """
    path = folder / INDEX_NAME
    try:
        index = read_json(path)
        return tuple(_snapshot(entry, folder) for entry in index["snapshots"]), _digests(index["frozen"])
    except (OutputFolderError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it, or train again"
        ) from error


def _snapshot(entry: Mapping[str, Any], folder: Path) -> Snapshot:
    """A snapshot from its entry in the index; raises ValueError or TypeError for an invalid entry."""
    name, step, digest = entry["name"], entry["step"], entry["digest"]
    is_step = step is None or (type(step) is int and step >= 0)
    if not (isinstance(name, str) and is_step and isinstance(digest, str | None)):
        raise ValueError(f"{dict(entry)} is not an entry of a snapshot")
    return Snapshot(name, (folder / plain_name(entry["file"]),), step, digest)


def _digests(frozen: Mapping[str, Any]) -> dict[str, str]:
    digests = dict(frozen)
    if not all(isinstance(digest, str) for digest in digests.values()):
        raise ValueError(f"the digests of frozen tensors must be texts, got {digests}")
    return digests


def plain_name(name: str) -> str:
    """A file name without a folder; raises ValueError if it would lead out of its folder."""
    if Path(name).name != name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in this folder")
    return name
