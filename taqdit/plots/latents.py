"""Figures of the latents, the pictures and the selected timesteps.

Shapes: a trajectory of n model evaluations has n + 1 latents, sigmas run from 1 (noise) to 0.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.plots.drawing import FigureKind, Of, Sampled
from taqdit.plots.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    PAGE,
    PURPLE,
    VERMILLION,
    Steps,
    integer_ticks,
    mark_selected,
    new_figure,
    same_length,
    sigma_axis,
    step_ticks_on_top,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from taqdit.trajectories.latents import LatentStatistics

MOST_PICTURES = 36  # in one grid


def latent_curves(sigmas: np.ndarray, latents: LatentStatistics, selected: Steps = ()) -> Figure:
    """Mean, spread and extremes of the latents against sigma, noise on the left, image right.

    All arrays are (n + 1,); `selected` are the steps that become calibration points.
    """
    mean, std, low, high = latents.mean, latents.std, latents.low, latents.high
    same_length(sigmas=sigmas, mean=mean, std=std, low=low, high=high)
    with style():
        figure = new_figure(COLUMN, 3.6)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        upper.fill_between(
            sigmas, mean - std, mean + std, color=BLUE, alpha=0.2, lw=0, label="mean ± std"
        )
        upper.plot(sigmas, mean, color=BLUE, label="mean")
        upper.plot(sigmas, high, color=VERMILLION, ls="--", lw=0.9, label="max")
        upper.plot(sigmas, low, color=PURPLE, ls=":", label="min")
        upper.set_ylabel("latent value")
        lower.plot(sigmas, std, color=GREEN, ls="-", label="std")
        lower.set_ylabel("latent std")
        lower.set_ylim(bottom=0)
        mark_selected(lower, sigmas[np.asarray(selected, dtype=int)])
        sigma_axis(lower)
        step_ticks_on_top(upper, sigmas)
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def latent_curves_table(
    sigmas: np.ndarray, latents: LatentStatistics, selected: Steps = ()
) -> dict[str, Any]:
    """A row per latent."""
    steps = np.arange(len(sigmas))
    return {
        "step": steps,
        "sigma": sigmas,
        "mean": latents.mean,
        "std": latents.std,
        "min": latents.low,
        "max": latents.high,
        "selected": np.isin(steps, np.asarray(selected, dtype=int)).astype(int),
    }


def image_grid(
    images: np.ndarray, captions: Sequence[str], *, columns: int | None = None
) -> Figure:
    """The images (N, H, W, 3) uint8 in reading order, each above its caption."""
    same_length(images=images, captions=captions)
    columns = columns or min(len(images), 4 if len(images) <= 16 else 5 if len(images) <= 25 else 6)
    each, gap, size = PAGE / max(columns, 4), 0.08, 7.0
    texts = [_wrapped(text, width=72 * (each - gap), size=size) for text in captions]
    tall = (each - gap) * images.shape[1] / images.shape[2]
    below = 0.12 * max(text.count("\n") + 1 for text in texts) + 0.16
    width, height = each * columns, (tall + below) * -(-len(images) // columns) + gap
    with style():
        figure = new_figure(width, height)
        figure.set_layout_engine("none")  # placed by hand: every picture alike, no caption cut
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            x = (i % columns) * each + gap / 2
            y = height - gap / 2 - (i // columns) * (tall + below) - tall
            box = (x / width, y / height, (each - gap) / width, tall / height)
            axis = figure.add_axes(box, xticks=[], yticks=[])
            axis.imshow(image)
            axis.set_xlabel(text, fontsize=size, parse_math=False)
            axis.spines[:].set(visible=True, color=GREY)  # or a white image has no edge
    return figure


def image_grid_table(images: np.ndarray, captions: Sequence[str]) -> dict[str, Any]:
    """A row per image."""
    return {"trajectory": list(range(len(images))), "prompt": captions}


def selection_strip(sigmas: np.ndarray, steps_per_trajectory: Sequence[Steps]) -> Figure:
    """Which steps become calibration points: a row per trajectory (one for all if they agree) over
    the step; below, how many points each sigma gets.

    `sigmas` is (n + 1,), steps lie in 0 .. n - 1.
    """
    chosen = _chosen(steps_per_trajectory, num_steps=len(sigmas) - 1)
    alike = bool((chosen == chosen[0]).all())
    rows = chosen[:1] if alike else chosen
    tall = 0.3 if alike else min(2.6, 0.3 + 0.13 * len(rows))
    with style():
        figure = new_figure(PAGE, tall + 1.6)
        by_step, by_sigma = figure.subplots(2, 1, height_ratios=(tall, 0.5))
        _draw_cells(by_step, rows)
        if alike:
            by_step.set(ylabel="", yticks=[0], yticklabels=["all"])
        counts = chosen.sum(axis=0)
        used = np.flatnonzero(counts)
        by_sigma.vlines(sigmas[used], 0, counts[used], color=BLUE, lw=1.2)
        by_sigma.set(ylabel="points", ylim=(0, 1.1 * counts.max()))
        integer_ticks(by_sigma.yaxis, 3)
        sigma_axis(by_sigma)
        points = f"{counts.sum():,} points from {len(chosen):,} trajectories"
        by_step.set_title(f"{points}, {len(used)} of {len(counts)} steps used", loc="left")
    return figure


def selection_strip_table(
    sigmas: np.ndarray, steps_per_trajectory: Sequence[Steps]
) -> dict[str, list[Any]]:
    """A row per calibration point."""
    points = [(index, step) for index, steps in enumerate(steps_per_trajectory) for step in steps]
    return {
        "trajectory": [index for index, _ in points],
        "step": [step for _, step in points],
        "sigma": [sigmas[step] for _, step in points],
    }


def _chosen(steps_per_trajectory: Sequence[Steps], *, num_steps: int) -> np.ndarray:
    """(trajectories, num_steps) bool."""
    if not len(steps_per_trajectory):
        raise ValueError("a selection strip needs at least one trajectory")
    rows = np.zeros((len(steps_per_trajectory), num_steps), dtype=bool)
    for row, steps in zip(rows, steps_per_trajectory, strict=True):
        row[np.asarray(steps, dtype=int)] = True
    return rows


def _draw_cells(axis: Axes, rows: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    height, width = rows.shape
    colours = ListedColormap([GREY, BLUE])
    axis.imshow(rows, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.grid(False)
    if max(height, width) <= 120:  # white lines between the cells
        axis.set_xticks(np.arange(1, width) - 0.5, minor=True)
        axis.set_yticks(np.arange(1, height) - 0.5, minor=True)
        axis.grid(which="minor", color="white", lw=0.5)
        axis.tick_params(which="minor", length=0)
    axis.set(xlabel="step", ylabel="trajectory")
    integer_ticks(axis.xaxis, 10)
    integer_ticks(axis.yaxis, 8)


def _wrapped(caption: str, *, width: float, size: float, lines: int = 4) -> str:
    """The caption broken into at most `lines` lines of `width` points; an ellipsis if cut."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size)

    def too_wide(text: str) -> bool:
        return text_to_path.get_text_width_height_descent(text, font, False)[0] > width

    def room(text: str) -> int:
        """How many characters of `text` fit on one line."""
        most = range(1, min(len(text), 200) + 1)
        return bisect_left(most, True, key=lambda count: too_wide(text[:count]))

    broken, rest = [""], " ".join(caption.split())
    while rest and len(broken) <= lines:
        end = room(rest)
        if end < len(rest):
            end = max(rest.rfind(" ", 0, end + 1), 0) or max(end, 1)  # or inside a long word
        broken.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest:
        last = broken[-1][: room(broken[-1] + " …") - 2]
        broken[-1] = (last if last == broken[-1] else last.rsplit(" ", 1)[0].rstrip()) + " …"
    return "\n".join(broken[1:])


