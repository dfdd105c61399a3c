"""`vog-hf space`: write the folder of a Space that reviews a scored dataset on the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output, naming_options
from vog_hf.cli.scored_sources import one_of
from vog_hf.cli.sources import TokenOption


@command(
    "vog-hf space me/my-data-vog --output ./review-space",
    "vog-hf space me/my-data-vog --split test --revision vog",
)
def space(
    out: Output,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Scored dataset on the Hub.")],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="New or empty folder for the Space.")
    ] = Path("vog-space"),
    config: Annotated[str, typer.Option("--config", metavar="NAME", help="Scored configuration.")] = "default",
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Scored split. Default: the only one.")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of the dataset. Default: main.")
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            metavar="REQUIREMENT",
            help="Requirement from which the Space installs vog_hf, e.g. `vog-hf[review]==0.1.0`. Default: a copy of "
            "the installed package.",
        ),
    ] = None,
    token: TokenOption = None,
) -> None:
    """Write the folder of a Space that reviews a scored dataset.

    Uploads nothing; to upload the folder, run `hf upload OWNER/NAME DIR --repo-type space`.
    """
    from vog_hf.hub.pull import pushed_splits
    from vog_hf.review.app import import_gradio
    from vog_hf.review.space import SpaceOf, write_space

    import_gradio()  # the Space will run this version
    with naming_options(config_name="--config", token="--token"):  # noqa: S106 (the name of an option)
        splits = pushed_splits(repo_id, revision=revision, config_name=config, token=token)
    split = one_of(splits, split, repo_id)
    folder = write_space(output, SpaceOf(repo_id, config, split, revision), package=package)
    out.result("Space written", {"folder": str(folder), "dataset": repo_id, "split": split})
    out.hint(f"hf upload OWNER/NAME {folder} --repo-type space")
