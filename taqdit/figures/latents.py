"""Figures and curves of the latents, the images and the selected steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.calibration import selections
from taqdit.figures.drawing import Drawing
from taqdit.latents import LatentStatistics
from taqdit.plan import Plan
from taqdit.plots.latents import image_grid, latent_curves, selection_strip
from taqdit.tracking import Tracker
from taqdit.trajectory_set import TrajectorySet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADING = "Trajectories and selection"
MOST_PICTURES = 36  # in one grid


def latent_figures(
    plan: Plan, trajectories: TrajectorySet, found: LatentStatistics | None
) -> Iterator[Drawing]:
    """Those that the run asks for; without statistics of the latents no curves of them."""
    chosen = chosen_steps(plan, trajectories)
    wanted = plan.plots.figures
    if "image_grid" in wanted and plan.sampler.images:
        yield _grid(trajectories)
    if "latent_curves" in wanted and found is not None:
        yield _curves(found, trajectories, chosen)
    if "selection_strip" in wanted:
        yield _strip(trajectories, chosen)


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


def _curves(
    found: LatentStatistics, trajectories: TrajectorySet, chosen: list[list[int]]
) -> Drawing:
    sigmas = trajectories.sigmas
    used = sorted({step for steps in chosen for step in steps})
    table = {
        "step": np.arange(len(sigmas)),
        "sigma": sigmas,
        "mean": found.mean,
        "std": found.std,
        "min": found.low,
        "max": found.high,
        "selected": [int(step in used) for step in range(len(sigmas))],
    }
    title = "Latents against sigma: mean, spread, extremes; ticks mark the calibration steps"
    return Drawing(
        "latent_curves",
        HEADING,
        title,
        lambda: (
            latent_curves(sigmas, found.mean, found.std, found.low, found.high, selected=used),
            table,
        ),
    )


def _strip(trajectories: TrajectorySet, chosen: list[list[int]]) -> Drawing:
    pairs = [(index, step) for index, steps in enumerate(chosen) for step in steps]
    table = {
        "trajectory": [index for index, _ in pairs],
        "step": [step for _, step in pairs],
        "sigma": [trajectories.sigmas[step] for _, step in pairs],
    }
    title = "The steps that become calibration points"
    return Drawing(
        "selection_strip",
        HEADING,
        title,
        lambda: (selection_strip(trajectories.sigmas, chosen), table),
    )


def _grid(trajectories: TrajectorySet) -> Drawing:
    indices = range(min(len(trajectories), MOST_PICTURES))
    texts = [trajectories.prompts.text(index) for index in indices]

    def draw() -> tuple[Figure, dict[str, list[Any]]]:
        images = np.stack([trajectories.picture(index) for index in indices])
        return image_grid(images, texts), {"trajectory": list(indices), "prompt": texts}

    return Drawing(
        "image_grid", HEADING, "The sampled images with their prompts", draw, shared=True
    )
