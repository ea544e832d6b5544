"""How the latents of a set of trajectories are distributed at each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taqdit.trajectories.trajectory_set import TrajectorySet


@dataclass(frozen=True)
class LatentStatistics:
    """Over all trajectories, rows and channels; each array is (num_steps + 1,) float64."""

    mean: np.ndarray
    variance: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, (num_steps + 1,)."""
        return np.sqrt(self.variance)


def latent_statistics(trajectories: TrajectorySet) -> LatentStatistics:
    """Mean, standard deviation, minimum and maximum of the latents of every step.

    Reads one trajectory at a time; moments are merged in float64 (Chan, Golub & LeVeque, 1979).
    """
    total: LatentStatistics | None = None
    for index in range(len(trajectories)):
        rows = trajectories.latents(index)
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        own = LatentStatistics(flat.mean(1), flat.var(1), flat.min(1), flat.max(1))
        total = own if total is None else _merge(total, own, seen=index)
    if total is None:
        raise ValueError("no trajectory to describe")
    return total


def _merge(total: LatentStatistics, own: LatentStatistics, *, seen: int) -> LatentStatistics:
    """Pool the statistics of one more trajectory with those of `seen` of the same size."""
    share = 1 / (seen + 1)
    delta = own.mean - total.mean
    return LatentStatistics(
        total.mean + share * delta,
        (1 - share) * (total.variance + share * delta**2) + share * own.variance,
        np.minimum(total.low, own.low),
        np.maximum(total.high, own.high),
    )
