"""`vog-hf apply`: apply the decisions of a review to the dataset."""

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output, naming_options
from vog_hf.cli.scored_sources import open_scored
from vog_hf.cli.sources import (
    NOTHING_NEW,
    PUSH_OPTIONS,
    Columns,
    ConfigOption,
    DatasetOption,
    DatasetRevisionOption,
    PrefixOption,
    SplitOption,
    TokenOption,
    hub_token,
    quieten,
    require_new,
    saved,
)
from vog_hf.errors import ConfigError

if TYPE_CHECKING:
    from vog_hf.review.apply import Review


class Mode(StrEnum):
    """Effect of the decisions on labels and rows."""

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
            help="Reviewed rows: a folder with scores, a dataset with vog columns saved by save_to_disk, or a scored "
            "dataset on the Hub.",
        ),
    ],
    journal: Annotated[
        Path | None,
        typer.Argument(metavar="JOURNAL", help="Journal with the decisions. Default: the journal next to SCORED."),
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
            help="flag: only add the decisions as columns. correct: also correct the labels. filter: also remove the "
            "rows to drop. clean: both.",
        ),
    ] = Mode.FLAG,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="New folder or *.parquet file to write.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="Dataset on the Hub to push to; its card gets a summary.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility of the repository if it is created.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to push to; created if missing. Default: main.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of pushing to a branch.")
    ] = False,
    config_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the configuration on the Hub. Default: default.")
    ] = None,
    split_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the split on the Hub. Default: as in the dataset.")
    ] = None,
    show_rows: Annotated[
        bool | None,
        typer.Option(
            "--show-rows/--hide-rows",
            help="Show rows from both ends of the ranking in the card. Default: show.",
        ),
    ] = None,
    columns: Annotated[
        Columns | None,
        typer.Option(metavar="core|all", help="Scores to add if the dataset has none. Default: core."),
    ] = None,
    prefix: PrefixOption = "",
    label_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Label column. Default: the scored label, else labels or label."),
    ] = None,
    commit_message: Annotated[str | None, typer.Option(metavar="TEXT", help="Commit message.")] = None,
    token: TokenOption = None,
) -> None:
    """Apply the decisions of a review to the dataset.

    Adds the columns review and label_reviewed; those of an earlier review are replaced. Where reviewers disagree, the
    majority (more than half) decides; without one, the row is unsure and its label stays. A journal of a different
    dataset is refused. Names and notes of reviewers are never pushed.
    """
    from vog_hf.hub import push_scored_dataset
    from vog_hf.review.apply import plan_review
    from vog_hf.review.card_summary import summary
    from vog_hf.review.queue_yield import review_yield
    from vog_hf.scores.dataset_columns import add_vog_columns, has_scores, score_columns
    from vog_hf.scores.pictures import row_texts

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
    has_columns = has_scores(score_columns(opened.dataset, prefix or None))
    if has_columns and columns is not None:
        raise ConfigError(
            f"the dataset of {scored} has columns of scores, and gets no others from --columns; leave that out"
        )
    rows = opened.dataset
    if not has_columns:
        rows = add_vog_columns(rows, opened.scores, str(columns or Columns.CORE), prefix=prefix)
    with naming_options(label_column="--label-column"):
        review = plan_review(rows, journal or opened.journal, opened.scores, label_column=label_column)
    texts = None if opened.dataset is None else row_texts(opened.dataset, opened.scores.facts)
    left = review_yield(opened.scores, review.decisions, texts=texts)
    applied, words, url = review.apply(mode), summary(review, mode, left), None
    with saved(applied, output), naming_options(**PUSH_OPTIONS):
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
    is_pushed = url is not None and url.is_new
    places = {"saved": None if output is None else str(output), "url": url}
    counts = review_counts(review, len(applied)) | {"mode": str(mode), "summary": words, "yield": left.to_dict()}
    n_applied = len(review.resolved)
    title = f"{n_applied:,} decision{'' if n_applied == 1 else 's'} applied"
    out.result(title, counts | places | {"pushed": is_pushed}, shown=places)
    if url is not None and not is_pushed:
        out.line(NOTHING_NEW)
    for line in words.splitlines():
        out.line(line)


def require_use(output: Path | None, push: str | None, given: Collection[str]) -> None:
    """Raise if there is nothing to do, or if options of a push are given without a push."""
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


def review_counts(review: "Review", rows: int) -> dict[str, Any]:
    """Counts of the changes that a review made.

    Args:
        review: The review that was applied.
        rows: Number of rows in the result.
    """
    return {
        "rows": rows,
        "reviewed": len(review.resolved),
        "decisions": review.counts(),
        "relabeled": len(review.relabeled),
        "dropped": len(review.dropped),
        "reviewers": len({decision.reviewer for decision in review.decisions}),
        "differing": sum(not consensus.agreed for consensus in review.resolved.values()),
    }
