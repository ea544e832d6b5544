"""The page of a run: one file, foreign text stays text, numbers keep every digit."""

import base64
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from decimal import Context, Decimal
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from taqdit.report.html import (
    FigureEntry,
    Picture,
    Report,
    SortableTable,
    png_size,
    relative_link,
    render,
    shown,
    whole,
)

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = "</script></pre><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='x' &amp;"
HARMLESS = "a" * len(HOSTILE)


class Page(HTMLParser):
    """Elements in order, each as [tag, attributes, text in it and below]; checks the nesting."""

    def __init__(self, data):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(data.decode("utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **wanted):
        """(attributes, text) of the elements with this tag and these attributes."""
        found = [(a, text) for name, a, text in self.elements if name == tag]
        return [(a, text) for a, text in found if wanted.items() <= a.items()]

    def attribute(self, name):
        return [a[name] for _, a, _ in self.elements if name in a]


def png(width=8, height=6, value=90):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (value, 10, 200)).save(buffer, "PNG")
    return buffer.getvalue()


COLUMNS = ("site", "width", "max", "note")
ROWS = [
    ["mm_10_img.o_in", 1536, 0.1, "b"],
    ["mm_02_img.o_in", 6144, math.nan, "a"],
    ["mm_00_txt.o_in", 1536, 123456.789, None],
    ["mm_01_txt.o_in", 1536, -math.inf, "c"],
    ["mm_03_txt.o_in", 1536, None, "d"],
    ["mm_04_txt.o_in", 1536, np.float32(2.5e-7), "e"],
]


def full(text="plain", **changes):
    """A report with `text` wherever text can stand."""
    table = SortableTable(text, COLUMNS, ROWS, note=text, files=("figures/layers.csv",))
    foreign = SortableTable(text, (text, "n"), [[text, 1.5]], files=(f"{text}.csv",))
    entry = FigureEntry(text, text, png(1380, 20), (f"figures/{text}.svg", "figures/a b.csv"))
    values = {
        "title": text,
        "subtitle": text,
        "notes": [text],
        "facts": [(text, text)],
        "findings": [(text, f"{text}\n{text}"), ("bits", "4 of them")],
        "stages": foreign,
        "pictures": [Picture(text, png(64, 48, value)) for value in (1, 2)],
        "figures": [(text, [entry]), ("others", [FigureEntry("x", "y", png(600, 20))])],
        "tables": [table, foreign],
        "config_yaml": f"a: {text}\n",
        "provenance_json": json.dumps({"a": text}),
    }
    return Report(**(values | changes))


def test_the_page_asks_for_nothing_outside_itself():
    data = render(full())
    page = Page(data)
    assert all(address.startswith("data:image/png;base64,") for address in page.attribute("src"))
    for address in page.attribute("href"):
        assert address.startswith(("#", "data:,", "figures/", "plain.csv"))
    assert b"://" not in data
    style = page.all("style")[0][1]
    assert "url(" not in style
    assert "@import" not in style
    assert not {"iframe", "object", "embed", "base", "form", "video"} & {
        e[0] for e in page.elements
    }


def test_foreign_text_changes_no_element_and_no_attribute():
    def skeleton(report):
        return [(tag, sorted(attributes)) for tag, attributes, _ in Page(render(report)).elements]

    assert skeleton(full(HOSTILE)) == skeleton(full(HARMLESS))


def test_foreign_text_is_read_back_as_it_was():
    page = Page(render(full(HOSTILE)))
    for tag in ("h1", "title", "dt", "dd", "button", "figcaption", "h3"):
        assert HOSTILE in [text for _, text in page.all(tag)]
    assert [text for _, text in page.all("p")].count(HOSTILE) == 2  # subtitle, a table's note
    assert ("th", {"scope": "row", "class": "long"}, HOSTILE) in map(tuple, page.elements)
    config, provenance = (text for _, text in page.all("pre"))
    assert config.strip() == f"a: {HOSTILE}"
    assert json.loads(provenance) == {"a": HOSTILE}


def test_text_that_utf8_cannot_write_does_not_stop_the_page():
    assert b"&#55357;" in render(full("half a pair: \ud83d"))


@given(st.text(min_size=1).filter(lambda text: not text.startswith("/")))
@example("javascript:alert(1)")
def test_a_link_stays_beside_the_page(path):
    link = relative_link(path)
    parts = urlsplit(link)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
    assert urlsplit(urljoin("http://host/run/report.html", link)).netloc == "host"
    assert unquote(link) == path


@pytest.mark.parametrize("path", ["", "/etc/passwd", "//host/x.js"])
def test_a_link_that_leaves_the_folder_is_refused(path):
    with pytest.raises(ValueError, match="no link relative to the page"):
        render(full(tables=[SortableTable("t", ("a",), [], files=(path,))]))


def test_a_javascript_link_becomes_a_file_name():
    entry = FigureEntry("x", "y", png(), ("javascript:alert(1)", "figures/x.csv"))
    page = Page(render(Report("t", figures=[("h", [entry])])))
    links = [a["href"] for a, _ in page.all("a") if not a["href"].startswith("#")]
    assert links == ["javascript%3Aalert%281%29", "figures/x.csv"]


def test_the_policy_allows_the_pages_own_script_and_style_alone():
    page = Page(render(full(HOSTILE)))
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.strip().split(" ", 1) for rule in policy[0]["content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("script", "style"):
        ((attributes, text),) = page.all(tag)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
        assert not attributes
    names = {name for _, attributes, _ in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on") or name == "style"}
    order = [tag for tag, _, _ in page.elements]
    assert order.index("meta") < order.index("style") < order.index("script")


def test_the_pictures_are_embedded_as_they_were_given():
    report = full()
    given_pngs = [p.png for p in report.pictures]
    given_pngs += [e.png for _, entries in report.figures for e in entries]
    images = [a for a, _ in Page(render(report)).all("img")]
    found = [base64.b64decode(a["src"].split(",")[1], validate=True) for a in images]
    assert found == given_pngs
    for attributes, data in zip(images, found, strict=True):
        size = Image.open(io.BytesIO(data)).size
        assert (int(attributes["width"]), int(attributes["height"])) == size == png_size(data)
        assert attributes["alt"]


@pytest.mark.parametrize(("width", "expected"), [(64, "small"), (127, "small"), (128, None)])
def test_small_pictures_are_marked_for_enlarging(width, expected):
    page = Page(render(Report("t", pictures=[Picture("c", png(width, width))])))
    assert page.all("figure")[0][0].get("class") == expected


def test_wide_figures_take_a_row_of_their_own():
    found = [a.get("class") for a, _ in Page(render(full(pictures=[]))).all("figure")]
    assert found == ["wide", None]  # 1380 and 600 pixels


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"x" * 40])
def test_what_is_no_png_is_refused(data):
    with pytest.raises(ValueError, match="no PNG"):
        render(Report("t", pictures=[Picture("c", data)]))


def test_numbers_carry_their_whole_value():
    page = Page(render(Report("t", tables=[SortableTable("s", COLUMNS, ROWS)])))
    cells = [a for a, _ in page.all("td")]
    values = [row[2] for row in ROWS]
    for attributes, value in zip(cells[1::3], values, strict=True):
        if value is None:
            assert attributes == {"class": "number none"}
            continue
        data = attributes["data-value"]
        assert np.array_equal(float(data.replace("Infinity", "inf")), value, equal_nan=True)
        if math.isfinite(value):
            assert attributes.get("title", shown(value)) == data
    assert cells[1 + 3]["data-value"] == "NaN"
    assert cells[1 + 9]["data-value"] == "-Infinity"  # as JavaScript's Number reads it
    kinds = [a.get("data-kind") for a, _ in page.all("th", scope="col")]
    assert kinds == [None, "number", "number", None]
    assert cells[2 + 2 * 3] == {"class": "none"}  # no word stands where the words do


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "0.5"),
        (7.0, "7"),
        (-0.0015, "-0.0015"),
        (1.5001, "1.500"),
        (-3.10549, "-3.105"),
        (412.84, "412.8"),
        (9999.5, "10,000"),
        (123456.789, "123,500"),
        (999950.0, "1.000e6"),
        (1234567.0, "1.235e6"),
        (0.001234, "0.001234"),
        (0.00012345, "1.234e-4"),
        (-0.0, "0"),
        (math.nan, "NaN"),
        (-math.inf, "-inf"),
        (np.float32(0.1), "0.1000"),
        (np.int64(6401234), "6,401,234"),
        (2**70, f"{2**70:,}"),
        ("1.23456", "1.23456"),
        (None, "–"),
    ],
)
def test_how_a_value_is_shown(value, words):
    assert shown(value) == words


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_rounded_to_four_significant_digits(value):
    exact = Context(prec=4).create_decimal(Decimal(value))
    assert Decimal(shown(value).replace(",", "")) == exact
    assert float(whole(value)) == value


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="'layers': row 1 has 1 cells, there are 2 columns"):
        SortableTable("layers", ("a", "b"), [[1, 2], [3]])


