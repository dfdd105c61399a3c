"""`vog-hf demo`: what the library does, on data that needs no network."""

from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output


@command("vog-hf demo", "vog-hf demo --output ./digits --seed 1")
def demo(
    out: Output,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for everything the demo makes.")
    ] = Path("vog-demo"),
    seed: Annotated[int, typer.Option(metavar="INTEGER", help="Seed of the training.")] = 0,
) -> None:
    """Train a small model on digits and score each of them.

    scikit-learn's handwritten digits: about a minute on two CPU cores, and no network. The findings are
    printed; the scored data set, a picture of the highest and lowest rows, and the run are in the output folder.
    """
    from vog_hf.demo import run_demo

    scores = run_demo(output, seed=seed, console=out.console)
    out.json({"output": str(output), "n_rows": len(scores)})
