"""The documentation site, built as `make check` does and read in a browser."""

import functools
import http.server
import subprocess
import sys
import threading
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