def test_every_head_is_a_button_and_every_table_can_be_reached_by_keyboard():
    page = Page(render(full()))
    heads = page.all("th", scope="col")
    assert [text for _, text in heads] == [text for _, text in page.all("button", type="button")]
    ids = {a["id"]: text for _, a, text in page.elements if "id" in a}
    regions = [a for a, _ in page.all("div", role="region")]
    assert len(regions) == len(page.all("table")) == 3
    for attributes in regions:
        assert attributes["tabindex"] == "0"
        assert ids[attributes["aria-labelledby"]] == "plain"


def test_the_contents_name_every_part_once():
    page = Page(render(full()))
    ids = Counter(page.attribute("id"))
    targets = [a["href"][1:] for a, _ in page.all("a") if a["href"].startswith("#")]
    assert set(ids.values()) == {1}
    assert set(ids) - {"stages"} == set(targets)
    assert len(targets) == len(set(targets)) == 11


def test_findings_come_first_each_in_lines_of_its_own():
    page = Page(render(full(HOSTILE)))
    heads = [text for tag, _, text in page.elements if tag == "h2"]
    assert heads.index("Findings") < heads.index("Run") < heads.index("Figures")
    said = [
        (text, page.elements[i + 1])
        for i, (tag, _, text) in enumerate(page.elements)
        if tag == "dt"
    ]
    ((topic, (tag, _, lines)), (other, (_, _, words)), *_) = said
    assert (topic, tag, lines.split("\n")) == (HOSTILE, "dd", [HOSTILE, HOSTILE])
    assert (other, words) == ("bits", "4 of them")
    assert re.search(r"\bdd \{[^}]*white-space: pre-wrap", page.all("style")[0][1])
    ids = [a.get("aria-labelledby") for a, _ in page.all("section")]
    assert ids.index("findings") < ids.index("run")
    assert b"findings" not in render(full(findings=[]))


