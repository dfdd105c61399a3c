"""`vog-hf review`: people look at rows and decide."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vog_hf.cli.app import command
from vog_hf.cli.data import (
    ConfigOption,
    DatasetOption,
    DatasetRevisionOption,
    Source,
    SplitOption,
    find_scores,
    open_dataset,
    quieten,
    source_for,
)
from vog_hf.cli.output import Output
from vog_hf.errors import ConfigError

if TYPE_CHECKING:
    from vog_hf.scores import VoGScores

LOOPBACK = "127.0.0.1"
LOOPBACKS = (LOOPBACK, "localhost", "[::1]")


@dataclass(frozen=True)
class Opened:
    """What is reviewed.

    Attributes:
        title: Its name, for the page.
        journal: Where its decisions go unless another file is named.
    """

    scores: "VoGScores"
    dataset: Any
    title: str
    journal: Path


@command(
    "vog-hf review ./scores --reviewer ada",
    "vog-hf review ./outputs/_vog --dataset ./my-images --journal ada.jsonl",
    "vog-hf review ./my-scored-data",
    "vog-hf review me/my-data-vog --split test",
    prints_json=False,
)
def review(
    out: Output,
    scored: Annotated[
        str,
        typer.Argument(
            metavar="SCORED",
            help="Folder with scores, data set on disk (save_to_disk) with vog columns, or scored data set on the Hub.",
        ),
    ],
    *,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    split: SplitOption = None,
    dataset_revision: DatasetRevisionOption = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where decisions go; an earlier one is gone on with. Default: beside SCORED."
        ),
    ] = None,
    reviewer: Annotated[
        str, typer.Option(metavar="NAME", help="Name that the page proposes; each visitor's own.")
    ] = "",
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; others can reach any but the default.")
    ] = LOOPBACK,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Default: the first free one from 7860 on.", min=1, max=65535)
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Look at rows and decide: keep, relabel, drop or unsure.

    A page in the browser, for one person or several at a time. Each decision is in the journal, a file of one line
    each, before the next row is shown; `vog-hf apply` gives them back to the data. Ends with Ctrl-C.
    """
    from vog_hf.review import review_app
    from vog_hf.review.app import import_gradio

    import_gradio()  # before long work: it may not be installed
    quieten(progress=out.shows_progress)
    opened = open_scored(scored, dataset=dataset, config=config, split=split, revision=dataset_revision)
    file = journal or opened.journal
    app = review_app(opened.scores, opened.dataset, file, title=opened.title, reviewer=reviewer)
    if ":" in host and not host.startswith("["):  # IPv6, as it stands in a page's address
        host = f"[{host}]"
    with _port_explained(host, port):
        _, url, _ = app.launch(
            server_name=host, server_port=port, quiet=True, inbrowser=open_page, prevent_thread_lock=True
        )
    if host not in LOOPBACKS:
        out.messages.print(f"Whoever reaches {host} on the network can see the rows and decide.", soft_wrap=True)
    out.result("Review open, Ctrl-C ends it", {"page": url, "rows": len(opened.scores), "journal": str(file)})
    app.block_thread()


def open_scored(
    scored: str, *, dataset: str | None, config: str | None, split: str | None, revision: str | None
) -> Opened:
    """The scores and rows that a person names: a folder with scores, a data set on disk, or one on the Hub.

    Raises:
        ConfigError: There are several splits and none was chosen, or options that do not go together.
        VoGError: There is no such thing, or it cannot be read.
    """
    from vog_hf.loading import is_saved

    folder = Path(scored).expanduser()
    if dataset is None and is_saved(folder):
        from vog_hf.columns import scores_from_columns

        rows = open_dataset(Source(scored, config, split, revision))
        return Opened(scores_from_columns(rows), rows, folder.name, _beside(folder, split))
    if not folder.exists() and scored.count("/") == 1 and not scored.startswith((".", "~", "/")):
        return _from_hub(scored, dataset=dataset, config=config, split=split, revision=revision)
    scores = find_scores(folder)
    source = source_for(folder, dataset=dataset, config=config, split=split, revision=revision)
    if isinstance(scores, dict):
        split = _one_of(scores, split, scored)
        scores, source = scores[split], Source(source.name, source.config, split, source.revision)
        return Opened(scores, open_dataset(source), f"{Path(source.name).name}, {split}", _beside(folder, split))
    return Opened(scores, open_dataset(source), Path(source.name).name, _beside(folder, None))


def _from_hub(
    repo_id: str, *, dataset: str | None, config: str | None, split: str | None, revision: str | None
) -> Opened:
    from vog_hf.hub import pull_scores

    scores = pull_scores(repo_id, revision=None if dataset else revision, config_name=config or "default", split=split)
    if isinstance(scores, dict):
        split = _one_of(scores, split, repo_id)
        scores = scores[split]
    name = scores.manifest.get("split") if split is None else split
    rows = open_dataset(Source(dataset or repo_id, config, name or "train", revision))
    return Opened(scores, rows, repo_id, _beside(Path.cwd() / repo_id.rpartition("/")[2], split))


def _one_of(scores: "dict[str, VoGScores]", split: str | None, place: str) -> str:
    if split is None or split not in scores:
        got = "none" if split is None else repr(split)
        msg = f"{place} holds scores of the splits {', '.join(scores)}; choose one with --split, got {got}"
        raise ConfigError(msg)
    return split


def _beside(folder: Path, split: str | None) -> Path:
    """``scores.review.jsonl`` beside the folder ``scores``: scoring again replaces that, and not the decisions."""
    name = folder.resolve().name + ("" if split is None else f".{split}")
    return folder.resolve().with_name(f"{name}.review.jsonl")


@contextmanager
def _port_explained(host: str, port: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        wanted = "a port from 7860 on" if port is None else f"port {port}"
        msg = f"cannot listen on {wanted} of {host} ({error}); pass another --port or --host"
        raise ConfigError(msg) from error
