"""The shape of the package's code stays within its limits."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from code_shape import shape  # noqa: E402 (a program, found by its folder)


def test_the_code_keeps_its_shape(tmp_path):
    """Lambdas are few, parameters typed, functions and files short; the measurement sees code of another shape."""
    measured = shape(ROOT)
    assert measured["lambdas per 1,000 lines"] <= 1
    assert measured["share of parameters with Any in their type"] <= 0.05
    assert measured["share of docstrings that begin with What, Whether, Which, How, Where"] <= 0.02
    assert measured["share of functions of at most 34 lines"] >= 0.96
    assert measured["share of files of more than 350 lines"] <= 0.03
    (tmp_path / "vog_hf").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_floors.py").write_text('FLOORS = ({"a"}, {"b"})\n')
    body = "".join(f"    x = {n}\n" for n in range(34))
    (tmp_path / "vog_hf" / "a.py").write_text(f"def f(x: dict[str, Any], y: int):\n    '''What it is.'''\n{body}")
    (tmp_path / "vog_hf" / "b.py").write_text("f = lambda: 1\n")
    assert list(shape(tmp_path).values()) == pytest.approx([37, 2, 1000 / 37, 0.5, 1.0, 0.0, 0.0, 0.5])


def raised_with_arguments():
    """Where an error of the package names arguments: (place, text of the message, names of the arguments)."""
    for path in sorted((ROOT / "vog_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [k.value for k in node.keywords if k.arg == "argument"] if isinstance(node, ast.Call) else []
            if named and node.args:
                mentions = [n.value for n in ast.walk(named[0]) if isinstance(n, ast.Constant)]
                yield (
                    f"{path.name}:{node.lineno}",
                    ast.unparse(node.args[0]),
                    [str(m).partition("=")[0] for m in mentions],
                )


def test_errors_name_the_arguments_that_they_carry():
    """A message that is rephrased keeps the words by which a command line finds its options."""
    found = list(raised_with_arguments())
    assert len(found) > 30
    composed = ("{ONE_FORMAT}", "{ELSEWHERE}", "{reason}", "{advice}")  # parts with a name of their own
    for place, message, names in found:
        is_literal = message[0] in "'\"f" and not any(part in message for part in composed)
        assert not is_literal or all(name in message for name in names), place
