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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taqdit.errors import InputError
from taqdit.prompts.reading import MAX_CHARACTERS, refuse_characters
from taqdit.store import disk, sha256_hex
from taqdit.store.digest import parse_object
from taqdit.trajectories import pictures as images

METADATA = "metadata.jsonl"
MAX_BYTES = 2**24  # of metadata.jsonl
MAX_IMAGES, MAX_LINE = 100_000, 2**16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.png")


@dataclass(frozen=True)
class ForeignImages:
    """A checked folder: the pictures that its metadata.jsonl lists, and that file's bytes.

    `digests` holds, by a picture's name, the SHA-256 of the bytes that were decoded.
    """

    folder: Path
    digests: dict[str, str]
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
        _require_all(folder, names)
        return cls(folder, {name: _picture_digest(folder / name) for name in names}, text)

    def read(self, name: str) -> bytes:
        """The bytes of a picture. InputError if they have changed."""
        data = _content(self.folder / name, images.MAX_BYTES)
        if sha256_hex(data) != self.digests[name]:
            raise InputError(f"{self.folder / name} changed while it was read; import it again")
        return data


def _require_all(folder: Path, names: Sequence[str]) -> None:
    """Each picture is listed once, also where a file system takes a.png and A.png for one."""
    name, times = Counter(name.lower() for name in names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{folder / METADATA} lists {name!r} {times} times; once is right")
    with disk.guarded("list", folder):
        pictures = {path.name for path in folder.iterdir() if path.suffix.lower() == ".png"}
    if unlisted := sorted(pictures - set(names)):
        raise InputError(
            f"{folder} holds {unlisted[0]!r}, which {METADATA} does not list; add a line"
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


def _picture_digest(path: Path) -> str:
    """SHA-256 of a PNG of a usual size that decodes to its end, checksums included; InputError
    for anything else."""
    data = _content(path, images.MAX_BYTES)
    try:
        images.decoded(data)
    except ValueError as error:
        raise InputError(f"{path} is not a whole PNG ({error})") from error
    return sha256_hex(data)
