"""Heatmaps of all sites: a row per layer, a column per step from noise (left) to image (right).

They take an `Overview`: arrays (S, n) of S sites and n steps, step 0 being pure noise. One panel
per place, all on one colour scale; image layers above text layers, each in the order of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from taqdit.plots.overview import OUTSIDE, PLACES, STREAMS, layer, sites_by_place
from taqdit.plots.style import COLUMN, GREY, PAGE, new_figure, style
from taqdit.plots.ticks import log_limits, log_marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from taqdit.overview import Overview
    from taqdit.statistics import Site

Panel = tuple[list["Site"], np.ndarray]  # a site of each row's layer, cells (rows, n)
GAUSSIAN = 3.0  # its kurtosis
LINE = 0.125  # inches that a row label takes


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
    panels = _panels(overview, values)
    with style():
        figure, axes = _axes({title: len(rows) for title, (rows, _) in panels.items()})
        for (title, (rows, cells)), axis in zip(panels.items(), axes, strict=True):
            image = _draw(axis, cells, limits, cmap=cmap, log=log)
            axis.set_title(_title(title, rows), loc="left")
            _label_steps(axis, overview.sigmas)
            _label_rows(axis, rows, named=title == OUTSIDE or axis is axes[0])
        inches = figure.get_figheight() - 0.9
        bar = figure.colorbar(image, ax=axes, label=label, aspect=inches / 0.12, pad=0.01)
        bar.outline.set_visible(False)
        if log:
            _log_ticks(bar, limits, inches, mark)
        figure.supxlabel("step, below it the sigma (noise → image)", fontsize=8)
        if any(np.isnan(cells).any() for _, cells in panels.values()):
            _explain_grey(figure)
    return figure


def _panels(overview: Overview, values: np.ndarray) -> dict[str, Panel]:
    """Panel title -> its rows. The places share their rows: NaN where a layer lacks the site."""
    sites = overview.sites
    found = sites_by_place(overview, np.arange(len(sites)))
    order = sorted(range(len(sites)), key=lambda i: list(STREAMS).index(sites[i].stream))
    rows = {layer(sites[i]): sites[i] for i in reversed(order) if sites[i].place in PLACES}
    names = list(reversed(rows))
    made: dict[str, Panel] = {}
    for title, members in found.items():
        if title == OUTSIDE:
            made[title] = [sites[i] for i in members], values[members]
        else:
            cells = np.full((len(names), values.shape[1]), np.nan)
            cells[[names.index(layer(sites[i])) for i in members]] = values[members]
            made[title] = [rows[name] for name in names], cells
    return made


def _axes(rows: Mapping[str, int]) -> tuple[Figure, list[Axes]]:
    """The places side by side; what lies outside the blocks in a strip below."""
    inside = [title for title in rows if title != OUTSIDE]
    grid = [inside] if inside else []
    if OUTSIDE in rows:
        grid.append([OUTSIDE] * max(len(inside), 1))
    tall = [_height(rows[titles[0]]) for titles in grid]
    width = PAGE if len(inside) > 1 or OUTSIDE in rows else COLUMN
    figure = new_figure(width, max(sum(tall), 1.3) + 0.6 * len(grid) + 0.35)
    axes: dict[str, Axes] = figure.subplot_mosaic(cast(Any, grid), height_ratios=tall)
    return figure, [axes[title] for title in rows]


def _height(rows: int) -> float:
    """Inches of a panel."""
    return min(max(0.16 * rows, 0.32), 3.8)


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


def _log_ticks(
    bar: Colorbar, limits: tuple[float, float], inches: float, mark: float | None
) -> None:
    """Plain numbers beside the colour bar, the marked value named and given room."""
    low, high = limits
    ticks = log_marks(low, high, most=max(2, int(4 * inches)))
    labels = [f"{tick:g}" for tick in ticks]
    if mark is not None:
        room = LINE / inches * np.log10(high / low)
        ticks = [mark, *(tick for tick in ticks if abs(np.log10(tick / mark)) > room)]
        labels = [f"{mark:g}: Gaussian", *(f"{tick:g}" for tick in ticks[1:])]
        bar.ax.axhline(mark, color="white", lw=2.4)
        bar.ax.axhline(mark, color="black", lw=0.8)
    bar.set_ticks(ticks, labels=labels)
    bar.minorticks_off()


def _label_steps(axis: Axes, sigmas: np.ndarray) -> None:
    steps = np.unique(np.linspace(0, len(sigmas) - 1, 4).round().astype(int))
    axis.set_xticks(steps, labels=[f"{step}\n{sigmas[step]:.2f}" for step in steps])


def _title(title: str, sites: list[Site]) -> str:
    return f"{title}: {', '.join(site.name for site in sites)}" if title == OUTSIDE else title


def _label_rows(axis: Axes, sites: list[Site], *, named: bool) -> None:
    """As many names as fit, from the first of each stream; a white line between the streams."""
    stride = int(np.ceil(LINE * len(sites) / _height(len(sites))))
    streams = [site.stream for site in sites]
    begins = [i for i in range(len(sites)) if i == 0 or streams[i] != streams[i - 1]]
    shown: list[int] = []
    for begin, end in pairwise([*begins, len(sites)]):
        shown += range(begin, max(end - stride, begin) + 1, stride)
    axis.set_yticks(shown if named else [], labels=[layer(sites[i]) for i in shown if named])
    for begin in begins[1:]:
        axis.axhline(begin - 0.5, color="white", lw=1.5)


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
