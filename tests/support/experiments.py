"""The programs of recipes/experiments, run and read in the process of the tests."""

import json
import logging
import runpy
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "recipes" / "experiments"


def run_in_this_process(recipe, *arguments):
    """A recipe as its command line starts it, but for the imports, which take most of the time of a small run."""
    logger = logging.getLogger("vog_hf")
    level = logger.level
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        patch.setattr(sys, "argv", [f"{recipe}.py", *map(str, arguments)])
        try:
            runpy.run_path(str(EXPERIMENTS / f"{recipe}.py"), run_name="__main__")
        finally:
            logger.setLevel(level)


def read_results(folder):
    """results.json of a run."""
    return json.loads((folder / "results.json").read_text())


def functions_of(recipe):
    """What an experiment defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        return runpy.run_path(str(EXPERIMENTS / f"{recipe}.py"))