def test_what_is_empty_is_left_out():
    page = Page(render(Report("alone")))
    assert not page.all("h2")
    assert not page.all("a")
    assert [text for _, text in page.all("h1")] == ["alone"]


def test_a_phone_gets_a_page_of_its_own_width():
    ((viewport, _),) = Page(render(full())).all("meta", name="viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"


@pytest.mark.slow
def test_the_same_report_gives_the_same_bytes():
    code = "import sys, test_report as t; sys.stdout.buffer.write(t.render(t.full()))"
    pages, here = {render(full())}, Path(__file__).parent
    for seed in ("1", "2"):
        command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONHASHSEED": seed}
        pages.add(subprocess.check_output(command, env=environment, cwd=here))
    assert len(pages) == 1


def test_the_module_is_light_to_import():
    code = "import sys, taqdit.report; sys.exit('jinja2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "clicks", "order", "sort"),
    [
        (2, 1, [2, 0, 5, 3, 1, 4], "descending"),  # NaN and none last
        (2, 2, [3, 5, 0, 2, 1, 4], "ascending"),  # here too
        (2, 3, [0, 1, 2, 3, 4, 5], None),
        (0, 1, [2, 3, 1, 4, 5, 0], "ascending"),
        (3, 1, [1, 0, 3, 4, 5, 2], "ascending"),
    ],
)
def test_a_click_on_a_head_sorts(browser, tmp_path, column, clicks, order, sort):
    page = tmp_path / "report.html"
    page.write_bytes(render(Report("t", tables=[SortableTable("s", COLUMNS, ROWS)])))
    assert browser.visit(page).complaints == ()
    for _ in range(clicks):
        browser.all("thead button")[column].click()
    assert [each.text for each in browser.all("tbody th")] == [ROWS[i][0] for i in order]
    heads = [each.get_attribute("aria-sort") for each in browser.all("thead th")]
    assert heads == [sort if i == column else None for i in range(len(COLUMNS))]


@pytest.mark.browser
@pytest.mark.slow
def test_foreign_text_runs_nothing(browser, tmp_path):
    page = tmp_path / "report.html"
    page.write_bytes(render(full(HOSTILE)))
    visit = browser.visit(page)  # an alert would stop it
    assert visit.complaints == ()
    assert visit.leaving(page) == []
    assert browser.all("h1")[0].text == HOSTILE