def _curves(sampled: Sampled) -> tuple[np.ndarray, LatentStatistics | None, list[int]]:
    selected = sorted({step for steps in sampled.chosen for step in steps})
    return sampled.trajectories.sigmas, sampled.latents, selected


def _pictures(sampled: Sampled) -> tuple[np.ndarray, list[str]]:
    trajectories = sampled.trajectories
    indices = range(min(len(trajectories), MOST_PICTURES))
    texts = [trajectories.prompts.text(index) for index in indices]
    return np.stack([trajectories.picture(index) for index in indices]), texts


FIGURES = (
    FigureKind(Of.TRAJECTORIES, "The sampled images with their prompts",
               image_grid, image_grid_table, _pictures,
               possible=lambda sampled: sampled.images, shared=True, order=1, minimal=True),
    FigureKind(Of.TRAJECTORIES,
               "Latents against sigma: mean, spread, extremes; ticks mark the calibration steps",
               latent_curves, latent_curves_table, _curves,
               possible=lambda sampled: sampled.latents is not None, order=2, minimal=True),
    FigureKind(Of.TRAJECTORIES, "The steps that become calibration points",
               selection_strip, selection_strip_table,
               lambda sampled: (sampled.trajectories.sigmas, sampled.chosen), order=3),
)  # fmt: skip
