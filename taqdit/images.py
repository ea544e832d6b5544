"""Decoded pictures in the store: one PNG per trajectory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from taqdit.errors import CorruptError
from taqdit.store import publish_bytes


def picture_name(index: int) -> str:
    """File name of trajectory `index`'s picture."""
    return f"{index:06d}.png"


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Publish a picture (H, W, 3) uint8 as a PNG; the same pixels give the same bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    publish_bytes(path, buffer.getvalue())


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of a stored PNG. Raises CorruptError if it does not decode."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise CorruptError(f"{path.name} is not a whole PNG ({error})") from error


def verify_picture(path: Path, shape: tuple[int, ...]) -> None:
    """Raise CorruptError unless the file is a whole PNG of the given (H, W, 3)."""
    found = read_picture(path).shape
    if found != tuple(shape):
        raise CorruptError(f"{path.name} is {found} pixels, expected {tuple(shape)}")
