"""Measure the shape of the package's code: sizes, lambdas, types, docstrings, and what the floor test permits.

    python benchmarks/code_shape.py [CHECKOUT]

Another checkout measures another commit: ``git worktree add FOLDER COMMIT``.
"""

import ast
import re
import sys
from itertools import permutations
from pathlib import Path

LONGEST_FUNCTION, LONGEST_FILE = 34, 350  # lines
QUESTIONS = ("What", "Whether", "Which", "How", "Where")  # what a docstring should not begin with
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FLOOR_TESTS = ("tests/repository/test_floors.py", "tests/test_floors.py")  # today's place and an earlier one
OUTSIDE_SYSTEMS = 3  # of the earlier table: the floor whose modules do not import one another


def shape(checkout):
    """Measurements of the package in a checkout, by name; shares are of 1."""
    package = Path(checkout) / "vog_hf"
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    nodes = [node for source in sources.values() for node in ast.walk(ast.parse(source))]
    lines = [len(source.splitlines()) for source in sources.values()]
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    lengths = [node.end_lineno - node.lineno + 1 for node in functions]
    types = [ast.unparse(kind) for node in functions for kind in parameter_types(node)]
    texts = [text for node in nodes if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)) if (text := doc(node))]
    entries = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return {
        "lines": sum(lines),
        "entries at the top of the package": len(entries),
        "lambdas per 1,000 lines": 1000 * sum(isinstance(node, ast.Lambda) for node in nodes) / sum(lines),
        "share of parameters with Any in their type": share(re.search(r"\bAny\b", kind) for kind in types),
        f"share of docstrings that begin with {', '.join(QUESTIONS)}": share(
            text.split()[0] in QUESTIONS for text in texts
        ),
        f"share of functions of at most {LONGEST_FUNCTION} lines": share(n <= LONGEST_FUNCTION for n in lengths),
        f"share of files of more than {LONGEST_FILE} lines": share(n > LONGEST_FILE for n in lines),
        "share of pairs of modules that the floor test permits": permitted(Path(checkout), list(sources)),
    }


def share(answers):
    """Share of answers that are true."""
    answers = [bool(answer) for answer in answers]
    return sum(answers) / len(answers)


def doc(node):
    """First line of a docstring, or nothing."""
    return (ast.get_docstring(node) or "").strip().partition("\n")[0]


def parameter_types(function):
    """Annotations of a function's parameters; those of self and cls have none."""
    given = function.args
    more = [one for one in (given.vararg, given.kwarg) if one is not None]
    parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, *more]
    return [parameter.annotation for parameter in parameters if parameter.annotation is not None]


def permitted(checkout, paths):
    """Share of ordered pairs of modules of which the first may import the second."""
    text = next((checkout / name).read_text(encoding="utf-8") for name in FLOOR_TESTS if (checkout / name).is_file())
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in ("MAY_IMPORT", "FLOORS")
    }
    rooms = [path.relative_to(checkout / "vog_hf").parts[0].removesuffix(".py") for path in paths]
    rooms = [room for room in rooms if room != "__init__"]
    if "MAY_IMPORT" in tables:
        below = {room: {room, *names.split()} for room, names in tables["MAY_IMPORT"].items()}
    else:
        floors = tables["FLOORS"]
        below = {
            room: set().union({room}, *floors[: number + (number != OUTSIDE_SYSTEMS)])
            for number, floor in enumerate(floors)
            for room in floor
        }
    return share(there in below[here] for here, there in permutations(rooms, 2))


if __name__ == "__main__":
    root = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    for name, value in shape(root).items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.1%}" if "share" in name else f"{value:.2f}"
        print(f"{name}: {shown}")
