"""`vog-hf report`: write scores and rows to one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output, naming_options
from vog_hf.cli.scored_sources import find_scores, of_split
from vog_hf.cli.sources import (
    ConfigOption,
    DatasetOption,
    DatasetRevisionOption,
    ScoresArgument,
    SplitOption,
    TokenOption,
    hub_token,
    scored_rows,
    source_for,
)


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
        bool, typer.Option("--numbers-only", help="Leave out the rows; no dataset is read.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="HTML file to write; an earlier report is replaced.")
    ] = Path("vog-report.html"),
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Page title.")] = None,
    top_k: Annotated[int, typer.Option(metavar="INTEGER", help="Rows per gallery, 1 to 500.")] = 24,
    per_class: Annotated[int, typer.Option(metavar="INTEGER", help="Rows from each end of each class, 0 to 500.")] = 6,
    max_table_rows: Annotated[
        int, typer.Option(metavar="INTEGER", help="Rows in the table, from both ends; 0: no table.")
    ] = 1_000,
    token: TokenOption = None,
) -> None:
    """Write an HTML report of scores and rows.

    The report is one file that loads nothing from the network. It opens with the strength of VoG as a guide in this
    run and the ranking to start with, and shows the rows at both ends.
    """
    from vog_hf.report import write_report

    if numbers_only and {dataset, config, dataset_revision, token} != {None}:
        raise typer.BadParameter(
            "reads no dataset; leave out --dataset, --config, --dataset-revision and --token",
            param_hint="--numbers-only",
        )
    of_all = find_scores(scores)
    if numbers_only and split is not None and not isinstance(of_all, dict):
        raise typer.BadParameter(
            f"reads no dataset, and {scores} holds the scores of one split; leave out --split",
            param_hint="--numbers-only",
        )
    selected, rows = of_split(of_all, split, scores), None
    if not numbers_only:
        source = source_for(scores, dataset=dataset, config=config, split=split, revision=dataset_revision)
        with hub_token(token):
            rows = scored_rows(source, selected, progress=out.shows_progress)
    with naming_options(top_k="--top-k", per_class="--per-class", max_table_rows="--max-table-rows"):
        path = write_report(
            selected, rows, output, title=title, top_k=top_k, per_class=per_class, max_table_rows=max_table_rows
        )
    out.result("Report written", {"report": str(path), "bytes": path.stat().st_size})
