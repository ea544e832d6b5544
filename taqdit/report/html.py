"""One run as one page: plain data in, a self-contained HTML file out.

The page needs no network and no file beside it: pictures are embedded, its style and its script are
inline, and a content security policy forbids everything else. Every text is escaped: prompts and
configurations are foreign. The same data give the same bytes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from jinja2 import Template

Cell = str | float | int | None  # None: no value here

SMALL = 128  # pixels; narrower pictures are enlarged without smoothing
WIDE = 800  # pixels; wider figures take a row of their own
LONG = 32  # characters; longer cells are broken into lines

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Picture:
    """A picture of the run (the bytes of a PNG) and its caption, usually the prompt."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class FigureEntry:
    """A figure (the bytes of a PNG), its caption, and links to files relative to the page."""

    name: str
    title: str
    png: bytes
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class SortableTable:
    """A table that the reader sorts by a click on a column's head; the first column names the row.

    Floats are shown with four significant digits; the whole value is what is sorted by and stands
    in the tooltip. NaN and None sort last. `links`: where a text leads, relative to the page.
    Raises ValueError if a row's length is not that of `columns`.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    files: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table '{self.title}': row {index} has {len(row)} cells, "
                    f"there are {len(self.columns)} columns"
                )

    @property
    def by_column(self) -> dict[str, list[Cell]]:
        """The cells of each column, as a CSV takes them: "" where there is nothing."""
        return {
            name: ["" if row[place] is None else row[place] for row in self.rows]
            for place, name in enumerate(self.columns)
        }

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Per column, whether none of its cells is text."""
        words = [{i for i, cell in enumerate(row) if isinstance(cell, str)} for row in self.rows]
        found = set().union(*words)
        return tuple(column not in found for column in range(len(self.columns)))


@dataclass(frozen=True)
class Report:
    """Everything that stands on a run's page, in this order; what is empty is left out."""

    title: str
    subtitle: str = ""
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()  # (label, value)
    stages: SortableTable | None = None
    pictures: Sequence[Picture] = ()
    findings: Sequence[tuple[str, str]] = ()  # (topic, lines)
    figures: Sequence[tuple[str, Sequence[FigureEntry]]] = ()  # (heading, its figures)
    tables: Sequence[SortableTable] = ()
    config_yaml: str = ""
    provenance_json: str = ""


def render(report: Report) -> bytes:
    """The page, UTF-8.

    Raises ValueError for a picture that is no PNG and for a link that is not relative.
    """
    style, script = (_template(name) for name in ("report.css", "report.js"))
    page = _page().render(
        report=report, style=style, script=script, policy=_policy(style=style, script=script),
        small=SMALL, wide=WIDE,
    )  # fmt: skip
    return page.encode("utf-8", "xmlcharrefreplace")  # a lone surrogate is no reason to fail


def shown(value: Cell) -> str:
    """A cell as the reader sees it: floats with four significant digits, integers in full.

    A float that is exact with three digits, as a setting is, has no zeros behind it: 1.5.
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return f"{int(value):,}"
    number = float(value)
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else str(number)
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.3e}".split("e")
    if not -4 < int(exponent) < 6:
        return f"{mantissa}e{int(exponent)}"
    text = f"{float(f'{number:.3e}'):,.{max(0, 3 - int(exponent))}f}"
    exact = "." in text and float(f"{number:.2e}") == number
    return text.rstrip("0").rstrip(".") if exact else text


def whole(value: float | int) -> str:
    """A number with every digit, as Python and JavaScript read it back (inf: Infinity)."""
    if isinstance(value, Integral):
        return str(int(value))
    return repr(float(value)).replace("inf", "Infinity").replace("nan", "NaN")


def cell_attributes(value: Cell, numeric: bool = True) -> dict[str, str]:
    """HTML attributes of a cell: how it looks, and a number's whole value to sort by.

    In a `numeric` column the sign for no value stands where the numbers do.
    """
    if value is None:
        return {"class": "number none" if numeric else "none"}
    if isinstance(value, str):
        return {"class": "long"} if len(value) > LONG else {}
    attributes = {"class": "number", "data-value": whole(value)}
    if shown(value) != whole(value):
        attributes["title"] = whole(value)
    return attributes


def relative_link(path: str) -> str:
    """The address of a file beside the page.

    Colons are encoded too, so no file name is ever read as a scheme such as `javascript:`. Raises
    ValueError if the path is empty or begins at a root.
    """
    if not path or path.startswith("/"):
        raise ValueError(f"'{path}' is no link relative to the page")
    return quote(path, errors="replace")


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels from a PNG's first chunk. Raises ValueError if it is no PNG."""
    if len(data) < 24 or not data.startswith(b"\x89PNG\r\n\x1a\n") or data[12:16] != b"IHDR":
        raise ValueError("a picture of the report is no PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@functools.cache
def _page() -> Template:
    """The compiled template: compiling it takes longer than rendering a page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "attributes": cell_attributes,
        "link": relative_link,
        "size": png_size,
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
        "suffix": lambda path: PurePosixPath(path).suffix.lstrip(".").upper() or path,
    }
    return environment.get_template("report.html.j2")


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _policy(*, style: str, script: str) -> str:
    """The content security policy: embedded pictures, this style, this script, nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    """How a policy names an inline element: the hash of what stands between its tags."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
