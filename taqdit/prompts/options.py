"""Prompts: read, validate, order, deduplicate; options of the config group `prompts`.

A prompt file is text and nothing else: whatever does not look like one is refused by its line
before any of it reaches a model, a log or a figure. A prompt never becomes a path.
"""

from __future__ import annotations

import csv
import re
import stat
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.errors import InputError, require
from taqdit.prompts import varied
from taqdit.store import sha256_hex

__all__ = ["Prompts", "file", "paper_20", "shapes", "varied_1000"]

MAX_BYTES = 1_000_000
MAX_LINES = 10_000
MAX_CHARACTERS = 2_000
SEEDS = 2**32  # NumPy's RandomState takes seeds in [0, 2^32)
_BIDI = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_REFUSED = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_BIDI}]")
_SETS = Path(__file__).parent
_Rows = list[tuple[str, int | None]]


@dataclass(frozen=True)
class Prompts:
    """P prompts in order, repeats kept; `seeds[p]` is a noise seed where the file gave one.

    Without `store_conditioning` what a model makes of the texts is encoded anew when it is needed.
    """

    texts: tuple[str, ...]
    seeds: tuple[int | None, ...]
    store_conditioning: bool = True

    @classmethod
    def kept(cls, found: Mapping[str, Any]) -> Prompts:
        """The prompts that a record or a stage's inputs hold. ValueError if they hold none."""
        texts, seeds = found.get("prompts"), found.get("prompt_seeds")
        if not (isinstance(texts, list) and texts and all(type(each) is str for each in texts)):
            raise ValueError("its prompts are no texts")
        if not isinstance(seeds, list) or len(seeds) != len(texts):
            raise ValueError("its prompt_seeds are not one for each prompt")
        if not all(each is None or (type(each) is int and 0 <= each < SEEDS) for each in seeds):
            raise ValueError(f"its prompt_seeds are not null or integers in [0, {SEEDS})")
        "".join(texts).encode()  # halves of characters are no text
        return cls(tuple(texts), tuple(seeds))

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, trajectory: int) -> str:
        """The prompt of a trajectory: the prompts are cycled."""
        return self.texts[trajectory % len(self)]

    def seed(self, trajectory: int, base: int) -> int:
        """The noise seed of a trajectory, in [0, 2^32).

        `base + trajectory`, or the prompt's own seed, one more each time the prompt comes round.
        """
        own = self.seeds[trajectory % len(self)]
        if own is None:
            return (base + trajectory) % SEEDS
        return (own + trajectory // len(self)) % SEEDS

    def origin(self, trajectory: int, base: int) -> dict[str, Any]:
        """What the shard of a trajectory says of its prompt and its noise."""
        digest = sha256_hex(self.text(trajectory).encode())
        return {"prompt_sha256": digest, "seed": self.seed(trajectory, base)}


def shapes(*, num: int | None = None, store_conditioning: bool = True) -> Prompts:
    """Sixteen captions of the embedded model: every shape, colour, size, position, background."""
    return _first(_read(_SETS / "shapes.txt"), num, store_conditioning)


def paper_20(*, num: int | None = None, store_conditioning: bool = True) -> Prompts:
    """Twenty varied prompts within CLIP's 77 tokens, for real weights."""
    return _first(_read(_SETS / "paper_20.txt"), num, store_conditioning)


def varied_1000(*, num: int | None = None, store_conditioning: bool = True) -> Prompts:
    """A thousand different prompts within CLIP's 77 tokens: ten families, twenty styles, balanced.

    The first ones are as varied as their number allows: 10 show every family, 20 every style.
    """
    return _first([(text, None) for text in varied.compose()], num, store_conditioning)


def file(
    *,
    path: str | None = None,
    num: int | None = None,
    store_conditioning: bool = True,
    allow_outside: bool = False,
) -> Prompts:
    """Prompts of a UTF-8 .txt (one a line, or `seed<TAB>prompt`) or .csv (column `prompt`).

    Blank lines are skipped, a repeated prompt counts twice, `num` keeps the first ones. A .csv
    may have a column `seed`. `path` is relative to the working directory; a file that does not lie
    in there, links followed, is read with `allow_outside` alone: its lines would stand in records
    and uploads. Raises InputError naming the line: not UTF-8, control or bidirectional characters,
    over 1 MB, 10,000 lines or 2,000 characters a prompt, no prompt at all.
    """
    require((bool(path), f"path={path or 'null'} must name a .txt or .csv file: set prompts.path"))
    place = Path(str(path))
    place = place.expanduser() if place.parts[:1] == ("~",) else place
    if not allow_outside:
        _refuse_outside(place)
    return _first(_read(place), num, store_conditioning)


def _refuse_outside(path: Path) -> None:
    """Raise InputError unless the file lies in the working directory, links followed."""
    try:
        here, place = Path.cwd().resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, NUL
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"path={path} cannot be read: {reason}") from error
    if not place.is_relative_to(here):
        raise InputError(
            f"path={path} lies outside the working directory {here}, and prompts stand in every"
            " record and upload of a run; copy the file here, or set prompts.allow_outside=true"
        )


