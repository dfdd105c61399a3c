"""The floors of the library: imports point down only. A new folder means a new line in the table below."""

import ast
import re
from itertools import permutations
from pathlib import Path

import pytest

import vog_hf

PACKAGE = Path(vog_hf.__file__).parent
ROOT = PACKAGE.parent
RECIPES = ROOT / "recipes"

# A room for each line, from the ground up, with the rooms that it may import from: some of those above its line here.
MAY_IMPORT = {
    "errors": "",
    "metric": "errors",
    "evaluation": "errors",
    "runtime": "errors",
    "gradients": "errors metric runtime",
    "config": "errors metric gradients",
    "snapshots": "errors metric runtime gradients",
    "data": "errors runtime gradients",
    "scores": "errors metric evaluation runtime gradients config data",
    "scoring": "errors metric runtime gradients config snapshots data scores",
    "tracking": "errors metric evaluation runtime data scores",
    "report": "errors evaluation runtime data scores",
    "hub": "errors evaluation runtime data scores",
    "review": "errors metric evaluation runtime gradients data scores",
    "trainer": "errors metric runtime gradients config snapshots data scores scoring tracking report",
    "cli": "errors metric evaluation runtime gradients config snapshots data scores scoring report hub review trainer",
    "demo": "cli",
    "__main__": "cli",
}
TOP = {"cli", "demo", "__main__"}  # what may import the package's own names: everything is below it
HUGGING_FACE = {"transformers", "datasets", "accelerate", "huggingface_hub", "peft"}
WITHOUT_HUGGING_FACE = {"errors", "metric", "evaluation"}  # tensors and arrays in, tensors and tables out
MAX_PERMITTED = 0.45  # of all pairs of modules; a table that permits more than this separates nothing
# Next to the names of `vog_hf` itself, recipes may use what these rooms define.
OPEN_TO_RECIPES = {"data", "demo", "evaluation", "hub", "report", "review", "scores", "snapshots", "tracking"}


def permits(here, there):
    """Whether modules of one room may import from another: their own room, or one that its line names."""
    return here == there or there in MAY_IMPORT[here].split()


def sources():
    """Every file of the package with the room it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path


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


def own_room(module, name):
    """The room of vog_hf that an import reaches: None for other packages, "vog_hf" for the package itself."""
    root, _, rest = module.partition(".")
    if root != "vog_hf":
        return None
    if rest:
        return rest.split(".")[0]
    return name if name is not None and name in MAY_IMPORT else "vog_hf"


def faults(room, source, package=("vog_hf",)):
    """What is wrong with the imports of a module, one line each."""
    found = []
    for line, imported, name in imports_in(source, package):
        if room in WITHOUT_HUGGING_FACE and imported.split(".")[0] in HUGGING_FACE:
            found.append(f"{room}:{line} imports {imported}; {room} does without Hugging Face")
        target = own_room(imported, name)
        if target is None:
            continue
        if target == "vog_hf":
            if room not in TOP:
                found.append(f"{room}:{line} imports {name or imported} of the package itself, which is above it")
        elif target not in MAY_IMPORT:
            found.append(f"{room}:{line} imports vog_hf.{target}, which is not in the table")
        elif not permits(room, target):
            found.append(f"{room}:{line} imports {target}; {room} may import {MAY_IMPORT[room] or 'nothing'}")
    return found


def recipe_faults(name, source):
    """Names of vog_hf that a recipe should not know."""
    found = []
    for line, imported, imported_name in imports_in(source):
        if imported.split(".")[0] != "vog_hf":
            continue
        module = imported.partition(".")[2]
        inside = module.count(".") > (module == "scores.pictures")  # a file of a room; its pictures are a folder
        public = imported_name in vog_hf.__all__ if not module else own_room(imported, None) in OPEN_TO_RECIPES
        public = public and not inside
        if imported != "vog_hf" and imported_name is None:
            public = False  # import vog_hf.module: which of its names are used cannot be seen
        if imported == "vog_hf" and imported_name is None:
            public = True
        if not public or (imported_name or "").startswith("_"):
            found.append(f"{name}:{line} imports {imported_name or imported} of {imported}, which is not public")
    return found


def test_every_room_is_in_the_table():
    """A new folder is put into the table before it is merged, and folders are few: a newcomer reads them as a plan."""
    assert {room for room, _ in sources()} == set(MAY_IMPORT), f"MAY_IMPORT in {Path(__file__).name}"
    assert len([room for room in MAY_IMPORT if (PACKAGE / room).is_dir()]) <= 14
    assert len(list(PACKAGE.glob("*.py"))) <= 5


def test_the_table_points_down():
    """A room may import from rooms above its line only, so that there is no circle, and uses each that it may."""
    rooms = list(MAY_IMPORT)
    for place, room in enumerate(rooms):
        assert set(MAY_IMPORT[room].split()) <= set(rooms[:place]), room


def test_the_table_of_floors_separates():
    """The floors permit at most 45 % of all pairs of modules."""
    rooms = [room for room, _ in sources()]
    pairs = list(permutations(rooms, 2))
    share = sum(permits(here, there) for here, there in pairs) / len(pairs)
    print(f"{share:.1%} of the {len(pairs):,} pairs of {len(rooms)} modules are permitted")
    assert share <= MAX_PERMITTED


def test_contributing_lists_every_room_in_this_order():
    """The table that newcomers read is the one that is enforced."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    rows = [re.match(r"\| (\d+) \| (.+?) \|", line) for line in lines]
    listed = [(int(row[1]), name) for row in rows if row for name in re.findall("`(.+?)`", row[2])]
    assert [name for _, name in listed] == list(MAY_IMPORT)
    floor = {name: number for number, name in listed}
    assert all(floor[there] < floor[here] for here in MAY_IMPORT for there in MAY_IMPORT[here].split())


