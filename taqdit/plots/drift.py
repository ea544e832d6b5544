"""Where the activations change on their way: a heatmap of all sites, and the phases found in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from taqdit.analysis.drift import phase_names
from taqdit.plots.drawing import FigureKind, Of
from taqdit.plots.panels import (
    OUTSIDE,
    PLACES,
    label_rows,
    layer,
    log_ticks,
    panel_height,
    panel_title,
    panels_of,
)
from taqdit.plots.style import GREY, PAGE, VERMILLION, new_figure, step_ticks_on_top, style
from taqdit.plots.ticks import log_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

    from taqdit.analysis.drift import Drift

DECADES = 3  # that the colours span at most, down from the largest value
NOTHING = (1e-3, 1.0)  # the scale where no distance is above zero
PHASES = "phases"
STRIP = 0.17  # inches
TEXT = 0.058  # inches per character of a phase's name


def drift_heatmap(drift: Drift) -> Figure:
    """Wasserstein-1 distance between neighbouring steps of every site against sigma.

    A cell reaches from a step's sigma to the next one's. Lines: borders of the phases of all sites
    together, named in the strip on top; ticks: the borders of a row's own. Raises ValueError for
    fewer than two steps.
    """
    from matplotlib.ticker import MaxNLocator

    _check(drift)
    panels = panels_of(drift.sites, drift.distance)
    limits = _limits(drift.distance)
    with style():
        figure, strip, axes = _axes({title: len(rows) for title, (rows, _) in panels.items()})
        _phase_strip(strip, drift)
        for (title, (rows, cells)), axis in zip(panels.items(), axes, strict=True):
            mesh = _draw(axis, drift.sigmas, cells, limits)
            axis.set_title(panel_title(title, rows), loc="left")
            axis.set_xlim(*_ends(drift))
            narrow = title != OUTSIDE and len(panels) > 2
            axis.xaxis.set_major_locator(MaxNLocator(2 if narrow else 5))
            label_rows(axis, rows, named=title == OUTSIDE or axis is axes[0])
            _mark_borders(axis, drift, title, [layer(site) for site in rows])
        inches = figure.get_figheight() - 1.3
        look: dict[str, Any] = {"aspect": inches / 0.12, "pad": 0.01}
        look["extend"] = "min" if (drift.distance < limits[0]).any() else "neither"
        label = "Wasserstein-1 distance\nto the next step (site std)"
        bar = figure.colorbar(mesh, ax=axes, label=label, **look)
        bar.outline.set_visible(False)
        log_ticks(bar, limits, inches, None)
        figure.supxlabel("sigma (noise → image)", fontsize=8)
        grey = any(np.isnan(cells).any() for _, cells in panels.values())
        _explain(figure, drift, grey=grey)
    return figure


def drift_heatmap_table(drift: Drift) -> dict[str, list[Any]]:
    """A row per site and pair of neighbouring steps; whether a phase of the site, and of all sites
    together, begins at the latter. Raises ValueError for fewer than two steps."""
    _check(drift)
    steps = np.arange(1, len(drift.sigmas))
    count = len(drift.sites)
    return {
        "site": [site.name for site in drift.sites for _ in steps],
        "from_step": np.tile(steps - 1, count).tolist(),
        "to_step": np.tile(steps, count).tolist(),
        "from_sigma": np.tile(drift.sigmas[:-1], count).tolist(),
        "to_sigma": np.tile(drift.sigmas[1:], count).tolist(),
        "distance": drift.distance.ravel().tolist(),
        "border": [int(step in own) for own in drift.borders for step in steps],
        "border_of_all": np.tile(np.isin(steps, drift.phases).astype(int), count).tolist(),
    }


def border_sigmas(borders: Sequence[int], sigmas: np.ndarray) -> np.ndarray:
    """Sigma of each border: midway between the last step of a phase and the first of the next."""
    first = np.asarray(borders, dtype=int)
    return (sigmas[first - 1] + sigmas[first]) / 2


def _check(drift: Drift) -> None:
    if len(drift.sigmas) < 2:
        raise ValueError(f"drift needs two steps, not {len(drift.sigmas)}")


def _axes(rows: dict[str, int]) -> tuple[Figure, Axes, list[Axes]]:
    """A strip for the phases, the places side by side below it, then what lies outside."""
    inside = [title for title in rows if title != OUTSIDE]
    grid = [[PHASES] * max(len(inside), 1)] + ([inside] if inside else [])
    if OUTSIDE in rows:
        grid.append([OUTSIDE] * max(len(inside), 1))
    tall = np.array([panel_height(rows[titles[0]]) for titles in grid[1:]])
    tall *= max(1.6 / tall.sum(), 1)
    figure = new_figure(PAGE, STRIP + tall.sum() + 0.6 * len(grid) + 0.35)
    ratios = [STRIP, *tall]
    axes: dict[str, Axes] = figure.subplot_mosaic(cast(Any, grid), height_ratios=ratios)
    return figure, axes[PHASES], [axes[title] for title in rows]


def _ends(drift: Drift) -> tuple[float, float]:
    return float(drift.sigmas[0]), float(drift.sigmas[-1])


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Ends of the colours: at most DECADES below the largest value."""
    known = values[np.isfinite(values)]
    top = float(known.max(initial=0.0))
    if not top:
        return NOTHING
    return log_limits(np.where(known > top / 10**DECADES, known, np.nan), tight=True)


