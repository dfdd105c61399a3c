"""The report in a real browser: nothing fails, nothing is fetched, nothing overflows, and everything can be operated.

Needs playwright and a Chromium of the system (``chromium``, ``google-chrome``); skipped where one is missing.
"""

import itertools

import pytest
from browser import CONTRASTS, launched_browser
from report_cases import make_pictures, make_regression, make_scores, make_texts

from vog_hf.report import write_report

REPORTS = ("pictures", "texts", "regression", "splits")
SIZES = {"phone": (390, 844), "narrow": (360, 740), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    with launched_browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Reports of pictures, texts, a regression and two splits, by name."""
    folder = tmp_path_factory.mktemp("reports")
    splits = {"train": make_scores(), "test": make_scores(maps=None)}
    cases = {
        "pictures": (make_scores(), make_pictures()),
        "texts": (make_scores(maps="tokens"), make_texts()),
        "regression": (make_regression(), None),
        "splits": (splits, {"train": make_pictures(), "test": make_pictures()}),
    }
    return {
        name: write_report(scores, dataset, folder / f"{name}.html", top_k=6, per_class=2)
        for name, (scores, dataset) in cases.items()
    }


@pytest.fixture
def opened(browser):
    """A function that opens a file and gives the page; at the end nothing may have failed or been fetched."""
    pages, said, fetched = [], [], []

    def open_page(path, size="desktop", scheme="light", **options):
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        pages.append((page, path))
        return page

    yield open_page
    for page, _ in pages:
        page.close()
    assert not said
    assert [url for url in fetched if not url.startswith("data:")] == [path.as_uri() for _, path in pages]


def pages():
    """Every report at every width and in both schemes; most in the slow tier, since all share one style sheet."""
    for name, size, scheme in itertools.product(REPORTS, SIZES, ("light", "dark")):
        is_default = (size, scheme) == ("narrow", "dark") or (name, scheme) == ("pictures", "light")
        yield pytest.param(name, size, scheme, marks=() if is_default else pytest.mark.slow)


@pytest.mark.parametrize(("name", "size", "scheme"), list(pages()))
def test_page(opened, reports, name, size, scheme):
    """At every width and in both color schemes: no overflow, every picture decoded, texts with enough contrast."""
    page = opened(reports[name], size, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.evaluate(CONTRASTS) == []


def test_contrast_is_measured(opened, reports):
    """The check of contrasts can fail."""
    page = opened(reports["regression"])
    page.evaluate("document.querySelector('h1').style.color = '#ddd'")
    assert len(page.evaluate(CONTRASTS)) == 1


def first_column(page):
    """The numbers of the rows that are shown, from above."""
    return [int(text) for text in page.locator(".sortable tbody tr:visible > :first-child").all_inner_texts()]


def test_sorting_by_keyboard(opened, reports):
    """Enter on a heading sorts, highest first, then lowest; what is sorted is told; missing values stay last."""
    page = opened(reports["regression"])
    heading = page.locator(".sortable th", has_text="loss")
    button = heading.locator("button")
    button.focus()
    shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert shown == "solid", "the focus is seen"
    column = f".sortable tbody tr > :nth-child({1 + heading.evaluate('cell => cell.cellIndex')})"
    for key, order in (("Enter", "descending"), ("Space", "ascending")):
        page.keyboard.press(key)
        assert heading.get_attribute("aria-sort") == order
        texts = page.locator(column).all_inner_texts()
        assert texts[-2:] == ["\N{EN DASH}"] * 2
        values = [float(text) for text in texts[:-2]]
        assert values == sorted(values, reverse=order == "descending")
    assert page.locator(".sortable [role=status]").inner_text() == "153 rows shown, sorted by loss, lowest first"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "BODY"
    page.locator(".sortable th button").first.press("Enter")
    assert first_column(page) == list(range(152, -1, -1))
    assert page.locator(".sortable th[aria-sort]").count() == 1


def test_filter_by_class(opened, reports):
    """Only the rows of the chosen class are shown, and how many they are is told."""
    page = opened(reports["pictures"])
    scores = make_scores()
    choice = page.locator(".controls select")
    choice.select_option("<script>alert(1)</script>")
    expected = (scores.column("label") == 0).nonzero()[0]
    assert sorted(first_column(page)) == expected.tolist()
    assert page.locator(".sortable [role=status]").inner_text() == f"{len(expected)} rows shown"
    choice.select_option("all classes")
    assert len(first_column(page)) == len(scores)


@pytest.mark.parametrize("name", ["pictures", "texts"])
def test_heat_maps_are_switched_off_by_keyboard(opened, reports, name):
    """Space on the switch hides every heat map of the split and leaves the pictures; again, and they are back."""
    page = opened(reports[name])
    maps, pictures = page.locator(".gallery .heat:visible"), page.locator(".gallery .pic img:not(.heat):visible")
    n_maps, n_pictures = maps.count(), pictures.count()
    assert n_maps >= 24
    page.locator(".heat-switch").focus()
    page.keyboard.press("Space")
    assert maps.count() == 0
    assert pictures.count() == n_pictures == (24 if name == "pictures" else 0)
    page.keyboard.press("Space")
    assert maps.count() == n_maps


def test_a_switch_is_of_its_own_split(opened, reports):
    """The other split keeps its heat maps, and its table its order."""
    page = opened(reports["splits"])
    assert page.locator(".heat-switch").count() == 1, "the split without maps has no switch"
    page.locator("#s1-table .sortable th button").first.press("Enter")
    assert page.locator("#s0-table th[aria-sort]").count() == 0


def test_without_script(opened, reports):
    """Without JavaScript everything is there to be read: rows, galleries, classes, and the switch works."""
    page = opened(reports["pictures"], java_script_enabled=False)
    assert page.locator(".sortable tbody tr").count() == 153
    assert page.locator(".sortable button").count() == 0
    page.locator(".heat-switch").uncheck()
    assert page.locator(".gallery .heat:visible").count() == 0
    page.locator(".class-rows summary").first.click()
    assert page.locator(".class-rows").first.locator(".card:visible").count() == 4


def test_links_lead_to_their_parts(opened, reports):
    """The contents bring each part into view."""
    page = opened(reports["splits"], "phone", reduced_motion="reduce")
    for link in page.locator("nav a").all():
        link.click()
        target = page.locator(link.get_attribute("href"))
        assert target.evaluate("element => Math.abs(element.getBoundingClientRect().top)") < 844
