"""Arrays in a zip (`.npz`): streamed out member by member, and read without trusting the file.

Its members are known by name (`read`), or judged by their names (`read_open`). Reading checks the
zip directory and every array header against a schema before anything is decompressed or mapped;
then checksums and values. No pickle is ever loaded.
"""

from __future__ import annotations

import math
import mmap
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from taqdit.errors import CorruptError, InputError, StorageError
from taqdit.store import publish, sha256_file
from taqdit.store.archive import CHUNK, Entry, Refusal, directory, inflate, open_directory
from taqdit.store.array_headers import Field, Header, header, require_schema
from taqdit.store.digest import STAGE, corrupt, read_stamped

_FIXED_DATE = (1980, 1, 1, 0, 0, 0)

__all__ = ["Field", "Member", "read", "read_open", "write"]


@dataclass(frozen=True)
class Member:
    """An array to write; `chunks` yields it in C order, part by part along its first axis."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    chunks: Iterable[np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the data, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, members: Sequence[Member]) -> None:
    """Publish an uncompressed .npz; the same arrays give the same bytes. Holds one chunk."""
    hint = sum(member.nbytes for member in members)
    publish(path, lambda file: _write_archive(file, members), size_hint=hint)


def _write_archive(file: BinaryIO, members: Sequence[Member]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for member in members:
            info = zipfile.ZipInfo(f"{member.name}.npy", date_time=_FIXED_DATE)
            info.create_system, info.external_attr = 3, 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as target:
                _write_member(target, member)


def _write_member(target: object, member: Member) -> None:
    np.lib.format.write_array_header_1_0(
        target,  # type: ignore[arg-type]
        {"descr": member.dtype.str, "fortran_order": False, "shape": member.shape},
    )
    written = 0
    for chunk in member.chunks:
        data = np.ascontiguousarray(chunk, dtype=member.dtype).reshape(-1).view(np.uint8)
        target.write(data.data)  # type: ignore[attr-defined]
        written += data.nbytes
        del chunk, data  # one at a time: the next is made by the loop
    if written != member.nbytes:
        raise ValueError(f"{member.name}: {written} bytes were given for shape {member.shape}")


def read(
    path: Path, schema: Mapping[str, Field], limits: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """The arrays of an .npz that has exactly the members of `schema`; large ones are mapped.

    `limits` bounds the words of the shapes. Floats are finite, texts are valid Unicode, every
    checksum holds. Raises InputError; work and memory stay small unless the file is good. One that
    was imported into a store is whole by its digest there, or CorruptError is raised.
    """
    with _opened(path) as file:
        entries = directory(file, [f"{name}.npy" for name in schema])
        return _arrays(file, {name: entries[f"{name}.npy"] for name in schema}, schema, limits)


def read_open(
    path: Path, field: Callable[[str], Field | None], limits: Mapping[str, int], *, most: int
) -> dict[str, np.ndarray]:
    """The arrays of an .npz with at most `most` members, each once, all of names for which `field`
    tells what they must be (None: there must be no such member). Otherwise as `read`."""
    schema: dict[str, Field] = {}

    def accepts(member: str) -> bool:
        name = member.removesuffix(".npy")
        expected = field(name) if name != member else None
        if expected is not None:
            schema[name] = expected
        return expected is not None

    with _opened(path) as file:
        entries = open_directory(file, accepts, most)
        return _arrays(file, {name: entries[f"{name}.npy"] for name in schema}, schema, limits)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, to read; what is refused in it becomes an InputError that names the path."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise InputError(f"{path} is not a regular file")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from error
    with file:
        _require_imported(path.resolve())
        try:
            yield file
        except Refusal as refusal:
            raise InputError(f"{path} is not a usable .npz: {refusal}") from refusal


def _require_imported(place: Path) -> None:
    """Raise CorruptError for a file that `taqdit store import` put there, and that has changed.

    Whatever is not plainly such a file is somebody's own."""
    folder, kind = place.parent, place.parent.parent.name
    if kind != "imported" or not re.fullmatch("[0-9a-f]{12}", folder.name):
        return
    try:
        document = read_stamped(folder / STAGE)
    except (CorruptError, StorageError):
        return
    inputs = document.get("inputs")
    if document.get("stage") != kind or not isinstance(inputs, dict):
        return
    if inputs.get("file") == place.name and sha256_file(place) != inputs.get("sha256"):
        raise corrupt(place, "its bytes are not those that were imported")


def _arrays(
    file: BinaryIO,
    entries: Mapping[str, Entry],
    schema: Mapping[str, Field],
    limits: Mapping[str, int],
) -> dict[str, np.ndarray]:
    headers = {name: header(file, name, entry, schema[name]) for name, entry in entries.items()}
    require_schema(headers, entries, schema, limits)
    mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    return {
        name: _array(file, mapped, name, entry, headers[name]) for name, entry in entries.items()
    }


def _array(file: BinaryIO, mapped: np.ndarray, name: str, entry: Entry, head: Header) -> np.ndarray:
    """The member's data: mapped from the file, or inflated into memory; read-only, verified."""
    if entry.deflated:
        whole = inflate(file, name, entry)
    else:
        whole = mapped[entry.start : entry.start + entry.size]
    checksum = 0
    for start in range(0, entry.size, CHUNK):
        checksum = zlib.crc32(whole[start : start + CHUNK].data, checksum)
    if checksum != entry.checksum:
        raise Refusal(f"{name} is damaged: its checksum is wrong; copy the file again")
    array = whole[head.length :].view(head.dtype).reshape(head.shape)
    _require_values(name, array)
    array.flags.writeable = False
    return array


def _require_values(name: str, array: np.ndarray) -> None:
    """Refuse NaN and Inf, and numbers that are no characters."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        if array.dtype.kind == "f" and not np.isfinite(part).all():
            first = start + int(np.flatnonzero(~np.isfinite(part))[0])
            row = first * len(array) // array.size if array.ndim else 0
            raise Refusal(f"{name}[{row}] holds NaN or Inf; leave that row out")
        if array.dtype.kind == "U":
            codes = np.array(part).view("<u4")
            if ((codes > 0x10FFFF) | (codes - 0xD800 < 0x800)).any():
                raise Refusal(f"{name} holds numbers that are no characters")
