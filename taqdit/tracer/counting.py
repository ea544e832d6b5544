"""Codes counted per fold: by numpy where the device is the CPU, by scatter on a GPU.

On the CPU, MLX's scatter takes some 18 ns a value and numpy's bincount 1.2 (OpenBLAS or not, AMD
EPYC), and the codes need no copy to be read; on a GPU they would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from taqdit.backend import mx, on_cpu
from taqdit.statistics import BinCounts
from taqdit.statistics.bins import BINS


class RowFolds:
    """Which rows of a guided batch belong to which fold.

    Row r of a forward of N trajectories is trajectory r mod N: positives, then negatives.
    """

    def __init__(self, indices: Sequence[int], *, folds: int) -> None:
        self.folds = folds
        self.of_row = np.tile(np.array([index % folds for index in indices]), 2)
        self.rows = {int(k): np.flatnonzero(self.of_row == k) for k in np.unique(self.of_row)}

    def extremes(self, row_low: np.ndarray, row_high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(F, S) lowest and highest value per fold, of (S, R) per row; +-Inf for unseen folds."""
        low = np.full((self.folds, len(row_low)), np.inf, np.float32)
        high = np.full_like(low, -np.inf)
        for fold, rows in self.rows.items():
            low[fold], high[fold] = row_low[:, rows].min(axis=1), row_high[:, rows].max(axis=1)
        return low, high

    def lazy(self, codes: mx.array) -> mx.array:
        """What is to be evaluated to count `codes` (R, n): themselves, or counts (folds, 8192)."""
        if on_cpu():
            return codes
        place = np.searchsorted(np.array(list(self.rows)), self.of_row)
        return scattered(codes, mx.array(place.astype(np.int32)), len(self.rows))

    def counted(self, found: np.ndarray) -> BinCounts:
        """The counts per fold, from what `lazy` gave, evaluated."""
        if not on_cpu():
            return BinCounts.of(dict(zip(self.rows, found, strict=True)), folds=self.folds)
        return BinCounts.of_codes({k: found[r] for k, r in self.rows.items()}, folds=self.folds)


def scattered(codes: mx.array, group: mx.array, groups: int) -> mx.array:
    """Counts (groups, 8192) uint32 of codes (R, n), row r in group[r]."""
    places = (codes.astype(mx.int32) + group[:, None] * BINS).flatten()
    zeros = mx.zeros((groups * BINS,), dtype=mx.uint32)
    return zeros.at[places].add(mx.array(1, mx.uint32)).reshape(groups, BINS)


class OneFold(RowFolds):
    """All rows together: for counts that are not kept per fold."""

    def __init__(self, rows: int) -> None:
        self.folds, self.of_row = 1, np.zeros(rows, np.int64)
        self.rows: dict[int, Any] = {0: slice(None)}
