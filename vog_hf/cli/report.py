"""`vog-hf report`: scores and their rows as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.data import (
    ConfigOption,
    DatasetOption,
    DatasetRevisionOption,
    ScoresArgument,
    SplitOption,
    find_scores,
    scored_rows,
    source_for,
)
from vog_hf.cli.output import Output


@command(
    "vog-hf report ./scores",
    "vog-hf report ./outputs/_vog --dataset ./my-images --output run-7.html",
    "vog-hf report ./scores --numbers-only",
)
def report(
    out: Output,
    scores: ScoresArgument,
    *,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    dataset_revision: DatasetRevisionOption = None,
    numbers_only: Annotated[
        bool, typer.Option("--numbers-only", help="Without the rows: no data set is read.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="The HTML file. An earlier report there is replaced.")
    ] = Path("vog-report.html"),
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Title of the page.")] = None,
    top_k: Annotated[int, typer.Option(metavar="INTEGER", help="Rows in each gallery, 1 to 500.")] = 24,
    per_class: Annotated[int, typer.Option(metavar="INTEGER", help="Rows at each end of each class, 0 to 500.")] = 6,
    max_table_rows: Annotated[
        int, typer.Option(metavar="INTEGER", help="Rows of the table, from both ends; 0: no table.")
    ] = 1_000,
) -> None:
    """Write an HTML report of scores and their rows.

    One file, which loads nothing from anywhere. It says which tail of the ranking is the hard one in this
    run and on what evidence, and shows the rows at both ends.
    """
    from vog_hf.report import write_report

    if numbers_only and (dataset, config, split, dataset_revision) != (None, None, None, None):
        msg = "--numbers-only reads no data set; leave out --dataset, --config, --split and --dataset-revision"
        raise typer.BadParameter(msg)
    found, rows = find_scores(scores), None
    if not numbers_only:
        source = source_for(scores, dataset=dataset, config=config, split=split, revision=dataset_revision)
        rows = scored_rows(source, found, progress=out.shows_progress)
    path = write_report(
        found, rows, output, title=title, top_k=top_k, per_class=per_class, max_table_rows=max_table_rows
    )
    out.result("Report written", {"report": str(path), "bytes": path.stat().st_size})
