"""comparison.html and report.html of real runs, opened in a real browser."""

import csv
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import taqdit as package
from taqdit.report.comparison.side_by_side import compare

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDTHS = (1280, 390)  # a desk, a phone
EVERY = (
    *("schedule.num_steps=12", "sampler.num_trajectories=4", "sampler.batch_size=2"),
    *("tracer=post_gelu", "tracer.folds=4", "tracking=none", "preflight=off"),
    "analysis.compare=[paper_uniform,dense_middle]",
)
RUNS = (
    ("plots=minimal", "sampler.images=true", "timestep_selection.count=2"),
    ("plots=none", "sampler.images=true", "timestep_selection.count=12"),
    ("plots=none", "sampler.cfg_scale=10", "timestep_selection=dense_middle"),
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run, and that of a comparison of three runs and a folder that is gone."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [package.launch((*EVERY, *own, f"output_dir={folder}")).folder for own in RUNS]
    found = compare([*runs, folder / "gone"], folder / "into")
    return {"comparison": found.page, "report": runs[0] / "report.html"}


@pytest.fixture(params=["comparison", "report"])
def page(request, pages):
    return pages[request.param]


@pytest.fixture
def server():
    """A loopback server that knows nothing; `asked` has the paths that it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.asked = []
        http.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        yield http
        http.shutdown()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_asks_for_nothing_and_complains_of_nothing(browser, page, width):
    visit = browser.visit(page, width=width)
    assert visit.requests[0] == page.as_uri()
    assert len(visit.requests) > 1  # its pictures, which are embedded
    assert visit.leaving(page) == []
    assert visit.complaints == ()


def test_a_page_that_asks_and_complains_is_seen_to(browser, server, tmp_path):
    page = tmp_path / "page.html"
    script = f"fetch('{server.url}/fetched').catch(() => 0); console.warn('beware')"
    body = f"<img src='{server.url}/picture.png'><img src='beside.png'><script>{script}</script>"
    page.write_text(f"<link rel=icon href=data:,>{body}")
    visit = browser.visit(page)
    wanted = {f"{server.url}/picture.png", f"{server.url}/fetched"}
    assert set(visit.leaving(page)) == {*wanted, page.with_name("beside.png").as_uri()}
    assert "/picture.png" in server.asked
    assert any("beware" in each for each in visit.complaints)
    assert any("ERR_FILE_NOT_FOUND" in each for each in visit.complaints)


def test_the_policy_of_the_page_stops_what_is_smuggled_into_it(browser, pages, server, tmp_path):
    text = pages["comparison"].read_text()
    smuggled = f"<img src='{server.url}/picture.png'><script>document.title = 'run'</script>"
    page = tmp_path / "page.html"
    page.write_text(text.replace("</main>", f"{smuggled}</main>"))
    visit = browser.visit(page)
    assert server.asked == []
    assert browser.driver.title != "run"
    assert sum("Content Security Policy" in each for each in visit.complaints) == 2


def test_every_picture_is_there(browser, page):
    browser.visit(page)
    found = browser.run(
        "return [...document.images].map((i) => [i.complete, i.naturalWidth, i.naturalHeight,"
        " +i.getAttribute('width'), +i.getAttribute('height'), i.clientWidth, i.alt])"
    )
    assert len(found) == page.read_text().count("<img ") >= 4
    for complete, width, height, told_width, told_height, shown, alternative in found:
        assert complete
        assert (width, height) == (told_width, told_height)
        assert min(width, height, shown) > 0
        assert alternative


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window(browser, page, width):
    browser.visit(page, width=width)
    browser.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert browser.run("return innerWidth") == width
    assert browser.too_wide(width) == []
    if width < 500:
        for box in browser.all(".wide input"):
            box.click()
        assert browser.too_wide(width) == []
    browser.run("document.querySelector('h1').style.minWidth = `${innerWidth + 5}px`")
    assert browser.too_wide(width)


def test_every_link_leads_somewhere(browser, page):
    browser.visit(page)
    here = page.as_uri()
    links = browser.run("return [...document.links].map((each) => each.href)")
    parts = [link.removeprefix(f"{here}#") for link in links if link.startswith(f"{here}#")]
    others = [link for link in links if not link.startswith(here)]
    assert min(len(parts), len(others)) > 3
    ids = browser.run("return [...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert set(parts) <= set(ids)
    assert all(link.startswith("file://") for link in others)
    files = [Path(unquote(urlsplit(link).path)) for link in others]
    assert [path for path in files if not path.is_file()] == []
    assert all(path.is_relative_to(page.parents[1]) for path in files)  # or of a compared run


def grid(browser, table):
    """The cells of a table's body as they stand now: (text, data-value or None)."""
    return browser.run(
        "return [...arguments[0].tBodies[0].rows].map((row) =>"
        " [...row.cells].map((cell) => [cell.textContent, cell.dataset.value ?? null]))",
        table,
    )


def orders(browser, table):
    """Per column the rows' places as written, from top to bottom, after each of three clicks."""
    return browser.run(
        """
        const rows = [...arguments[0].tBodies[0].rows];
        const order = () => [...arguments[0].tBodies[0].rows].map((row) => rows.indexOf(row));
        const three = (button) => [0, 1, 2].map(() => (button.click(), order()));
        return [...arguments[0].tHead.querySelectorAll("button")].map(three);
        """,
        table,
    )


def ranked(values, *, largest_first):
    """Rows by value, those without one last, equal ones as they stood."""
    there = [row for row, value in enumerate(values) if value is not None]
    gone = [row for row, value in enumerate(values) if value is None]
    sign = -1 if largest_first else 1
    return sorted(there, key=lambda row: sign * values[row]) + gone


def columns(path):
    """Column -> its texts in a CSV."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_the_table_of_the_comparison_sorts_by_every_number(browser, pages):
    """As comparison.csv says that they are."""
    browser.visit(pages["comparison"])
    table = browser.all("table")[0]
    found = orders(browser, table)
    texts = columns(pages["comparison"].with_name("comparison.csv"))
    assert [head.text for head in browser.all("thead button", table)] == list(texts)
    words = {"timestep_selection", "Status", "Selection", "Folder"}
    for (name, column), clicked in zip(texts.items(), found, strict=True):
        assert clicked[2] == [0, 1, 2, 3]
        if name not in words:
            values = [float(text) if text else None for text in column]
            assert values[3] is None or name == "#"  # the folder that is gone
            assert clicked[:2] == [ranked(values, largest_first=which) for which in (True, False)]
    points = texts["Points"][:3]
    assert sorted(points) != sorted(points, key=float)  # or words would do as well


def test_a_run_leads_to_its_report(browser, pages):
    """A run that left one; the folder that is gone leads nowhere."""
    browser.visit(pages["comparison"])
    rows = browser.run(
        "return [...arguments[0].tBodies[0].rows].map((row) =>"
        " [row.cells[row.cells.length - 1].textContent,"
        " [...row.querySelectorAll('a')].map((each) => each.getAttribute('href'))])",
        browser.all("table")[0],
    )
    assert [links for _, links in rows] == [[f"{folder}/report.html"] for folder, _ in rows[:3]] + [
        []
    ]


def test_numbers_of_points_are_whole(browser, pages):
    browser.visit(pages["comparison"])
    ((_, one, _, points, others, *_),) = grid(browser, browser.all("table")[1])
    assert [one[0], points[0], others[0]] == ["paper_uniform, count=2", "2", "12"]


def test_words_sort_by_the_alphabet_and_nothing_last(browser, pages):
    browser.visit(pages["comparison"])
    table = browser.all("table")[0]
    heads = browser.all("thead button", table)
    column = [head.text for head in heads].index("Selection")
    found = []
    for _ in range(2):
        heads[column].click()
        found.append([row[column][0] for row in grid(browser, table)])
    rules = ["dense_middle", "paper_uniform", "paper_uniform"]
    assert found == [[*rules, "–"], [*rules[::-1], "–"]]


def test_every_table_of_a_run_sorts_by_every_number(browser, pages):
    browser.visit(pages["report"])
    tables = browser.all("table")
    assert len(tables) >= 5
    for table in tables:
        written = list(zip(*grid(browser, table), strict=True))
        numeric = [head.get_attribute("data-kind") for head in browser.all("thead th", table)]
        assert "number" in numeric
        for kind, column, clicked in zip(numeric, written, orders(browser, table), strict=True):
            if kind == "number":
                values = [None if text is None else float(text) for _, text in column]
                ways = [ranked(values, largest_first=which) for which in (True, False)]
                assert clicked == [*ways, list(range(len(column)))]


def test_a_table_is_reached_and_sorted_by_the_keyboard(browser, pages):
    browser.visit(pages["comparison"])
    table = browser.all("table")[0]
    head = browser.all("thead button", table)[0]
    for _ in range(60):
        browser.press("TAB")
        if browser.run("return document.activeElement.matches('.scroll')"):
            break
    assert browser.run("return document.activeElement.contains(arguments[0])", table)
    browser.press("TAB")
    assert browser.run("return document.activeElement") == head
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, numbers, said in (
        ("ENTER", "4321", "descending"),
        ("SPACE", "1234", "ascending"),
        ("ENTER", "1234", None),
    ):
        browser.press(key)
        assert "".join(row[0][0] for row in grid(browser, table)) == numbers
        assert browser.all("th", table)[0].get_attribute("aria-sort") == said
        assert browser.run("return document.activeElement") == head
