"""Names and shapes of a safetensors file, read without its data; a damaged file is refused.

The format is 8 bytes of header length (little endian), that many bytes of JSON, then the tensors.
MLX reads tensors lazily and late, and believes the header, so what a file says is held against
the format's rules before it is handed over: tensors side by side, of the size of their shapes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from taqdit.store.digest import parse_bounded

# The format allows 100 MB; the transformer of SD3 takes 0.1 MB, a picture among the metadata 1 MB.
# Little enough that a hostile header costs neither time nor memory.
LONGEST_HEADER = 2**22
_LONGEST_SIDE, _MOST_AXES = 2**40, 16
_ITEM_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


class _Tensor(NamedTuple):
    begin: int
    end: int
    shape: tuple[int, ...]


def read(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape. Raises ValueError, which says what is wrong with the file."""
    try:
        with path.open("rb") as file:
            held = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= LONGEST_HEADER:
                raise ValueError(f"header of {length:,} bytes, at most {LONGEST_HEADER:,} are read")
            text = file.read(length)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"is no safetensors file ({error})") from error
    try:
        tensors = _tensors(text)
    except ValueError as error:
        raise ValueError(f"is no safetensors file ({error})") from error
    announced = 8 + length + max((each.end for each in tensors.values()), default=0)
    if held != announced:
        raise ValueError(f"is damaged: {held} bytes where its header announces {announced}")
    return {name: each.shape for name, each in tensors.items()}


def count(path: Path, *, having: str = "") -> int:
    """Parameters in the file, of the tensors whose name contains `having`."""
    return sum(math.prod(shape) for name, shape in read(path).items() if having in name)


def _tensors(text: bytes) -> dict[str, _Tensor]:
    """What a header says. ValueError where the format does not allow it."""
    header = parse_bounded(text)
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(each, str) for each in about.values()):
        raise ValueError("its metadata are not texts by name")
    tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    end = 0
    for name, each in sorted(tensors.items(), key=lambda item: item[1][:2]):
        if each.begin != end:
            raise ValueError(f"tensor {name[:80]!r} begins at byte {each.begin}, not {end}")
        end = each.end
    return tensors


def _tensor(name: str, entry: object) -> _Tensor:
    values: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, place = (
        values.get("dtype"),
        _sizes(values, "shape"),
        _sizes(values, "data_offsets"),
    )
    if not isinstance(dtype, str) or dtype not in _ITEM_SIZES:
        raise ValueError(f"tensor {name[:80]!r} has no known dtype")
    if shape is None or place is None or len(place) != 2:
        raise ValueError(f"tensor {name[:80]!r} has no shape, or no place")
    (begin, end), size = place, math.prod(shape) * _ITEM_SIZES[dtype]
    if end - begin != size:
        raise ValueError(f"tensor {name[:80]!r} has {end - begin} bytes, by its shape {size}")
    return _Tensor(begin, end, shape)


def _sizes(values: Mapping[str, Any], key: str) -> tuple[int, ...] | None:
    """A short list of whole numbers from 0 on; None if it is no such thing."""
    found = values.get(key)
    if not isinstance(found, list) or len(found) > _MOST_AXES:
        return None
    fits = all(type(each) is int and 0 <= each < _LONGEST_SIDE for each in found)
    return tuple(found) if fits else None
