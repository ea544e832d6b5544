"""The safetensors layout: eight bytes of header length, a JSON header, the tensors' bytes.

Any reader of safetensors opens these files. The header is made here rather than by the library so
that equal contents give equal bytes under every version of it, and the tensors are not copied.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from taqdit.store.digest import parse_bounded

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
# Room for some 15,000 tensors; little enough that a hostile header costs neither time nor memory.
MAX_HEADER = 2**21
_METADATA = "__metadata__"
_KEY = "taqdit"
_MOST_AXES, _LONGEST_AXIS = 100, 2**80  # beyond what numpy takes; their product is soon made


@dataclass(frozen=True)
class Spec:
    """What a header says of one tensor; `dtype` is a key of DTYPES."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def file_order(specs: Iterable[Spec]) -> list[Spec]:
    """The tensors as they lie in the file: wide items first, so that each one is aligned."""
    return sorted(specs, key=lambda spec: (-DTYPES[spec.dtype].itemsize, spec.name))


def make_header(metadata: str, specs: Iterable[Spec]) -> bytes:
    """The file's bytes before the first tensor. `metadata` stands under the one key `taqdit`."""
    fields: dict[str, Any] = {_METADATA: {_KEY: metadata}}
    end = 0
    for spec in file_order(specs):
        if spec.name in fields:
            raise ValueError(f"a tensor cannot be named {spec.name!r}")
        begin, end = end, end + spec.size
        fields[spec.name] = {
            "dtype": spec.dtype,
            "shape": spec.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"its header has {len(text)} bytes, {MAX_HEADER} are allowed")
    return len(text).to_bytes(8, "little") + text


def parse(data: Bytes) -> tuple[str, dict[Spec, Bytes]]:
    """The metadata of a file's bytes, and each tensor's part of them.

    The header must be the one that `make_header` gives to what it says: that leaves no room for
    overlaps, holes, double names or tricks. ValueError otherwise.
    """
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER):
        raise ValueError(f"its header cannot have {length} bytes, the file has {len(data)}")
    header = data[: 8 + length].tobytes()
    fields = parse_bounded(header[8:])
    metadata = _metadata(fields.pop(_METADATA, None))
    specs = [Spec(name, *dtype_and_shape(name, field)) for name, field in fields.items()]
    if make_header(metadata, specs) != header:
        raise ValueError("its header is not as it was written")
    size = len(header) + sum(spec.size for spec in specs)
    if size != len(data):
        raise ValueError(f"it has {len(data)} bytes, by its header {size}")
    return metadata, dict(_parts(data[len(header) :], specs))


def dtype_and_shape(
    name: str,
    field: object,
    dtypes: Collection[str] = DTYPES.keys(),
    axes: int = _MOST_AXES,
    longest: int = _LONGEST_AXIS,
) -> tuple[str, tuple[int, ...]]:
    """What a header says of a tensor. ValueError unless it is one of the dtypes and at most `axes`
    lengths below `longest`."""
    values = field if isinstance(field, dict) else {}
    dtype, shape = values.get("dtype"), lengths(values.get("shape"), axes, longest)
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise ValueError(f"tensor {name[:80]!r} has no known dtype")
    if shape is None:
        raise ValueError(f"tensor {name[:80]!r} has no shape")
    return dtype, shape


def lengths(value: object, most: int, longest: int) -> tuple[int, ...] | None:
    """At most `most` whole numbers from 0 to below `longest`; None if it is no such list."""
    if not isinstance(value, list) or len(value) > most:
        return None
    return tuple(value) if all(type(n) is int and 0 <= n < longest for n in value) else None


def _metadata(value: object) -> str:
    text = value.get(_KEY) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"it is no shard: its header has no {_KEY!r} metadata")
    return text


def _parts(body: Bytes, specs: Iterable[Spec]) -> Iterator[tuple[Spec, Bytes]]:
    begin = 0
    for spec in file_order(specs):
        yield spec, body[begin : begin + spec.size]
        begin += spec.size
