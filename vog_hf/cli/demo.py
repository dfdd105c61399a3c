"""`vog-hf demo`: a training with scores, offline."""

from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output


@command("vog-hf demo", "vog-hf demo --output ./digits --seed 1")
def demo(
    out: Output,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for all results.")] = Path(
        "vog-demo"
    ),
    seed: Annotated[int, typer.Option(metavar="INTEGER", help="Seed of the training.")] = 0,
) -> None:
    """Train a small model on handwritten digits and score every digit.

    Takes about a minute on two CPU cores and needs no network. Prints the findings and writes the scored dataset, an
    image of the highest and lowest rows, and the run to the output folder.
    """
    from vog_hf.demo import run_demo

    scores = run_demo(output, seed=seed, console=out.console)
    out.json({"output": str(output), "n_rows": len(scores)})
