"""A journal of decisions about rows: one line each, on disk before anything else happens, and never changed.

The file is JSON lines. The first line identifies the dataset; every other is an event: a decision, or the undoing of an
earlier one. Several processes can append to one journal; each reads what the others have appended.
"""

import logging
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from vog_hf.errors import ConfigError, JournalError, OutputFolderError, as_path, require_type
from vog_hf.review.decision import Decision, hex_of, is_whole, now, require_valid
from vog_hf.review.journal_events import (
    ADVICE,
    DECIDE,
    UNDO,
    Events,
    Key,
    append_line,
    fsync_folder,
    is_json,
    read_from,
    write_all,
)
from vog_hf.review.journal_header import JournalHeader, given_labels, is_header_start
from vog_hf.review.queue import Filter
from vog_hf.runtime.files import exclusively, explained_disk_errors, inside
from vog_hf.scores.formatting import escaped
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)

NO_FILE = "is not a file; choose another journal"


class Journal:
    """Decisions about the rows of scores, kept in a file: see `Journal.open`.

    Attributes:
        path: The file.
        header: Identity of its data.
    """

    def __init__(self, path: Path, scores: VoGScores) -> None:
        self.path = path
        self._scores = scores
        self._labels = given_labels(scores)
        self._guard = threading.RLock()  # flock keeps processes apart, and this the threads of one
        self._contents = Events()
        self._header: JournalHeader | None = None
        # What was read: device and inode of the file, number of bytes, the last line. None: read all next time.
        self._place: tuple[int, int, int, bytes] | None = None

    @classmethod
    def open(cls, path: str | Path, scores: VoGScores) -> "Journal":
        """Open the journal in a file, or create it.

        An incomplete last line, from a process that was killed while it wrote, is dropped with a warning: the decision
        was never confirmed.

        Args:
            path: Path of the file; its folder is created if it is missing.
            scores: Scores of the data that is reviewed.

        Raises:
            RowMismatchError: The journal belongs to a different dataset.
            JournalError: The file is damaged, or is not a journal.
            OutputFolderError: The file cannot be written.

        Example:
            >>> import numpy as np
            >>> from tempfile import TemporaryDirectory
            >>> columns = {"vog": np.array([0.2, 0.1]), "label": np.array([0, 1])}
            >>> scores = VoGScores(columns, {"class_names": ["a", "b"]})
            >>> with TemporaryDirectory() as folder:
            ...     journal = Journal.open(f"{folder}/review.jsonl", scores)
            ...     _ = journal.decide(1, "relabel", reviewer="Ada", label=0, note="an a")
            ...     [decision.label for decision in journal.standing().values()]
            [0]
        """
        require_type("scores", scores, VoGScores, "pass the scores of the data that is reviewed")
        journal = cls(as_path("path", path).expanduser(), scores)
        with explained_disk_errors(journal.path, ADVICE):
            journal.path.parent.mkdir(parents=True, exist_ok=True)
        with journal._locked(create=True):
            pass  # locking reads all of it
        return journal

    @property
    def header(self) -> JournalHeader:
        """Identity of the data of the journal.

        Raises:
            JournalError: The journal was not opened by `open`.
        """
        if self._header is None:
            raise JournalError(f"{self.path} has no first line; open it with Journal.open")
        return self._header

    @property
    def count(self) -> int:
        """Number of decisions that count, including those of others."""
        with self._guard:
            self._refresh()
            return len(self._contents.standing)

    def standing(self) -> dict[Key, Decision]:
        """The last decision that was not undone, by row and reviewer.

        Raises:
            JournalError: Lines that others appended are damaged, or the file is gone.
        """
        with self._guard:
            self._refresh()
            return dict(self._contents.standing)

    def text(self) -> str:
        """The text of the file, without an incomplete last line.

        Raises:
            JournalError: Lines that others appended are damaged, or the file is gone.
        """
        with self._guard, self._opened() as file:
            self._take_in(file)
            return read_from(file, 0, self._place[2] if self._place else 0).decode("utf-8")

    def decide(
        self,
        row: int,
        decision: str,
        *,
        reviewer: str,
        label: int | None = None,
        note: str = "",
        queue: Filter | None = None,
        random: bool = False,
    ) -> Decision:
        """Write a decision; it is on disk when this returns.

        A reviewer's later decision about a row replaces the earlier one, which counts again if the later is undone.

        Args:
            row: Number of the row.
            decision: One of `vog_hf.review.DECISIONS`.
            reviewer: Name of the reviewer.
            label: New label, for ``"relabel"`` only.
            note: Any text.
            queue: Queue that showed the row, from which `vog_hf.review.review_yield` estimates what it still holds.
            random: Whether the queue showed it because it was drawn at random (``Filter.random_share``).

        Raises:
            ConfigError: No such row, decision or label, a label without ``"relabel"``, the label that the row has
                already, or no reviewer.
            OutputFolderError: The disk is full or not writable; nothing is written.
            JournalError: The file is damaged or gone.
        """
        require_type("queue", queue, (Filter, type(None)), "pass Filter(...)")
        require_type("random", random, bool, "pass True or False")
        checked = self.check(row, decision, reviewer=reviewer, label=label, note=note)
        checked = replace(checked, queue=None if queue is None else queue.to_record(), random=random)
        with self._locked() as append:
            append({"event": DECIDE, **checked.to_event()})
        return checked

    def check(self, row: int, decision: str, *, reviewer: str, label: int | None = None, note: str = "") -> Decision:
        """The decision that `decide` would write; nothing is written.

        Raises:
            ConfigError: As `decide` does.
        """
        if not is_whole(row) or not 0 <= row < len(self._scores):
            raise ConfigError(f"row must be a whole number in 0..{len(self._scores) - 1}, got {row!r}")
        old = -1 if self._labels is None else int(self._labels[row])
        checked = Decision(
            row=int(row),
            decision=decision,
            label=int(label) if label is not None and is_whole(label) else label,
            note=note,
            reviewer=reviewer,
            time=now(),
            id=uuid4().hex,
            old_label=None if old < 0 else old,
            row_hash=self.row_hash(int(row)),
        )
        try:
            require_valid(checked, self.header.n_rows, self.header.n_classes)
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error
        return checked

    def row_hash(self, row: int) -> str | None:
        """Hash of a row's content in hexadecimal; None for scores without hashes."""
        hashes = self._scores.row_hash
        return None if hashes is None else hex_of(hashes[row])

    def last_of(self, reviewer: str) -> Decision | None:
        """A reviewer's last decision that is not undone, from any process."""
        require_type("reviewer", reviewer, str, "pass the reviewer's name")
        with self._guard:
            self._refresh()
            return self._contents.last_of(escaped(reviewer))

    def undo(self, reviewer: str, *, only: str | None = None) -> Decision | None:
        """Undo a reviewer's last decision that is not undone yet, from any process.

        Args:
            reviewer: Name of the reviewer.
            only: Undo it only if it has this id, so that a repeated request does not undo two decisions.

        Returns:
            The undone decision; None if there is nothing to undo.

        Raises:
            OutputFolderError: The disk is full or not writable; nothing is written.
            JournalError: The file is damaged or gone.
        """
        require_type("reviewer", reviewer, str, "pass the reviewer's name")
        reviewer = escaped(reviewer)
        with self._locked() as append:
            last = self._contents.last_of(reviewer)
            if last is None or only not in (None, last.id):
                return None
            append({"event": UNDO, "id": last.id, "reviewer": reviewer, "time": now()})
            return last

    @contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[Any]:
        """Lock the file and read everything in it; yields the function that appends an event."""
        busy = f"the journal {self.path} is being written to by another process; try again"
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        with self._guard, self._opened(flags) as file, exclusively(file, self.path, busy):
            self._take_in(file)
            self._drop_torn_line(file)

            def append(event: Mapping[str, object]) -> None:
                append_line(file, event, self.path)
                self._require_in_place(file)
                self._take_in(file)

            if self._contents.header is None:
                append(JournalHeader.of(self._scores).event())
                fsync_folder(self.path.parent)
            yield append

    def _require_in_place(self, file: int) -> None:
        """Raise JournalError if the file that was written to is no longer the one at the path."""
        try:
            in_place = os.path.samestat(os.stat(self.path), os.fstat(file))  # noqa: PTH116 (there is no other samestat)
        except FileNotFoundError:
            in_place = False
        if not in_place:
            raise JournalError(
                f"the journal {self.path} was replaced or removed while it was written to; check it, and decide again"
            )

    def _refresh(self) -> None:
        """Read the complete lines that others have appended."""
        with self._opened() as file:
            self._take_in(file)

    @contextmanager
    def _opened(self, flags: int = os.O_RDONLY) -> Iterator[int]:
        """Open the file, each time again: another file may have replaced it."""
        try:
            file = os.open(inside(self.path), flags | os.O_NONBLOCK, 0o666)  # a pipe would never open
        except FileNotFoundError as error:
            raise JournalError(f"the journal {self.path} is gone; put it back, or open a new one") from error
        except IsADirectoryError as error:
            raise JournalError(f"{self.path} {NO_FILE}") from error
        except OutputFolderError:
            raise
        except OSError:
            with explained_disk_errors(self.path, ADVICE):
                raise
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise JournalError(f"{self.path} {NO_FILE}")
            yield file
        finally:
            os.close(file)

    def _take_in(self, file: int) -> None:
        """Read what was appended since the last time; all of it if this is another file."""
        status = os.fstat(file)
        read, last = self._read_before(file, status)
        if not read:
            self._contents = Events()
        data = read_from(file, read, status.st_size)
        whole = data[: data.rfind(b"\n") + 1]
        self._place = None  # what is refused now is also refused next time
        self._contents.add_lines(whole, self.path)
        if not read and self._contents.header is not None:
            self._contents.header.verify_scores(self._scores, self.path)
            self._header = self._contents.header
        last = whole[whole.rfind(b"\n", 0, -1) + 1 :] or last
        self._place = status.st_dev, status.st_ino, read + len(whole), last

    def _read_before(self, file: int, status: os.stat_result) -> tuple[int, bytes]:
        """Number of bytes that were read, and the last line; nothing if the file has other content now."""
        if self._place is None or self._place[:2] != (status.st_dev, status.st_ino):
            return 0, b""
        _, _, read, last = self._place  # every line has an id of its own, and a header the time
        if status.st_size < read:
            raise JournalError(
                f"the journal {self.path} lost {read - status.st_size:,} bytes while it was open, so decisions are "
                "missing; put a copy in its place, or open the review again to continue with what is left"
            )
        return (read, last) if read_from(file, read - len(last), read) == last else (0, b"")

    def _drop_torn_line(self, file: int) -> None:
        """Finish an incomplete last line if its JSON is whole, else drop it: with our lock, its writer is dead."""
        start = 0 if self._place is None else self._place[2]
        torn = read_from(file, start, os.fstat(file).st_size)
        if not torn:
            return
        if self._contents.header is None and not is_header_start(torn):
            raise JournalError(f"{self.path} is not a review journal; choose another file")
        if is_json(torn):
            write_all(file, b"\n", start + len(torn), self.path)
            self._take_in(file)
            return
        os.ftruncate(file, start)
        os.fsync(file)
        logger.warning(
            "the last line of %s was cut off (%d bytes of a decision that was never confirmed) and is dropped",
            self.path,
            len(torn),
        )
