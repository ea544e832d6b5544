"""Intervals from folds of trajectories: folds are drawn again, with replacement."""

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
