"""Means of what is known: NaN is left out."""

from __future__ import annotations

import numpy as np


class RunningMean:
    """Mean of arrays, NaN left out, that does not hold them: those of all sites are large."""

    def __init__(self) -> None:
        self._sum, self._count = np.zeros(()), np.zeros((), np.int64)

    def add(self, values: np.ndarray) -> None:
        """One more array, of the same shape."""
        known = ~np.isnan(values)
        self._sum, self._count = self._sum + np.where(known, values, 0), self._count + known

    def value(self) -> np.ndarray:
        """NaN where there was nothing else."""
        return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.nan)


def known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the sites, axis 1 of (R, S, ..), of what is finite; NaN where nothing is."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0).sum(axis=1), known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
