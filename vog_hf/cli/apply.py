"""`vog-hf apply`: the decisions of a review given back to the data."""

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output, in_options
from vog_hf.cli.sources import (
    PUSH_OPTIONS,
    Columns,
    ConfigOption,
    DatasetOption,
    DatasetRevisionOption,
    PrefixOption,
    SplitOption,
    TokenOption,
    hub_token,
    open_scored,
    quieten,
    require_new,
    saved,
)
from vog_hf.errors import ConfigError

if TYPE_CHECKING:
    from vog_hf.review.apply import Review


class Mode(StrEnum):
    """What becomes of the rows that were decided about."""

    FLAG = "flag"
    CORRECT = "correct"
    FILTER = "filter"
    CLEAN = "clean"


@command(
    "vog-hf apply ./scores --mode clean --output ./clean-data",
    "vog-hf apply ./scores ada.jsonl --output ./reviewed.parquet",
    "vog-hf apply me/my-data-vog my-data-vog.review.jsonl \\\n      --push me/my-data-vog --create-pr",
)
def apply(
    out: Output,
    scored: Annotated[
        str,
        typer.Argument(
            metavar="SCORED",
            help="What was reviewed: folder with scores, data set with vog columns that save_to_disk wrote, or scored "
            "data set on the Hub.",
        ),
    ],
    journal: Annotated[
        Path | None,
        typer.Argument(metavar="JOURNAL", help="File with the decisions. Default: the one beside SCORED."),
    ] = None,
    *,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    dataset_revision: DatasetRevisionOption = None,
    mode: Annotated[
        Mode,
        typer.Option(
            metavar="flag|correct|filter|clean",
            help="flag: the decisions are columns. correct: labels are the reviewed ones. filter: rows to drop are "
            "left out. clean: both.",
        ),
    ] = Mode.FLAG,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Folder or *.parquet to write; must be new.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Data set on the Hub to push to, with a summary in its card.")
    ] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repository.")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to push to; made if need be. Default: main.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    config_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Configuration on the Hub. Default: default.")
    ] = None,
    split_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split on the Hub. Default: the data set's own name for it.")
    ] = None,
    show_rows: Annotated[
        bool | None,
        typer.Option(
            "--show-rows/--hide-rows",
            help="Whether the card shows rows at both ends of the ranking. Default: it does.",
        ),
    ] = None,
    columns: Annotated[
        Columns | None,
        typer.Option(metavar="core|all", help="Which scores become columns of data that have none. Default: core."),
    ] = None,
    prefix: PrefixOption = "",
    label_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the label. Default: the scored one, else labels or label."),
    ] = None,
    commit_message: Annotated[str | None, typer.Option(metavar="TEXT", help="Message of the commit.")] = None,
    token: TokenOption = None,
) -> None:
    """Give the decisions of a review back to the data.

    The data set gets the columns review and label_reviewed; those of an earlier review are replaced. Where reviewers
    differ, what more than half of them decided counts, else the row is unsure and its label stays. A journal of other
    data is refused. Neither names of reviewers nor their notes are pushed.
    """
    from vog_hf.hub import push_scored_dataset
    from vog_hf.review.apply import plan_review
    from vog_hf.review.card_summary import summary
    from vog_hf.scores.dataset_columns import add_vog_columns, score_columns

    of_a_push = {
        "--revision": revision,
        "--create-pr": create_pr or None,
        "--private/--public": private,
        "--config-name": config_name,
        "--split-name": split_name,
        "--show-rows/--hide-rows": show_rows,
        "--commit-message": commit_message,
    }
    require_use(output, push, [name for name, value in of_a_push.items() if value is not None])
    require_new(output, "--output")
    quieten(progress=out.shows_progress)
    with hub_token(token):
        opened = open_scored(
            scored, dataset=dataset, config=config, split=split, revision=dataset_revision, prefix=prefix
        )
    has_scores = "vog" in score_columns(opened.dataset, prefix or None)
    if has_scores and columns is not None:
        raise ConfigError(
            f"the data set of {scored} has columns of scores, and gets no others from --columns; leave that out"
        )
    rows = opened.dataset
    if not has_scores:
        rows = add_vog_columns(rows, opened.scores, str(columns or Columns.CORE), prefix=prefix)
    with in_options(label_column="--label-column"):
        review = plan_review(rows, journal or opened.journal, opened.scores, label_column=label_column)
    applied, words, url = review.apply(mode), summary(review, mode), None
    with saved(applied, output), in_options(**PUSH_OPTIONS):
        if push is not None:
            url = push_scored_dataset(
                applied,
                push,
                scores=review.scores(opened.scores, applied, mode),
                private=private,
                revision=revision,
                create_pr=create_pr,
                config_name=config_name or "default",
                split=split_name or opened.split,
                prefix=prefix,
                show_rows=show_rows is not False,
                card_sections={"Review": words},
                commit_message=commit_message or f"Review of {len(review.resolved):,} rows",
                token=token,
            )
    shown = {"saved": None if output is None else str(output), "url": url}
    found = changes(review, len(applied)) | {"mode": str(mode), "summary": words} | shown
    out.result(f"{len(review.resolved):,} rows were decided about", found, shown=shown)
    for line in words.splitlines():
        out.line(line)


def require_use(output: Path | None, push: str | None, given: Collection[str]) -> None:
    """Raise where there is nothing to do, or where options of a push that were given have no push to go with."""
    if output is None and push is None:
        raise typer.BadParameter("nothing to do: give --output, --push, or both", param_hint="--output")
    if push is None and given:
        raise typer.BadParameter(
            f"nothing is pushed; leave out {', '.join(given)}, or add --push", param_hint=next(iter(given))
        )
    if {"--revision", "--create-pr"} <= set(given):
        raise typer.BadParameter(
            "a pull request has a branch of its own: leave out --revision or --create-pr", param_hint="--revision"
        )


def changes(review: "Review", rows: int) -> dict[str, Any]:
    """What a review changed, in numbers.

    Args:
        review: What was applied.
        rows: Number of rows that came of it.
    """
    return {
        "rows": rows,
        "reviewed": len(review.resolved),
        "decisions": review.counts(),
        "relabelled": len(review.relabelled),
        "dropped": len(review.dropped),
        "reviewers": len({one.reviewer for one in review.decisions}),
        "differing": sum(not one.agreed for one in review.resolved.values()),
    }
