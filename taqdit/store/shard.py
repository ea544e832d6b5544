"""Shards: safetensors files that know whether they are intact."""

import hashlib
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from taqdit.store import layout
from taqdit.store.digest import canonical_json, corrupt, parse_bounded
from taqdit.store.disk import Identity, guarded, publish, reading
from taqdit.store.layout import Bytes, Spec

SCHEMA = 1
_RESERVED = {"schema", "kind", "index", "sha256"}
_TICK = 2 * 10**9  # ns; two writes within the coarsest clock of a file system leave the same time
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_DTYPE_NAMES = {dtype: name for name, dtype in layout.DTYPES.items()}


@dataclass(frozen=True)
class Known:
    """A shard that was verified, without its data: neither file nor mapping is held."""

    identity: Identity
    places: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]  # the last: first byte

    def tensors(self, path: Path) -> dict[str, np.ndarray] | None:
        """The tensors, mapped anew and not hashed again; None if the file has changed since.

        Raises as `read_shard` if it is gone or empty.
        """
        data, identity = _mapped(path)
        if identity != self.identity:
            return None
        return {
            name: np.ndarray(shape, dtype, data, begin) for name, dtype, shape, begin in self.places
        }


@dataclass(frozen=True)
class Shard:
    """A verified shard: `metadata` as stored (`schema`, `kind`, `index`, `sha256` and the
    writer's own keys) and read-only arrays, which are mapped from the file, not loaded.

    `known` is for reading it again; None where the file was written so lately that its times
    would not show another write."""

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]
    known: Known | None


def write_shard(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    kind: str,
    index: int | str,
    metadata: Mapping[str, Any] = _NOTHING,
) -> str:
    """Publish a shard and return its digest. The same contents give the same bytes, always.

    `metadata` is JSON data without the keys schema, kind, index and sha256. ValueError for those
    and for NaN in it, TypeError for a dtype that is no plain number; StorageError as `publish`.
    """
    if taken := sorted(_RESERVED & metadata.keys()):
        raise ValueError(f"shard metadata cannot hold {', '.join(taken)}: the store sets them")
    parts = dict(_part(name, array) for name, array in tensors.items())
    described = {**metadata, "schema": SCHEMA, "kind": kind, "index": index}
    digest = _digest(described, parts)
    header = layout.make_header(canonical_json({**described, "sha256": digest}), parts)

    def write(file: BinaryIO) -> None:
        file.write(header)
        for spec in layout.file_order(parts):
            file.write(parts[spec].data)

    publish(path, write, size_hint=len(header) + sum(spec.size for spec in parts))
    return digest


def read_shard(path: Path, *, kind: str | None = None) -> Shard:
    """Verify a shard, of this kind if one is named, and map its tensors.

    Whether the numbers are finite is the caller's affair. CorruptError when the file is not
    exactly what `write_shard` wrote, StorageError when it cannot be read.
    """
    begin = time.time_ns()
    data, identity = _mapped(path)
    metadata, parts = _verified(path, data, kind)
    try:
        tensors = {spec.name: _array(spec, part) for spec, part in parts.items()}
    except ValueError as error:  # a shape without bytes, but beyond numpy
        raise corrupt(path, str(error)) from error
    lately = begin - identity.written < _TICK
    known = None if lately else Known(identity, tuple(_places(data, parts)))
    return Shard(metadata, tensors, known)


def verify_shard(path: Path, *, kind: str | None = None) -> None:
    """Raise what `read_shard` would, and return nothing."""
    _verified(path, _mapped(path)[0], kind)


def _verified(
    path: Path, data: Bytes, kind: str | None
) -> tuple[dict[str, Any], dict[Spec, Bytes]]:
    try:
        text, parts = layout.parse(data)
        metadata = parse_bounded(text.encode())
        _check(metadata, text, parts, kind)
    except ValueError as error:
        raise corrupt(path, str(error)) from error
    return metadata, parts


def _check(
    metadata: Mapping[str, Any], text: str, parts: Mapping[Spec, Bytes], kind: str | None
) -> None:
    schema, stored_kind = metadata.get("schema"), metadata.get("kind")
    if schema != SCHEMA:
        raise ValueError(f"its schema is {repr(schema)[:40]}, this version reads {SCHEMA}")
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    if canonical_json(metadata) != text or _digest(described, parts) != metadata.get("sha256"):
        raise ValueError("its contents do not fit its sha256")
    if kind not in (None, stored_kind):
        raise ValueError(f"it is a shard of kind {str(stored_kind)[:40]!r}, not {kind!r}")


def _digest(described: Mapping[str, Any], parts: Mapping[Spec, Bytes]) -> str:
    """SHA-256 of the metadata (without itself) and of each tensor, in the order of their names."""
    digest = hashlib.sha256(canonical_json(described).encode())
    for spec in sorted(parts, key=lambda spec: spec.name):
        digest.update(canonical_json([spec.name, spec.dtype, spec.shape]).encode())
        digest.update(parts[spec].data)
    return digest.hexdigest()


def _part(name: str, value: np.ndarray) -> tuple[Spec, Bytes]:
    """A tensor's spec and bytes; an array that is contiguous and little-endian is not copied."""
    dtype = value.dtype.newbyteorder("<")
    if dtype not in _DTYPE_NAMES:
        raise TypeError(f"tensor {name!r} is {value.dtype}: allowed are {', '.join(layout.DTYPES)}")
    flat = np.ascontiguousarray(value, dtype).reshape(-1)
    return Spec(name, _DTYPE_NAMES[dtype], value.shape), flat.view(np.uint8)


def _array(spec: Spec, part: Bytes) -> np.ndarray:
    return part.view(layout.DTYPES[spec.dtype]).reshape(spec.shape)


def _places(
    data: Bytes, specs: Iterable[Spec]
) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...], int]]:
    """Each tensor's name, dtype, shape and first byte in the file."""
    begin = len(data) - sum(spec.size for spec in specs)
    for spec in layout.file_order(specs):
        yield spec.name, layout.DTYPES[spec.dtype], spec.shape, begin
        begin += spec.size


def _mapped(path: Path) -> tuple[Bytes, Identity]:
    """A file's bytes, and its identity from before any of them is read."""
    with guarded("read", path), reading(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            raise corrupt(path, "it is empty")
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    return data, Identity.of(status)
