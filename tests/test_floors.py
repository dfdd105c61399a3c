"""The floors of the library: imports point down only. Moving a module means changing the table below."""

import ast
import re
from pathlib import Path

import pytest

import vog_hf

PACKAGE = Path(vog_hf.__file__).parent
RECIPES = PACKAGE.parent / "recipes"

FLOORS = (
    {"errors", "metric", "moments", "dynamics", "evaluation", "schedule"},
    {"targets", "decoder_inputs", "gradients", "folding", "model_state"},
    {
        "config",
        "files",
        "rows",
        "row_hashes",
        "manifest",
        "named_files",
        "snapshots",
        "batches",
        "collating",
        "accumulate",
        "ahead",
        "engine",
        "blocks",
        "live",
        "live_ranking",
        "live_state",
        "memory",
        "replica",
        "results",
        "scores",
        "columns",
        "findings",
        "text",
        "wording",
        "label_noise",
        "loading",
        "scorer",
        "session",
        "pictures",
        "processes",
        "replay",
        "streams",
    },
    {"tracking", "hub", "report", "review"},
    {"training", "callback", "demo", "cli", "__main__"},
)
OUTSIDE_SYSTEMS = 3  # the floor whose modules know nothing of one another
HUGGING_FACE = {"transformers", "datasets", "accelerate", "huggingface_hub", "peft"}  # not on floor 0
# Beside the names of `vog_hf` itself, recipes may use what these modules define: values, outside systems, snapshots for
# a loop of one's own, rows by name, and the rows of the demo.
OPEN_TO_RECIPES = FLOORS[0] | FLOORS[OUTSIDE_SYSTEMS] | {"pictures", "label_noise", "loading", "snapshots", "demo"}


def floor_of(module):
    """The number of a module's floor, None where the table has it not."""
    return next((number for number, modules in enumerate(FLOORS) if module in modules), None)


def sources():
    """Every file of the package with the module (or folder) it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module != "__init__":
            yield module, path


def imports_in(source, package=("vog_hf",)):
    """Every import in a source, at whatever depth: (line, dotted module, name or None)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield node.lineno, module, alias.name


def own_module(module, name):
    """The module of vog_hf that an import reaches; None for others, and for `vog_hf` itself."""
    root, _, rest = module.partition(".")
    if root != "vog_hf":
        return None
    if rest:
        return rest.split(".")[0]
    if name in vog_hf._HOME:
        return vog_hf._HOME[name]
    return name if name is not None and floor_of(name) is not None else None


def faults(module, source, package=("vog_hf",)):
    """What is wrong with the imports of a module, one line each."""
    here, found = floor_of(module), []
    for line, imported, name in imports_in(source, package):
        target = own_module(imported, name)
        if here == 0 and imported.split(".")[0] in HUGGING_FACE:
            found.append(f"{module}:{line} is on floor 0 and imports {imported}")
        if target is None or target == module:
            continue
        there = floor_of(target)
        if there is None:
            found.append(f"{module}:{line} imports vog_hf.{target}, which has no floor")
        elif there > here:
            found.append(f"{module}:{line} (floor {here}) imports {target} (floor {there}): upward")
        elif there == here == OUTSIDE_SYSTEMS:
            found.append(f"{module}:{line} imports {target}: modules of outside systems do not know one another")
    return found


def recipe_faults(name, source):
    """Names of vog_hf that a recipe should not know."""
    found = []
    for line, imported, imported_name in imports_in(source):
        if imported.split(".")[0] != "vog_hf":
            continue
        module = imported.partition(".")[2]
        public = imported_name in vog_hf.__all__ if not module else module in OPEN_TO_RECIPES
        if imported != "vog_hf" and imported_name is None:
            public = False  # import vog_hf.module: which of its names are used cannot be seen
        if imported == "vog_hf" and imported_name is None:
            public = True
        if not public or (imported_name or "").startswith("_"):
            found.append(f"{name}:{line} imports {imported_name or imported} of {imported}, which is not public")
    return found


