"""The events of a journal: read from lines, and appended to its file as lines."""

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vog_hf.errors import JournalError, as_path
from vog_hf.review.decision import Decision, require_valid
from vog_hf.review.journal_header import JournalHeader
from vog_hf.runtime.files import explained_disk_errors, with_checksum, without_checksum

logger = logging.getLogger(__name__)

DECIDE, UNDO = "decide", "undo"
ADVICE = "name another journal; earlier decisions are kept"
Key = tuple[int, str]  # row and reviewer


@dataclass
class Events:
    """The events of a journal in order, and the decisions that count."""

    header: JournalHeader | None = None
    n_lines: int = 0
    stacks: dict[Key, list[Decision]] = field(default_factory=dict)
    by_id: dict[str, Decision] = field(default_factory=dict)
    in_order: dict[str, list[str]] = field(default_factory=dict)  # ids of a reviewer's decisions that are not undone
    standing: dict[Key, Decision] = field(default_factory=dict)

    def add_lines(self, data: bytes, path: Path) -> None:
        """Add complete lines.

        Raises:
            JournalError: An invalid line.
        """
        for line in data.split(b"\n")[:-1]:
            self.n_lines += 1
            try:
                self._add(without_checksum(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise JournalError(
                    f"line {self.n_lines} of {path} is not a valid journal line ({reason}); restore the file from "
                    "a copy, or fix that line, without its checksum"
                ) from error

    def last_of(self, reviewer: str) -> Decision | None:
        """A reviewer's last decision that is not undone."""
        ids = self.in_order.get(reviewer)
        return self.by_id[ids[-1]] if ids else None

    def _add(self, event: dict[str, Any]) -> None:
        if self.header is None:
            self.header = JournalHeader.parse(event)
        elif event["event"] == DECIDE:
            self._decide(Decision.from_event(event))
        elif event["event"] == UNDO:
            self._undo(self.by_id[event["id"]])
        else:
            raise ValueError(f"unknown event {event['event']!r}")

    def _decide(self, decision: Decision) -> None:
        header = self.header
        if header is None or decision.id in self.by_id:
            raise ValueError(f"the decision {decision.id!r} twice")
        require_valid(decision, header.n_rows, header.n_classes)
        self.by_id[decision.id] = decision
        key = decision.row, decision.reviewer
        self.stacks.setdefault(key, []).append(decision)
        self.in_order.setdefault(decision.reviewer, []).append(decision.id)
        self.standing[key] = decision

    def _undo(self, decision: Decision) -> None:
        key = decision.row, decision.reviewer
        self.in_order[decision.reviewer].remove(decision.id)  # ValueError where it is undone already
        self.stacks[key].remove(decision)
        if self.stacks[key]:
            self.standing[key] = self.stacks[key][-1]
        else:
            del self.standing[key]


def is_json(data: bytes) -> bool:
    """Return whether these bytes are one JSON object."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def append_line(file: int, event: Mapping[str, object], path: Path) -> None:
    """Append an event to a locked file and flush it to disk; on a full disk the file stays as it was."""
    # ASCII: a note can contain halves of surrogate pairs or line separators.
    line = json.dumps(with_checksum(event), ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
    write_all(file, line, os.fstat(file).st_size, path)


def write_all(file: int, data: bytes, start: int, path: Path) -> None:
    """Write bytes at the end of a file and flush them to disk, or leave the file as it was."""
    with explained_disk_errors(path, ADVICE):
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(file, data[done:], start + done)
            os.fsync(file)
        except OSError:
            os.ftruncate(file, start)
            raise


def read_from(file: int, start: int, stop: int) -> bytes:
    """The bytes of a file from ``start`` to ``stop``."""
    chunks = []
    while start < stop and (chunk := os.pread(file, stop - start, start)):
        chunks.append(chunk)
        start += len(chunk)
    return b"".join(chunks)


def fsync_folder(folder: Path) -> None:
    """Flush the name of a new file to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_decisions(path: str | Path) -> list[Decision]:
    """Read the decisions that count from a journal, in the order in which they were made.

    Raises:
        JournalError: The file is missing, damaged, or not a journal.
    """
    return read_journal(path)[1]


def read_journal(path: str | Path) -> tuple[JournalHeader, list[Decision]]:
    """Read the header of a journal and the decisions that count, in the order in which they were made.

    The file is not changed: an incomplete last line is skipped with a warning.

    Raises:
        JournalError: The file is missing, damaged, or not a journal.
    """
    path, contents = as_path("path", path).expanduser(), Events()
    try:
        with path.open("rb") as file:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(file, fcntl.LOCK_SH)  # nobody is in the middle of a line
            data = file.read()
    except OSError as error:
        raise JournalError(
            f"the journal {path} cannot be read ({error.strerror}); choose the file that the review wrote"
        ) from error
    whole, torn = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
    if torn and is_json(torn):
        whole, torn = data + b"\n", b""
    contents.add_lines(whole, path)
    if torn and contents.header is not None:
        logger.warning("the last line of %s was cut off (%d bytes) and is left out", path, len(torn))
    if contents.header is None:
        raise JournalError(f"{path} is not a review journal; choose the file that the review wrote")
    standing = {decision.id for decision in contents.standing.values()}
    return contents.header, [decision for id_, decision in contents.by_id.items() if id_ in standing]