def refuse_characters(text: str, where: str) -> None:
    """Raise InputError if `text` holds a control, line-breaking or bidirectional character."""
    found = _REFUSED.search(text)
    if found is None:
        return
    name = unicodedata.name(found.group(), "a control character")
    raise InputError(
        f"{where}: U+{ord(found.group()):04X} ({name}) is not allowed in a prompt; a prompt is one"
        " line of plain text"
    )


def _first(rows: _Rows, num: int | None, store_conditioning: bool) -> Prompts:
    allowed = f"an integer in [1, {len(rows)}], the number of prompts, or null for all"
    whole = num is None or (isinstance(num, int) and not isinstance(num, bool))
    fits = whole and (num is None or 1 <= num <= len(rows))
    require((fits, f"num={num!r} must be {allowed}"))
    kept = rows[:num]
    texts, seeds = zip(*kept, strict=True)
    return Prompts(texts, seeds, store_conditioning)


def _read(path: Path) -> _Rows:
    parsers: dict[str, Callable[[list[str], str], _Rows]] = {".txt": _text_rows, ".csv": _csv_rows}
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        raise InputError(f"path={path} must end in .txt or .csv, not {path.suffix!r}")
    rows = parse(_lines(_decoded(_content(path), path), path), f"path={path}")
    if not rows:
        raise InputError(f"path={path} holds no prompt; write one a line")
    return rows


def _content(path: Path) -> bytes:
    """The bytes of a regular file of at most MAX_BYTES."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise InputError(f"path={path} is not a regular file")
        with path.open("rb") as source:
            content = source.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"path={path} cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"path={path} is larger than {MAX_BYTES:,} bytes; split it")
    return content


def _decoded(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"path={path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8 text; save"
            " the file as UTF-8"
        ) from error
    return text.removeprefix("\ufeff")


def _lines(text: str, path: Path) -> list[str]:
    """The lines without their ends, NFC, free of refused characters (tabs may stay)."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    if len(lines) > MAX_LINES:
        raise InputError(f"path={path} has {len(lines):,} lines; at most {MAX_LINES:,} are allowed")
    for number, line in enumerate(lines, start=1):
        refuse_characters(line.replace("\t", " "), f"path={path}, line {number}")
    return [unicodedata.normalize("NFC", line) for line in lines]


def _text_rows(lines: list[str], source: str) -> _Rows:
    rows: _Rows = []
    for number, line in enumerate(lines, start=1):
        where = f"{source}, line {number}"
        head, tab, tail = line.partition("\t")
        if line.strip():
            seed = _seed(head, where) if tab else None
            rows.append((_prompt(tail if tab else line, where), seed))
    return rows


def _csv_rows(lines: list[str], source: str) -> _Rows:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    rows: _Rows = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if header.count("prompt") != 1 or header.count("seed") > 1:
            raise InputError(f"{source}, line 1: the header must have one column named prompt")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(_csv_row(cells, header, f"{source}, line {reader.line_num}"))
    except csv.Error as error:
        raise InputError(f"{source}, line {reader.line_num}: not CSV ({error})") from error
    return rows


def _csv_row(cells: list[str], header: list[str], where: str) -> tuple[str, int | None]:
    if len(cells) != len(header):
        raise InputError(
            f"{where}: {len(cells)} fields under a header of {len(header)}; put quotes around a"
            " prompt that holds a comma"
        )
    row = dict(zip(header, cells, strict=True))
    seed = row.get("seed", "")
    return _prompt(row["prompt"], where), _seed(seed, where) if seed.strip() else None


def _prompt(text: str, where: str) -> str:
    prompt = text.strip()
    if not prompt:
        raise InputError(f"{where}: the prompt is empty")
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(
            f"{where}: the prompt has {len(prompt):,} characters; at most {MAX_CHARACTERS:,}"
        )
    refuse_characters(prompt, where)
    return prompt


def _seed(text: str, where: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) < SEEDS):
        raise InputError(
            f"{where}: {text[:40]!r} before the tab or in the column seed is not a seed in"
            f" [0, {SEEDS - 1}]; without a seed write the prompt alone, without tabs"
        )
    return int(digits)
