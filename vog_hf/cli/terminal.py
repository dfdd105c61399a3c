"""Standard streams that take every character, whatever the encoding of the terminal or log behind them."""

import codecs
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

PLAIN = "vog_hf.plain"  # the error handler below, by the name that `codecs` knows it by
PLAIN_CHARACTERS = {
    "\N{CHECK MARK}": "*",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{LEFTWARDS ARROW}": "<-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{MIDDLE DOT}": "-",
    "\N{BULLET}": "*",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Our own marks, rules and bars as ASCII; any other character as its escape, which says what it was."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(map(_in_ascii, lost)), error.end


def _in_ascii(character: str) -> str:
    if character in PLAIN_CHARACTERS:
        return PLAIN_CHARACTERS[character]
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        sides = ("HORIZONTAL" in name, "VERTICAL" in name)
        return {(True, False): "-", (False, True): "|"}.get(sides, "+")
    if name.endswith("BLOCK"):
        return "#"
    return character.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(PLAIN, _plain)


@contextmanager
def any_encoding() -> Iterator[None]:
    """Standard output and standard error replace what their encoding lacks, instead of failing after the work.

    UTF-8 lacks halves of surrogate pairs, which names of files may have.
    """
    before = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    for stream, _ in before:
        stream.reconfigure(errors=PLAIN)
    try:
        yield
    finally:
        for stream, errors in before:
            if not stream.closed:
                stream.reconfigure(errors=errors)
