import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vog_hf

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "wandb",
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "gradio",
)


TESTS = Path(__file__).parents[1]
IMPORT = re.compile(r"from (vog_hf[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))")
WRONG_ON_PURPOSE = {"x", "_aligned", "vogue"}  # in tests of refused imports


def heavy_modules_after(statement):
    """Which of the slow libraries a fresh interpreter has loaded after a statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    finished = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def test_importing_the_package_loads_nothing_slow():
    """`import vog_hf` takes no seconds: neither torch nor transformers, nor any other large library, is loaded."""
    assert heavy_modules_after("import vog_hf") == []
    assert heavy_modules_after("import vog_hf; dir(vog_hf); vog_hf.VoGError; vog_hf.__version__") == []


@pytest.mark.slow
def test_the_check_of_slow_imports_can_fail():
    """The same checker reports torch where it is loaded: for the formula, and on first use of a public name."""
    assert "torch" in heavy_modules_after("import vog_hf.metric.definition")
    assert "torch" in heavy_modules_after("import vog_hf; vog_hf.vog")


def test_the_formula_needs_no_hugging_face_library():
    """Floor 0 stands alone: metric, moments and dynamics load torch, and nothing of Hugging Face."""
    loaded = heavy_modules_after(
        "import vog_hf.metric.batch_accumulator, vog_hf.metric.training_dynamics, vog_hf.evaluation"
    )
    assert set(loaded).isdisjoint({"transformers", "datasets", "accelerate", "wandb"})


@pytest.mark.parametrize("module", ["gradients.input_gradients", "scoring.scorer"])
def test_the_compiler_of_torch_waits_until_something_is_compiled(module):
    """It takes a second to import, for the sake of a hook that only compiled models must not look into."""
    program = f"import sys, vog_hf.{module}; print([name for name in sys.modules if name == 'torch._dynamo'])"
    finished = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize("name", vog_hf.__all__)
def test_every_public_name_resolves_to_a_thing_of_that_name(name):
    """Each of the public names is there on first use, under its own name."""
    assert getattr(vog_hf, name).__name__ == name


def test_dir_lists_the_public_names():
    """Completion shows what there is, in order and once each."""
    listed = dir(vog_hf)
    assert {*vog_hf.__all__, "__version__"} <= set(listed)
    assert listed == sorted(set(listed))
    assert list(vog_hf.__all__) == sorted(vog_hf.__all__)
    assert set(vog_hf._HOME) == set(vog_hf.__all__)


def test_the_version_is_that_of_the_installed_package():
    """`__version__` comes from the package's metadata, so that there is one place to change it."""
    assert vog_hf.__version__.count(".") == 2


def test_an_unknown_name_is_an_attribute_error():
    """What does not exist behaves as in any module: hasattr says no, import fails."""
    with pytest.raises(AttributeError, match="module 'vog_hf' has no attribute 'VoGCallbacks'"):
        vog_hf.VoGCallbacks  # noqa: B018 (the access is the test)
    assert not hasattr(vog_hf, "vogue")
    with pytest.raises(ImportError, match="cannot import name 'vogue' from 'vog_hf'"):
        exec("from vog_hf import vogue")  # noqa: S102 (a linter would refuse it as a statement)


def test_programs_that_slow_tests_write_import_what_there_is():
    """A program inside a test is text: after a move nothing but its own run, in a slow tier, would show its import."""
    missing = []
    for path in TESTS.rglob("*.py"):
        for module, in_brackets, on_line in IMPORT.findall(path.read_text(encoding="utf-8")):
            names = [name.split(" as ")[0].strip() for name in (in_brackets or on_line).split(",") if name.strip()]
            missing += [(path.name, module, name) for name in names if not is_there(module, name)]
    assert {name for _, _, name in missing} <= WRONG_ON_PURPOSE


def is_there(module, name):
    """Whether a module has a name, as an attribute or as a module of its own."""
    try:
        found = importlib.import_module(module)
        return hasattr(found, name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False
