"""Rows that cannot be scored: found in a batch that fails, then named in an error or skipped."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from traceback import walk_tb
from typing import Any, Literal

from vog_hf.errors import ConfigError, shown
from vog_hf.gradients.batchnorm_folding import FastPathError
from vog_hf.runtime.memory import DEVICE_ERRORS, is_out_of_memory

OnError = Literal["raise", "skip"]
CANDIDATES = 4  # rows that pass alone, of which one is looked for that goes with others
REASON_LENGTH = 200
DECODER = "datasets.features.image"  # the module that opens the files of images
FOLDERS = re.compile(r"(?<![\w:/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"()]+[/\\])+")  # reasons are published


def require_on_error(value: Any) -> OnError:
    """Return an option ``on_error`` that exists; ConfigError otherwise."""
    if value not in ("raise", "skip"):
        raise ConfigError(
            f"on_error must be 'raise' or 'skip', got {shown(value)}; 'skip' leaves out rows that cannot be scored"
        )
    return "skip" if value == "skip" else "raise"


class BadRows:
    """Finds the rows because of which a batch fails, and remembers those that are skipped.

    A row is bad if it fails alone, or together with a reference row that most of the others go with: an image of
    another size collates alone.

    Args:
        attempt: Function that reads rows as one batch; it raises what is wrong with them.
        on_error: ``"skip"`` to replace bad rows in their batch with a good row.
        files_of: Function that names the files of a row, for its reason.

    Attributes:
        skipped: Short reason of each skipped row, by row number.
    """

    def __init__(
        self,
        attempt: Callable[[Sequence[int]], Any],
        on_error: OnError = "raise",
        files_of: Callable[[int], Sequence[str]] = lambda _: (),
    ) -> None:
        self._attempt = attempt
        self._files_of = files_of
        self.on_error = on_error
        self.skipped: dict[int, str] = {}
        self.reference: int | None = None

    def good(self, rows: Sequence[int]) -> list[int]:
        """The rows of the first batch that are not bad; the bad ones are skipped from here on.

        All of them where no row goes with at least half of them: that is not a matter of single rows.
        """
        rows = [row for row in rows if row not in self.skipped]
        reference, bad = self.sort(rows)
        if reference is None:
            return rows
        self.reference = reference
        self.skip(bad)
        return [row for row in rows if row not in bad]

    def sort(self, rows: Sequence[int]) -> tuple[int | None, dict[int, Exception]]:
        """A row that goes with at least half of some rows, and the others with their errors; (None, {}) without one."""
        if self._error(rows) is None:
            return (rows[0] if rows else None), {}
        step = len(rows) // CANDIDATES + 1  # bad rows may be neighbors
        spread = [row for start in range(step) for row in rows[start::step]]
        alone = (row for row in spread if self._error([row]) is None)
        for candidate in islice(alone, CANDIDATES):
            bad: dict[int, Exception] = {}
            for row, error in self._failing(rows, candidate):
                bad[row] = error
                if 2 * len(bad) > len(rows):
                    break
            else:
                return candidate, bad
        return None, {}

    def find(self, rows: Sequence[int]) -> dict[int, Exception]:
        """The bad ones of some rows that are not skipped yet, with their errors."""
        if self.reference is None:
            return self.sort(rows)[1]
        return dict(self._failing([row for row in rows if row not in self.skipped], self.reference))

    def skip(self, errors: Mapping[int, Exception]) -> None:
        """Skip rows from here on."""
        self.skipped |= {row: short_reason(error, self._files_of(row)) for row, error in errors.items()}

    def replaced(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows with a good one, of the same batch where it has one, instead of each that is skipped."""
        good = [row for row in rows if row not in self.skipped]
        if len(good) == len(rows):
            return rows
        instead = good[0] if good else self.reference
        if instead is None:
            return rows
        return [instead if row in self.skipped else row for row in rows]

    def _failing(self, rows: Sequence[int], reference: int) -> Iterator[tuple[int, Exception]]:
        """Rows that fail together with the reference, found by halves."""
        error = self._error([reference, *rows]) if rows else None
        if error is None:
            return
        if len(rows) == 1:
            yield rows[0], error
            return
        half = len(rows) // 2
        yield from self._failing(rows[:half], reference)
        yield from self._failing(rows[half:], reference)

    def _error(self, rows: Sequence[int]) -> Exception | None:
        try:
            self._attempt(rows)
        except Exception as error:
            if not concerns_rows(error):
                raise
            return error
        return None


def concerns_rows(error: Exception) -> bool:
    """True if an error may come from a row: not from memory, a broken device or the fast path."""
    is_fatal = isinstance(error, MemoryError | FastPathError) or is_out_of_memory(error)
    return not is_fatal and not any(text in str(error) for text in DEVICE_ERRORS)


def short_reason(error: Exception, files: Sequence[str] = ()) -> str:
    """One line about an error, for a list, that names the row's files without their folders.

    Example:
        >>> short_reason(OSError("image file is truncated"), ["/data/cats/3.png"])
        '3.png: OSError: image file is truncated'
        >>> short_reason(OSError("not found"), ["https://host/3.png?signature=secret"])
        '3.png: OSError: not found'
    """
    text = FOLDERS.sub("", " ".join(str(error).split()))
    if not type(error).__module__.startswith("vog_hf"):
        text = f"{type(error).__name__}: {text}"
    names = [
        name
        for name in (re.split(r"[/\\]", re.split(r"[?#]", file)[0])[-1] for file in files)
        if name and name not in text
    ]
    text = f"{', '.join(names)}: {text}" if names else text
    return text if len(text) <= REASON_LENGTH else f"{text[: REASON_LENGTH - 3]}..."


def close_images(error: Exception) -> None:
    """Close the files of images that `datasets` opened and could not decode; it leaves them open."""
    for frame, _ in walk_tb(error.__traceback__):
        image: Any = frame.f_locals.get("image")
        if frame.f_globals.get("__name__") == DECODER and hasattr(image, "close"):
            image.close()
