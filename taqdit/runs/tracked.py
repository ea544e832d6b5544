"""What a tracker is told of the activation statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from taqdit.activations.layer_summary import COLUMNS, layer_summary
from taqdit.activations.overview import Overview
from taqdit.tracking.options import Tracker
from taqdit.trajectories.latents import LatentStatistics
from taqdit.trajectories.trajectory_set import TrajectorySet
from taqdit.words import spaced

MOST_STEPS = 16  # rows of histograms


Histograms = Callable[..., tuple[np.ndarray, np.ndarray]]
"""(site number, steps=..) -> edges (k + 1,), counts (n, k)."""


def log_curves(trajectories: TrajectorySet, found: LatentStatistics, tracker: Tracker) -> None:
    """One row per latent: mean, std, min and max against step, sigma and timestep."""
    for step, (sigma, timestep) in enumerate(
        zip(trajectories.sigmas, trajectories.timesteps, strict=True)
    ):
        tracker.scalars(
            {
                "latent/mean": float(found.mean[step]),
                "latent/std": float(found.std[step]),
                "latent/min": float(found.low[step]),
                "latent/max": float(found.high[step]),
            },
            axis={"step": step, "sigma": float(sigma), "timestep": float(timestep)},
        )


def log_activations(table: Overview, histograms: Histograms, tracker: Tracker) -> None:
    """Ranges over the timesteps as charts, a row for each step with the histograms of at most
    MOST_STEPS of them, and the layers as a table."""
    charts = {"absmax": table.absmax, "median_range": table.median_range}
    names = [site.name for site in table.sites]
    for name, values in charts.items():
        tracker.curves(
            f"activations/{name}",
            x=table.timesteps,
            ys=dict(zip(names, values, strict=True)),
            x_name="timestep",
        )
    _log_rows(table, histograms, tracker)
    tracker.table("activations/layers", ["layer", *COLUMNS], layer_summary(table))


def _log_rows(table: Overview, histograms: Histograms, tracker: Tracker) -> None:
    steps = range(len(table.timesteps))
    shown = spaced(steps, MOST_STEPS)
    rows: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = {step: {} for step in steps}
    for number, site in enumerate(table.sites):
        edges, counts = histograms(number, steps=shown)
        for step, row in zip(shown, counts, strict=True):
            rows[step][f"histogram/{site.name}"] = row, edges
    for step, values in rows.items():
        tracker.histograms(
            values,
            scalars=_scalars(table, step),
            axis={
                "step": step,
                "sigma": float(table.sigmas[step]),
                "timestep": float(table.timesteps[step]),
            },
        )


def _scalars(table: Overview, step: int) -> dict[str, float]:
    return {
        f"absmax/{site.name}": float(value)
        for site, value in zip(table.sites, table.absmax[:, step], strict=True)
    }
