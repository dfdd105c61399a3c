"""Temporary loading of snapshots into a model, with its own tensors restored afterwards."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vog_hf.errors import SnapshotError
from vog_hf.gradients.model_state import ModelState
from vog_hf.snapshots.conversion import DATA_PARALLEL, converted_tensors, is_converted
from vog_hf.snapshots.peft_adapters import adapter_names
from vog_hf.snapshots.snapshot_set import Snapshot
from vog_hf.snapshots.whole_tensors import aliases, is_storable, model_tensors, require_whole, unwrapped_name


class SnapshotLoader:
    """Puts snapshots into a model for a while; the model gets its own tensors back from `temporary_weights`."""

    def __init__(self, model: nn.Module, frozen: Mapping[str, str], *, cast_up: bool, resident_bytes: int) -> None:
        self._model = model
        self._resident: dict[tuple[Path, ...], dict[str, Tensor]] = {}
        self._resident_bytes_left = resident_bytes
        self._tensors = model_tensors(model)
        self._aliases = aliases(model)
        self._stored = {name for name, tensor in self._tensors.items() if is_storable(tensor)} - set(frozen)
        self._same_memory = _groups_of_one_memory(self._tensors)
        if cast_up:
            for tensor in (*self._tensors.values(), *model.buffers()):
                if _is_small_float(tensor):
                    tensor.data = tensor.data.float()
        self.record_state()

    def record_state(self) -> None:
        """Record the model's state besides weights; it is restored at the beginning of every snapshot."""
        self._state = ModelState(self._model)

    @contextmanager
    def new_record(self) -> Iterator[None]:
        """Change the model in the block: its recorded state is restored before and recorded again after."""
        self._state.put_back()
        yield
        self.record_state()

    def load(self, snapshot: Snapshot) -> None:
        """Load a snapshot into the model; the snapshot of an adapter leaves the base model unchanged.

        State that the model changed in itself since the first snapshot is restored first.

        Raises:
            SnapshotError: Names or shapes differ from the model's, tensors are missing, or a file cannot be read.
        """
        self._state.put_back()
        if snapshot.files in self._resident:
            for name, value in self._resident[snapshot.files].items():
                self._lend(name, value)
            return
        loaded_names: set[str] = set()
        if not snapshot.is_adapter and self._is_converted(snapshot):
            with _explained(snapshot, snapshot.files[0]):
                self._load_converted(snapshot, loaded_names)
        else:
            for path in snapshot.files:
                with _explained(snapshot, path):
                    self._load_file(snapshot, path, loaded_names)
        self._follow(loaded_names)
        missing = [] if snapshot.is_adapter else sorted(self._stored - loaded_names)
        if missing:
            raise SnapshotError(
                f"snapshot {snapshot.name!r} lacks {len(missing)} tensors of the model, the first is {missing[0]!r}"
            )
        self._keep(snapshot, loaded_names)

    def _follow(self, loaded_names: set[str]) -> None:
        """Load tensors that the file omits because they share memory with loaded ones."""
        for names in self._same_memory:
            loaded = next((name for name in names if name in loaded_names), None)
            if loaded is not None:
                for name in names - loaded_names:
                    self._tensors[name].data = self._tensors[loaded].data
                    loaded_names.add(name)

    def _keep(self, snapshot: Snapshot, names: Iterable[str]) -> None:
        """Keep the loaded tensors on the device while the budget allows it."""
        loaded = {name: self._tensors[name].data for name in names}
        n_bytes = sum(value.nbytes for value in loaded.values())
        if n_bytes <= self._resident_bytes_left:
            self._resident_bytes_left -= n_bytes
            self._resident[snapshot.files] = loaded
            for name, value in loaded.items():
                self._lend(name, value)

    def _lend(self, name: str, value: Tensor) -> None:
        """Let a tensor refer to a resident value: a buffer to a copy, because the model may change it."""
        target = self._tensors[name]
        target.data = value if isinstance(target, nn.Parameter) else value.clone()

    def _is_converted(self, snapshot: Snapshot) -> bool:
        keys = map(self._plain, _keys(snapshot))
        return is_converted(self._model, snapshot, set(keys), self._aliases)

    def _plain(self, key: str) -> str:
        """A key without the prefixes of compiled and data-parallel modules, if only that is a name of the model."""
        plain = unwrapped_name(key).removeprefix(DATA_PARALLEL)
        return plain if key not in self._aliases and plain in self._aliases else key

    def _load_converted(self, snapshot: Snapshot, loaded_names: set[str]) -> None:
        for place, value in converted_tensors(self._model, snapshot).items():
            name = self._aliases[place]
            self._put(snapshot.name, name, value, again=name in loaded_names)
            loaded_names.add(name)

    def _load_file(self, snapshot: Snapshot, path: Path, loaded_names: set[str]) -> None:
        with safe_open(path, framework="pt") as file:  # on the CPU: safetensors does not know every device
            names = self._names(snapshot, set(file.keys()))
            for key, name in sorted(names.items()):
                self._put(snapshot.name, name, file.get_tensor(key), again=name in loaded_names)
                loaded_names.add(name)

    def _names(self, snapshot: Snapshot, keys: set[str]) -> dict[str, str]:
        """The model's tensor name for each key of a file."""
        if snapshot.is_adapter:
            return adapter_names(self._model, keys, snapshot.name)
        names = {key: self._aliases.get(self._plain(key)) for key in keys}
        unexpected = sorted(key for key, name in names.items() if name not in self._stored)
        if unexpected:
            raise SnapshotError(
                f"snapshot {snapshot.name!r} has {len(unexpected)} tensors that the model does not have (first: "
                f"{unexpected[0]!r}); load the model that the snapshot was taken of"
            )
        return {key: name for key, name in names.items() if name is not None}

    def _put(self, snapshot: str, name: str, value: Tensor, *, again: bool) -> None:
        target = self._tensors[name]
        if target.shape != value.shape:
            raise SnapshotError(
                f"snapshot {snapshot!r}: {name!r} has shape {tuple(value.shape)}, the model's {tuple(target.shape)}"
            )
        if again and not torch.equal(target, value.to(target.device, target.dtype)):
            raise SnapshotError(
                f"snapshot {snapshot!r} holds two different values for {name!r}, which is one shared tensor in the "
                "model; load the model with its weights tied (or untied) as they were in training"
            )
        # Only a pointer is swapped: nothing is copied, and the model's own storage stays untouched.
        target.data = value.to(target.device, target.dtype)


