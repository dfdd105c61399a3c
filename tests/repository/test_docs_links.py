"""Links between the Markdown files of the repository, as GitHub resolves them; the strict build checks the site's."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def markdown_files():
    """The Markdown files under version control, without templates of the package."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [ROOT / name for name in listed.splitlines() if not name.startswith("vog_hf/")]


def anchors(page):
    """The anchors that GitHub gives the headings of a page, and those that a reference page takes from docstrings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = (re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ +(.+?)\s*$", text, re.MULTILINE))
    return {heading.replace(" ", "-") for heading in headings} | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def broken_links(page):
    """The links of a page to files or headings that do not exist."""
    for name, anchor in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{name}#{anchor}"


def test_every_relative_link_resolves():
    """Every link of every page leads to a file and, with an anchor, to a heading of it."""
    pages = markdown_files()
    if not pages:
        pytest.skip("not a git checkout")
    assert {str(page.relative_to(ROOT)): links for page in pages if (links := list(broken_links(page)))} == {}


def test_a_broken_link_is_noticed(tmp_path):
    """Files and headings that are missing are reported; what is there, and what is in code, is not."""
    (tmp_path / "b.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "a.md"
    page.write_text("[x](b.md#a-heading-with-code) [y](b.md#other) [z](c.md) [w](https://x.org)\n```\n[v](d.md)\n```\n")
    assert list(broken_links(page)) == ["b.md#other", "c.md#"]
