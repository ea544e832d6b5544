"""Decoded pictures in the store: one PNG per trajectory.

Pillow decodes some damaged PNGs without complaint, so every chunk's CRC-32 is checked here.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np

from taqdit.errors import CorruptError, StorageError
from taqdit.store import publish_bytes

_KEY = "taqdit"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
    from PIL import Image, UnidentifiedImageError

    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    try:
        _check_chunks(data)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            found = picture.info.get(_KEY)
            if found != owner:
                raise ValueError(f"it belongs to {found!r}, not {owner!r}")
            return np.array(picture.convert("RGB"))
    except (
        *(OSError, SyntaxError, ValueError, struct.error),
        *(UnidentifiedImageError, Image.DecompressionBombError),
    ) as error:
        raise CorruptError(f"{path.name} is not a whole PNG ({error})") from error


def _check_chunks(data: bytes) -> None:
    """Raise ValueError unless every chunk up to IEND has its CRC (PNG specification, section 5)."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("no PNG signature")
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        (expected,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(data[at + 4 : at + 8 + length]) != expected:
            raise ValueError(f"the chunk at byte {at} has a wrong checksum")
        at += 12 + length
    if at != len(data):
        raise ValueError("bytes after the end")


def verify_picture(path: Path, shape: tuple[int, ...], *, owner: str) -> None:
    """Raise CorruptError unless the file is a whole PNG of the given (H, W, 3) and owner."""
    found = read_picture(path, owner=owner).shape
    if found != tuple(shape):
        raise CorruptError(f"{path.name} is {found} pixels, expected {tuple(shape)}")
