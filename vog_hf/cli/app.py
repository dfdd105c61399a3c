"""The application: shared options, error handling, and the decorator that adds a command."""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vog_hf.cli.output import Output
from vog_hf.cli.terminal import any_encoding

HELP = "Variance of Gradients for the Hugging Face ecosystem: find the rows of your dataset that deserve a look."
EXIT_CODES = """\
Exit codes
  0  done
  1  error, reported in one line on stderr (--debug adds the traceback)
  2  usage error: unknown command, option or value
  130  interrupted
"""
INTERRUPTED = 130
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class _Group(TyperGroup):
    def format_epilog(self, ctx: object, formatter: object) -> None:
        _write_epilog(self.epilog, formatter)


class _Command(TyperCommand):
    def format_epilog(self, ctx: object, formatter: object) -> None:
        _write_epilog(self.epilog, formatter)


def _write_epilog(epilog: str | None, formatter: Any) -> None:
    """Write the text unwrapped, so that examples can be copied."""
    if epilog:
        formatter.write(f"\n{epilog}")


app = typer.Typer(
    name="vog-hf",
    cls=_Group,
    help=HELP,
    epilog=f"{EXIT_CODES}\nLearn more\n  Use `vog-hf <command> --help` for options and examples of a command.\n",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the look of `hf`
    context_settings=CONTEXT,
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        import vog_hf

        typer.echo(vog_hf.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", "-v", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Handle options given without a command."""


def command(*examples: str, prints_json: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as the command of the same name.

    Its first argument is an `Output`; the others are Typer's, and ``--json`` and ``--debug`` are added. An exception
    ends the command with one line on stderr and exit code 1.

    Args:
        examples: Command lines shown in its help.
        prints_json: Add ``--json``, with which only `Output.json` prints to stdout.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*, json: bool = False, debug: bool = False, **arguments: Any) -> None:
            _run(function, Output.of(as_json=json, debug=debug), arguments)

        run.__signature__ = _with_shared_options(inspect.signature(function), prints_json)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        epilog = "\n".join(["Examples", *(f"  $ {example}" for example in examples)]) + "\n"
        name = function.__name__.replace("_", "-")
        return app.command(name, cls=_Command, epilog=epilog, context_settings=CONTEXT)(run)

    return register


def main() -> None:
    """Run `vog-hf`: the entry point."""
    try:
        with any_encoding():
            app(prog_name="vog-hf")
    except SystemExit as ending:
        if not ending.code:
            _leave_together()
        raise


def _leave_together() -> None:
    """End a distributed process without torch's teardown, after all processes have arrived here.

    Destroying gloo's groups, or the interpreter with them, sometimes aborts ("terminate called without an active
    exception"; see https://github.com/pytorch/pytorch/pull/179291), and everything is on disk at this point.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _with_shared_options(signature: inspect.Signature, prints_json: bool) -> inspect.Signature:
    """The signature that Typer sees: without the `Output`, with the shared options."""
    kind = inspect.Parameter.KEYWORD_ONLY
    arguments = [parameter.replace(kind=kind) for parameter in list(signature.parameters.values())[1:]]
    json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout and nothing else.")]
    debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    shared = {"json": json, "debug": debug} if prints_json else {"debug": debug}
    flags = [inspect.Parameter(name, kind, default=False, annotation=flag) for name, flag in shared.items()]
    return signature.replace(parameters=[*arguments, *flags])


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Print the library's warnings to stderr, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("vog_hf")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _run(function: Callable[..., None], out: Output, arguments: Mapping[str, object]) -> None:
    try:
        with _warnings_shown():
            function(out, **arguments)
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise  # Typer handles these, each with its own exit code
    except KeyboardInterrupt:
        out.notice("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        out.error(error)
        raise typer.Exit(1) from error
