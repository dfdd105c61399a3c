"""Griffe extension: show the examples of docstrings as code.

Griffe knows the section "Examples:"; the docstrings of vog_hf say "Example:", which Google's guide allows, too.
"""

import re
from typing import Any

import griffe


class DoctestExamples(griffe.Extension):
    """Rename the section before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section "Example:" of one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
