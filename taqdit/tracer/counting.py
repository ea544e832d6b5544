"""Codes counted per fold: by numpy where the device is the CPU, by scatter on a GPU.

On the CPU, MLX's scatter takes some 18 ns a value and numpy's bincount 1.2 (OpenBLAS or not, AMD
EPYC), and the codes need no copy to be read; on a GPU they would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taqdit.activations import BinCounts
from taqdit.activations.bins import BINS
from taqdit.backend import mx, on_cpu


class RowFolds:
    """Which rows of a guided batch belong to which fold.

    Row r of a forward of N trajectories is trajectory r mod N: positives, then negatives.
    """

    def __init__(self, indices: Sequence[int], *, folds: int) -> None:
        self.folds = folds
        self.of_row = np.tile(np.array([index % folds for index in indices]), 2)
        self.seen = np.unique(self.of_row).tolist()

    @property
    def _joint(self) -> bool:
        """Whether a code and the place of its fold fit into 16 bits."""
        return len(self.seen) * BINS <= 2**16

    def extremes(self, row_low: np.ndarray, row_high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(F, S) lowest and highest value per fold, of (S, R) per row; +-Inf for unseen folds."""
        low = np.full((self.folds, len(row_low)), np.inf, np.float32)
        high = np.full_like(low, -np.inf)
        for fold in self.seen:
            rows = self.of_row == fold
            low[fold], high[fold] = row_low[:, rows].min(axis=1), row_high[:, rows].max(axis=1)
        return low, high

    def lazy(self, codes: mx.array) -> list[mx.array]:
        """What is to be evaluated to count `codes` (R, T, G, n) of G sites: themselves, the place
        of each row's fold above their 13 bits if there is room for it; on a GPU counts
        (folds, 8192) of each site."""
        rows, _, sites, _ = codes.shape
        place = mx.array(np.searchsorted(np.array(self.seen), self.of_row).astype(np.uint16))
        if not on_cpu():
            parts = [codes[:, :, site].reshape(rows, -1) for site in range(sites)]
            return [scattered(part, place, len(self.seen)) for part in parts]
        if not self._joint:
            return [codes]
        return [codes | (place * BINS)[:, None, None, None]]

    def counted(self, evaluated: Sequence[np.ndarray], site: int) -> BinCounts:
        """The counts per fold of one of the sites, from what `lazy` gave, evaluated."""
        if not on_cpu():
            return BinCounts.of(evaluated[site], self.seen, folds=self.folds)
        codes = evaluated[0][:, :, site]
        if not self._joint:
            by_fold = {fold: codes[self.of_row == fold] for fold in self.seen}
            return BinCounts.of_codes(by_fold, folds=self.folds)
        dense = np.bincount(codes.reshape(-1), minlength=len(self.seen) * BINS)
        return BinCounts.of(dense.reshape(-1, BINS), self.seen, folds=self.folds)


def scattered(codes: mx.array, group: mx.array, groups: int) -> mx.array:
    """Counts (groups, 8192) uint32 of codes (R, n), row r in group[r]."""
    places = (codes.astype(mx.int32) + group.astype(mx.int32)[:, None] * BINS).flatten()
    zeros = mx.zeros((groups * BINS,), dtype=mx.uint32)
    return zeros.at[places].add(mx.array(1, mx.uint32)).reshape(groups, BINS)


class OneFold(RowFolds):
    """All rows together: for counts that are not kept per fold."""

    def __init__(self, rows: int) -> None:
        self.folds, self.of_row, self.seen = 1, np.zeros(rows, np.int64), [0]
