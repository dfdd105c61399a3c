"""docs/limitations.md: its tables and the names that its code defines."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "limitations.md"


def code_of_page() -> dict[str, Any]:
    """The names that the code blocks of the page define, run one after the other."""
    names: dict[str, Any] = {"__name__": __name__}  # a module that transformers can look up
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(block, names)  # noqa: S102 (the repository's own page)
    return names


def rows_of_tables() -> list[tuple[str, str, str]]:
    """What is refused, the quoted part of the error, and what works instead, of each line of each table."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [(what, quoted.strip("`"), instead) for what, quoted, instead in cells if quoted != "the error says"]
