"""Files that are whole or absent: atomic writes, a folder's lock, free space."""

import fcntl
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from vog_hf.errors import OutputFolderError

LOCK_PATIENCE = 6.0  # seconds; torch's workers look every 5 whether their parent lives


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, make it durable, and rename it: no half-written files.

    Raises:
        OutputFolderError: The disk is full or cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explained_disk_errors(path):
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def explained_disk_errors(path: Path) -> Iterator[None]:
    """Raise a full or broken disk as OutputFolderError that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        msg = f"cannot write {path} ({error}); free some space or choose another output_dir. What was finished is kept"
        raise OutputFolderError(msg) from error


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, atomically."""
    text = json.dumps(values, indent=2, sort_keys=False, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        OutputFolderError: It is not JSON: damaged, or not ours.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is not the JSON that vog_hf writes ({error}); delete the folder and score again"
        raise OutputFolderError(msg) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_checksum(path: Path) -> str:
    """CRC-32 of a file's bytes: finds damage, at the speed of reading."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"


def foreign_names(folder: Path) -> list[str]:
    """The names in a folder, without its lock and what killed runs left half-written; none where it is not there."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if name != ".lock" and not (name.startswith(".") and name.endswith(".tmp"))]


def free_bytes(folder: Path) -> int:
    """Free disk space where ``folder`` is or will be."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def require_free(folder: Path, needed: int, purpose: str) -> None:
    """Raise OutputFolderError where the disk cannot hold what is about to be written."""
    free = free_bytes(folder)
    if free < needed:
        msg = (
            f"{purpose} needs about {format_bytes(needed)} in {folder}, {format_bytes(free)} are free; free some "
            "space or choose another output_dir"
        )
        raise OutputFolderError(msg)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock (flock: gone with the process), so that two runs never write into one folder.

    Waits `LOCK_PATIENCE` seconds: the reading workers of a killed run hold its lock until they notice.

    Raises:
        OutputFolderError: Another run holds it, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        msg = f"cannot write to {folder} ({error.strerror}); choose another output_dir"
        raise OutputFolderError(msg) from error
    with handle:
        deadline = time.monotonic() + LOCK_PATIENCE
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                msg = f"{folder} is in use by another run; wait for it or choose another output_dir"
                raise OutputFolderError(msg)
            time.sleep(0.1)
        yield


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def format_bytes(count: float) -> str:
    """A number of bytes as a person reads it: ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
