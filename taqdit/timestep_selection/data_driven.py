"""Selection rules that choose from what traced statistics say of the steps; see rules.py."""

from __future__ import annotations

import numpy as np

from taqdit.errors import require
from taqdit.timestep_selection.evidence import from_evidence
from taqdit.timestep_selection.search import density_quantiles, drift_density, least_regret, medoids
from taqdit.timestep_selection.selection import Selection, refilled
from taqdit.timestep_selection.steps import TrajectorySteps

__all__ = ["coverage_optimal", "drift_weighted", "regret_optimal"]


@from_evidence
def drift_weighted(
    trajectory: TrajectorySteps, *, count: int | None = None, gamma: float = 0.5
) -> Selection:
    """Quantiles, at (j + 1/2) / k, of drift^gamma over sigma: dense where statistics change fast.

    SharpEuler's form (arXiv:2605.11547, see `search.drift_density`); gamma 0 ignores drift.
    Where two quantiles share a step, the largest gaps in the density are filled.
    """
    k = trajectory.budget(count)
    require((0 <= gamma <= 2, f"gamma={gamma} must lie in [0, 2]; 0 ignores the drift"))
    known = trajectory.known("drift_weighted")
    levels = trajectory.sigmas.astype(np.float64)
    require((bool((np.diff(levels) < 0).all()), "sigmas must strictly decrease"))
    density = drift_density(known.distances, levels, gamma=gamma)
    places = np.cumsum(density) - density / 2
    return Selection.of(refilled(density_quantiles(density, k), places, k))


@from_evidence
def coverage_optimal(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """The k steps nearest to all steps: exact k-medoids on segments (`search.medoids`)."""
    k = trajectory.budget(count)
    known = trajectory.known("coverage_optimal")
    key = ("coverage_optimal", k)
    return Selection.of(known.once(key, lambda: medoids(known.distances, known.weights, k)))


@from_evidence
def regret_optimal(
    trajectory: TrajectorySteps, *, count: int | None = None, bits: int = 8
) -> Selection:
    """The k steps whose best static ranges, at `bits` bits, cost least error over all steps.

    A local search (`search.least_regret`).
    """
    k = trajectory.budget(count)
    known = trajectory.known("regret_optimal")
    errors, key = known.errors_at(bits), ("regret_optimal", k, bits)
    return Selection.of(known.once(key, lambda: least_regret(errors, known.weights, k)))
