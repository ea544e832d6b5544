"""Heatmaps of all sites: a row per layer, a column per step from noise (left) to image (right).

They take an `Overview`: arrays (S, n) of S sites and n steps, step 0 being pure noise. One panel
per place, all on one colour scale; image layers above text layers, each in the order of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from taqdit.plots.drawing import FigureKind, Of
from taqdit.plots.overview import site_table
from taqdit.plots.panels import OUTSIDE, label_rows, log_ticks, panel_height, panel_title, panels_of
from taqdit.plots.style import COLUMN, GREY, PAGE, new_figure, style
from taqdit.plots.ticks import log_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from taqdit.activations.overview import Overview

GAUSSIAN = 3.0  # its kurtosis


def heatmap_mean(overview: Overview) -> Figure:
    """Median over channels of the channel mean: red above zero, blue below."""
    top = _largest(np.abs(overview.mean))
    return _heatmap(overview, overview.mean, (-top, top), "median channel mean", cmap="RdBu_r")


def heatmap_std(overview: Overview) -> Figure:
    """Median over channels of the channel's standard deviation."""
    return _heatmap(overview, overview.std, (0.0, _largest(overview.std)), "median channel std")


def negative_fraction_heatmap(overview: Overview) -> Figure:
    """Share of values below zero, counted exactly."""
    return _heatmap(overview, overview.negative, (0.0, 1.0), "share of values below zero")


def absmax_heatmap(overview: Overview) -> Figure:
    """Largest absolute value, on a logarithmic scale."""
    values = _positive(overview.absmax)
    return _heatmap(
        overview, values, log_limits(values, tight=True), "largest absolute value", log=True
    )


def kurtosis_heatmap(overview: Overview) -> Figure:
    """Kurtosis on a logarithmic scale; the colour bar marks a Gaussian's."""
    values = _positive(overview.kurtosis)
    low, high = log_limits(values, tight=True)
    limits = min(low, 2.0), max(high, 10.0)
    return _heatmap(overview, values, limits, "kurtosis", log=True, mark=GAUSSIAN)


def _heatmap(
    overview: Overview,
    values: np.ndarray,
    limits: tuple[float, float],
    label: str,
    *,
    cmap: str = "viridis",
    log: bool = False,
    mark: float | None = None,
) -> Figure:
    """Values (S, n) as cells, grey where there is none; `mark` is a line in the colour bar."""
    panels = panels_of(overview.sites, values)
    with style():
        figure, axes = _axes({title: len(rows) for title, (rows, _) in panels.items()})
        for (title, (rows, cells)), axis in zip(panels.items(), axes, strict=True):
            image = _draw(axis, cells, limits, cmap=cmap, log=log)
            axis.set_title(panel_title(title, rows), loc="left")
            _label_steps(axis, overview.sigmas)
            label_rows(axis, rows, named=title == OUTSIDE or axis is axes[0])
        inches = figure.get_figheight() - 0.9
        bar = figure.colorbar(image, ax=axes, label=label, aspect=inches / 0.12, pad=0.01)
        bar.outline.set_visible(False)
        if log:
            log_ticks(bar, limits, inches, mark)
        figure.supxlabel("step, below it the sigma (noise → image)", fontsize=8)
        if any(np.isnan(cells).any() for _, cells in panels.values()):
            _explain_grey(figure)
    return figure


def _axes(rows: Mapping[str, int]) -> tuple[Figure, list[Axes]]:
    """The places side by side; what lies outside the blocks in a strip below."""
    inside = [title for title in rows if title != OUTSIDE]
    grid = [inside] if inside else []
    if OUTSIDE in rows:
        grid.append([OUTSIDE] * max(len(inside), 1))
    tall = [panel_height(rows[titles[0]]) for titles in grid]
    width = PAGE if len(inside) > 1 or OUTSIDE in rows else COLUMN
    figure = new_figure(width, max(sum(tall), 1.3) + 0.6 * len(grid) + 0.35)
    axes: dict[str, Axes] = figure.subplot_mosaic(cast(Any, grid), height_ratios=tall)
    return figure, [axes[title] for title in rows]


def _draw(
    axis: Axes, cells: np.ndarray, limits: tuple[float, float], *, cmap: str, log: bool
) -> AxesImage:
    import matplotlib
    from matplotlib.colors import LogNorm, Normalize

    colours = matplotlib.colormaps[cmap].with_extremes(bad=GREY)
    norm = LogNorm(*limits) if log else Normalize(*limits)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return axis.imshow(cells, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")


def _label_steps(axis: Axes, sigmas: np.ndarray) -> None:
    steps = np.unique(np.linspace(0, len(sigmas) - 1, 4).round().astype(int))
    axis.set_xticks(steps, labels=[f"{step}\n{sigmas[step]:.2f}" for step in steps])


def _explain_grey(figure: Figure) -> None:
    from matplotlib.patches import Patch

    handle = Patch(facecolor=GREY, label="no such site or no value")
    figure.legend(handles=[handle], loc="outside upper right")


def _positive(values: np.ndarray) -> np.ndarray:
    """NaN where a logarithmic scale has no place."""
    return np.where(values > 0, values, np.nan)


def _largest(values: np.ndarray) -> float:
    """The largest finite value, 1 if there is none above zero."""
    return float(max(values[np.isfinite(values)], default=0.0)) or 1.0


def _kind(figure: Callable[[Overview], Figure], field: str, caption: str, order: int) -> FigureKind:
    """A heatmap of that field of an Overview."""
    return FigureKind(
        Of.ACTIVATIONS, caption, figure, partial(site_table, field=field),
        lambda traced: (traced.overview,), possible=lambda traced: traced.knows(field),
        shared=True, order=order,
    )  # fmt: skip


FIGURES = (
    _kind(absmax_heatmap, "absmax", "Largest magnitude by layer and step", 5),
    _kind(heatmap_mean, "mean", "Mean, median over channels, by layer and step", 6),
    _kind(heatmap_std, "std", "Standard deviation, median over channels, by layer and step", 7),
    _kind(negative_fraction_heatmap, "negative", "Share of values below zero by layer and step", 8),
    _kind(kurtosis_heatmap, "kurtosis",
          "Kurtosis by layer and step: how heavy the tails are (3 for a Gaussian)", 9),
)  # fmt: skip
