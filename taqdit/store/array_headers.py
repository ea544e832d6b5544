"""What the arrays of a foreign archive say of themselves, read without evaluating it, and whether
that is as a schema wants it.

Every refusal names the value, what is expected and what to do about it.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from taqdit.store.archive import Entry, Refusal, inflated

TEXT = "<U"
MAX_HEADER = 10_000  # bytes of an array header, numpy's own limit
_HEADER = re.compile(
    r"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), ?\} *\n"
)


@dataclass(frozen=True)
class Field:
    """What a member must be: a dtype, or several apart by spaces ('<U' is text of any width), and
    a shape, or with `or_scalar` a single number.

    A word in the shape is a length that is the same wherever the word stands. `remedy` says what
    to do about another shape.
    """

    dtype: str
    shape: tuple[int | str, ...]
    or_scalar: bool = False
    remedy: str = "save it in that shape with numpy.savez"


class Header(NamedTuple):
    """What an array says of itself; `length` bytes lie before its data."""

    dtype: np.dtype
    shape: tuple[int, ...]
    length: int


def header(file: BinaryIO, name: str, entry: Entry, field: Field) -> Header:
    """The array header, without evaluating it: only numpy's own way to write one is read.

    Raises Refusal, of a dtype that is not the field's, too.
    """
    file.seek(entry.start)
    head = file.read(min(entry.packed, MAX_HEADER + 12))
    if entry.deflated:
        head = inflated(zlib.decompressobj(-15), head, MAX_HEADER + 12, name)
    version = head[6:8]
    if len(head) < 12 or head[:6] != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise Refusal(f"{name} is not an array; save it with numpy.savez")
    begin = 10 if version == b"\1\0" else 12
    length = int.from_bytes(head[8:begin], "little")
    match = _HEADER.fullmatch(head[begin : begin + length].decode("latin-1"))
    if length > MAX_HEADER or match is None:
        raise Refusal(
            f"{name} is not a plain array: its header is {head[begin : begin + 80]!r}; save an"
            f" array of the dtype {field.dtype!r} with numpy.savez"
        )
    return Header(_dtype(name, match[1], match[2], field), _shape(match[3]), begin + length)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(number[:20]) for number in text.replace(" ", "").split(",") if number)


def _dtype(name: str, text: str, fortran_order: str, field: Field) -> np.dtype:
    if "O" in text:
        raise Refusal(
            f"{name} is an object array, which only pickle can load, and a pickle can run any"
            f" code; where you trust the file, load it with pickles allowed, replace {name} by"
            f" {name}.astype(str), and save it with numpy.savez"
        )
    plain = re.fullmatch(r"[<|>=][fiubU][0-9]{1,4}", text) and not text.endswith("U0")
    wanted = text[:2] == TEXT if field.dtype == TEXT else text in field.dtype.split()
    if not (plain and wanted):
        raise Refusal(
            f"{name} has the dtype {text!r}; expected {field.dtype!r}; save"
            f" {_converted(name, text, field)} with numpy.savez"
        )
    if fortran_order == "True":
        raise Refusal(f"{name} is in Fortran order; save numpy.ascontiguousarray({name})")
    return np.dtype(text)


def _converted(name: str, text: str, field: Field) -> str:
    """The words of numpy that give an array of another dtype one that the field takes."""
    if field.dtype != TEXT:
        return f"{name}.astype({field.dtype.split()[-1]!r})"  # of several the one that holds most
    return f"numpy.char.decode({name}, 'utf-8')" if "S" in text else f"{name}.astype(str)"


def require_schema(
    headers: Mapping[str, Header],
    entries: Mapping[str, Entry],
    schema: Mapping[str, Field],
    limits: Mapping[str, int],
) -> None:
    """Refuse a shape or a size that is not as the schema says; `limits` bounds its words."""
    lengths: dict[str, int] = {}
    for name, field in schema.items():
        found = headers[name]
        scalar = field.or_scalar and not found.shape
        if not scalar and not _fits(found.shape, field.shape, lengths, limits):
            known = ", ".join(str(lengths.get(str(axis), axis)) for axis in field.shape)
            outside = _outside(found.shape, field.shape, limits)
            raise Refusal(
                f"{name} has the shape {found.shape}; expected ({known}){outside}; {field.remedy}"
            )
        size = found.length + math.prod(found.shape) * found.dtype.itemsize
        if size != entries[name].size:
            raise Refusal(
                f"{name} claims {size:,} bytes and has {entries[name].size:,}; save it again with"
                " numpy.savez"
            )


def _fits(
    shape: tuple[int, ...],
    wanted: tuple[int | str, ...],
    lengths: dict[str, int],
    limits: Mapping[str, int],
) -> bool:
    """Whether a shape is as wanted; a word met for the first time takes its length, if in range."""
    if len(shape) != len(wanted):
        return False
    for length, axis in zip(shape, wanted, strict=True):
        if isinstance(axis, str) and axis not in lengths and 1 <= length <= limits[axis]:
            lengths[axis] = length
        if length != (lengths.get(axis) if isinstance(axis, str) else axis):
            return False
    return True


def _outside(
    shape: tuple[int, ...], wanted: tuple[int | str, ...], limits: Mapping[str, int]
) -> str:
    """The range of the first word whose length lies outside it; nothing if all are inside."""
    for length, axis in zip(shape, wanted, strict=False):
        if isinstance(axis, str) and not 1 <= length <= limits[axis]:
            return f" with {axis} in [1, {limits[axis]:,}]"
    return ""
