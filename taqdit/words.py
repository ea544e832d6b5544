"""Sizes, counts, lists and numbers, as people and JSON read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
NAMED = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # numbers that JSON has not


def size(count: float) -> str:
    """Bytes in powers of 1000: `999 B`, `1.5 kB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    power = 0
    while count >= 1000 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.{min(power, 1)}f} {units[power]}"


def counted(count: int, noun: str) -> str:
    """A number of things: `1 run`, `2 trajectories`."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("ory") else f"{noun}s"
    return f"{count} {noun}"


def listed(names: Sequence[object], most: int, between: str = ", ") -> str:
    """At most `most` of the names, and how many there are beyond: `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(map(str, names[:most])) + more


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Whole numbers as `0-3, 7, 9-12`; of many the first ones."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{low}" if low == high else f"{low}-{high}" for low, high in runs]
    return ", ".join(texts[:most]) + (" .." if len(texts) > most else "")


def spaced(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly spaced, with both ends."""
    if len(items) <= most:
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, most)]


def plain(value: Any, *, named: Mapping[str, str] = NAMED) -> Any:
    """`value` in Python's own types, as JSON knows them: arrays as lists, paths as text.

    NaN and infinities become what `named` calls them, None where it does not.
    """
    kind = type(value)
    if kind in _PLAIN or (kind is float and math.isfinite(value)):  # nearly all are one of them
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, named=named) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), named=named)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, named=named) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else named.get(str(value))
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.as_posix() if isinstance(value, Path) else str(value)


_PLAIN = {int, str, bool, type(None)}
