"""Output of a command: text for people or JSON for machines, and its errors."""

import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vog_hf.errors import VoGError


@dataclass(frozen=True)
class Output:
    """Output of one command: text on stdout for people, or one JSON document for machines.

    Attributes:
        as_json: ``--json`` was given: only `json` prints to stdout.
        debug: ``--debug`` was given: errors show their traceback.
        console: Console for people; quiet under ``--json``.
        messages: Console on stderr for errors, warnings and hints.
    """

    as_json: bool = False
    debug: bool = False
    console: Console = field(default_factory=Console)
    messages: Console = field(default_factory=partial(Console, stderr=True))

    @classmethod
    def of(cls, *, as_json: bool, debug: bool) -> "Output":
        """The output of a command with these options."""
        return cls(as_json=as_json, debug=debug, console=Console(quiet=as_json))

    @property
    def shows_progress(self) -> bool:
        """True if progress bars can be shown on a terminal."""
        return self.messages.is_terminal

    def json(self, values: object) -> None:
        """Print the JSON document under ``--json``; NaN and infinity become null."""
        if self.as_json:
            print(json.dumps(_finite(values), allow_nan=False))  # noqa: T201 (--json prints to stdout)

    def result(self, message: str, values: Mapping[str, object], *, shown: Mapping[str, object] | None = None) -> None:
        """Print a message and one line per value (of ``shown``, if given); for machines, only the values."""
        self.json(values)
        self._line(self.console, Text("✓ ", "green") + Text(message, "bold"))
        self.values(values if shown is None else shown)

    def heading(self, text: str, *, after: bool = False) -> None:
        """Print a heading for people; with ``after``, a blank line comes first."""
        self._line(self.console, Text("\n" * after) + Text(in_words(text), "bold"))

    def line(self, text: str) -> None:
        """Print an indented line for people."""
        self.console.print(Text(f"  {in_words(text)}"), soft_wrap=True)

    def values(self, values: Mapping[str, object]) -> None:
        """Print one line per value that is not None, for people; wrapped next to its name on a terminal."""
        lines = [(Text(f"  {name}:", "dim"), Text(in_words(v))) for name, v in values.items() if v is not None]
        if not self.console.is_terminal:
            for name, value in lines:
                self._line(self.console, name + Text(" ") + value)
            return
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for line in lines:
            grid.add_row(*line)
        self.console.print(grid)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]], *, digits: int) -> None:
        """Print a table for people; numbers are right-aligned and floats have ``digits`` decimals."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for place, heading in enumerate(headings):
            numbers = all(isinstance(row[place], (int, float)) for row in rows)
            table.add_column(heading.upper(), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            cells = [f"{value:.{digits}f}" if isinstance(value, float) else in_words(value) for value in row]
            table.add_row(*map(Text, cells))
        self.console.print(table)

    def hint(self, text: str) -> None:
        """Print a suggestion for the next step, on a terminal only."""
        if self.messages.is_terminal and not self.as_json:
            self._line(self.messages, Text(f"Hint: {text}", "dim"))

    def notice(self, text: str) -> None:
        """Print a message to stderr, also under ``--json``."""
        self._line(self.messages, Text(text))

    def error(self, error: BaseException) -> None:
        """Print an error in one line, after its traceback under ``--debug``."""
        if self.debug:
            traceback.print_exception(error)
        text = in_words(str(error)) or type(error).__name__
        if not isinstance(error, VoGError):
            text = f"{type(error).__name__}: {text}" + ("" if self.debug else " (--debug adds the traceback)")
        rank = os.environ.get("RANK")
        where = "" if rank is None else f" on process {rank}"
        sys.stdout.flush()
        self._line(self.messages, Text(f"Error{where}: ", "bold red") + Text(text))

    @staticmethod
    def _line(console: Console, text: Text) -> None:
        """Print text, wrapped on a terminal and otherwise in one line."""
        console.print(text, soft_wrap=not console.is_terminal)


@contextmanager
def naming_options(**options: str) -> Iterator[None]:
    """Name options of the command line where errors of the library name arguments.

    Args:
        options: Option of each argument.

    Example:
        >>> with naming_options(split="--split-name"):
        ...     raise VoGError("there is no split 'test'; pass split='train'", argument="split='train'")
        Traceback (most recent call last):
        vog_hf.errors.VoGError: there is no split 'test'; pass --split-name 'train'
    """
    try:
        yield
    except VoGError as error:
        text, *rest = error.args or ("",)
        for mention in error.arguments:
            name, _, value = mention.partition("=")
            if name in options:
                option = options[name] if value in ("", "True") else f"{options[name]} {value}"
                text = _replaced(str(text), mention, option)
        error.args = (text, *rest)
        raise


def _replaced(text: str, mention: str, option: str) -> str:
    """Replace an argument that is the subject of a message, or else is in its advice at the end."""
    if text.startswith(mention):
        return option + text.removeprefix(mention)
    before, found, after = text.rpartition(mention)
    return f"{before}{option}{after}" if found else f"{option}: {text}"


def in_words(value: object) -> str:
    """A value as readable text: rounded, grouped, in one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value))
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _finite(value: object) -> Any:
    """A value for JSON: Python numbers instead of numpy's, None instead of NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
