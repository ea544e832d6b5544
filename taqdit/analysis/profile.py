"""One pass over the histograms of all sites: what selections, drift and bits are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from taqdit.activations.overview import Steps
from taqdit.analysis.bits import ActivationNoise
from taqdit.analysis.distribution import Distribution
from taqdit.analysis.drift import step_distances
from taqdit.analysis.static import StaticErrors
from taqdit.quantizer import BITS, decibel
from taqdit.timestep_selection.evidence import Evidence

QUANTILES = 65
LEVELS = (np.arange(QUANTILES) + 0.5) / QUANTILES


@dataclass(frozen=True, eq=False)
class Profile:
    """All folds of trajectories together, every step weighted.

    `quantiles` (S, n, q) at LEVELS; `evidence` for selections that are made from data; `noise`:
    site name -> what a static quantizer of least error over all steps costs, of sites with values.
    `static`: per site, the errors of static quantizers by fold and step, at each of BITS.
    """

    quantiles: np.ndarray
    evidence: Evidence
    noise: Mapping[str, ActivationNoise]
    static: tuple[Mapping[int, StaticErrors], ...]


def profile(statistics: Steps, weights: np.ndarray) -> Profile:
    """Read all sites. `weights` (n,) of the steps, positive."""
    steps = [statistics.step(step) for step in range(statistics.num_steps)]
    weights = weights / weights.sum()
    quantiles, noise, static = [], {}, []
    tables: dict[int, list[np.ndarray]] = {bits: [] for bits in BITS}
    for number, site in enumerate(statistics.layout.sites):
        distribution = Distribution.of(steps, number)
        static.append({bits: StaticErrors.of(distribution, bits=bits) for bits in BITS})
        quantiles.append(distribution.quantiles(LEVELS))
        if distribution.total.any():
            noise[site.name] = _noise(distribution, static[-1], weights)
        values = np.maximum(distribution.total.sum(axis=0), 1)
        for bits in BITS:
            tables[bits].append(_relative(static[-1][bits], values, weights))
    evidence = Evidence(
        distances=step_distances(np.stack(quantiles)),
        weights=weights,
        errors={bits: _same_length(tables[bits]) for bits in BITS},
    )
    return Profile(np.stack(quantiles), evidence, noise, tuple(static))


def _noise(
    distribution: Distribution, static: Mapping[int, StaticErrors], weights: np.ndarray
) -> ActivationNoise:
    """The static quantizers of one site that are best over all steps."""
    cells = np.broadcast_to(weights, distribution.low.shape)
    signal = float((distribution.signal * weights).sum())
    masses = distribution.pooled(cells)
    sqnr, low, high, below, above = {}, {}, {}, {}, {}
    for bits, errors in static.items():
        pooled = errors.pooled(cells)
        best = int(pooled.argmin())
        sqnr[bits] = float(decibel(signal, pooled[best]))
        low[bits], high[bits] = float(errors.low[best]), float(errors.high[best])
        below[bits], above[bits] = distribution.tails(low[bits], high[bits], masses)
    least, most = float(distribution.low.min()), float(distribution.high.max())
    return ActivationNoise(sqnr, low, high, below, above, least, most)


def _relative(static: StaticErrors, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared errors (n, C) of one site with `values` (n,) per step, over that of its best
    static quantizer."""
    errors = static.cells.sum(axis=1) / values
    least = float((errors @ weights).min())
    return errors.T / least if least > 0 else np.ones_like(errors.T)


def _same_length(tables: list[np.ndarray]) -> np.ndarray:
    """(S, n, C): where a site has fewer candidates, its last one again."""
    longest = max(table.shape[1] for table in tables)
    return np.stack(
        [table[:, np.minimum(np.arange(longest), table.shape[1] - 1)] for table in tables]
    )
