"""The report at 1280 and 390 pixels, light and dark: accessible by axe-core, inside its boxes, no texts that touch."""

from functools import cache

import pytest
from browser import launched_browser
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from page_checks import OVERFLOWS, SCROLLING, TOUCHING, assert_accessible
from PIL import Image
from report_cases import N, make_pictures, make_regression, make_scores, make_sounds, make_texts, make_words

from vog_hf.report import write_report

SIZES = {1280: 900, 390: 844}
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BOXES = "section, .verdict, .card, .values div, .pair > *, figure, .sortable, .controls, .figures > div"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    with launched_browser() as launched:
        yield launched


def make_photographs():
    """Rows of large pictures with other columns, and class names like those of real data."""
    pictures = [Image.effect_noise((400, 300), 40 + i % 60).convert("RGB") for i in range(N)]
    columns = {"image": pictures, "photographer": [f"person {i % 7}" for i in range(N)], "year": list(range(N))}
    features = Features({"image": ImageFeature(), "photographer": Value("string"), "year": Value("int32")})
    return make_scores(names=NAMES), Dataset.from_dict(columns, features=features)


CASES = {
    "hostile pictures": lambda: (make_scores(), make_pictures()),
    "photographs": make_photographs,
    "texts": lambda: (make_scores(maps="tokens"), make_texts()),
    "words": make_words,
    "sounds": lambda: (make_scores(names=NAMES), make_sounds()),
    "regression": lambda: (make_regression(), None),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A function that gives the report of a case."""
    folder = tmp_path_factory.mktemp("reports")

    @cache
    def report(name):
        return write_report(*CASES[name](), folder / f"{name}.html", top_k=4, per_class=1, max_table_rows=24)

    return report


@pytest.fixture
def opened(browser):
    """A function that opens a report; nothing is said on its console, and nothing asked for from elsewhere."""
    pages, said, fetched = [], [], []

    def open_page(path, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme)
        page.set_default_timeout(120_000)  # axe-core takes a while on a busy machine
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not said
    assert not [url for url in fetched if not url.startswith(("data:", "file:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_page(opened, reports, case, width, scheme):
    """Everything is opened, the other columns and an enlarged picture, too."""
    page = opened(reports(case), width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    for switch in page.locator(".others-switch").all():
        switch.check()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWS, BOXES) == []
    assert page.evaluate(TOUCHING) == []
    if width == 1280:
        assert page.evaluate(SCROLLING, ".verdict .scroll, .pair .scroll") == []
    assert_accessible(page)
    if page.locator("button.frame").count():
        page.locator("button.frame").first.click()
        assert_accessible(page, "dialog.large")


def test_the_checks_can_fail(opened, reports):
    """A picture without a text, a word that is too long for its box, and an axis with too many labels are found."""
    page = opened(reports("photographs"))
    page.evaluate("document.querySelector('.pic img').removeAttribute('alt')")
    with pytest.raises(AssertionError, match="image-alt"):
        assert_accessible(page)
    page.evaluate("document.querySelector('.values dd').textContent = '0.'.padEnd(60, '1')")
    assert page.evaluate(OVERFLOWS, BOXES)
    longer = "text.textContent += ' and more'"
    page.evaluate(f"document.querySelectorAll('svg.figure text').forEach((text) => {{ {longer}; }})")
    assert page.evaluate(TOUCHING)


def test_the_first_screen(opened, reports):
    """The headline and the rows to open first are there at once, the evidence on demand."""
    page = opened(reports("photographs"))
    lead, details = page.locator(".verdict .lead"), page.locator(".verdict details")
    assert lead.bounding_box()["y"] < 500
    assert page.locator(".verdict table").count() == 1
    assert not page.locator(".verdict table").is_visible()
    details.locator("summary").click()
    assert page.locator(".verdict table").is_visible()
    assert page.locator("h3").first.inner_text() == "Rows to open first: highest loss"


def test_a_picture_opens_large(opened, reports):
    """By click and by keyboard, with its heat map, which can be switched off; Escape closes it."""
    page = opened(reports("photographs"))
    frame = page.locator("button.frame").first
    small = frame.locator("img").first.bounding_box()["width"]
    frame.focus()
    page.keyboard.press("Enter")
    large = page.locator("dialog.large")
    assert large.locator("img").first.bounding_box()["width"] > 2.5 * small
    assert large.locator("img.heat").is_visible()
    large.locator("input").uncheck()
    assert not large.locator("img.heat").is_visible()
    assert frame.locator("img.heat").is_visible()
    page.keyboard.press("Escape")
    assert not large.is_visible()
    assert page.evaluate("document.activeElement.className") == "frame"


def test_the_color_of_words(opened, reports):
    """The scale next to the switch has the colors of the words, and the switch takes them away."""
    page = opened(reports("words"))
    assert page.locator(".ramp.of-words").count() == 1
    assert opened(reports("sounds")).locator(".ramp.of-words").count() == 0
    color = "(word) => getComputedStyle(word).backgroundColor"
    word = page.locator(".words span").first
    colored = word.evaluate(color)
    page.locator(".heat-switch").uncheck()
    assert word.evaluate(color) == "rgba(0, 0, 0, 0)" != colored


def test_from_the_table_to_the_picture_and_back(opened, reports):
    """The number of a row in the table leads to its card, and the one on the card to the table, filtered or not."""
    page = opened(reports("photographs"))
    link = page.locator("#s0-table tbody a").first
    row = link.inner_text()
    link.click()
    card = page.locator(f"{link.get_attribute('href')}.card")
    page.wait_for_timeout(1000)
    assert 0 <= card.bounding_box()["y"] < 900
    page.locator("[type=search]").fill("no row has this")
    assert page.locator("#s0-table [role=status]").inner_text() == "0 rows shown"
    card.locator("a.row").click()
    page.wait_for_timeout(1000)
    assert page.locator(f"#s0-t{row}").is_visible()
    assert 0 <= page.locator(f"#s0-t{row}").bounding_box()["y"] < 900


def test_search_and_other_columns(opened, reports):
    """The table is searched in what it shows; other columns of the data are shown, and searched, on demand."""
    page = opened(reports("photographs"))
    table, search = page.locator("#s0-table"), page.locator("#s0-table [type=search]")
    shown = table.locator("tbody tr:visible")
    search.fill("PERSON 3")
    assert shown.count() == 0
    table.get_by_label("Other columns of the data: photographer, year").check()
    assert shown.count() > 0
    assert set(table.locator("tbody tr:visible td.other:nth-of-type(4)").all_inner_texts()) <= {"person 3"}
    assert "person 3" in shown.first.inner_text()
    search.fill("truck")
    assert shown.count() > 0
    assert all("truck" in text for text in shown.all_inner_texts())
    texts = opened(reports("texts"))
    texts.locator("[type=search]").fill("row 1")
    assert texts.locator("#s0-table tbody tr:visible").count() >= 1