def test_every_room_says_what_it_is_for():
    """The docstring of each folder names every module in it and what the folder may import."""
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert "ay import" in text, folder.name
        names = {p.stem for p in folder.glob("*.py")} - {"__init__"}
        unnamed = sorted(name for name in names if f"`{name}`" not in text)
        assert folder.name == "cli" or not unnamed, f"{folder.name}: {unnamed}"


def test_imports_point_down():
    """No module imports from a room that its own room's line does not name."""
    found = []
    for room, path in sources():
        package = ("vog_hf", *path.relative_to(PACKAGE).parts[:-1])
        found += faults(room, path.read_text(encoding="utf-8"), package)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "source", "message"),
    [
        ("metric", "from vog_hf.gradients.targets import Task", "metric:1 imports gradients; metric may import errors"),
        ("metric", "import vog_hf.scoring.scorer", "may import"),
        ("metric", "from vog_hf import scoring", "may import"),
        ("metric", "from vog_hf import VoGScorer", "of the package itself"),
        ("hub", "def f():\n    from vog_hf import __version__", "hub:2 imports __version__ of the package itself"),
        ("trainer", "import vog_hf", "of the package itself"),
        ("metric", "from . import gradients", "may import"),
        ("metric", "from .gradients import input_gradients", "may import"),
        ("gradients", "def f():\n    from vog_hf.data.row_identity import identify_rows", "gradients:2"),
        ("scoring", "if TYPE_CHECKING:\n    from vog_hf.trainer.callback import VoGCallback", "may import"),
        ("tracking", "from vog_hf.hub import push_scored_dataset", "may import"),
        ("data", "from vog_hf.snapshots import Snapshot", "may import"),
        ("metric", "from transformers import Trainer", "does without Hugging Face"),
        ("evaluation", "def f():\n    import datasets.features", "does without Hugging Face"),
        ("cli", "from vog_hf.unheard_of import x", "which is not in the table"),
    ],
)
def test_a_fault_is_found(room, source, message):
    """The checker can fail: each kind of forbidden import is found wherever it is written."""
    with pytest.raises(AssertionError, match=message):
        assert not faults(room, source), faults(room, source)[0]


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("scoring", "from vog_hf.gradients.input_gradients import input_gradients"),
        ("scoring", "from vog_hf.data.row_identity import identify_rows"),
        ("metric", "from vog_hf.errors import ConfigError"),
        ("cli", "from vog_hf import VoGScorer, __version__"),
        ("report", "from .page import page"),
        ("report", "from vog_hf.report.page import page"),
        ("data", "from datasets import Dataset"),
    ],
)
def test_what_points_down_or_stays_is_no_fault(room, source):
    """The accepted neighbors: the same kinds of import, downward or within a room."""
    assert faults(room, source, ("vog_hf", room) if room == "report" else ("vog_hf",)) == []


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
        "from vog_hf import scoring",
        "import vog_hf.scoring",
    ):
        assert recipe_faults("recipe", source)
    for source in (
        "from vog_hf import VoGCallback, vog",
        "import vog_hf",
        "from vog_hf.evaluation import error_by_decile",
        "import torch",
    ):
        assert recipe_faults("recipe", source) == []
