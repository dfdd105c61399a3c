"""docs/limitations.md is held against the code: its messages exist, and tests raise them."""

import ast
import re
from pathlib import Path

import pytest
from limitations_page import PAGE, rows_of_tables

ROOT = Path(__file__).parents[2]
LEAST, MOST = 12, 200  # characters of a part of a message by which it is known


def texts_of_code(folder):
    """Every string of the sources, with ``{}`` for what is formatted into it."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.fixture(scope="module")
def messages():
    """The package's strings."""
    return list(texts_of_code(ROOT / "vog_hf"))


@pytest.fixture(scope="module")
def expected_parts():
    """Parts of what tests expect of messages: their strings without marks of regular expressions, cut at ``.*``."""
    found = set()
    for text in texts_of_code(ROOT / "tests"):
        found |= {part.strip() for part in re.split(r"\.\*|\{\}", re.sub(r"\\(.)", r"\1", text))}
    return {part for part in found if LEAST <= len(part) <= MOST}


@pytest.mark.slow  # every string of package and tests is read
@pytest.mark.parametrize("quoted", [quoted for _, quoted, _ in rows_of_tables()])
def test_messages_of_the_page_are_raised_in_tests(quoted, messages, expected_parts):
    """Each quoted text is part of a message of the package, and a test expects some part of that message."""
    of_package = [message for message in messages if quoted in message.replace("{!r}", "{}")]
    assert of_package, quoted
    assert any(quoted in part or any(part in message for message in of_package) for part in expected_parts), of_package


def test_every_line_of_the_page_names_what_works_instead():
    """Each of its rows has three cells, none of them empty, and its links lead to its own headings."""
    assert len(rows_of_tables()) >= 40
    assert all(map(all, rows_of_tables()))
    text = PAGE.read_text(encoding="utf-8")
    headings = {"#" + title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\((#[^)]*)\)", text)) <= headings


def test_the_readme_links_to_the_page():
    """Its own section on limitations leads to the full list."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Limitations")[1].split("\n## ")[0]
    assert "(docs/limitations.md)" in section
