"""Names and shapes of a safetensors file, read without its data; a damaged file is refused.

The format is 8 bytes of header length (little endian), that many bytes of JSON, then the tensors.
MLX reads tensors lazily and late, and believes the header, so what a file says is held against
the format's rules before it is handed over: tensors side by side, of the size of their shapes.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

from taqdit.store import layout
from taqdit.store.digest import parse_bounded

# The format allows 100 MB; the transformer of SD3 takes 0.1 MB, a picture among the metadata 1 MB.
# Little enough that a hostile header costs neither time nor memory.
LONGEST_HEADER = 2**22
_MOST_AXES, _LONGEST_AXIS = 16, 2**40
_ITEM_SIZES = {dtype: numpy.itemsize for dtype, numpy in layout.DTYPES.items()}
_ITEM_SIZES |= {"BF16": 2, "F8_E5M2": 1, "F8_E4M3": 1}


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
            tensors = _tensors(file.read(length))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"is no safetensors file ({error})") from error
    announced = 8 + length + max((tensor.end for tensor in tensors.values()), default=0)
    if held != announced:
        raise ValueError(f"is damaged: {held} bytes where its header announces {announced}")
    return {name: tensor.shape for name, tensor in tensors.items()}


def count(path: Path, *, having: str = "") -> int:
    """Parameters in the file, of the tensors whose name contains `having`."""
    return sum(math.prod(shape) for name, shape in read(path).items() if having in name)


def _tensors(text: bytes) -> dict[str, _Tensor]:
    """What a header says. ValueError where the format does not allow it."""
    header = parse_bounded(text)
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise ValueError("its metadata are not texts by name")
    tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][:2]):
        if tensor.begin != end:
            raise ValueError(f"tensor {name[:80]!r} begins at byte {tensor.begin}, not {end}")
        end = tensor.end
    return tensors


def _tensor(name: str, entry: object) -> _Tensor:
    dtype, shape = layout.dtype_and_shape(name, entry, _ITEM_SIZES, _MOST_AXES, _LONGEST_AXIS)
    place = entry.get("data_offsets") if isinstance(entry, dict) else None
    offsets = layout.lengths(place, 2, _LONGEST_AXIS) or ()
    if len(offsets) != 2:
        raise ValueError(f"tensor {name[:80]!r} has no place")
    (begin, end), size = offsets, math.prod(shape) * _ITEM_SIZES[dtype]
    if end - begin != size:
        raise ValueError(f"tensor {name[:80]!r} has {end - begin} bytes, by its shape {size}")
    return _Tensor(begin, end, shape)
