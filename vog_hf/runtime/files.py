"""Safe file operations: atomic writes, checksums, folder locks, free space."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vog_hf.errors import OutputFolderError

LOCK_PATIENCE = 6.0  # seconds; torch's workers check every 5 seconds whether their parent lives
LOCK_NAME = ".lock"
LOCK_NAMES = (LOCK_NAME, f"{LOCK_NAME}.held")
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # NFS without lockd, Lustre without -o flock
JSON_CHECKSUM = "checksum"  # key in our JSON objects
OWN_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # names given by `write_atomically`, with the process id
SAFETENSORS_TEMPORARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file next to ``path``, sync it to disk, and rename it, so no file is incomplete.

    Raises:
        OutputFolderError: The disk is full or not writable.
    """
    for killed in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        named = OWN_TEMPORARY.fullmatch(killed.name)
        if named and not _is_alive(int(named[1])):
            killed.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # it could be a link to another place
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
def explained_disk_errors(
    path: Path, advice: str = "choose another output_dir; finished work is kept"
) -> Iterator[None]:
    """Raise errors of a full or broken disk as OutputFolderError that names ``path``.

    Args:
        path: File that is written.
        advice: Alternative to freeing space.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors raises its own error for a full disk
        raise OutputFolderError(
            f"cannot write {path} ({error}); free some space or {advice}",
            argument="output_dir" if "output_dir" in advice else (),
        ) from error


def with_checksum(values: Mapping[str, object]) -> dict[str, Any]:
    """The values of a JSON object with the CRC-32 of their canonical JSON, which `without_checksum` verifies."""
    return {**values, JSON_CHECKSUM: _json_checksum(values)}


def without_checksum(values: object) -> Any:
    """Verify and remove the checksum of `with_checksum`; values of earlier versions without one are returned unchanged.

    Raises:
        ValueError: The checksum does not match the values.
    """
    if not isinstance(values, dict) or JSON_CHECKSUM not in values:
        return values
    rest = {name: value for name, value in values.items() if name != JSON_CHECKSUM}
    if values[JSON_CHECKSUM] != _json_checksum(rest):
        raise ValueError(
            f"the checksum {values[JSON_CHECKSUM]!r} was written, and the values have {_json_checksum(rest)!r}"
        )
    return rest


def _json_checksum(values: Mapping[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(json.loads(json.dumps(values)), sort_keys=True).encode()):08x}"


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write values as a JSON object with a checksum, atomically."""
    text = json.dumps(with_checksum(values), indent=2, sort_keys=False, allow_nan=False)
    write_atomically(path, partial(Path.write_text, data=text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a file written by `write_json`.

    Raises:
        OutputFolderError: Not JSON, or the checksum does not match.
    """
    try:
        return without_checksum(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError, OSError) as error:
        raise OutputFolderError(
            f"{path} is not the JSON that vog_hf writes ({error}); delete the folder and score again"
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_checksum(path: Path) -> str:
    """CRC-32 of a file's bytes, which detects damage at reading speed."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"


def foreign_names(folder: Path) -> list[str]:
    """The names in a folder without its lock and incomplete files of killed runs; empty for a missing folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if name not in LOCK_NAMES and not _is_half_written(name)]


def remove_half_written(folder: Path) -> None:
    """Delete incomplete files of killed runs in a folder of ours, if it exists."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if _is_half_written(path.name) and (path.is_file() or path.is_symlink()):
            path.unlink(missing_ok=True)


def _is_half_written(name: str) -> bool:
    """True for the names that `write_atomically` and safetensors give to incomplete files."""
    return bool(OWN_TEMPORARY.fullmatch(name) or SAFETENSORS_TEMPORARY.fullmatch(name))


def inside(path: Path) -> Path:
    """The path, after checking that it does not lead out of its folder.

    Raises:
        OutputFolderError: The path is a symbolic link to another folder.
    """
    if not path.is_symlink():
        return path
    try:
        target, folder = path.resolve(), path.parent.resolve()
    except (OSError, RuntimeError) as error:  # a loop, before Python 3.13
        raise OutputFolderError(f"{path} is a symbolic link that leads nowhere ({error}); delete it") from error
    if target.parent != folder:
        raise OutputFolderError(
            f"{path} is a symbolic link to {target}, outside its folder; delete the link, or pass that file"
        )
    return path


def free_bytes(folder: Path) -> int:
    """Free disk space where ``folder`` is or will be."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def require_free(folder: Path, needed: int, purpose: str) -> None:
    """Raise OutputFolderError if the disk has less free space than needed."""
    free = free_bytes(folder)
    if free < needed:
        raise OutputFolderError(
            f"{purpose} needs about {format_bytes(needed)} in {folder}, {format_bytes(free)} are free; free some "
            "space or choose another output_dir",
            argument="output_dir",
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, so that two runs never write into one folder; see `exclusively`.

    Raises:
        OutputFolderError: Another run holds the lock, or the folder is not writable.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(inside(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OutputFolderError:
        raise
    except OSError as error:
        raise OutputFolderError(
            f"cannot write to {path} ({error.strerror}); choose another output_dir", argument="output_dir"
        ) from error
    try:
        in_use = f"{folder} is in use by another run; wait for it or choose another output_dir"
        with exclusively(handle, path, in_use, argument="output_dir"):
            yield
    finally:
        os.close(handle)


@contextmanager
def exclusively(handle: int, path: Path, in_use: str, *, argument: str | tuple[()] = ()) -> Iterator[None]:
    """Hold the lock of an open file: flock, which ends with the process, or a marker file on disks without flock.

    Waits up to `LOCK_PATIENCE` seconds, because the data workers of a killed run hold its lock until they notice.

    Raises:
        OutputFolderError: Another process holds the lock; with the message ``in_use``.
    """
    marker = path.with_name(f".{path.name.removeprefix('.')}.held")
    deadline = time.monotonic() + LOCK_PATIENCE
    while (held := _flock(handle)) is False or (held is None and not _mark(marker)):
        if time.monotonic() >= deadline:
            hint = f" ({marker} says so; delete it if that process has ended)" if held is None else ""
            raise OutputFolderError(in_use + hint, argument=argument)
        time.sleep(0.02)
    try:
        yield
    finally:
        if held is None:
            _marked.discard(marker.absolute())
            marker.unlink(missing_ok=True)
        else:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _flock(handle: int) -> bool | None:
    """True if the lock of an open file was acquired, False if it is taken; None if the disk has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return True


_marked: set[Path] = set()  # by this process


def _mark(marker: Path) -> bool:
    """Create a marker that names this process; False if a living process or another host has one."""
    here = f"{os.getpid()} on {socket.gethostname()}"
    with explained_disk_errors(marker):
        try:
            handle = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        except FileExistsError:
            if not _is_stale(marker):
                return False
            marker.unlink(missing_ok=True)
            return False  # the process that creates it next gets the lock
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(here)
    _marked.add(marker.absolute())
    return True


def _is_stale(marker: Path) -> bool:
    """True if the process named in a marker has ended, as far as this host knows."""
    try:
        pid, _, host = marker.read_text(encoding="utf-8").partition(" on ")
        if host != socket.gethostname():
            return False
        return not _is_alive(int(pid)) or (int(pid) == os.getpid() and marker.absolute() not in _marked)
    except (OSError, ValueError):
        return False


def _is_alive(pid: int) -> bool:
    """True if a process of this host is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def format_bytes(count: float) -> str:
    """A number of bytes as readable text: ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
