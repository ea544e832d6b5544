"""A folder of PNGs with metadata.jsonl that someone else made, read without trust.

Every line is a JSON object with a `file_name` in the folder itself and a `prompt`; more may stand
in it. Every PNG in the folder has one line, every line its PNG, and each is decoded once.
"""

from __future__ import annotations

import io
import re
import stat
from codecs import BOM_UTF8
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from taqdit import images
from taqdit.errors import InputError
from taqdit.prompts import MAX_CHARACTERS, refuse_characters
from taqdit.store import disk, sha256_hex
from taqdit.store.digest import parse_object

METADATA = "metadata.jsonl"
MAX_BYTES = 2**24  # of metadata.jsonl
MAX_IMAGES, MAX_LINE = 100_000, 2**16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.png")


@dataclass(frozen=True)
class ForeignImages:
    """A checked folder: the pictures that its metadata.jsonl lists, and that file's bytes."""

    folder: Path
    names: list[str]
    text: bytes

    @classmethod
    def of(cls, folder: Path) -> ForeignImages:
        """Check a folder. InputError for anything that is not such a data set."""
        path = folder / METADATA
        text = _content(path, MAX_BYTES)
        if text.count(b"\n") > MAX_IMAGES:
            raise InputError(f"{path} has more than {MAX_IMAGES:,} lines")
        names = [
            _name(line, f"{path}, line {number}")
            for number, line in enumerate(io.BytesIO(text.removeprefix(BOM_UTF8)), start=1)
            if line.strip()
        ]
        if not names:
            raise InputError(f"{path} lists 0 images; allowed are 1 to {MAX_IMAGES:,}")
        found = cls(folder, names, text)
        found._require_all()
        for name in names:
            _require_picture(folder / name)
        return found

    def read(self, name: str, digest: str) -> bytes:
        """The bytes of a picture. InputError if they have changed."""
        data = _content(self.folder / name, images.MAX_BYTES)
        if sha256_hex(data) != digest:
            raise InputError(f"{self.folder / name} changed while it was read; import it again")
        return data

    def _require_all(self) -> None:
        """Each picture is listed once, also where a file system takes a.png and A.png for one."""
        name, times = Counter(name.lower() for name in self.names).most_common(1)[0]
        if times > 1:
            raise InputError(
                f"{self.folder / METADATA} lists {name!r} {times} times; once is right"
            )
        with disk.guarded("list", self.folder):
            there = {path.name for path in self.folder.iterdir() if path.suffix.lower() == ".png"}
        if unlisted := sorted(there - set(self.names)):
            raise InputError(
                f"{self.folder} holds {unlisted[0]!r}, which {METADATA} does not list; add a line"
            )


def _name(line: bytes, where: str) -> str:
    """The picture that a line describes."""
    if len(line) > MAX_LINE:
        raise InputError(f"{where}: it has more than {MAX_LINE:,} bytes")
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
    return name


def _content(path: Path, most: int) -> bytes:
    """The bytes of a regular file (no link, no pipe) of at most `most`."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path} is not a regular file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from error
    if len(content) > most:
        raise InputError(f"{path} is larger than {most:,} bytes")
    return content


def _require_picture(path: Path) -> None:
    """Refuse what is no PNG of a usual size that decodes to its end, checksums included."""
    data = _content(path, images.MAX_BYTES)
    try:
        images.decoded(data)
    except ValueError as error:
        raise InputError(f"{path} is not a whole PNG ({error})") from error
