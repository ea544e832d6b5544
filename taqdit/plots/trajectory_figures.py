"""Figures and curves of the latents, the images and the selected steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.plots.drawing import Drawing
from taqdit.plots.latents import image_grid, latent_curves, selection_strip
from taqdit.plots.options import PlotOptions
from taqdit.trajectories.latents import LatentStatistics
from taqdit.trajectories.trajectory_set import TrajectorySet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADING = "Trajectories and selection"
MOST_PICTURES = 36  # in one grid


def latent_figures(
    options: PlotOptions,
    trajectories: TrajectorySet,
    found: LatentStatistics | None,
    chosen: list[list[int]],
    *,
    images: bool,
) -> Iterator[Drawing]:
    """Those that are asked for, with the `chosen` steps of each trajectory.

    Without statistics of the latents no curves of them.
    """
    wanted = options.figures
    if "image_grid" in wanted and images:
        yield _grid(trajectories)
    if "latent_curves" in wanted and found is not None:
        yield _curves(found, trajectories, chosen)
    if "selection_strip" in wanted:
        yield _strip(trajectories, chosen)


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
