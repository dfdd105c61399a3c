"""The API reference has every public name, and the docstrings have what a reader needs: shapes and errors."""

import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[2] / "docs" / "reference"
PACKAGE = PAGES.parents[1] / "vog_hf"
# Every folder that says which of its names are public, but for the commands, which have a page of their own.
ROOMS = sorted(file.parent for file in PACKAGE.rglob("__init__.py") if "__all__" in file.read_text(encoding="utf-8"))
NAMES = [".".join(room.relative_to(PACKAGE.parent).parts) for room in ROOMS]
MODULES = ("vog_hf.config", "vog_hf.demo", "vog_hf.errors", *(name for name in NAMES if name != "vog_hf.cli"))
TRAINER_EVENT = re.compile(r"VoGCallback\.on_")


def public_names(module_name):
    """The public names of a module: `__all__`, else what it defines without an underscore."""
    module = importlib.import_module(module_name)
    defined = [n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", None) == module_name]
    return {f"{module_name}.{name}": getattr(module, name) for name in getattr(module, "__all__", defined)}


@cache
def public():
    """Every public name of the package with its object."""
    return {name: value for module in MODULES for name, value in public_names(module).items()}


def functions():
    """Every public function and method with its docstring; that of a constructor is its class's."""
    for name, value in public().items():
        if inspect.isfunction(value):
            yield name, value, value.__doc__
        elif inspect.isclass(value) and not dataclass_like(value):
            yield name, value.__init__, value.__doc__
        for method, member in vars(value).items() if inspect.isclass(value) else ():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if inspect.isfunction(function) and method[0] != "_" and not TRAINER_EVENT.search(f"{name}.{method}"):
                yield f"{name}.{method}", function, function.__doc__


def dataclass_like(cls):
    """True if a class writes no constructor itself."""
    return "__init__" not in vars(cls) or hasattr(cls, "__dataclass_fields__")


def without_containers(annotation):
    """An annotation without state dicts and functions, whose tensors have no shape to state."""
    shorter = re.sub(r"\b(dict|Mapping|Callable|Union)\[(\[[^\[\]]*\]|[^\[\]])*\]", "", annotation)
    return shorter if shorter == annotation else without_containers(shorter)


def missing_parts(function, doc):
    """What the docstring of a function leaves out: shapes of arrays, errors that its own lines raise."""
    signature = inspect.signature(function)
    annotations = [str(p.annotation) for p in signature.parameters.values()] + [str(signature.return_annotation)]
    has_arrays = any(re.search(r"\bTensor\b|ndarray|NDArray", without_containers(text)) for text in annotations)
    raises = re.search(r"^\s+raise \w", inspect.getsource(function), re.MULTILINE)
    parts = {
        "a first line": not (doc or "").strip(),
        "a shape, as ``[rows, snapshots]``": has_arrays and not re.search(r"``[^`]*\[[^`]*\]``", doc or ""),
        "Raises:": raises and not re.search(r"\bRaises?\b", doc or ""),
    }
    return [part for part, is_missing in parts.items() if is_missing]


def test_every_public_name_is_in_the_reference():
    """Each public object has one entry, under one of its names, and no entry names anything else."""
    entries = re.findall(
        r"^::: (\S+)$", "\n".join(p.read_text(encoding="utf-8") for p in PAGES.glob("*.md")), re.MULTILINE
    )
    assert len(entries) == len(set(entries))
    assert set(entries) <= set(public())
    shown = [public()[name] for name in entries]
    absent = [name for name, value in public().items() if not any(value is other for other in shown)]
    assert absent == [], "add `::: name` to the page of its package in docs/reference"


def test_docstrings_have_shapes_and_errors():
    """A public function that takes or returns arrays states a shape; one that raises says what."""
    gaps = {name: missing_parts(function, doc) for name, function, doc in functions()}
    assert len(gaps) > 100
    assert {name: parts for name, parts in gaps.items() if parts} == {}


@pytest.mark.parametrize(
    ("doc", "missing"),
    [
        ("", ["a first line", "a shape, as ``[rows, snapshots]``", "Raises:"]),
        ("Rows.", ["a shape, as ``[rows, snapshots]``", "Raises:"]),
        ("``[rows]``.\n\nRaises:\n    ValueError: Always.", []),
    ],
)
def test_gaps_in_docstrings_are_noticed(doc, missing):
    """The check above sees what is left out."""

    def rows(values: "np.ndarray"):  # noqa: F821 (as its annotation is written)
        raise ValueError(values)

    assert missing_parts(rows, doc) == missing
