"""Values as a reader wants them: numbers with few digits, texts without characters that a page cannot hold."""

import re

import numpy as np

# No HTML or XML can hold these characters, not even as character references.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
ABSENT = "\N{EN DASH}"


def printable(text: str) -> str:
    r"""Escape halves of surrogate pairs, and replace other characters that no page can hold.

    Example:
        >>> printable("a\x00b\ud800")
        'a\ufffdb\\ud800'
    """
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", escaped(text))


def escaped(text: str) -> str:
    r"""Escape each half of a surrogate pair, so that every file, table and stream can hold the text.

    Example:
        >>> escaped("a\ud800")
        'a\\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def number(value: object) -> str:
    """Format a number with four digits, whole numbers in full, and a missing value as a dash.

    Example:
        >>> number(0.123456), number(12), number(3.0), number(1234.0), number(1234567.0)
        ('0.1235', '12', '3.000', '1234', '1.235e+06')
    """
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return ABSENT
    if isinstance(value, float | np.floating):
        return f"{value:#.4g}".rstrip(".").replace("-", "\N{MINUS SIGN}")
    return str(value).replace("-", "\N{MINUS SIGN}") if isinstance(value, int | np.integer) else str(value)


def signed(correlation: float) -> str:
    """Format a correlation with two digits and its sign.

    Example:
        >>> signed(0.5)
        '+0.50'
    """
    return f"{correlation:+.2f}".replace("-", "\N{MINUS SIGN}")


def shortened(text: object, width: int) -> str:
    """Shorten a text to one line of at most ``width`` characters, ending in an ellipsis if something was cut.

    Example:
        >>> shortened("a  very long name", 8)
        'a very …'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
