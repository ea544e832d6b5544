"""The figures and curves of one run: tables drawn by `plots`, saved and handed to the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.calibration import selections
from taqdit.latents import LatentStatistics, latent_statistics
from taqdit.plan import Plan
from taqdit.plots.latents import image_grid, latent_curves, selection_strip
from taqdit.plots.style import save
from taqdit.store import make_folder
from taqdit.tracking import Tracker
from taqdit.trajectory import TrajectorySet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PICTURES = 36  # in one grid


def draw(plan: Plan, trajectories: TrajectorySet, folder: Path, tracker: Tracker) -> list[Path]:
    """Log the latent curves; draw, save and log the figures that the run asks for.

    Returns the files made, all below `folder/figures`.
    """
    found = latent_statistics(trajectories)
    log_curves(found, trajectories, tracker)
    chosen = chosen_steps(plan, trajectories)
    drawn = {}
    if "latent_curves" in plan.plots.figures:
        drawn["latent_curves"] = _curves(found, trajectories, chosen)
    if "selection_strip" in plan.plots.figures:
        drawn["selection_strip"] = _strip(trajectories, chosen)
    if "image_grid" in plan.plots.figures and plan.sampler.images:
        drawn["image_grid"] = _grid(trajectories)
    made: list[Path] = []
    make_folder(folder / "figures")
    for name, (figure, table) in drawn.items():
        files = save(figure, folder / "figures", name, table, formats=plan.plots.formats)
        tracker.image(f"figures/{name}", files[0])
        made += files
    return made


def log_curves(found: LatentStatistics, trajectories: TrajectorySet, tracker: Tracker) -> None:
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


def chosen_steps(plan: Plan, trajectories: TrajectorySet) -> list[list[int]]:
    """The selected steps of each trajectory."""
    chosen = selections(
        plan.select,
        num_steps=trajectories.num_steps,
        sigmas=trajectories.sigmas,
        num_trajectories=len(trajectories),
        seed=plan.sampler.seed,
    )
    return [selection.indices.tolist() for selection in chosen]


Drawing = tuple["Figure", Mapping[str, Any]]  # what is drawn, and its numbers by column


def _curves(
    found: LatentStatistics, trajectories: TrajectorySet, chosen: list[list[int]]
) -> Drawing:
    sigmas = trajectories.sigmas
    used = sorted({step for steps in chosen for step in steps})
    figure = latent_curves(sigmas, found.mean, found.std, found.low, found.high, selected=used)
    table = {
        "step": np.arange(len(sigmas)),
        "sigma": sigmas,
        "mean": found.mean,
        "std": found.std,
        "min": found.low,
        "max": found.high,
        "selected": [int(step in used) for step in range(len(sigmas))],
    }
    return figure, table


def _strip(trajectories: TrajectorySet, chosen: list[list[int]]) -> Drawing:
    figure = selection_strip(trajectories.sigmas, chosen)
    pairs = [(index, step) for index, steps in enumerate(chosen) for step in steps]
    table = {
        "trajectory": [index for index, _ in pairs],
        "step": [step for _, step in pairs],
        "sigma": [trajectories.sigmas[step] for _, step in pairs],
    }
    return figure, table


def _grid(trajectories: TrajectorySet) -> Drawing:
    indices = range(min(len(trajectories), MOST_PICTURES))
    texts = [trajectories.prompts.text(index) for index in indices]
    images = np.stack([trajectories.picture(index) for index in indices])
    return image_grid(images, texts), {"trajectory": list(indices), "prompt": texts}
