"""Standard streams that accept every character, regardless of the encoding of terminal or log."""

import codecs
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

PLAIN = "vog_hf.plain"  # name of the error handler below in `codecs`
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
    """Replace our marks, rules and bars by ASCII, and any other character by its escape."""
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
    """Make standard output and error replace characters that their encoding lacks, instead of failing after the work.

    UTF-8 lacks halves of surrogate pairs, which file names may contain.
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
