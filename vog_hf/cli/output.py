"""What a command prints: for people, or with --json for machines; and how it fails."""

import json
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vog_hf.errors import VoGError


@dataclass(frozen=True)
class Output:
    """Where the results of one command go: people read stdout, machines get one JSON document there.

    Attributes:
        as_json: Whether ``--json`` was given: then nothing but `json` prints to stdout.
        debug: Whether ``--debug`` was given: errors show their traceback.
        console: For people; says nothing where the output is for machines.
        messages: stderr: errors, warnings and hints.
    """

    as_json: bool = False
    debug: bool = False
    console: Console = field(default_factory=Console)
    messages: Console = field(default_factory=lambda: Console(stderr=True))

    @classmethod
    def of(cls, *, as_json: bool, debug: bool) -> "Output":
        """The output of a command with these options."""
        return cls(as_json=as_json, debug=debug, console=Console(quiet=as_json))

    @property
    def shows_progress(self) -> bool:
        """Whether progress bars have a terminal to be on."""
        return self.messages.is_terminal

    def json(self, values: Any) -> None:
        """Print the one JSON document, if that is what was asked for; NaN and infinity as null."""
        if self.as_json:
            print(json.dumps(_finite(values), allow_nan=False))  # noqa: T201 (stdout is what --json is about)

    def result(self, message: str, values: Mapping[str, Any], *, shown: Mapping[str, Any] | None = None) -> None:
        """Print what was done, with a line for each value (or of those in ``shown``); for machines the values alone."""
        self.json(values)
        self.console.print(Text("✓ ", "green") + Text(message, "bold"), soft_wrap=True)
        self.values(values if shown is None else shown)

    def heading(self, text: str) -> None:
        """Print a line above what follows, for people."""
        self.console.print(Text(in_words(text), "bold"), soft_wrap=True)

    def line(self, text: str) -> None:
        """Print a line under a result, for people."""
        self.console.print(Text(f"  {in_words(text)}"), soft_wrap=True)

    def values(self, values: Mapping[str, Any]) -> None:
        """Print a line for each value that there is, for people."""
        for name, value in values.items():
            if value is not None:
                self.console.print(Text(f"  {name}: ", "dim") + Text(in_words(value)), soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print rows under their headings, numbers to the right, for people."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for place, heading in enumerate(headings):
            numbers = all(isinstance(row[place], (int, float)) for row in rows)
            table.add_column(heading.upper(), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(in_words(value)) for value in row))
        self.console.print(table)

    def hint(self, text: str) -> None:
        """Print what could be done next, for people who sit at a terminal."""
        if self.messages.is_terminal and not self.as_json:
            self.messages.print(Text(f"Hint: {text}", "dim"), soft_wrap=True)

    def error(self, error: BaseException) -> None:
        """Print what went wrong in one line, with the traceback before it under ``--debug``."""
        if self.debug:
            traceback.print_exception(error)
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, VoGError):
            text = f"{type(error).__name__}: {text}" + ("" if self.debug else " (--debug shows where)")
        rank = os.environ.get("RANK")
        where = "" if rank is None else f" on process {rank}"
        sys.stdout.flush()
        self.messages.print(Text(f"Error{where}: ", "bold red") + Text(text), soft_wrap=True)


def in_words(value: Any) -> str:
    """A value as a person reads it: rounded, grouped, in one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value))
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _finite(value: Any) -> Any:
    """A value for JSON: numpy's numbers as Python's, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
