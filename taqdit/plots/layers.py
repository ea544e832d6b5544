"""Figures of one layer's values over time: histograms and ridges.

A table has n steps, from noise (step 0) to image. `steps` are drawn in the order of time, whatever
order they come in; none, or one outside 0 .. n - 1, is a ValueError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from taqdit.plots.distribution import BINS, distribution, distribution_table, number
from taqdit.plots.drawing import FigureKind, Of, TracedLayer
from taqdit.plots.style import (
    BLUE,
    COLUMN,
    DARK,
    PAGE,
    PURPLE,
    VERMILLION,
    Steps,
    new_figure,
    sigmas_on_top,
    steps_below,
    style,
)
from taqdit.words import spaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from taqdit.activations.overview import LayerTable

PANELS, RIDGES = 12, 16  # steps that one figure shows at most


def histogram_panels(table: LayerTable, steps: Steps) -> Figure:
    """One panel per step in reading order: how many values fall into each bin, on a log axis.

    All panels share both axes and the bins, which are equally wide as drawn; dotted and dashed
    lines are the exact extremes. Meant for up to 12 steps.
    """
    drawn = distribution(table, steps)
    count = len(drawn.steps)
    columns = count if count <= 4 else min((4, 3), key=lambda each: -count % each)
    rows = -(-count // columns)
    with style():
        figure = new_figure(PAGE if count > 1 else COLUMN, 0.7 + 1.15 * rows)
        grid = _panels(figure, rows, columns)
        drawn.scale.apply(grid[0].xaxis, most=6)
        grid[0].set(yscale="log", ylim=(0.2, max(10, 2 * drawn.counts.max())))
        grid[0].yaxis.minorticks_off()
        for i, (axis, step) in enumerate(zip(grid, drawn.steps, strict=False)):
            axis.stairs(drawn.counts[i], drawn.edges, fill=True, color=BLUE)
            axis.axvline(drawn.low[i], color=PURPLE, ls=":", lw=0.9, label="min")
            axis.axvline(drawn.high[i], color=VERMILLION, ls="--", lw=0.9, label="max")
            time = f"step {step} · t {table.timesteps[step]:.4g} · σ {table.sigmas[step]:.3g}"
            ends = f"{number(drawn.low[i])} … {number(drawn.high[i])}"
            axis.set_title(f"{time}\n{ends}", fontsize=7, y=1)  # the height given: much faster
            axis.tick_params("x", labelbottom=i >= count - columns, labelsize=6)
        for axis in grid[count:]:
            axis.remove()
        wide, tall = figure.get_size_inches()
        figure.supxlabel(f"activation {drawn.scale.note}".rstrip(), size=8, y=0.05 / tall)
        figure.supylabel(f"values per bin\n({BINS} equally wide bins)", size=8, x=0.05 / wide)
        order = ", noise → image in reading order" if count > 1 else ""
        _headline(figure, f"{table.site.name}{order}", grid[0])
    return figure


def ridgeline(table: LayerTable, steps: Steps) -> Figure:
    """The distribution over time, left to right: one ridge per step, its height the log of the
    values per bin; a thin line from minimum to maximum, a thick one over the central 98 %.

    Bins are equally wide as drawn. Up to 16 steps stay readable.
    """
    drawn = distribution(table, steps)
    heights = np.log10(1 + drawn.counts)
    heights *= 0.9 / (heights.max() or 1.0)
    places = np.arange(len(drawn.steps))
    with style():
        figure = new_figure(PAGE, 2.9)
        axis = figure.subplots()
        drawn.scale.apply(axis.yaxis, most=14)
        for place, height in zip(places, heights, strict=True):
            ends = place + height
            axis.stairs(
                ends, drawn.edges, baseline=place, orientation="horizontal", fill=True, color=BLUE
            )
        axis.vlines(places, drawn.low, drawn.high, color=DARK, lw=0.6, label="min … max")
        axis.vlines(places, drawn.p01, drawn.p99, color="black", lw=1.6, label="central 98 %")
        axis.set(xlim=(-0.2, len(places)), ylabel=f"activation\n{drawn.scale.note}".rstrip())
        steps_below(axis, places, drawn.steps)
        sigmas_on_top(axis, places, table.sigmas[drawn.steps])
        _headline(figure, f"{table.site.name}, width of a ridge: log of the values per bin", axis)
    return figure


def _panels(figure: Figure, rows: int, columns: int) -> np.ndarray:
    """Axes (rows * columns,), margins in inches: the layout engine takes a second for twelve."""
    wide, tall = figure.get_size_inches()
    margins = {"left": 0.68 / wide, "right": 1 - 0.06 / wide, "wspace": 0.1}
    margins |= {"bottom": 0.42 / tall, "top": 1 - 0.6 / tall, "hspace": 0.62}
    figure.set_layout_engine("none")
    axes = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=margins
    )
    return axes.ravel()


def _headline(figure: Figure, text: str, axis: Axes) -> None:
    """What the figure shows, and beside it what the lines of `axis` mean."""
    figure.suptitle(text, x=0.01, ha="left", size=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2)


def _selected(layer: TracedLayer) -> tuple[LayerTable, list[int]]:
    """The calibration steps, all steps if there are none; not too many."""
    return layer.table, spaced(layer.selected or range(len(layer.table.sigmas)), PANELS)


def _over_time(layer: TracedLayer) -> tuple[LayerTable, list[int]]:
    return layer.table, spaced(range(len(layer.table.sigmas)), RIDGES)


FIGURES = (
    FigureKind(Of.LAYER, "Distribution at the calibration steps of",
               histogram_panels, distribution_table, _selected, name="histogram", order=1),
    FigureKind(Of.LAYER, "Distribution over time of",
               ridgeline, distribution_table, _over_time, shared=True, order=2),
)  # fmt: skip