@contextmanager
def temporary_weights(
    model: nn.Module, frozen: Mapping[str, str], *, cast_up: bool, resident_bytes: int = 0
) -> Iterator[SnapshotLoader]:
    """Lend snapshots to a model; afterwards it holds exactly the same tensors as before, in the same memory.

    Args:
        model: Unwrapped model.
        frozen: Names of the tensors that no snapshot stores.
        cast_up: Hold floating tensors of fewer than 32 bits in float32 meanwhile.
        resident_bytes: Device memory for keeping loaded snapshots.

    Raises:
        ModelError: The model is sharded.
    """
    require_whole(model)
    originals = [(tensor, tensor.data) for tensor in model_tensors(model).values()]
    originals += [(b, b.data) for b in model.buffers()]
    try:
        yield SnapshotLoader(model, frozen, cast_up=cast_up, resident_bytes=resident_bytes)
    finally:
        for tensor, data in originals:
            tensor.data = data


def _groups_of_one_memory(tensors: Mapping[str, Tensor]) -> list[set[str]]:
    """Groups of names of tensors that are equal views of the same memory but different objects (shared ``.data``)."""
    groups: dict[tuple[object, ...], set[str]] = {}
    for name, tensor in tensors.items():
        if is_storable(tensor) and tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            groups.setdefault(place, set()).add(name)
    return [names for names in groups.values() if len(names) > 1]


def _keys(snapshot: Snapshot) -> set[str]:
    """The keys in all files of a snapshot."""
    keys: set[str] = set()
    for path in snapshot.files:
        with _explained(snapshot, path), safe_open(path, framework="pt") as file:
            keys |= set(file.keys())
    return keys


@contextmanager
def _explained(snapshot: Snapshot, path: Path) -> Iterator[None]:
    """Raise errors of a file as SnapshotError that names it."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise SnapshotError(
            f"snapshot {snapshot.name!r} ({path}) cannot be read: {error}; restore it or leave it out"
        ) from error


def _is_small_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4
