"""Prompt files: read and validated.

A prompt file is text and nothing else: whatever does not look like one is refused by its line
before any of it reaches a model, a log or a figure. A prompt never becomes a path.
"""

from __future__ import annotations

import csv
import re
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path

from taqdit.errors import InputError

MAX_BYTES = 1_000_000
MAX_LINES = 10_000
MAX_CHARACTERS = 2_000
SEEDS = 2**32  # NumPy's RandomState takes seeds in [0, 2^32)
_BIDI = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_REFUSED = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_BIDI}]")

Rows = list[tuple[str, int | None]]


def read_prompts(path: Path) -> Rows:
    """The prompts of a .txt or .csv file, each with its seed or None. Raises InputError."""
    parsers: dict[str, Callable[[list[str], str], Rows]] = {".txt": _text_rows, ".csv": _csv_rows}
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


def _text_rows(lines: list[str], source: str) -> Rows:
    rows: Rows = []
    for number, line in enumerate(lines, start=1):
        where = f"{source}, line {number}"
        head, tab, tail = line.partition("\t")
        if line.strip():
            seed = _seed(head, where) if tab else None
            rows.append((_prompt(tail if tab else line, where), seed))
    return rows


def _csv_rows(lines: list[str], source: str) -> Rows:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    rows: Rows = []
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


def refuse_characters(text: str, where: str) -> None:
    """Raise InputError if `text` holds a control, line-breaking or bidirectional character."""
    refused = _REFUSED.search(text)
    if refused is None:
        return
    name = unicodedata.name(refused.group(), "a control character")
    raise InputError(
        f"{where}: U+{ord(refused.group()):04X} ({name}) is not allowed in a prompt; a prompt is"
        " one line of plain text"
    )
