"""The review as a Gradio app: one component with the page, and the functions of the service that it may call."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vog_hf.data.rows import AnyDataset
from vog_hf.errors import ConfigError, require_type
from vog_hf.review.grid import GridService
from vog_hf.review.html import shell
from vog_hf.review.journal import Journal
from vog_hf.review.service import Answer, answering
from vog_hf.scores.pictures.words import WORDS_STYLE
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
PUBLISHED = ("about", "show", "decide", "undo", "grid", "decide_all", "undo_all", "facts", "decisions", "sound")
# Nothing is uploaded and no file is served: what the page shows travels inside the answers.
CLOSED = {"allowed_paths": [], "max_file_size": 1, "footer_links": [], "ssr_mode": False, "share": False}


def review_app(
    scores: VoGScores,
    dataset: AnyDataset,
    journal: str | Path,
    *,
    title: str = "",
    reviewer: str = "",
    is_from_hub: bool = False,
    random_share: float = 0.0,
    worth_at: float = 0.05,
) -> Any:
    """Create an app to review the rows of a dataset.

    Every decision is in the journal before the next row is shown. The page can be reloaded and the server restarted at
    any time. Several people can review at the same time, each under a name; the decisions of others about a row are
    shown once a reviewer has decided about it.

    Args:
        scores: Scores of the dataset.
        dataset: Its rows: a `datasets.Dataset` or any map-style dataset; None = only numbers are shown.
        journal: Journal file; an existing journal of the same rows is continued.
        title: Name of the dataset, for the top of the page.
        reviewer: Name that the page proposes; without one it asks.
        is_from_hub: Whether the dataset belongs to someone else on the Hub. Its rows can reference any file of this
            machine: only files inside the caches of `datasets` and `huggingface_hub` are then shown.
        random_share: Share of rows (0..1) that are drawn at random and mixed into the queue, so that the estimate of
            all wrong rows is unbiased; reviewers can change it on the page.
        worth_at: Share of wrong rows in the next 100 (0..1) at which the page calls continuing worth it.

    Returns:
        A `gradio.Blocks`; its ``launch()`` listens only on this machine unless it is given a ``server_name``.

    Raises:
        RowMismatchError: The dataset or the journal belongs to other rows.
        ConfigError: Gradio is not installed, or a share outside 0..1.
    """
    require_type("scores", scores, VoGScores, "pass the scores of one dataset")
    split, gradio = ScoredSplit("", scores, dataset), import_gradio()
    options: dict[str, Any] = {"title": title, "reviewer": reviewer, "is_from_hub": is_from_hub}
    options |= {"random_share": random_share, "worth_at": worth_at}
    service = GridService(split, Journal.open(Path(journal), scores), **options)

    class ReviewApp(gradio.Blocks):  # type: ignore[name-defined]
        def launch(self, *given: Any, **options: object) -> Any:
            return super().launch(*given, **CLOSED | options)

    with ReviewApp(title=f"Review {title}".strip(), analytics_enabled=False, fill_width=True) as app:
        gradio.HTML(
            html_template=shell("review.html"),
            css_template=shell("review.css") + WORDS_STYLE,
            js_on_load=shell("grid.js") + shell("review.js"),
            apply_default_css=False,
            server_functions=_functions(service, gradio.Request, app),
        )
    return app


def import_gradio() -> Any:
    """Import Gradio with its analytics turned off.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("the review needs Gradio; install it with: pip install 'vog-hf[review]'") from error
    return gradio


def _functions(service: GridService, request_type: type, app: Any) -> list[Any]:
    """The functions that the page calls, by name; they refuse requests from other web sites."""

    def published(name: str) -> Any:
        ask = answering(getattr(service, name))

        def answer(asked: Any, request: Any) -> Answer:
            if not isinstance(asked, dict) or not is_own_page(request.headers, _own_names(app)):
                return {"error": "request rejected: it did not come from the review page"}
            return ask(asked)

        answer.__name__ = name
        answer.__annotations__ = {"request": request_type}  # by which Gradio passes the request
        return answer

    return [published(name) for name in PUBLISHED]


def _own_names(app: Any) -> set[str] | None:
    """Host names of an app; None = any, if not only browsers on this machine can reach it."""
    if getattr(app, "server_name", None) not in LOOPBACK or app.is_colab or app.is_hosted_notebook:
        return None
    names = (urlsplit(address or "").hostname for address in (app.share_url, app.root_path))
    return {*LOOPBACK, *(name for name in names if name)}


def is_own_page(headers: Any, names: Collection[str] | None) -> bool:
    """Return whether a request comes from the review page, not from another site in the browser.

    Another site may give its name the address of this server (DNS rebinding): so the name that was asked for counts.

    Args:
        headers: Headers of the request.
        names: Names of the server; None = any.

    Example:
        >>> is_own_page({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, LOOPBACK)
        True
        >>> is_own_page({"host": "127.0.0.1:7860", "origin": "https://example.org"}, LOOPBACK)
        False
        >>> is_own_page({"host": "example.org:7860", "origin": "http://example.org:7860"}, LOOPBACK)
        False
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        asked, sender = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
    except ValueError:  # no address at all
        return False
    if names is not None and asked not in names:
        return False
    if site := headers.get("sec-fetch-site"):  # from the browser itself; behind a proxy the names may differ
        return bool(site == "same-origin")
    return origin is None or sender == host
