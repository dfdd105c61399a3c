"""The review at 1280 and 390 pixels, light and dark: accessible by axe-core, inside its boxes; and its grid."""

import numpy as np
import pytest
from browser import launched_browser
from page_checks import OVERFLOWS, assert_accessible
from report_cases import make_pictures, make_scores, make_sounds, make_texts, make_words
from review_cases import PART, Review, served, watched

from vog_hf.review.grid import TILES
from vog_hf.review.journal_events import read_decisions

SIZES = {1280: 800, 390: 844}
NAMES = ["airplane", "automobile", "bird", "cat"]
CASES = {
    "pictures": lambda: (make_scores(names=NAMES), make_pictures(side=32)),
    "hostile texts": lambda: (make_scores(maps="tokens"), make_texts()),
    "words": make_words,
    "sounds": lambda: (make_scores(names=NAMES), make_sounds()),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    with launched_browser() as launched:
        yield launched


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """Address and journal of a review of pictures, texts or sounds."""
    scores, rows = CASES[request.param]()
    with served(scores, rows, tmp_path / "journal.jsonl", title=request.param) as url:
        yield url, tmp_path / "journal.jsonl"


@pytest.fixture
def pictures(tmp_path):
    """Address and journal of a review of pictures."""
    with served(*CASES["pictures"](), tmp_path / "journal.jsonl", title="pictures") as url:
        yield url, tmp_path / "journal.jsonl"


@pytest.fixture
def opened(browser):
    """A function that opens a review; nothing is said on its console, and nothing asked for from elsewhere."""
    pages, said, fetched, hosts = [], [], [], set()

    def open_page(url, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme)
        page.set_default_timeout(120_000)  # axe-core takes a while on a busy machine
        pages.append(page)
        hosts.add(url)
        return Review(watched(page, said, fetched)).open(url, "ada")

    yield open_page
    for page in pages:
        page.close()
    assert not said
    assert not [url for url in fetched if not url.startswith(("data:", "blob:", *hosts))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_page(case, opened, width, scheme):
    """One row, with a decision and everything open, its keys, and the grid with a selection."""
    review = opened(case[0], width, scheme)
    page = review.page
    page.wait_for_function("document.querySelector('[data-part=verdict]').textContent")
    boxes = ".vog-review, .head, .stage, .near, .queue, [data-part='facts'], .decide, .move, .tile, .classes > *"
    assert_accessible(page)
    review.press("d")
    page.keyboard.press("h")
    page.keyboard.press("r")
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWS, boxes) == []
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert_accessible(page)
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.wait_for_selector("[data-tile]")
    review.settled()
    page.locator("[data-tile]").first.click()
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWS, boxes) == []


def test_on_a_phone_everything_to_decide_is_on_the_first_screen(case, opened):
    """Label, then row, then buttons: without scrolling, all are there, and the buttons stay when one scrolls."""
    review = opened(case[0], 390)
    page = review.page
    label, stage, buttons = (page.locator(name).bounding_box() for name in (".classes", ".stage", ".decide"))
    assert label["y"] < stage["y"] < buttons["y"]
    assert label["y"] + label["height"] < 300
    assert buttons["y"] + buttons["height"] <= 844
    for name in ("keep", "drop", "relabel", "unsure"):
        assert page.locator(f"[data-decide='{name}']").is_visible()
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(300)
    assert page.locator(".decide").bounding_box()["y"] + page.locator(".decide").bounding_box()["height"] <= 845


def test_the_heat_map_of_a_spectrogram_keeps_its_two_axes(opened, tmp_path):
    """It is not pressed into the line of a strip."""
    with served(*CASES["sounds"](), tmp_path / "journal.jsonl", title="sounds") as url:
        page = opened(url).page
        page.keyboard.press("h")
        assert page.locator(".stage .plane img").bounding_box()["height"] > 100
        page.close()  # before its server


