"""`vog-hf demo`: a training with scores, offline."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output


class Demo(StrEnum):
    """Demos, by their value of ``--task``."""

    DIGITS = "digits"
    NER = "ner"
    SEGMENTATION = "segmentation"
    DETECTION = "detection"
    QA = "qa"


@command("vog-hf demo", "vog-hf demo --output ./digits --seed 1", "vog-hf demo --task ner --output ./names")
def demo(
    out: Output,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for all results.")] = Path(
        "vog-demo"
    ),
    seed: Annotated[int, typer.Option(metavar="INTEGER", help="Seed of data and training.")] = 0,
    task: Annotated[
        Demo,
        typer.Option(
            metavar="digits|ner|segmentation|detection|qa",
            help="Task of the model; all but digits have planted faults.",
        ),
    ] = Demo.DIGITS,
) -> None:
    """Train a small model on data made on the spot and score every row.

    Takes one or two minutes on two CPU cores and needs no network. With digits, prints the findings and writes the
    scored dataset, an image of the highest and lowest rows, and the run to the output folder. With another task, faults
    are planted, and it prints which columns find them and writes a report.
    """
    from vog_hf.cli.demos.digits import run_demo
    from vog_hf.cli.demos.planted import run_planted
    from vog_hf.cli.demos.planted_tasks import PLANTED_TASKS

    if task is Demo.DIGITS:
        scores = run_demo(output, seed=seed, console=out.console)
    else:
        scores = run_planted(PLANTED_TASKS[str(task)](seed), output, seed=seed, console=out.console)
    out.json({"output": str(output), "n_rows": len(scores)})
