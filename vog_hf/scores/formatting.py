"""Values as a reader wants them: numbers of few digits, texts without what a page cannot hold."""

import re

import numpy as np

# No HTML or XML can hold these characters, not even as character references.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
ABSENT = "\N{EN DASH}"


def printable(text: str) -> str:
    r"""The text with the escapes of halves of surrogate pairs and a replacement for what else no page can hold.

    Example:
        >>> printable("a\x00b\ud800")
        'a\ufffdb\\ud800'
    """
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", escaped(text))


def escaped(text: str) -> str:
    r"""The text with each half of a surrogate pair as its escape: what every file, table and stream can hold.

    Example:
        >>> escaped("a\ud800")
        'a\\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def number(value: object) -> str:
    """A number of four digits, whole numbers whole; a dash where there is none.

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
    """A correlation of two digits with its sign.

    Example:
        >>> signed(0.5)
        '+0.50'
    """
    return f"{correlation:+.2f}".replace("-", "\N{MINUS SIGN}")


def shortened(text: object, width: int) -> str:
    """A text on one line of at most ``width`` characters; what was cut off is an ellipsis.

    Example:
        >>> shortened("a  very long name", 8)
        'a very …'
    """
    line = " ".join(str(text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
