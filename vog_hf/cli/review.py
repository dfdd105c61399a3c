"""`vog-hf review`: review rows in the browser."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output
from vog_hf.cli.review_status import print_status
from vog_hf.cli.scored_sources import open_scored
from vog_hf.cli.sources import (
    ConfigOption,
    DatasetOption,
    DatasetRevisionOption,
    PrefixOption,
    SplitOption,
    TokenOption,
    hub_token,
    quieten,
)
from vog_hf.errors import ConfigError


class Tail(StrEnum):
    """End of a column that comes first."""

    HIGHEST = "highest"
    LOWEST = "lowest"


@command(
    "vog-hf review ./scores --reviewer ada",
    "vog-hf review ./outputs/_vog --dataset ./my-images --journal ada.jsonl",
    "vog-hf review ./scores --random-share 0.1",
    "vog-hf review ./scores --status",
    "vog-hf review me/my-data-vog --split test",
)
def review(
    out: Output,
    scored: Annotated[
        str,
        typer.Argument(
            metavar="SCORED",
            help="Folder with scores, dataset with vog columns saved by save_to_disk, or scored dataset on the Hub.",
        ),
    ],
    *,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    dataset_revision: DatasetRevisionOption = None,
    prefix: PrefixOption = "",
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Journal file; an existing journal is continued. Default: next to SCORED."),
    ] = None,
    reviewer: Annotated[
        str, typer.Option(metavar="NAME", help="Reviewer name that the page suggests. Default: none.")
    ] = "",
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address to listen on. Default: 127.0.0.1, this machine only."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", help="Port to listen on. Default: the first free port from 7860.", min=1, max=65535
        ),
    ] = None,
    random_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of rows drawn at random, e.g. 0.1, for an unbiased estimate of all wrong rows. Default: 0.",
            min=0,
            max=1,
        ),
    ] = None,
    status: Annotated[
        bool,
        typer.Option("--status", help="Print what the review has found and may still find, without opening a page."),
    ] = False,
    order: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="With --status: order of the queue. Default: as most rows were reviewed."),
    ] = None,
    tail: Annotated[
        Tail | None,
        typer.Option(
            metavar="highest|lowest", help="With --order: end of that column that comes first; default: highest."
        ),
    ] = None,
    worth_at: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of wrong rows in the next 100 at which continuing is worth it.", min=0, max=1
        ),
    ] = 0.05,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    token: TokenOption = None,
) -> None:
    """Review rows in the browser: keep, relabel, drop or unsure.

    Serves a page for one or several reviewers, and prints its address. Each decision is written to the journal before
    the next row is shown; `vog-hf apply` applies the journal to the dataset. Press Ctrl-C to stop.
    """
    from vog_hf.review import Filter, review_app
    from vog_hf.review.app import LOOPBACK, import_gradio

    of_status = {"--json": out.as_json, "--order": order is not None, "--tail": tail is not None}
    of_page = {
        "--reviewer": bool(reviewer),
        "--host": host is not None,
        "--port": port is not None,
        "--open": open_page,
    }
    of_page |= {"--random-share": random_share is not None}
    _refuse(of_page if status else of_status, "leave out --status" if status else "add --status")
    if order is None:
        _refuse({"--tail": tail is not None}, "add --order")
    if not status:
        import_gradio()  # before long work, since it may not be installed
    quieten(progress=out.shows_progress)
    with hub_token(token):
        opened = open_scored(
            scored, dataset=dataset, config=config, split=split, revision=dataset_revision, prefix=prefix
        )
    if status:
        chosen = None if order is None else Filter(order=order, tail=str(tail or Tail.HIGHEST))
        print_status(out, opened, journal, chosen, worth_at)
        return
    file = journal or opened.journal
    app = review_app(
        opened.scores,
        opened.dataset,
        file,
        title=opened.title,
        reviewer=reviewer,
        is_from_hub=opened.is_from_hub,
        random_share=random_share or 0.0,
        worth_at=worth_at,
    )
    host = host or LOOPBACK[0]
    if ":" in host and not host.startswith("["):  # IPv6, as in a URL
        host = f"[{host}]"
    with _port_explained(host, port):
        _require_address(host, port)  # Gradio would try a hundred ports and not mention the name
        _, url, _ = app.launch(
            server_name=host, server_port=port, quiet=True, inbrowser=open_page, prevent_thread_lock=True
        )
    if host not in LOOPBACK:
        out.notice(f"Anyone who can reach {host} on the network can see the rows and decide.")
    out.result("Review is open; press Ctrl-C to stop", {"page": url, "rows": len(opened.scores), "journal": str(file)})
    app.block_thread()


def _refuse(given: Mapping[str, object], advice: str) -> None:
    """Raise for an option that would have no effect."""
    for option, is_given in given.items():
        if is_given:
            raise typer.BadParameter(f"this has no effect here; leave it out, or {advice}", param_hint=option)


def _require_address(host: str, port: int | None) -> None:
    """Raise OSError if no server can listen on an address: unknown name, another machine, or port in use."""
    addresses = socket.getaddrinfo(host.strip("[]"), port or 0, type=socket.SOCK_STREAM)
    family, _, _, _, address = addresses[0]
    with socket.create_server(address[:2], family=family):
        pass


@contextmanager
def _port_explained(host: str, port: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        ports = "a port from 7860" if port is None else f"port {port}"
        raise ConfigError(f"cannot listen on {ports} of {host} ({error}); pass another --port or --host") from error
