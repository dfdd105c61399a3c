"""The code of the documentation's pages: each page is one program, its Python blocks in order."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import ACCEPTED, HubServer

DOCS = Path(__file__).resolve().parents[2] / "docs"
TESTED_ELSEWHERE = {"interoperability.md", "limitations.md", "review.md"}  # each by a test of its own
NEEDS = "# Needs "  # the first line of a block that needs what a test does not have (a server, several machines)


def python_blocks(page):
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if python_blocks(page)]
PROGRAMS = [page for page in PAGES if page.name not in TESTED_ELSEWHERE]


def name_of(page):
    """The path of a page below docs/."""
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_compile_and_import_what_exists(page):
    """Every block is valid Python, and every name that it imports from vog_hf exists."""
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vog_hf"):
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_code_fits_the_page(page):
    """No line of code is longer than what a page shows at 1280 px without scrolling."""
    assert [line for block in python_blocks(page) for line in block.splitlines() if len(line) > 84] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_page_runs(page, tmp_path):
    """The blocks of a page run as they stand, one after the other, in an empty folder without a network."""
    program = "\n".join(block for block in python_blocks(page) if not block.startswith(NEEDS))
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_DATA_DIR": str(tmp_path)}
    offline |= {"TRACKIO_DIR": str(tmp_path / "trackio"), "OMP_NUM_THREADS": "1"}
    with HubServer(tokens={ACCEPTED: "me"}) as hub:
        environment = {**os.environ, **offline, **hub.environment(tmp_path / "home"), "HF_TOKEN": ACCEPTED}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert "vog_hf" not in "".join(line for line in done.stderr.splitlines() if "Warning" in line)
