"""`vog-hf push`: push a scored dataset to the Hub."""

from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output, naming_options
from vog_hf.cli.scored_sources import find_scores, of_split
from vog_hf.cli.sources import (
    NOTHING_NEW,
    PUSH_OPTIONS,
    Columns,
    ConfigOption,
    DatasetOption,
    DatasetRevisionOption,
    PrefixOption,
    ScoresArgument,
    SplitOption,
    TokenOption,
    hub_token,
    scored_rows,
    source_for,
)
from vog_hf.errors import ConfigError


def sections(given: list[str]) -> dict[str, str]:
    """Titles and texts from ``"Title=text"``."""
    parts = [text.partition("=") for text in given]
    wrong = next((text for text, (title, _, words) in zip(given, parts, strict=True) if not (title and words)), None)
    if wrong is not None:
        raise typer.BadParameter(f"expected TITLE=TEXT, got {wrong!r}", param_hint="--card-section")
    return {title: words for title, _, words in parts}


@command(
    "vog-hf push ./scores me/my-data-vog --private",
    "vog-hf push ./scores me/my-data --create-pr",
    "vog-hf push ./scores me/my-data --scores-only --revision vog",
    "vog-hf push ./outputs/_vog me/data-vog --dataset ./my-images --columns all",
)
def push(
    out: Output,
    scores: ScoresArgument,
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="Dataset on the Hub, e.g. `me/my-data-vog`; created if missing.")
    ],
    *,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    dataset_revision: DatasetRevisionOption = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Visibility of the repository if it is created.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to push to; created if missing. Default: main.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of pushing to a branch.")
    ] = False,
    scores_only: Annotated[
        bool, typer.Option("--scores-only", help="Push only the scores, as a small separate configuration.")
    ] = False,
    columns: Annotated[Columns, typer.Option(metavar="core|all", help="Scores to add as columns.")] = Columns.CORE,
    prefix: PrefixOption = "",
    config_name: Annotated[str, typer.Option(metavar="NAME", help="Name of the configuration on the Hub.")] = "default",
    split_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the split on the Hub. Default: as in the dataset.")
    ] = None,
    heat_maps: Annotated[
        bool | None,
        typer.Option("--heat-maps/--no-heat-maps", help="Push the heat maps. Default: only up to 500,000 rows."),
    ] = None,
    show_rows: Annotated[
        bool, typer.Option("--show-rows/--hide-rows", help="Show rows from both ends of the ranking in the card.")
    ] = True,
    card_section: Annotated[
        list[str] | None, typer.Option(metavar="TITLE=TEXT", help="Section to add to the card; may be repeated.")
    ] = None,
    commit_message: Annotated[str | None, typer.Option(metavar="TEXT", help="Commit message.")] = None,
    token: TokenOption = None,
) -> None:
    """Push a scored dataset to the Hub, with a dataset card.

    Everything is pushed in one commit. Other splits, configurations and files of the repository are kept, and so is the
    card's own text. Finally the dataset is reloaded from the Hub and verified.
    """
    from vog_hf.hub import push_scored_dataset

    if revision is not None and create_pr:
        raise typer.BadParameter(
            "a pull request has a branch of its own: leave out --revision or --create-pr", param_hint="--revision"
        )
    words = sections(card_section or [])
    of_all = find_scores(scores)
    selected = of_split(of_all, split, scores)
    if isinstance(selected, dict) and split_name is not None:
        raise ConfigError(
            f"--split-name names one split, and {scores} holds scores of {', '.join(selected)}; choose one with --split"
        )
    source = source_for(scores, dataset=dataset, config=config, split=split, revision=dataset_revision)
    with hub_token(token):
        rows = scored_rows(source, selected, progress=out.shows_progress)
    with naming_options(**PUSH_OPTIONS):
        url = push_scored_dataset(
            rows,
            repo_id,
            scores=selected,
            private=private,
            revision=revision,
            create_pr=create_pr,
            scores_only=scores_only,
            config_name=config_name,
            split=split_name or (None if selected is of_all else split),
            columns=str(columns),
            prefix=prefix,
            heat_maps=heat_maps,
            show_rows=show_rows,
            card_sections=words,
            commit_message=commit_message,
            token=token,
        )
    out.result("Pushed" if url.is_new else NOTHING_NEW, {"url": url, "pushed": url.is_new}, shown={"url": url})
