"""The review in a real browser, as people use it; needs gradio, playwright and a Chromium of the system."""

import json
import os
import re
import statistics
import time
from io import BytesIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browser import CONTRASTS, launched_browser
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from report_cases import HOSTILE, HOSTILE_TEXT, N, make_pictures, make_scores, make_texts
from review_cases import PART, Launched, Review, served, watched

from vog_hf.review import Filter, Queue
from vog_hf.review.journal_events import read_decisions

SIZES = {"desktop": (1280, 800), "tablet": (820, 1180)}
GONE = re.compile("ERR_CONNECTION_REFUSED|Could not connect to|Failed to fetch|ERR_CONNECTION_RESET")


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    with launched_browser() as launched:
        yield launched


@pytest.fixture
def opened(browser, request):
    """A function that opens a review as a person of their own; at the end nothing failed, nothing came from outside."""
    pages, said, fetched, hosts = [], [], [], set()

    def open_page(url, reviewer=None, size="desktop", scheme="light"):
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        pages.append(page)
        hosts.add(url)
        return Review(watched(page, said, fetched)).open(url, reviewer)

    yield open_page
    for page in pages:
        page.close()
    assert not [text for text in said if not (request.node.get_closest_marker("server_ends") and GONE.search(text))]
    outside = [url for url in fetched if not url.startswith(("data:", "blob:", *hosts))]
    assert not outside


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Address and journal of a review of texts, with names and texts that would break a page."""
    journal = tmp_path_factory.mktemp("texts") / "journal.jsonl"
    with served(make_scores(maps="tokens"), make_texts(), journal, title="<i>my</i> texts") as url:
        yield url, journal


@pytest.fixture
def pictures(tmp_path):
    """Address and journal of a review of pictures."""
    with served(make_scores(), make_pictures(), tmp_path / "journal.jsonl", title="pictures") as url:
        yield url, tmp_path / "journal.jsonl"


def decided(journal):
    """Row, decision, label and note of each decision that stands, in the order of time."""
    found = sorted(read_decisions(journal), key=lambda decision: decision.time)
    return [(d.row, d.decision, d.label, d.note) for d in found]


def test_a_review(opened, texts):
    """Filter, decide by mouse and by keys, undo, reload; HTML is text; no file of the machine is served."""
    url, journal = texts
    scores = make_scores()
    review = opened(url)
    page = review.page
    order = np.argsort(-scores.column("loss"), kind="stable").tolist()
    assert review.row == order[0]
    assert HOSTILE_TEXT in review.text("stage")
    assert review.text("title") == "<i>my</i> texts"
    assert page.locator(f"{PART.format('classes')} option").all_inner_texts()[0] == HOSTILE[0]
    page.keyboard.press("k")
    assert "Enter your name first" in review.text("alert")
    assert decided(journal) == []
    page.keyboard.type("ada")
    page.keyboard.press("Enter")
    review.settled()

    assert review.click("keep") == order[1]
    assert review.press("d") == order[2]
    page.keyboard.press("n")
    page.keyboard.type("kd <b>not</b> a dog")  # keys in a note are letters
    page.keyboard.press("Escape")
    assert review.press("u") == order[3]
    new = (int(scores.column("label")[order[3]]) + 1) % len(HOSTILE)
    page.keyboard.press("r")
    page.keyboard.type(str(new))
    assert review.press("Enter") == order[4]
    expected = [(order[0], "keep", None, ""), (order[1], "drop", None, "")]
    expected += [(order[2], "unsure", None, "kd <b>not</b> a dog"), (order[3], "relabel", new, "")]
    assert decided(journal) == expected
    assert "4 of 153 decided" in review.text("progress")

    assert review.press("z") == order[3]
    assert decided(journal) == expected[:3]
    page.reload()
    page.wait_for_selector(".vog-review[data-row]")
    assert (review.row, page.input_value(PART.format("reviewer"))) == (order[3], "ada")
    page.wait_for_function("document.querySelector('[data-part=yield]').textContent")
    assert review.text("yield").startswith(
        "2 reviewed, 1 wrong (1 unsure left out); unclear how many the next rows hold"
    )
    assert review.text("outlook") == "The total is unclear; it takes at least 20 random rows."
    assert review.press("ArrowRight") == order[4]
    assert review.press("ArrowLeft") == order[3]

    page.select_option("[name='random']", "20")
    review.settled()
    assert review.row == Queue(scores).rows(Filter(order="loss", random_share=0.2))[3]
    page.select_option("[name='random']", "0")
    review.settled()
    page.locator("[name='mismatched']").click()  # keys continue from where the mouse was
    review.settled()
    assert page.locator("[name='mismatched']").is_checked()
    page.keyboard.press("m")
    review.settled()
    assert f"of {N} decided" in review.text("progress")
    page.keyboard.press("m")
    review.settled()
    wrong = (scores.column("label") >= 0) & (scores.column("label") != scores.column("prediction"))
    assert f"of {wrong.sum()} decided" in review.text("progress")
    page.keyboard.press("/")
    page.keyboard.type("row 14")
    page.keyboard.press("Escape")
    time.sleep(0.5)
    review.settled()
    assert f"of {sum(wrong[[14, *range(140, 150)]])} decided" in review.text("progress")
    assert_closed(url, journal)


def test_a_note_waits_for_its_decision(pictures, opened):
    """What is typed before a decision is there after other rows, filters, a reload and the name; then it is written."""
    url, journal = pictures
    review = opened(url)
    page, row = review.page, review.row
    note = page.locator(PART.format("note"))
    note.fill("not sure about this one")
    page.locator(PART.format("reviewer")).fill("ada")
    page.keyboard.press("Enter")
    review.settled()
    assert note.input_value() == "not sure about this one"
    review.press("ArrowRight")
    assert note.input_value() == ""
    page.keyboard.press("t")
    review.settled()
    page.keyboard.press("t")
    review.settled()
    page.reload()
    page.wait_for_selector(".vog-review[data-row]")
    assert (review.row, note.input_value()) == (row, "not sure about this one")
    review.press("u")
    assert decided(journal) == [(row, "unsure", None, "not sure about this one")]
    review.press("z")
    assert (review.row, note.input_value()) == (row, ""), "what was undone is not a note any more"
    note.fill("of ada")
    page.locator(PART.format("reviewer")).fill("grace")
    page.keyboard.press("Enter")
    review.settled()
    assert note.input_value() == "", "another's note is not one's own"


def assert_closed(url, journal):
    """No file of the machine is served, no other site may ask, and nothing but the page's questions is answered."""
    for path in ("/etc/passwd", str(journal), f"{journal.parent}/../../etc/passwd", "vog_hf/__init__.py"):
        for route in ("/gradio_api/file=", "/gradio_api/file/", "/file="):
            assert answer(f"{url}{route}{path}")[0] in (403, 404)
    parts = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\nsecret\r\n--b--\r\n'
    sent = Request(f"{url}/gradio_api/upload", parts, {"Content-Type": "multipart/form-data; boundary=b"})  # noqa: S310
    assert answer(sent)[0] == 413
    before = journal.read_bytes()
    config = json.loads(answer(f"{url}/config")[1])
    component = next(c["id"] for c in config["components"] if c["type"] == "html")
    question = {"reviewer": "eve", "row": 0, "decision": "drop", "filter": {}}
    body = {"data": question, "component_id": component, "fn_name": "decide", "session_hash": "x"}
    port = url.rpartition(":")[2]
    rebound = {"Host": f"example.org:{port}", "Origin": f"http://example.org:{port}", "Sec-Fetch-Site": "same-origin"}
    for headers in ({"Origin": "https://example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}, rebound):
        status, said = answer(f"{url}/gradio_api/component_server", body, headers)
        assert (status, json.loads(said)) == (200, {"error": "request rejected: it did not come from the review page"})
    assert journal.read_bytes() == before
    for name in ("launch", "__init__", "get_config"):
        assert answer(f"{url}/gradio_api/component_server", body | {"fn_name": name}, {"Origin": url})[0] == 404


def answer(url, body=None, headers=None):
    """Status and content that a server of this test answers with."""
    sent = {"Content-Type": "text/plain", **(headers or {})}
    request = url if body is None else Request(url, json.dumps(body).encode(), sent)  # noqa: S310 (our own server)
    try:
        with urlopen(request) as answered:  # noqa: S310
            return answered.status, answered.read()
    except HTTPError as refused:
        return refused.code, b""


@pytest.mark.slow
def test_two_reviewers_at_once(pictures, opened):
    """Two browsers under two names walk the same queue; neither loses a decision, and each sees the other's after."""
    url, journal = pictures
    ada, grace = opened(url, "ada"), opened(url, "grace", "tablet")
    order = np.argsort(-make_scores().column("loss"), kind="stable").tolist()
    for place in range(10):
        assert (ada.row, grace.row) == (order[place], order[place])
        ada.press("k")
        grace.press("k" if place % 2 else "d")
    found = read_decisions(journal)
    assert len(found) == 20
    assert {(d.row, d.reviewer) for d in found} == {(row, name) for row in order[:10] for name in ("ada", "grace")}
    ada.page.wait_for_function("document.querySelector('[data-part=agreement]').textContent.includes('5 of 10')")
    assert ada.press("z") == order[9]
    assert "1 other reviewer has decided" in ada.text("decisions")
    ada.press("k")
    ada.page.locator("[name='skip']").select_option("")
    ada.settled()
    assert "grace: Drop" in ada.text("decisions")
    grace.page.keyboard.press("f")  # on a narrow screen the filters are folded
    grace.page.locator("[name='skip']").select_option("anyone")
    grace.settled()
    assert grace.row == order[10]


@pytest.mark.slow
def test_two_tabs_of_one_reviewer(pictures, opened):
    """The same row decided in two tabs is one decision: the later one."""
    url, journal = pictures
    first, second = opened(url, "ada"), opened(url, "ada")
    row = first.row
    first.press("k")
    second.press("d")
    assert decided(journal) == [(row, "drop", None, "")]


@pytest.mark.slow
@pytest.mark.server_ends
def test_the_server_is_killed(opened, tmp_path):
    """SIGKILL after a decision: it is in the journal; the page reports it and continues with the next server."""
    scores, journal = make_scores(), tmp_path / "journal.jsonl"
    scores.save(tmp_path / "scores")
    make_pictures().save_to_disk(str(tmp_path / "pictures"))
    arguments = [tmp_path / "scores", "--dataset", tmp_path / "pictures", "--journal", journal, "--reviewer", "ada"]
    first = Launched(*arguments, output=tmp_path / "first.txt")
    url = first.url()
    review = opened(url)
    order = np.argsort(-scores.column("loss"), kind="stable").tolist()
    for place in range(3):
        assert review.row == order[place]
        review.press("k")
    first.end()
    review.page.keyboard.press("k")
    review.page.wait_for_function(
        "document.querySelector('[data-part=alert]').textContent.includes('does not respond')"
    )
    assert review.row == order[3], "nothing is shown as decided that is not in the journal"
    assert [row for row, *_ in decided(journal)] == order[:3]
    second = Launched(*arguments, "--port", url.rpartition(":")[2], output=tmp_path / "second.txt")
    second.url()
    assert review.press("d") == order[4], "the page that was open continues"
    again = opened(url)
    assert again.row == order[4]
    kept = [(row, "keep") for row in order[:3]]
    assert [(row, what) for row, what, *_ in decided(journal)] == [*kept, (order[3], "drop")]
    assert len(journal.read_text(encoding="utf-8").splitlines()) == 5, "a header and four decisions"
    assert second.end() == -9


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits(pictures, opened, texts, size, scheme):
    """At both widths and in both color schemes nothing overflows sideways and every text has enough contrast."""
    for url, _ in (pictures, texts):
        review = opened(url, "ada", size, scheme)
        page = review.page
        page.locator(".queue").evaluate("details => { details.open = true; }")
        page.locator(".values").evaluate("details => { details.open = true; }")
        page.keyboard.press("r")
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        faint = "document.querySelectorAll('button:disabled').forEach((button) => { button.disabled = false; })"
        page.evaluate(faint)  # what cannot be used may be faint
        assert page.evaluate(CONTRASTS) == []


@pytest.mark.slow
def test_everything_by_keys(pictures, opened):
    """Relabeling to the prediction, choosing with arrows, heat map, filters, help and the name, without a mouse."""
    url, journal = pictures
    scores = make_scores()
    review = opened(url, "ada")
    page = review.page
    page.keyboard.press("m")
    review.settled()
    row = review.row
    review.press("p")
    assert decided(journal) == [(row, "relabel", int(scores.column("prediction")[row]), "")]
    row, label = review.row, int(scores.column("label")[review.row])
    page.keyboard.press("r")
    offered = [int(item.get_attribute("data-label")) for item in page.locator("[role=option]").all()]
    assert offered[0] == scores.column("prediction")[row], "the likeliest first"
    assert label not in offered
    page.keyboard.press("ArrowDown")
    review.press("Enter")
    assert decided(journal)[-1] == (row, "relabel", offered[1], "")
    page.keyboard.press("r")
    page.keyboard.press("Escape")
    assert not page.locator(PART.format("picker")).is_visible()

    heat = page.locator(".stage .heat")
    assert not heat.is_visible()
    page.keyboard.press("h")
    assert heat.is_visible()
    page.reload()
    page.wait_for_selector(".vog-review[data-row]")
    assert heat.is_visible(), "a reload leaves the heat map on"
    page.keyboard.press("h")
    page.keyboard.press("t")
    review.settled()
    wrong = np.flatnonzero((scores.column("label") >= 0) & (scores.column("label") != scores.column("prediction")))
    lowest = wrong[np.argsort(scores.column("loss")[wrong], kind="stable")]
    assert review.row == lowest[0]
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert len(decided(journal)) == 2, "keys do nothing behind the help"
    page.keyboard.press("w")
    page.keyboard.type("grace")
    page.keyboard.press("Enter")
    review.settled()
    assert "0 of" in review.text("progress")
    page.keyboard.press("f")
    assert page.evaluate("document.activeElement.name") == "order"
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download all decisions").click()
    assert saved.value.path().read_bytes() == journal.read_bytes()


@pytest.mark.slow
def test_sounds_are_played(opened, tmp_path):
    """A row of sound has a player that Space starts; a neighbor's sound has a button."""
    waves = [np.sin(np.arange(4000) * (0.05 + row / 1000)).tolist() for row in range(N)]
    rows = Dataset.from_dict({"audio": [{"array": wave, "sampling_rate": 8000} for wave in waves]})
    with served(make_scores(maps="tokens", names=["yes", "no"]), rows, tmp_path / "journal.jsonl") as url:
        review = opened(url, "ada")
        page = review.page
        page.wait_for_function("document.querySelector('audio').readyState === 4")
        assert page.evaluate("document.querySelector('audio').duration") == 0.5
        page.keyboard.press(" ")
        page.wait_for_function("document.querySelector('audio').ended")
        page.locator(".near .play").first.click()
        review.press("k")


@pytest.mark.slow
def test_50_000_rows(opened, tmp_path, capsys):
    """Opening the page and deciding rows send as much as for 500 rows; prints the times that docs/review.md gives."""
    sent = {}
    for n_rows in (500, 50_000):
        scores = make_scores(n_rows, names=[f"class {i}" for i in range(10)])
        with served(scores, photographs(n_rows), tmp_path / f"{n_rows}.jsonl") as url:
            first, following, sizes = [], [], []
            for _ in range(10):
                started = time.perf_counter()
                review = opened(url)
                first.append(time.perf_counter() - started)
                review.page.close()
            review = opened(url, "ada")
            review.page.on("response", lambda response, sizes=sizes: sizes.append(len(response.body())))
            review.page.reload()
            review.page.wait_for_selector(".vog-review[data-row]")
            for key in ("k", "d", "u", "k", "p") * 4:
                following.append(review.page.evaluate(TIMED, key))
                review.settled()
            sent[n_rows] = sum(sizes)
            review.page.close()  # before its server ends
    with capsys.disabled():
        print(f"\n{n_rows:,} rows, medians (slowest), load {os.getloadavg()}")
        print(f"first row: {statistics.median(first):.2f} s ({max(first):.2f})")
        print(f"next row: {statistics.median(following):.0f} ms ({max(following):.0f})")
    assert 0 < sent[50_000] < 1.1 * sent[500]


TIMED = """
async (key) => {
  const root = document.querySelector(".vog-review"), before = root.dataset.row, started = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  await new Promise((done) => {
    const look = () => (root.dataset.row === before ? setTimeout(look, 1) : requestAnimationFrame(done));
    look();
  });
  return performance.now() - started;
}
"""


def photographs(n_rows):
    """Pictures of 320 x 240 as JPEG, of which every fiftieth is the same, so that they fit into memory."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(50):
        target = BytesIO()
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((320, 240)).save(target, "JPEG", quality=60)
        files.append(target.getvalue())
    values = [{"bytes": files[row % 50], "path": None} for row in range(n_rows)]
    return Dataset.from_dict({"image": values}, features=Features({"image": ImageFeature()}))
