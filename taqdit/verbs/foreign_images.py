"""A folder of PNGs with metadata.jsonl that someone else made, read without trust.

Every line is a JSON object with a `file_name` in the folder itself and a `prompt`; more may stand
in it. Every PNG in the folder has one line, every line its PNG, and each is decoded once.
"""

from __future__ import annotations

import io
import re
import stat
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taqdit.errors import CorruptError, InputError
from taqdit.images import read_picture
from taqdit.prompts import MAX_CHARACTERS, refuse_characters
from taqdit.store import disk, sha256_hex
from taqdit.store.digest import parse_object

METADATA = "metadata.jsonl"
MAX_BYTES = 64 * 2**20  # of metadata.jsonl, and of one picture
MAX_IMAGES = 1_000_000
MAX_SIDE = 2_048  # pixels; some 30 MB decoded at most
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.png")
OWNER = "taqdit"  # the text chunk in which pictures of taqdit name their stage


@dataclass(frozen=True)
class ForeignImages:
    """A checked folder: the lines of its metadata.jsonl, and the file's bytes."""

    folder: Path
    rows: list[dict[str, Any]]
    text: bytes

    @classmethod
    def of(cls, folder: Path) -> ForeignImages:
        """Check a folder. InputError for anything that is not such a data set."""
        path = folder / METADATA
        text = _content(path)
        rows = [
            _row(line, f"{path}, line {number}")
            for number, line in enumerate(text.split(b"\n"), start=1)
            if line.strip()
        ]
        if not 0 < len(rows) <= MAX_IMAGES:
            raise InputError(f"{path} lists {len(rows):,} images; allowed are 1 to {MAX_IMAGES:,}")
        found = cls(folder, rows, text)
        found._require_all()
        for row in rows:
            _require_picture(folder / row["file_name"])
        return found

    def read(self, name: str, digest: str) -> bytes:
        """The bytes of a picture. InputError if they have changed."""
        data = _content(self.folder / name)
        if sha256_hex(data) != digest:
            raise InputError(f"{self.folder / name} changed while it was read; import it again")
        return data

    def _require_all(self) -> None:
        """Each picture is listed once, also where a file system takes a.png and A.png for one."""
        names = [row["file_name"] for row in self.rows]
        name, times = Counter(name.lower() for name in names).most_common(1)[0]
        if times > 1:
            raise InputError(
                f"{self.folder / METADATA} lists {name!r} {times} times; once is right"
            )
        with disk.guarded("list", self.folder):
            there = {path.name for path in self.folder.iterdir() if path.suffix.lower() == ".png"}
        if unlisted := sorted(there - set(names)):
            raise InputError(
                f"{self.folder} holds {unlisted[0]!r}, which {METADATA} does not list; add a line"
            )


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_object(line)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    name, prompt, seed = row.get("file_name"), row.get("prompt"), row.get("seed")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{where}: file_name={str(name)[:60]!r} must be the plain name of a .png in the folder"
        )
    if not isinstance(prompt, str) or len(prompt) > MAX_CHARACTERS:
        raise InputError(f"{where}: prompt must be a text of at most {MAX_CHARACTERS:,} characters")
    refuse_characters(prompt, where)
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**64):
        raise InputError(f"{where}: seed={str(seed)[:30]} must be an integer in [0, 2^64)")
    return row


def _content(path: Path) -> bytes:
    """The bytes of a regular file (no link, no pipe) of at most MAX_BYTES."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES:,} bytes")
    return content


def _require_picture(path: Path) -> None:
    """Refuse what is no PNG of a usual size that decodes to its end, checksums included."""
    from PIL import Image

    data = _content(path)
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    if data[12:16] != b"IHDR" or not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise InputError(f"{path} is no PNG of at most {MAX_SIDE} x {MAX_SIDE} pixels")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            owner = picture.info.get(OWNER)  # one that taqdit made names its stage
        read_picture(path, owner=owner)  # type: ignore[arg-type]
    except (OSError, SyntaxError, ValueError, struct.error, CorruptError) as error:
        raise InputError(f"{path} is not a whole PNG ({error})") from error
