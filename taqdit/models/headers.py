"""Names and shapes of a safetensors file, read without its data; a damaged file is refused.

The format is 8 bytes of header length (little endian), that many bytes of JSON, then the tensors.
MLX reads tensors lazily and late, so a truncated file must be found before it is handed over.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_LONGEST_HEADER = 100_000_000  # the format's own limit


def read(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape. Raises ValueError, which says what is wrong with the file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _LONGEST_HEADER:
                raise ValueError(f"header of {length} bytes")
            shapes, end = _entries(json.loads(file.read(length)))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"is no safetensors file ({error})") from error
    held, announced = path.stat().st_size, 8 + length + end
    if held != announced:
        raise ValueError(f"is damaged: {held} bytes where its header announces {announced}")
    return shapes


def count(path: Path, *, having: str = "") -> int:
    """Parameters in the file, of the tensors whose name contains `having`."""
    return sum(math.prod(shape) for name, shape in read(path).items() if having in name)


def _entries(header: dict[str, Any]) -> tuple[dict[str, tuple[int, ...]], int]:
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    shapes = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
    end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    return shapes, end
