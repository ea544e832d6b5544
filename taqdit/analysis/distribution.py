"""The values of one site as one table: how many of each fold and step lie in which bin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taqdit.activations import BinCounts, StepStatistics
from taqdit.activations.bins import INFINITE, PER_ROW, SIGN, bounds_of
from taqdit.analysis.products import product

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class Distribution:
    """F folds x n steps x k bins, in the order of the values; finite values only.

    `left`, `right` (k,) float64: edges, cut at the site's extremes. `counts` (F, n, k) float64
    (whole numbers). `low`, `high` (F, n) float64: exact extremes; +Inf and -Inf where a cell is
    empty.
    """

    left: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, steps: Sequence[StepStatistics], site: int) -> Distribution:
        """One site, given by its number, over all steps."""
        tables = [step.values[site] for step in steps]
        low = np.stack([step.fold_low[:, site] for step in steps], axis=1).astype(np.float64)
        high = np.stack([step.fold_high[:, site] for step in steps], axis=1).astype(np.float64)
        bins, counts = _in_order(*_on_common_rows(tables))
        ends = low.min(initial=np.inf), high.max(initial=-np.inf)
        left, right = (np.clip(edges, *ends) for edges in bounds_of(bins))
        return cls(left, right, counts, low, high)

    @property
    def num_steps(self) -> int:
        """Steps, n."""
        return self.counts.shape[1]

    @cached_property
    def by_step(self) -> np.ndarray:
        """Counts of all folds together, (n, k)."""
        return self.counts.sum(axis=0)

    @cached_property
    def total(self) -> np.ndarray:
        """Values of each cell, (F, n)."""
        return self.counts.sum(axis=2)

    @cached_property
    def power(self) -> np.ndarray:
        """Mean square of a value in each bin, spread evenly there, (k,)."""
        return (self.left**2 + self.left * self.right + self.right**2) / 3

    @cached_property
    def signal(self) -> np.ndarray:
        """Sum of squares of each cell, (F, n)."""
        return np.asarray(np.einsum("fnk,k->fn", self.counts, self.power))

    def pooled(self, weights: np.ndarray) -> np.ndarray:
        """Bin masses (.., k) of cells pooled with `weights` (.., F, n): a value's weight is that
        of its cell."""
        folds, steps, bins = self.counts.shape
        flat = np.reshape(weights, (-1, folds * steps))
        masses = product(flat, self.counts.reshape(folds * steps, bins))
        return masses.reshape(*np.shape(weights)[:-2], bins)

    def extremes(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of the cells with a positive weight, (..) each."""
        seen = np.asarray(weights) > 0
        low = np.where(seen, self.low, np.inf).min(axis=(-2, -1))
        return low, np.where(seen, self.high, -np.inf).max(axis=(-2, -1))

    def outside(self, low: np.ndarray, high: np.ndarray, masses: np.ndarray) -> np.ndarray:
        """Share (R,) of `masses` (k,) that lies below `low` or above `high`, (R,) each."""
        low, high = np.asarray(low)[:, None], np.asarray(high)[:, None]
        width = np.maximum(self.right - self.left, _TINY)
        with np.errstate(over="ignore"):  # a bin without width is on one side or the other
            below = np.clip((low - self.left) / width, 0, 1)
            above = np.clip((self.right - high) / width, 0, 1)
        return (below + above) @ masses / max(float(masses.sum()), _TINY)

    def tails(self, low: float, high: float, masses: np.ndarray) -> tuple[float, float]:
        """Shares of `masses` (k,) below `low` and above `high`."""
        below = self.outside(np.array([low]), np.array([np.inf]), masses)
        above = self.outside(np.array([-np.inf]), np.array([high]), masses)
        return float(below[0]), float(above[0])

    def std(self, weights: np.ndarray) -> float:
        """Standard deviation of the values of all cells, weighted by cell (F, n)."""
        masses = self.pooled(weights)
        masses = masses / max(float(masses.sum()), _TINY)
        mean = float(masses @ (self.left + self.right)) / 2
        return float(np.sqrt(max(float(masses @ self.power) - mean**2, 0.0)))

    def quantiles(self, levels: np.ndarray) -> np.ndarray:
        """Quantiles (n, q) of each step, all folds together, at `levels` (q,) in [0, 1].

        Interpolated in the bins. NaN for a step without a value.
        """
        return np.stack([self._quantiles(counts, levels) for counts in self.by_step])

    def _quantiles(self, counts: np.ndarray, levels: np.ndarray) -> np.ndarray:
        used = np.flatnonzero(counts)
        if not len(used):
            return np.full(len(levels), np.nan)
        ends = np.cumsum(counts[used])
        target = np.asarray(levels) * ends[-1]
        place = np.minimum(np.searchsorted(ends, target), len(used) - 1)
        before = ends[place] - counts[used][place]
        share = np.clip((target - before) / counts[used][place], 0, 1)
        left, right = self.left[used][place], self.right[used][place]
        return left + share * (right - left)


def _on_common_rows(tables: Sequence[BinCounts]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (K,) that any table has, and the counts (F, n, K, 16) float64 of all on them."""
    rows = np.unique(np.concatenate([table.rows for table in tables]))
    counts = np.zeros((len(tables[0].counts), len(tables), len(rows), PER_ROW))
    for step, table in enumerate(tables):
        counts[:, step, np.searchsorted(rows, table.rows)] = table.counts
    return rows, counts


def _in_order(rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite bins that were hit, numbered as `bounds_of` does, and their counts (F, n, k)."""
    codes = (rows.astype(np.int64)[:, None] * PER_ROW + np.arange(PER_ROW)).reshape(-1)
    magnitudes = codes % SIGN
    numbers = np.where(codes < SIGN, magnitudes, -magnitudes)
    flat = counts.reshape(*counts.shape[:2], -1)
    used = np.flatnonzero(flat.any(axis=(0, 1)) & (magnitudes < INFINITE))
    used = used[np.argsort(numbers[used], kind="stable")]
    bins, starts = np.unique(numbers[used], return_index=True)  # -0 lies in the bin of 0
    ordered = np.take(flat, used, axis=2)
    return bins, ordered if len(bins) == len(used) else np.add.reduceat(ordered, starts, axis=2)
