"""Decoded pictures in the store: one PNG per trajectory.

Pillow decodes some damaged PNGs without complaint, so every chunk's CRC-32 is checked here. What
no stored picture has is refused before anything is decoded: large ones, and chunks that expand.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taqdit.errors import CorruptError, StorageError
from taqdit.store import publish_bytes, reading

if TYPE_CHECKING:
    from PIL import Image

_KEY = "taqdit"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNKS = (b"IHDR", b"tEXt", b"IDAT", b"IEND")  # of a picture as `write_picture` writes it
MAX_BYTES, MAX_SIDE = 2**24, 2_048  # of the file; pixels
_MOST_CHUNKS, _MOST_ASIDE = 2**14, 2**21  # their number; bytes of those without pixels
_EXPANDING, _MOST_EXPANDING = (b"zTXt", b"iTXt", b"iCCP"), 8  # Pillow expands each to 1 MB at most
_BAND = 256  # rows that are copied at once


def picture_name(index: int) -> str:
    """File name of trajectory `index`'s picture."""
    return f"{index:06d}.png"


def picture_owner(fingerprint: str, index: int) -> str:
    """How a picture names the stage and the trajectory that it belongs to."""
    return f"{fingerprint} {index}"


def write_picture(path: Path, picture: np.ndarray, *, owner: str) -> None:
    """Publish a picture (H, W, 3) uint8 as a PNG that names its `owner` in a text chunk.

    The same pixels and owner give the same bytes.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text, buffer = PngInfo(), io.BytesIO()
    text.add_text(_KEY, owner)
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=text)
    publish_bytes(path, buffer.getvalue())


def read_picture(path: Path, *, owner: str) -> np.ndarray:
    """(H, W, 3) uint8 of a stored PNG.

    Raises CorruptError if it is damaged or another's, StorageError if it cannot be read.
    """
    try:
        with reading(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    try:
        picture = decoded(data, kinds=_CHUNKS)
        found = picture.info.get(_KEY)
        if picture.mode != "RGB" or found != owner:
            raise ValueError(f"it belongs to {str(found)[:100]!r}, not {owner!r}")
    except ValueError as error:
        raise CorruptError(f"{path.name} is not a whole PNG ({error})") from error
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, _BAND):
        bottom = min(top + _BAND, picture.height)
        pixels[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    return pixels


def decoded(data: bytes, *, kinds: Collection[bytes] | None = None) -> Image.Image:
    """A PNG of at most MAX_BYTES and MAX_SIDE, decoded to its end; `kinds` of chunks are allowed.

    Raises ValueError, before anything is decoded if the file or its picture is too large.
    """
    from PIL import Image

    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    _check_chunks(data, kinds)
    width, height = struct.unpack_from(">II", data, 16)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"it has {width} x {height} pixels, at most {MAX_SIDE} x {MAX_SIDE}")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            return picture
    except (OSError, SyntaxError, EOFError, IndexError, struct.error, zlib.error) as error:
        raise ValueError(str(error)) from error


def _check_chunks(data: bytes, kinds: Collection[bytes] | None) -> None:
    """Raise ValueError unless every chunk up to IEND is of one of the kinds and has its CRC, the
    first is IHDR, and nothing follows (PNG specification, section 5).

    Those that the decoder would hold or expand beside the picture are few and small.
    """
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR":
        raise ValueError("no PNG signature")
    at, view, found = len(_SIGNATURE), memoryview(data), Counter[bytes]()
    number = aside = 0
    while not found[b"IEND"]:
        length, kind = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (0, b"")
        end = at + 12 + length
        if not kind or end > len(data):
            raise ValueError("it ends early")
        if kinds is not None and kind not in kinds:
            raise ValueError(f"the chunk at byte {at} is {kind!r}, which no stored picture has")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"the chunk at byte {at} has a wrong checksum")
        found[kind] += 1
        aside += length if kind != b"IDAT" else 0
        number += 1
        if found[b"IHDR"] > 1:
            raise ValueError("it has two headers")
        if number > _MOST_CHUNKS or aside > _MOST_ASIDE:
            raise ValueError("it has too many chunks, or too much beside the picture")
        at = end
    if at != len(data):
        raise ValueError("bytes after the end")
    if sum(found[kind] for kind in _EXPANDING) > _MOST_EXPANDING:
        raise ValueError(f"it has more than {_MOST_EXPANDING} compressed chunks beside the picture")


def verify_picture(path: Path, shape: tuple[int, ...], *, owner: str) -> None:
    """Raise CorruptError unless the file is a whole PNG of the given (H, W, 3) and owner."""
    found = read_picture(path, owner=owner).shape
    if found != tuple(shape):
        raise CorruptError(f"{path.name} is {found} pixels, expected {tuple(shape)}")
