"""The distribution of one site as bin counts with exact ends: percentiles with stated bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taqdit.activations.bins import INFINITE, PER_ROW, ROWS, SIGN, bounds_of
from taqdit.activations.counts import BinCounts

# The finite codes in the order of their values, and the edges of their bins.
_ASCENDING = np.concatenate([SIGN + np.arange(INFINITE - 1, 0, -1), np.arange(INFINITE)])
_ZERO = INFINITE - 1
_LEFT, _RIGHT = bounds_of(np.arange(-_ZERO, INFINITE))


@dataclass(frozen=True, eq=False)
class Histogram:
    """Finite values by bin, in the order of the values.

    `left`, `right` (k,) float64 are the bins' edges, cut at the exact minimum and maximum;
    `counts` (k,) int64, all positive. `nan` and `inf` count what is no finite number.
    """

    left: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    nan: int = 0
    inf: int = 0

    @classmethod
    def of(cls, tables: Iterable[BinCounts], *, low: float, high: float) -> Histogram:
        """All folds of all tables together; `low` and `high` are the exact extremes."""
        dense = np.zeros((ROWS, PER_ROW), np.int64)
        for table in tables:
            dense[table.rows] += table.counts.sum(axis=0, dtype=np.int64)
        codes = dense.reshape(-1)
        counts = codes[_ASCENDING]
        counts[_ZERO] += codes[SIGN]  # -0 lies in the bin of 0
        used = np.flatnonzero(counts)
        exponents = codes.reshape(2, -1)  # by sign
        return cls(
            np.clip(_LEFT[used], low, high),
            np.clip(_RIGHT[used], low, high),
            counts[used],
            nan=int(exponents[:, INFINITE + 1 :].sum()),
            inf=int(exponents[:, INFINITE].sum()),
        )

    @cached_property
    def total(self) -> int:
        """Finite values."""
        return int(self.counts.sum())

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def percentile_bounds(self, percent: float) -> tuple[float, float]:
        """An interval that holds the percentile by nearest rank, i.e. the smallest value with at
        least `percent` percent of the values at or below it (numpy's `inverted_cdf`).

        It is one bin: at most 1/16 of its inner edge wide, or 2^-129 around zero. 0 and 100 are
        exact. Raises ValueError for an empty histogram.
        """
        place = self._place(percent)
        return float(self.left[place]), float(self.right[place])

    def percentile(self, percent: float) -> float:
        """The percentile, interpolated in its bin (0 in that around zero); it errs by less than
        the bin is wide."""
        place = self._place(percent)
        if percent <= 0:
            return float(self.left[0])
        if percent >= 100:
            return float(self.right[-1])
        if self.left[place] <= 0 <= self.right[place]:
            return 0.0
        before = self._ends[place] - self.counts[place]
        share = (percent / 100 * self.total - before) / self.counts[place]
        width = self.right[place] - self.left[place]
        return float(self.left[place] + np.clip(share, 0, 1) * width)

    def _place(self, percent: float) -> int:
        if not 0 <= percent <= 100:
            raise ValueError(f"percent={percent} must lie in [0, 100]")
        if not self.total:
            raise ValueError("an empty histogram has no percentiles")
        rank = max(1, int(np.ceil(percent / 100 * self.total)))
        return int(np.searchsorted(self._ends, rank))

    def kurtosis(self) -> float:
        """Fourth standardised moment (3 for a Gaussian), values spread evenly in each bin.

        NaN where all values are equal.
        """
        weights, left, right = self.counts / max(self.total, 1), self.left, self.right
        mean = float(weights @ (left + right)) / 2 if self.total else 0.0
        second = weights @ _even_moment(left - mean, right - mean, 2)
        fourth = weights @ _even_moment(left - mean, right - mean, 4)
        return float(fourth / second**2) if second > 0 else float("nan")

    def rebinned(self, edges: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Counts (k,) float64 on other `edges` (k + 1,), and what lies below and above them.

        Values are taken as spread evenly in each bin, those of the bin around zero as 0; the total
        is preserved. A value on the last edge lies inside.
        """
        edges = np.asarray(edges, np.float64)
        at = np.concatenate([[-np.inf], edges[:-1], [np.nextafter(edges[-1], np.inf)], [np.inf]])
        below = self._cumulative(at)
        counts = np.diff(below)
        return counts[1:-1], float(counts[0]), float(counts[-1])

    def _cumulative(self, at: np.ndarray) -> np.ndarray:
        """How many values lie below each of `at` (ascending)."""
        if not self.total:
            return np.zeros(len(at))
        ends = np.concatenate([[0], self._ends])
        around_zero = (self.left <= 0) & (self.right >= 0)
        left, right = (np.where(around_zero, 0, edge) for edge in (self.left, self.right))
        place = np.searchsorted(right, at, side="left")  # the first bin that ends at or after
        inside = np.minimum(place, len(right) - 1)
        width = right[inside] - left[inside]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(width > 0, (at - left[inside]) / width, at > left[inside])
        full = ends[inside] + np.clip(share, 0, 1) * self.counts[inside]
        return np.where(place == len(right), self.total, full)


def _even_moment(left: np.ndarray, right: np.ndarray, order: int) -> np.ndarray:
    """Mean of x^order over [left, right]; left^order where both are equal."""
    total, power = left**order, np.ones_like(left)
    for degree in range(1, order + 1):
        power = power * right
        total = total + left ** (order - degree) * power
    return total / (order + 1)
