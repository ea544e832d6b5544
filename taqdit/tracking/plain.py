"""Numbers of any make, as JSON knows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` in Python's own types: arrays as lists, paths as text, NaN and infinities as the
    words "NaN", "Infinity", "-Infinity" (JSON has no numbers for them)."""
    kind = type(value)
    if kind in _PLAIN or (kind is float and math.isfinite(value)):  # nearly all are one of them
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _WORDS[str(value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.as_posix() if isinstance(value, Path) else str(value)


def merge_bins(
    counts: np.ndarray, edges: np.ndarray, *, most: int
) -> tuple[list[int], list[float]]:
    """At most `most` bins with the same total: neighbours are added up, infinite outer edges
    moved to the nearest finite one. `counts` (k,), k >= 1, `edges` (k + 1,).

    Counts that are no whole numbers become some: none moves by 1, the total by 0.5 at most.
    """
    each = -(-len(counts) // most)
    starts = np.arange(0, len(counts), each)
    finite = edges[np.isfinite(edges)]
    edges = np.clip(edges, finite.min(), finite.max()) if finite.size else edges
    upto = np.rint(np.cumsum(np.add.reduceat(counts, starts, dtype=np.float64)))
    return (
        np.diff(upto, prepend=0.0).astype(np.int64).tolist(),
        np.append(edges[starts], edges[-1]).tolist(),
    )


_PLAIN = {int, str, bool, type(None)}
_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
