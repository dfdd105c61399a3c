"""The documentation site, built as `make check` does and read in a browser."""

import functools
import html.parser
import http.server
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
from browser import launched_browser

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files without a log."""

    def log_message(self, *args):
        """Print nothing."""


@pytest.fixture(scope="module")
def browser():
    """A running Chromium."""
    with launched_browser() as running:
        yield running


class Links(html.parser.HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors = set(), {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note the links and the names of an element."""
        given = dict(attrs)
        self.targets |= {given[name] for name in ("href", "src") if given.get(name)}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}


def broken_links(site):
    """Links from one page of a site to a file or a place that is not there: (page, link)."""
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in sorted(page.targets):
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            root = site if url.path.startswith("/") else path.parent  # the page "not found" is served anywhere
            target = (root / urllib.parse.unquote(url.path).lstrip("/")).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else {urllib.parse.unquote(url.fragment)}
            if not target.is_file() or urllib.parse.unquote(url.fragment) not in anchors:
                yield path.relative_to(site).as_posix(), link


def test_every_link_of_the_site_resolves(site):
    """Links of texts, of docstrings and of the navigation lead to a page, a file or a heading that is there."""
    assert len([link for path in site.rglob("*.html") for link in Links(path.read_text()).targets]) > 1_000
    assert list(broken_links(site)) == []


def test_a_broken_link_of_a_site_is_noticed(tmp_path):
    """A missing file, folder or heading is reported; what is there, and what is elsewhere, is not."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "index.html").write_text('<h1 id="a">A</h1>')
    links = ["more/#a", "more/index.html", "https://x.org", "#b", "more/#c", "gone.html", "../other.css", "/more/"]
    tags = "".join(f'<a href="{link}"></a>' for link in links)
    (tmp_path / "index.html").write_text(f'<p id="b">{tags}</p>')
    assert {link for _, link in broken_links(tmp_path)} == {"more/#c", "gone.html", "../other.css"}


def test_pages_of_files_outside_docs_exist(site):
    """The changelog, the experiments and the programs that pages link to are pages of the site."""
    names = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {"CHANGELOG.html", "recipes/experiments/index.html", "recipes/image_classification.py.html"} <= names
    assert not list(site.rglob("*.py"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_and_asks_nobody(site, address, browser, scheme):
    """At 1280 and 390 px no page is wider than the window, logs an error or asks another server."""
    page = browser.new_page(color_scheme=scheme)
    troubles = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.append(request.url) if not request.url.startswith(address) else None)
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(address + name)
            wide = page.evaluate("document.scrollingElement.scrollWidth")
            assert wide <= width, (name, width)
        assert troubles == [], name
    page.close()
