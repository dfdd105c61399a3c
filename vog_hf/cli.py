"""The command line `vog-hf`."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from vog_hf.errors import VoGError

app = typer.Typer(
    name="vog-hf",
    help="Variance of Gradients for the Hugging Face ecosystem: which rows of your data deserve a look.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Variance of Gradients for the Hugging Face ecosystem: which rows of your data deserve a look."""
    if version:
        import vog_hf

        typer.echo(vog_hf.__version__)
        raise typer.Exit


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("vog-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
) -> None:
    """Train on scikit-learn's handwritten digits and score each of them (about a minute, no network).

    Example: vog-hf demo --output ./vog-demo
    """
    from vog_hf.demo import run_demo

    run_demo(output, seed=seed)


def main() -> None:
    """Entry point: errors that a user can mend are one line, without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except VoGError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
