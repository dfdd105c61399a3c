"""The command line `vog-hf`: a module for each command, and what they share. May import everything.

`app` is the application and `output` what it prints; `sources` finds datasets and scores by their names, and
`model_inputs` makes the transform of a model's processor.
A command is added as a module with a function under `vog_hf.cli.app.command`, imported below; commands are listed in
the order of their imports.
"""

from vog_hf.cli import demo, score, report, review, apply, push, space, compare, info  # noqa: F401, I001 (importing a command adds it, in this order)
from vog_hf.cli.app import app, main

__all__ = ["app", "main"]
