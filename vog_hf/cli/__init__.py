"""The command line `vog-hf`: one module per command, plus shared ones. May import everything.

`app` is the application, `output` prints results and errors, `terminal` handles encodings; `sources` opens datasets
by name, `scored_sources` scores and `models` models. `preparing` makes a transform of a model's processor, which
`heads` finds in its table: `model_inputs` of a classifier, `head_inputs` of answers, masks and transcripts,
`word_heads` of tags and choices, `text_heads` of language models, `preference_heads` of chosen and rejected texts,
`object_heads` of boxes, `image_heads` of images without labels (`columns` finds inputs and labels, `token_limits` is
about texts); `scoring` does the work of `score`. A new head is a class and a line there. `demos` are the programs of
`demo`.
To add a command, write a module with a function decorated with `vog_hf.cli.app.command` and import it below; commands
are listed in the order of their imports.
"""

from vog_hf.cli import demo, score, report, review, apply, push, space, compare, info  # noqa: F401, I001 (importing a command adds it, in this order)
from vog_hf.cli.app import app, main

__all__ = ["app", "main"]