def _draw(
    axis: Axes, sigmas: np.ndarray, cells: np.ndarray, limits: tuple[float, float]
) -> QuadMesh:
    import matplotlib
    from matplotlib.colors import LogNorm

    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_facecolor(GREY)
    edges = np.arange(len(cells) + 1) - 0.5
    axis.set_ylim(edges[-1], edges[0])
    # a distance of zero has no logarithm: it takes the darkest colour
    shown = np.ma.masked_invalid(np.where(cells < limits[0], limits[0], cells))
    colours = matplotlib.colormaps["viridis"]
    return axis.pcolormesh(
        sigmas, edges, shown, cmap=colours, norm=LogNorm(*limits), rasterized=True
    )


def _phase_strip(axis: Axes, drift: Drift) -> None:
    """The phases of all sites along sigma, with as much of name and steps as fits."""
    axis.set(xlim=_ends(drift), ylim=(0, 1), xticks=[])
    axis.set_yticks([0.5], labels=["phase"])
    axis.tick_params(axis="y", length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    steps = [0, *drift.phases, len(drift.sigmas)]
    ends = [drift.sigmas[0], *border_sigmas(drift.phases, drift.sigmas), drift.sigmas[-1]]
    inches = 0.74 * PAGE / (ends[0] - ends[-1])  # per sigma
    spans = zip(phase_names(drift.phases), pairwise(ends), pairwise(steps), strict=True)
    for number, (name, (begin, end), (first, after)) in enumerate(spans):
        axis.axvspan(begin, end, color=("0.80", "0.90")[number % 2], lw=0)
        texts = (f"{name}: {_range(first, after - 1)}", name, name.removeprefix("phase "))
        room = inches * (begin - end) / TEXT
        text = next((text for text in texts if len(text) < room), "")
        axis.text((begin + end) / 2, 0.45, text, ha="center", va="center", fontsize=7)
    step_ticks_on_top(axis, drift.sigmas)


def _range(first: int, last: int) -> str:
    return f"steps {first}–{last}" if first < last else f"step {first}"


def _mark_borders(axis: Axes, drift: Drift, title: str, rows: Sequence[str]) -> None:
    """Each row's own borders as ticks as high as the row; those of all sites across all rows."""
    from matplotlib.patheffects import withStroke

    for site, borders in zip(drift.sites, drift.borders, strict=True):
        if (site.place if site.place in PLACES else OUTSIDE) == title:
            row = rows.index(layer(site))
            at = border_sigmas(borders, drift.sigmas)
            axis.vlines(at, row - 0.5, row + 0.5, color=VERMILLION, lw=1.1, zorder=3)
    for sigma in border_sigmas(drift.phases, drift.sigmas):
        line = axis.axvline(sigma, color="white", lw=0.9)
        line.set_path_effects([withStroke(linewidth=1.9, foreground="black")])


def _explain(figure: Figure, drift: Drift, *, grey: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    handles: list[Any] = []
    if drift.phases:
        look: dict[str, Any] = {"color": "white", "lw": 0.9, "label": "phase border of all sites"}
        look["path_effects"] = [withStroke(linewidth=1.9, foreground="black")]
        handles.append(Line2D([], [], **look))
    if any(drift.borders):
        look = {"color": VERMILLION, "ls": "", "marker": "|", "ms": 7, "mew": 1.2}
        handles.append(Line2D([], [], label="phase border of one site", **look))
    if grey:
        handles.append(Patch(facecolor=GREY, label="no such site or no value"))
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=3)


FIGURES = (
    FigureKind(Of.ANALYSIS,
               "How far the values of each site move from step to step, and where phases begin",
               drift_heatmap, drift_heatmap_table, lambda analysis: (analysis.drift,),
               possible=lambda analysis: analysis.drift.distance.size > 0, shared=True, order=3),
)  # fmt: skip
