"""The spelling check of `make check`: American spelling and plain phrases."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = (ROOT / ".codespell-phrases.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def spelling():
    """A function from a text to the complaints of the spelling check, run as `make check` does."""
    pytest.importorskip("codespell_lib")
    plan = subprocess.run(["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = next(line for line in plan.replace("\\\n", " ").splitlines() if line.startswith(".venv/bin/codespell "))

    def complaints(text):
        arguments = [sys.executable, "-m", "codespell_lib", *shlex.split(command)[1:], "-"]
        return subprocess.run(arguments, cwd=ROOT, input=text, capture_output=True, text=True, check=False).stdout

    return complaints


def test_every_phrase_of_the_list_is_refused(spelling):
    """Each phrase is reported with its replacement."""
    pairs = [line.split("->") for line in PHRASES]
    complaints = spelling("".join(f"this {phrase} that\n" for phrase, _ in pairs))
    assert [pair for pair in pairs if " ==> ".join(pair) not in complaints] == []


def test_american_spelling_and_plain_phrases_are_accepted(spelling):
    """British spelling is reported; the plain text next to it, and phrases that only look alike, are not."""
    assert "colour ==> color" in spelling("a colour\n")  # codespell:ignore colour
    assert not spelling("a color; there is no scan, it is no longer open, and a dataset continues\n")
