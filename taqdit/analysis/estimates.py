"""Means of what is known, NaN left out, and their intervals: folds of trajectories drawn again."""

from __future__ import annotations

import numpy as np

CONFIDENCE = 0.95
DRAWS = 200


def resamples(used: np.ndarray) -> np.ndarray:
    """How often each fold counts, (1 + DRAWS, F) float64: once in the first row, then as drawn.

    `used` (F,) bool: folds that hold anything; only they are drawn. The bootstrap of clusters
    (Efron & Tibshirani, 1993), from a fixed seed. One row where there are fewer than two folds.
    """
    folds = np.flatnonzero(used)
    whole = np.asarray(used, np.float64)[None]
    if len(folds) < 2:
        return whole
    drawn = np.random.default_rng(0).choice(folds, (DRAWS, len(folds)))
    times = [np.bincount(row, minlength=len(used)) for row in drawn]
    return np.concatenate([whole, np.stack(times)])


def half_width(replicates: np.ndarray, folds: int) -> np.ndarray:
    """Half of the 95 % interval (..) of an estimate, from its values (DRAWS, ..) under resampling
    of `folds` folds.

    Student's t with folds - 1 degrees of freedom times their standard deviation, which is enlarged
    by sqrt(folds / (folds - 1)) because a resample varies less than a sample (Hesterberg, 2015,
    arXiv:1411.5279). NaN with fewer than two folds.
    """
    if folds < 2 or not len(replicates):
        return np.full(np.shape(replicates)[1:], np.nan)
    from scipy.special import stdtrit  # slow to import: only where it is needed

    error = np.std(replicates, axis=0) * np.sqrt(folds / (folds - 1))
    return np.asarray(stdtrit(folds - 1, (1 + CONFIDENCE) / 2) * error)


class RunningMean:
    """Mean of arrays, NaN left out, that does not hold them: those of all sites are large."""

    def __init__(self) -> None:
        self._sum, self._count = np.zeros(()), np.zeros((), np.int64)

    def add(self, values: np.ndarray) -> None:
        """One more array, of the same shape."""
        known = ~np.isnan(values)
        self._sum, self._count = self._sum + np.where(known, values, 0), self._count + known

    def value(self) -> np.ndarray:
        """The mean; NaN where every array had NaN."""
        return np.where(self._count > 0, self._sum / np.maximum(self._count, 1), np.nan)


def known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the sites, axis 1 of (R, S, ..), of what is finite; NaN where nothing is."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0).sum(axis=1), known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
