"""Static per-tensor quantizers of one site: candidate ranges, and what each costs at every step.

An observer that minimises the squared error picks one of the candidates from the steps that it is
shown. Because all observers pick from the same candidates, none can beat the candidate that is best
over all steps: its error is the floor, and what another pays above it the price of its selection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taqdit.analysis.distribution import Distribution
from taqdit.analysis.noise import bin_errors
from taqdit.analysis.products import product
from taqdit.quantizer import Quantizer
from taqdit.timestep_selection.search import TIE

# Shares of a site's minimum and of its maximum: every pair of them is a candidate range.
SHARES = np.concatenate([np.arange(100, 30, -5) / 100, 0.3 * 0.8 ** np.arange(16)])


@dataclass(frozen=True, eq=False)
class StaticErrors:
    """Squared errors of one site at one width under C candidate ranges.

    `low`, `high` (C,) float64: the ranges. `cells` (C, F, n): errors summed over the values of
    each fold and step. Candidates that another one beats at every step are left out: no observer
    of whole steps would pick them.
    """

    low: np.ndarray
    high: np.ndarray
    cells: np.ndarray

    @classmethod
    def of(cls, distribution: Distribution, *, bits: int) -> StaticErrors:
        """Every candidate's error, integrated over the bins."""
        low, high = candidates(distribution)
        quantizer = Quantizer.of_range(low, high, bits=bits)
        errors = bin_errors(distribution.left, distribution.right, quantizer)
        competing = _undominated(product(errors, distribution.by_step.T))
        folds, steps, bins = distribution.counts.shape
        cells = product(errors[competing], distribution.counts.reshape(folds * steps, bins).T)
        return cls(low[competing], high[competing], cells.reshape(-1, folds, steps))

    def pooled(self, weights: np.ndarray) -> np.ndarray:
        """Errors (.., C) over cells weighted by `weights` (.., F, n)."""
        flat = np.reshape(weights, (-1, self.cells[0].size))
        errors = product(flat, self.cells.reshape(len(self.cells), -1).T)
        return errors.reshape(*np.shape(weights)[:-2], len(self.cells))

    def by_fold(self, weights: np.ndarray) -> np.ndarray:
        """Errors (F, R, C) over the steps of each fold, weighted by `weights` (R, F, n)."""
        folds = range(self.cells.shape[1])
        return np.stack([product(weights[:, fold], self.cells[:, fold].T) for fold in folds])


def candidates(distribution: Distribution) -> tuple[np.ndarray, np.ndarray]:
    """Ranges (C,), (C,): each of SHARES of the minimum with each of the maximum, zero included."""
    low = min(distribution.low.min(initial=0), 0)
    high = max(distribution.high.max(initial=0), 0)
    below, above = np.meshgrid(SHARES, SHARES, indexing="ij")
    return low * below.reshape(-1), high * above.reshape(-1)


def _undominated(errors: np.ndarray) -> np.ndarray:
    """Which rows of `errors` (C, n) no row that is best at some step, or over all, equals or beats
    at every step; those rows themselves are kept. Differences within TIE are none: where ranges
    mirror each other, rounding must not decide."""
    best = np.unique([*errors.argmin(axis=0), errors.sum(axis=1).argmin()])
    competing = np.ones(len(errors), bool)
    for row in best:
        competing &= (errors < errors[row] * (1 - TIE)).any(axis=1)
    competing[best] = True
    return competing
