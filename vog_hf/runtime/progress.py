"""Progress of long work: a bar on a terminal, lines in a log file."""

import io
import math
import sys
from typing import Any

from tqdm import std
from tqdm.auto import tqdm
from typing_extensions import override

SECONDS_TO_FIRST_LINE = 30.0


def is_terminal() -> bool:
    """True if stderr is a terminal; a replaced stderr need not know."""
    return bool(getattr(sys.stderr, "isatty", bool)())


def write_line(line: str) -> None:
    """Print to stderr, not behind a progress bar of the training."""
    write: Any = print if sys.stderr is None else tqdm.write
    write(line, file=sys.stderr)


def progress_bar(total: int | None, *, is_shown: bool) -> Any:
    """A bar that counts rows times snapshots up to ``total``, if known.

    Without a terminal, lines are printed to stderr instead: after 30 seconds, then each time after twice as long, so
    that a day of work prints about a dozen.
    """
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    if is_shown and not in_notebook and not is_terminal():
        return _ProgressLines(total=total, desc="VoG: ")
    return tqdm(total=total, unit="row", desc="VoG", disable=not is_shown)


class _ProgressLines(std.tqdm):  # type: ignore[type-arg]
    """Prints a line where a bar would be drawn."""

    def __init__(self, *, total: int | None, desc: str) -> None:
        amount = "{desc}{n_fmt} row passes" if total is None else "{desc}{percentage:.0f} % of {total_fmt} row passes"
        left = "" if total is None else ", about {remaining} left"
        super().__init__(
            total=total,
            desc=desc,
            file=io.StringIO(),
            bar_format=f"{amount} in {{elapsed}}{left}",
            mininterval=SECONDS_TO_FIRST_LINE,
            maxinterval=math.inf,
            miniters=1,
            delay=SECONDS_TO_FIRST_LINE,
        )

    @override
    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Change the description of later lines; ``refresh`` would print one at once, and is ignored."""
        super().set_description(desc, refresh=False)

    @override
    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the line that is due."""
        if msg is None and not self.disable:
            write_line(str(self))
            self.mininterval *= 2