def test_every_module_has_a_floor():
    """A new file is put on a floor before it is merged."""
    without = sorted({module for module, _ in sources() if floor_of(module) is None})
    assert not without, f"put {', '.join(without)} on a floor: FLOORS in {Path(__file__).name}"
    assert sum(len(modules) for modules in FLOORS) == len(set().union(*FLOORS)), "a module stands on two floors"


def test_contributing_lists_every_module_on_its_floor():
    """The table that newcomers read is the one that is enforced; it may name modules that are still to come."""
    lines = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if re.match(r"\| \d", line)]
    exist = {module for module, _ in sources()}
    for number, modules in enumerate(FLOORS):
        listed = {name for row in rows if row.startswith(f"| {number} |") for name in re.findall("`(.+?)`", row)}
        assert modules & exist <= listed <= modules, f"floor {number} of CONTRIBUTING.md lists {sorted(listed)}"


def test_imports_point_down():
    """No module imports from a floor above its own, and no outside system from another."""
    found = []
    for module, path in sources():
        package = ("vog_hf", *path.relative_to(PACKAGE).parts[:-1])
        found += faults(module, path.read_text(encoding="utf-8"), package)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        (
            "metric",
            "from vog_hf.gradients.targets import Task",
            r"metric:1 \(floor 0\) imports targets \(floor 1\): upward",
        ),
        ("metric", "import vog_hf.scoring.scorer", "upward"),
        ("metric", "from vog_hf import scorer", "upward"),
        ("metric", "from vog_hf import VoGScorer", "imports scorer"),
        ("metric", "from . import gradients", "upward"),
        ("metric", "from .gradients import input_gradients", "upward"),
        ("gradients", "def f():\n    from vog_hf.data.row_identity import identify_rows", "gradients:2"),
        ("scorer", "if TYPE_CHECKING:\n    from vog_hf.trainer.callback import VoGCallback", "upward"),
        ("tracking", "from vog_hf.hub import push_scored_dataset", "do not know one another"),
        ("metric", "from transformers import Trainer", "is on floor 0 and imports transformers"),
        ("moments", "def f():\n    import datasets.features", "is on floor 0 and imports datasets.features"),
        ("cli", "from vog_hf.unheard_of import x", "which has no floor"),
    ],
)
def test_a_fault_is_found(module, source, message):
    """The checker can fail: each kind of forbidden import is found wherever it stands."""
    with pytest.raises(AssertionError, match=message):
        assert not faults(module, source), faults(module, source)[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scorer", "from vog_hf.gradients.input_gradients import input_gradients"),
        ("scorer", "from vog_hf.data.row_identity import identify_rows"),
        ("metric", "from vog_hf.errors import ConfigError"),
        ("callback", "from vog_hf import VoGScorer"),
        ("report", "from .template import page"),
        ("report", "from vog_hf.report.page import page"),
        ("rows", "from datasets import Dataset"),
    ],
)
def test_what_points_down_or_stays_is_no_fault(module, source):
    """Beside the forbidden: the same kinds of import, downward or within a module's own folder."""
    assert faults(module, source, ("vog_hf", module) if module == "report" else ("vog_hf",)) == []


def test_recipes_use_public_names():
    """A recipe is a program to copy: it knows what a user knows."""
    recipes = sorted(RECIPES.rglob("*.py"))
    if not recipes:
        pytest.skip("there are no recipes yet")
    found = [fault for path in recipes for fault in recipe_faults(path.name, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_a_recipe_that_knows_too_much_is_found():
    """The checker of recipes can fail, and lets the public names pass."""
    for source in (
        "from vog_hf.scoring.scorer import VoGScorer",
        "from vog_hf.evaluation import _aligned",
        "from vog_hf import engine",
        "import vog_hf.engine",
    ):
        assert recipe_faults("recipe", source)
    for source in (
        "from vog_hf import VoGCallback, vog",
        "import vog_hf",
        "from vog_hf.evaluation import error_by_decile",
        "import torch",
    ):
        assert recipe_faults("recipe", source) == []
