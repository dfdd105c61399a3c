"""Lines at the end of a file that several processes write to: whole and on disk, or not there."""

import json
import os
from pathlib import Path
from typing import Any

from vog_hf.files import explained_disk_errors


def append_line(file: int, event: dict[str, Any], path: Path) -> None:
    """Append an event to a locked file, and have it on disk; on a full disk the file is as it was."""
    # ASCII: a note may have halves of surrogate pairs or line separators in it.
    line = json.dumps(event, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
    write_all(file, line, os.fstat(file).st_size, path)


def write_all(file: int, data: bytes, start: int, path: Path) -> None:
    """Write bytes at the end of a file and have them on disk, or leave the file as it was."""
    with explained_disk_errors(path):
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(file, data[done:], start + done)
            os.fsync(file)
        except OSError:
            os.ftruncate(file, start)
            raise


def read_from(file: int, start: int, stop: int) -> bytes:
    """The bytes of a file from one place to another."""
    parts = []
    while start < stop and (part := os.pread(file, stop - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def fsync_folder(folder: Path) -> None:
    """Have a new file's name on disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
