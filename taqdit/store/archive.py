"""The directory and the bytes of a zip file that someone else made.

Nothing is decompressed before the directory is known to be small, to list members as expected,
once each, apart from each other, and to keep inside a budget.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

CHUNK = 2**20
MEMBERS, MEMBER_ENTRY = 64, 2**10  # members, and bytes of the directory for each, at most
FREE_EXPANSION, MAX_RATIO = 2**24, 20  # a compressed member may grow to 16 MiB, or 20-fold
FREE_TOGETHER = 2**27  # all compressed members together may grow to 128 MiB, or 20-fold
MAX_EXPANDED = 2**32  # bytes of all compressed members together, held in memory
_FLAGS = 0x80E  # deflate options, data descriptor, UTF-8 names: nothing that changes the bytes


class Refusal(Exception):
    """Why an archive is refused; who opened it puts the path before it."""


class Entry(NamedTuple):
    """One member of an archive: where its bytes lie, how many, how they are packed."""

    start: int
    packed: int
    size: int
    deflated: bool
    checksum: int


def directory(file: BinaryIO, names: Collection[str]) -> dict[str, Entry]:
    """The zip directory, if it lists exactly `names`, apart from each other. Raises Refusal."""
    infos, end = _listing(file, MEMBERS)
    listed = [info.orig_filename for info in infos]
    if sorted(listed) != sorted(names):
        names_there = ", ".join(repr(name[:40]) for name in listed[:12])
        raise Refusal(
            f"its members are {names_there}; expected {', '.join(names)}, each once; save exactly"
            " these with numpy.savez"
        )
    return _entries(file, infos, end)


def open_directory(file: BinaryIO, accepts: Callable[[str], bool], most: int) -> dict[str, Entry]:
    """The zip directory, if it lists at most `most` members, each once, all of accepted names.

    They lie apart from each other. Raises Refusal.
    """
    infos, end = _listing(file, most)
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        if name in seen or not accepts(name):
            twice = "there twice; keep one"
            why = twice if name in seen else "none that is expected; leave it out"
            raise Refusal(f"its member {name[:60]!r} is {why}")
        seen.add(name)
    return _entries(file, infos, end)


def _listing(file: BinaryIO, most: int) -> tuple[list[zipfile.ZipInfo], int]:
    """What the directory says of its members, and where it begins."""
    end = _directory_start(file, most)
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist(), end
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise Refusal(f"its zip directory is damaged ({error})") from error


def _entries(file: BinaryIO, infos: Sequence[zipfile.ZipInfo], end: int) -> dict[str, Entry]:
    """Where the members lie: apart from each other, before `end`, within the budget."""
    entries = {info.orig_filename: _entry(file, info) for info in infos}
    edge = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        entry = entries[info.orig_filename]
        if info.header_offset < edge or entry.start + entry.packed > end:
            raise Refusal("its members overlap each other or the directory")
        edge = entry.start + entry.packed
    _require_budget([entry for entry in entries.values() if entry.deflated])
    return entries


def _require_budget(deflated: Sequence[Entry]) -> None:
    """Refuse compressed members that are too large together."""
    packed = sum(entry.packed for entry in deflated)
    size = sum(entry.size for entry in deflated)
    if size > MAX_EXPANDED:
        raise Refusal("it is compressed and too large for that; save it with numpy.savez")
    if size > max(FREE_TOGETHER, MAX_RATIO * packed):
        raise Refusal(
            f"it would expand from {packed:,} to {size:,} bytes; if you trust it, save it"
            " uncompressed with numpy.savez"
        )


def _directory_start(file: BinaryIO, most: int) -> int:
    """Where the zip directory begins, once it is known to be small and to end the file."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 98))
    tail = file.read(98)
    if len(tail) < 22 or tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise Refusal(
            "it does not end as a zip file without a comment does; save it with numpy.savez"
        )
    count, length, start = struct.unpack("<HII", tail[-12:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\6\7":  # archives beyond 4 GB
        (record,) = struct.unpack("<Q", tail[-34:-26])
        if len(tail) < 98 or record != size - 98 or tail[:4] != b"PK\6\6":
            raise Refusal("its zip64 directory is damaged")
        count, length, start = struct.unpack("<QQQ", tail[32:56])
        end = size - 98
    small = count <= most and length <= most * MEMBER_ENTRY
    if not small or start + length != end or not _holds(file, start, length, count):
        raise Refusal(f"its zip directory lists {count} members in {length} bytes")
    return int(start)


def _holds(file: BinaryIO, start: int, length: int, count: int) -> bool:
    """Whether the directory consists of `count` entries: zipfile reads all, whatever the count."""
    file.seek(start)
    data = file.read(length)
    at = entries = 0
    while at + 46 <= length and entries < count:
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
        entries += 1
    return entries == count and at == length


def _entry(file: BinaryIO, info: zipfile.ZipInfo) -> Entry:
    """Where the member's data lies, checked against its local header."""
    name = info.orig_filename
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    if info.flag_bits & ~_FLAGS or not (deflated or info.compress_type == zipfile.ZIP_STORED):
        raise Refusal(f"{name} is encrypted or packed in an unusual way; save it with numpy.savez")
    file.seek(max(0, info.header_offset))
    local = file.read(30 + len(name))
    if len(local) < 30 + len(name) or local[:4] != b"PK\3\4" or local[30:] != name.encode():
        raise Refusal(f"{name} is not where the zip directory says")
    flags, method = struct.unpack("<HH", local[6:10])
    name_length, extra_length = struct.unpack("<HH", local[26:30])
    if method != info.compress_type or flags & ~_FLAGS or name_length != len(name):
        raise Refusal(f"{name}: its local header contradicts the zip directory")
    if not deflated and info.compress_size != info.file_size:
        raise Refusal(f"{name}: its sizes contradict each other")
    if deflated and info.file_size > max(FREE_EXPANSION, MAX_RATIO * info.compress_size):
        raise Refusal(
            f"{name} would expand from {info.compress_size:,} to {info.file_size:,} bytes; if you"
            " trust it, save it uncompressed with numpy.savez"
        )
    start = info.header_offset + 30 + name_length + extra_length
    return Entry(start, info.compress_size, info.file_size, deflated, info.CRC)


def inflate(file: BinaryIO, name: str, entry: Entry) -> np.ndarray:
    """The whole member decompressed, never more of it than its directory entry says."""
    whole = np.empty(entry.size, np.uint8)
    file.seek(entry.start)
    unpack, filled, left, waiting = zlib.decompressobj(-15), 0, entry.packed, b""
    while filled < entry.size:
        packed = waiting or file.read(min(CHUNK, left))
        left -= 0 if waiting else len(packed)
        piece = inflated(unpack, packed, min(CHUNK, entry.size - filled), name)
        whole[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled, waiting = filled + len(piece), unpack.unconsumed_tail
        if not piece and not waiting and not left:
            raise Refusal(f"{name} ends early")
    return whole


def inflated(unpack: zlib._Decompress, packed: bytes, limit: int, name: str) -> bytes:
    """At most `limit` bytes out of `packed`. Raises Refusal."""
    try:
        return unpack.decompress(packed, limit)
    except zlib.error as error:
        raise Refusal(f"{name} cannot be decompressed ({error})") from error
