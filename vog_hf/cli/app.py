"""The application: what all commands share, and how one is added."""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vog_hf.cli.output import Output
from vog_hf.cli.terminal import any_encoding

HELP = "Variance of Gradients for the Hugging Face ecosystem: which rows of your data deserve a look."
EXIT_CODES = """\
Exit codes
  0  done
  1  an error, named in one line on stderr (--debug shows where)
  2  the command line was not understood
  130  interrupted
"""
INTERRUPTED = 130
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class _Group(TyperGroup):
    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_epilog(self.epilog, formatter)


class _Command(TyperCommand):
    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_epilog(self.epilog, formatter)


def _write_epilog(epilog: str | None, formatter: Any) -> None:
    """As it stands: examples must not be wrapped, so that they can be copied."""
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


def _print_version(wanted: bool) -> None:
    if wanted:
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
    """Options without a command."""


def command(*examples: str, prints_json: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of its name.

    Its first argument is an `Output`; the others are Typer's, and get ``--json`` and ``--debug`` beside them. An
    exception ends the command with one line on stderr and exit code 1.

    Args:
        examples: Command lines for its help.
        prints_json: Whether there is a ``--json``, which makes `Output.json` the only thing on stdout.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*, json: bool = False, debug: bool = False, **given: Any) -> None:
            _run(function, Output.of(as_json=json, debug=debug), given)

        run.__signature__ = _with_shared_options(inspect.signature(function), prints_json)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        epilog = "\n".join(["Examples", *(f"  $ {example}" for example in examples)]) + "\n"
        name = function.__name__.replace("_", "-")
        return app.command(name, cls=_Command, epilog=epilog, context_settings=CONTEXT)(run)

    return register


def main() -> None:
    """Entry point of `vog-hf`."""
    try:
        with any_encoding():
            app(prog_name="vog-hf")
    except SystemExit as ending:
        if not ending.code:
            _leave_together()
        raise


def _leave_together() -> None:
    """End a process that has worked with others, once all have come so far, without torch's teardown.

    Destroying gloo's groups, or the interpreter with them, sometimes aborts ("terminate called without an active
    exception"; https://github.com/pytorch/pytorch/pull/179291 tells of the like), and everything is on disk by now.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _with_shared_options(signature: inspect.Signature, prints_json: bool) -> inspect.Signature:
    """What Typer sees of a command: without its `Output`, with the options that all share."""
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [parameter.replace(kind=kind) for parameter in list(signature.parameters.values())[1:]]
    json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, to stdout.")]
    debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    shared = {"json": json, "debug": debug} if prints_json else {"debug": debug}
    flags = [inspect.Parameter(name, kind, default=False, annotation=flag) for name, flag in shared.items()]
    return signature.replace(parameters=[*own, *flags])


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """What the library logs as a warning goes to stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("vog_hf")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _run(function: Callable[..., None], out: Output, given: dict[str, Any]) -> None:
    try:
        with _warnings_shown():
            function(out, **given)
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise  # Typer's own, which ends with the exit code of each
    except KeyboardInterrupt:
        out.notice("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        out.error(error)
        raise typer.Exit(1) from error
