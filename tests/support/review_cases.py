"""A review that is open in this process or in one of its own, and a page that is watched."""

import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
from cli_runs import MODULE

from vog_hf.review import review_app

PART = "[data-part='{}']"


@contextmanager
def served(scores, dataset, journal, **options):
    """The address of a review that this process serves."""
    pytest.importorskip("gradio", reason="the extra `review` is not installed")
    app = review_app(scores, dataset, journal, **options)
    try:
        yield app.launch(prevent_thread_lock=True, quiet=True)[1].rstrip("/")
    finally:
        app.close(verbose=False)


class Launched:
    """`vog-hf review` in a process of its own.

    Args:
        arguments: Its arguments.
        output: File for what it says.
        environment: Variables next to those of this process.
    """

    def __init__(self, *arguments, output, command=(*MODULE, "review"), cwd=None, **environment):
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1", **environment},
                cwd=cwd,
            )

    def url(self, pattern=r"page: (http://\S+)", patience=120):
        """The page's address, once it can be opened."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(pattern, self.output.read_text())
            if found:
                return found[1].rstrip("/")
            time.sleep(0.2)
        raise AssertionError(self.output.read_text()[-3000:])

    def end(self, how=signal.SIGKILL):
        """End it; its exit code."""
        self.process.send_signal(how)
        return self.process.wait(60)


class Review:
    """A page of the review.

    Args:
        page: Of playwright.
    """

    def __init__(self, page):
        self.page = page

    def open(self, url, reviewer=None):
        """Load the page, wait for its first row, and give a name."""
        self.page.goto(url)
        self.page.wait_for_selector(".vog-review[data-row]")
        if reviewer is not None:
            self.page.locator(PART.format("reviewer")).fill(reviewer)
            self.page.keyboard.press("Enter")
            self.settled()
        return self

    def settled(self):
        """Wait until nothing is being asked for."""
        self.page.wait_for_timeout(120)
        self.page.wait_for_function("document.querySelector('.vog-review').dataset.state === 'ready'")

    @property
    def row(self):
        """The row on the screen."""
        shown = self.page.get_attribute(".vog-review", "data-row")
        return int(shown) if shown else None

    def text(self, part):
        """What a part of the page says."""
        return self.page.locator(PART.format(part)).inner_text()

    def after(self, act):
        """Do something and wait for another row; its number."""
        before = self.row
        act()
        self.page.wait_for_function(
            "(row) => document.querySelector('.vog-review').dataset.row !== row",
            arg="" if before is None else str(before),
        )
        return self.row

    def press(self, key):
        """Press a key that leads to another row; its number."""
        return self.after(lambda: self.page.keyboard.press(key))

    def click(self, decision):
        """Click on a decision; the number of the next row."""
        return self.after(lambda: self.page.locator(f"[data-decide='{decision}']").click())


def watched(page, said, fetched):
    """Note what a page says on its console, what goes wrong in it, and what it asks for."""
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: fetched.append(request.url))
    return page