def test_heat_colors_the_words_of_a_text(opened, tmp_path):
    """The words have no color at first, and theirs with the heat map."""
    with served(*CASES["words"](), tmp_path / "journal.jsonl", title="words") as url:
        page = opened(url).page
        color = "(word) => getComputedStyle(word).backgroundColor"
        word = page.locator(".stage .words span").first
        assert word.evaluate(color) == "rgba(0, 0, 0, 0)"
        page.keyboard.press("h")
        assert word.evaluate(color) != "rgba(0, 0, 0, 0)"
        page.close()  # before its server


def test_the_heat_map_starts_off(pictures, opened):
    """A row is first seen as it is; H shows where its gradient changed, also after a reload."""
    review = opened(pictures[0])
    page = review.page
    heat = page.locator(".stage .heat")
    assert heat.count() == 1
    assert not heat.is_visible()
    page.keyboard.press("h")
    assert heat.is_visible()
    page.reload()
    page.wait_for_selector(".vog-review[data-row]")
    assert heat.is_visible()


def test_words(pictures, opened):
    """A saved decision is confirmed by row and decision; places are positions; reviewed rows are hidden."""
    review = opened(pictures[0])
    row = review.row
    assert "0 of 153 decided · Position 1" in review.text("progress")
    review.press("u")
    assert review.text("status") == f"Saved: row {row}, unsure"
    assert "1 of 153 decided · Position 2" in review.text("progress")
    assert review.page.get_by_label("Hide reviewed").input_value() == "me"


def chosen_rows(page):
    """The rows that are selected in the grid."""
    return [int(tile.get_attribute("data-tile")) for tile in page.locator("[data-tile][aria-pressed='true']").all()]


def test_a_quick_pass(pictures, opened):
    """Select by click and in a range, decide about all, undo, turn pages, open a row, by mouse and by keys."""
    url, journal = pictures
    scores = make_scores(names=NAMES)
    order = np.argsort(-scores.column("loss"), kind="stable").tolist()
    review = opened(url)
    page = review.page
    page.keyboard.press("g")
    page.wait_for_selector("[data-tile]")
    review.settled()
    tiles = page.locator("[data-tile]")
    assert tiles.count() == TILES
    assert page.locator("[data-decide='keep']").is_disabled()
    tiles.nth(1).click()
    tiles.nth(3).click(modifiers=["Shift"])
    tiles.nth(5).focus()
    page.keyboard.press("Space")
    assert chosen_rows(page) == [*order[1:4], order[5]]
    assert review.text("selected") == "4 selected"
    page.keyboard.press("d")
    review.settled()
    assert review.text("status") == "Saved: 4 rows, drop"
    assert {(one.row, one.decision) for one in read_decisions(journal)} == {
        (row, "drop") for row in [*order[1:4], order[5]]
    }
    left = [row for row in order if row not in (*order[1:4], order[5])]
    assert [int(tile.get_attribute("data-tile")) for tile in tiles.all()] == left[:TILES]
    page.keyboard.press("z")
    review.settled()
    assert review.text("status") == "Undone: 4 decisions."
    assert read_decisions(journal) == []
    page.keyboard.press("ArrowRight")
    review.settled()
    assert review.text("range") == f"{TILES + 1} to {2 * TILES} of 153 rows left"
    page.keyboard.press("a")
    assert len(chosen_rows(page)) == TILES
    page.keyboard.press("Escape")
    assert chosen_rows(page) == []
    page.keyboard.press("m")
    review.settled()
    page.keyboard.press("a")
    rows = chosen_rows(page)
    page.keyboard.press("p")
    review.settled()
    predicted = scores.column("prediction")
    assert {one.row: one.label for one in read_decisions(journal)} == {row: predicted[row] for row in rows}
    page.locator("[data-open]").first.click()
    review.settled()
    assert page.locator(".stage").is_visible()
    assert not page.locator(PART.format("grid")).is_visible()
