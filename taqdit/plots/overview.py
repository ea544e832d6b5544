"""Figures that hold all sites side by side: their ranges over time.

They take an `Overview`: arrays (S, n) of S sites and n steps, step 0 being pure noise. Time runs
from the noise on the left to the image on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from taqdit.activations.overview import covered_share, range_share
from taqdit.plots.drawing import FigureKind, Of
from taqdit.plots.panels import OUTSIDE, PLACES, STREAMS, sites_by_place
from taqdit.plots.style import (
    BLUE,
    GREEN,
    PAGE,
    VERMILLION,
    Steps,
    mark_selected,
    new_figure,
    sigma_axis,
    step_ticks_on_top,
    style,
)
from taqdit.plots.ticks import log_limits, log_marks
from taqdit.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from taqdit.activations.overview import Overview

LINES = {"img": "-", "txt": "--", "joint": "-."}
DASHES = {"-": "solid", "--": "dashed", "-.": "dash-dotted"}
COLOURS = {"img": BLUE, "txt": VERMILLION, "joint": GREEN}
FEW_BLOCKS = 6  # so many are named in a legend; more get a colour bar


def range_vs_timestep(overview: Overview, stream: str | None = None) -> Figure:
    """Median channel range of each site against timestep: a panel per place, colour is depth.

    `stream` (img | txt | joint) keeps one stream. Raises ValueError if no site is left.
    """
    panels = sites_by_place(overview, _of_stream(overview, stream))
    blocks = _blocks(overview, panels)
    with style():
        figure, axes = _panels(list(panels))
        log = any(_decades(overview.median_range[sites]) > 2 for sites in panels.values())
        for (title, sites), axis in zip(panels.items(), axes, strict=True):
            _timestep_lines(axis, overview, sites, blocks)
            _value_axis(axis, overview.median_range[sites], log=log)
            axis.set_title(title if title in PLACES else _outside(overview, sites), loc="left")
        if len(blocks) > FEW_BLOCKS:
            _depth_bar(figure, axes, blocks)
        figure.supxlabel("timestep (noise → image)", fontsize=8)
        figure.supylabel("median channel range", fontsize=8)
        shown = np.concatenate(list(panels.values()))
        handles = _block_handles(blocks) + _stream_handles(overview, shown)
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def range_vs_sigma(overview: Overview, selected: Steps = ()) -> Figure:
    """How much of each site's range over all steps a single step has, against sigma.

    Above from minimum to maximum, below from the 1st to the 99th percentile if these are known;
    1 = this step alone sets the range. `selected` are the calibration steps: the titles say what
    they see together.
    """
    steps = np.asarray(selected, dtype=int)
    ends = {"min to max": (overview.low, overview.high), "p01 to p99": (overview.p01, overview.p99)}
    known = {name: pair for name, pair in ends.items() if np.isfinite(pair).any()}
    with style():
        figure = new_figure(PAGE, 0.9 + 1.75 * len(known))
        axes = figure.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (name, (low, high)) in zip(axes, known.items(), strict=True):
            share = range_share(low, high)
            for kind in STREAMS:
                _bundle(axis, overview.sigmas, share[overview.where(stream=kind)], kind)
            axis.set(ylim=(0, 1.04), ylabel=f"{name},\nshare of all steps' range")
            axis.set_title(_covered(overview, low, high, steps), loc="left")
            mark_selected(axis, overview.sigmas[steps])
        sigma_axis(axes[-1])
        step_ticks_on_top(axes[0], overview.sigmas)
        handles, labels = axes[0].get_legend_handles_labels()
        columns = 3 if len(handles) < 4 else 2
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    return figure


def _covered(overview: Overview, low: np.ndarray, high: np.ndarray, steps: np.ndarray) -> str:
    """What share of the range of all steps the given steps see together."""
    share = covered_share(low, high, steps)
    if not np.isfinite(share).any():
        return ""
    worst = int(np.nanargmin(share))
    return (
        f"the calibration steps cover {100 * np.nanmedian(share):.1f} % of the median site's "
        f"range, {100 * share[worst]:.1f} % at worst ({overview.sites[worst].name})"
    )


def site_table(overview: Overview, field: str, stream: str | None = None) -> dict[str, Any]:
    """A row per step, a column per site with its values of `field` (an attribute of Overview)."""
    values = getattr(overview, field)
    sites = {overview.sites[i].name: values[i] for i in _of_stream(overview, stream)}
    return {**_steps(overview), **sites}


def range_share_table(overview: Overview, selected: Steps = ()) -> dict[str, Any]:
    """A row per site and step: its shares of the range, and whether the step is selected."""
    count = len(overview.sites)
    chosen = np.isin(np.arange(len(overview.sigmas)), np.asarray(selected, dtype=int))
    steps = {**_steps(overview), "selected": chosen.astype(int)}
    return {
        "site": [site.name for site in overview.sites for _ in overview.sigmas],
        **{name: np.tile(column, count) for name, column in steps.items()},
        "min_to_max": range_share(overview.low, overview.high).ravel(),
        "p01_to_p99": range_share(overview.p01, overview.p99).ravel(),
    }


def _steps(overview: Overview) -> dict[str, np.ndarray]:
    steps = np.arange(len(overview.sigmas))
    return {"step": steps, "sigma": overview.sigmas, "timestep": overview.timesteps}


def _of_stream(overview: Overview, stream: str | None) -> np.ndarray:
    sites = overview.where(stream=stream)
    if not len(sites):
        raise ValueError(f"no site of stream {stream!r} among {len(overview.sites)}")
    return sites


def _blocks(overview: Overview, panels: Mapping[str, np.ndarray]) -> list[str]:
    """The blocks by depth."""
    sites = sorted(i for title, members in panels.items() if title != OUTSIDE for i in members)
    return list(dict.fromkeys(overview.sites[i].block for i in sites))


def _outside(overview: Overview, sites: np.ndarray) -> str:
    """Title that names the sites and how their lines look."""
    shown = [overview.sites[i] for i in sites]
    names = [f"{site.name} ({DASHES[LINES[site.stream]]})" for site in shown]
    return f"{OUTSIDE}: {', '.join(names)}"


def _panels(titles: list[str]) -> tuple[Figure, list[Axes]]:
    """Two panels side by side, what lies outside the blocks in a flat one below."""
    inside = [title for title in titles if title != OUTSIDE]
    columns = min(len(inside), 2) or 1
    inside += ["."] * (-len(inside) % columns)
    grid = [inside[i : i + columns] for i in range(0, len(inside), columns)]
    tall = [1.5] * len(grid)
    if OUTSIDE in titles:
        grid, tall = [*grid, [OUTSIDE] * columns], [*tall, 0.8]
    figure = new_figure(PAGE if columns > 1 else 4.6, sum(tall) + 0.3 * len(tall) + 0.4)
    axes: dict[str, Axes] = figure.subplot_mosaic(cast(Any, grid), height_ratios=tall)
    return figure, [axes[title] for title in titles]


def _timestep_lines(axis: Axes, overview: Overview, sites: np.ndarray, blocks: list[str]) -> None:
    colours = dict(zip(blocks, _depth_colours(len(blocks)), strict=True))
    for stream, line in LINES.items():
        rows = np.intersect1d(sites, overview.where(stream=stream))
        look = [colours.get(overview.sites[i].block, "black") for i in rows]
        _lines(axis, overview.timesteps, overview.median_range[rows], colours=look, ls=line)
    axis.set_xlim(1020, -20)


def _lines(
    axis: Axes, x: np.ndarray, rows: np.ndarray, *, colours: Any, ls: str, **look: Any
) -> None:
    """Many thin lines as one artist; dots where there is a single step."""
    from matplotlib.collections import LineCollection

    if not len(rows):
        return
    if len(x) == 1:
        axis.scatter(np.repeat(x, len(rows)), rows[:, 0], c=colours, s=12, **look)
        return
    points = np.stack([np.broadcast_to(x, rows.shape), rows], axis=2)
    axis.add_collection(LineCollection(list(points), colors=colours, ls=ls, **{"lw": 0.8, **look}))


def _bundle(axis: Axes, sigmas: np.ndarray, rows: np.ndarray, stream: str) -> None:
    """A thin line per site; their median bold, with a white edge that lifts it off them."""
    from matplotlib.patheffects import withStroke

    rows = rows[np.isfinite(rows).any(axis=1)]
    if not len(rows):
        return
    look: dict[str, Any] = {"lw": 0.5, "alpha": 0.4 if len(rows) <= 24 else 0.2}
    _lines(axis, sigmas, rows, colours=COLOURS[stream], ls=LINES[stream], **look)
    look = {"lw": 1.8, "zorder": 3, "marker": "o" if len(sigmas) == 1 else None}
    look["path_effects"] = [withStroke(linewidth=3.2, foreground="white")]
    label = f"{STREAMS[stream]}: {counted(len(rows), 'site')}, median bold"
    known = np.isfinite(rows).any(axis=0)
    median = np.full(len(sigmas), np.nan)
    median[known] = np.nanmedian(rows[:, known], axis=0)
    axis.plot(sigmas, median, LINES[stream], color=COLOURS[stream], label=label, **look)


def _value_axis(axis: Axes, values: np.ndarray, *, log: bool) -> None:
    if not log:
        top = 1.05 * values.max(initial=0, where=values > 0) or 1.0
        axis.set_ylim(-0.06 * top if (values <= 0).any() else 0, top)  # a line at 0 is seen
        return
    low, high = log_limits(values)
    marks = log_marks(low, high, most=5)
    axis.set(yscale="log", ylim=(low, high))
    axis.set_yticks(marks, labels=[f"{mark:g}" for mark in marks])
    axis.set_yticks([], minor=True)


def _decades(values: np.ndarray) -> float:
    positive = values[values > 0]
    return float(np.log10(positive.max() / positive.min())) if len(positive) else 0.0


def _depth_map() -> Colormap:
    """Dark (first block) to light (last), without the yellow that white paper swallows."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 256)))


def _depth_colours(count: int) -> np.ndarray:
    return _depth_map()(np.linspace(0, 1, count))


def _depth_bar(figure: Figure, axes: Sequence[Axes], blocks: list[str]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    depth = ScalarMappable(Normalize(0, len(blocks) - 1), _depth_map())
    bar = figure.colorbar(depth, ax=axes, aspect=40, pad=0.01, label="block")
    ticks = np.linspace(0, len(blocks) - 1, 7).round().astype(int)
    bar.set_ticks(ticks.tolist(), labels=[blocks[tick] for tick in ticks])
    bar.outline.set_visible(False)


def _block_handles(blocks: list[str]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    if len(blocks) > FEW_BLOCKS:
        return []
    colours = _depth_colours(len(blocks))
    return [Line2D([], [], color=c, label=b) for c, b in zip(colours, blocks, strict=True)]


def _stream_handles(overview: Overview, sites: np.ndarray) -> list[Line2D]:
    from matplotlib.lines import Line2D

    drawn = {overview.sites[i].stream for i in sites}
    lines = [(LINES[stream], STREAMS[stream]) for stream in STREAMS if stream in drawn]
    return [Line2D([], [], color="black", ls=line, label=label) for line, label in lines]


def _ranges(name: str, stream: str | None, whose: str, **more: Any) -> FigureKind:
    """`range_vs_timestep` of one stream, or of all."""
    return FigureKind(
        Of.ACTIVATIONS, f"Median channel range of {whose} against the timestep",
        partial(range_vs_timestep, stream=stream),
        partial(site_table, field="median_range", stream=stream),
        lambda traced: (traced.overview,), name=f"range_vs_timestep_{name}", shared=True,
        possible=lambda traced: not stream or len(traced.overview.where(stream=stream)) > 0, **more,
    )  # fmt: skip


FIGURES = (
    _ranges("all", None, "every layer", order=1, minimal=True),
    _ranges("image", "img", "the image stream", order=2),
    _ranges("text", "txt", "the text stream", order=3),
    FigureKind(
        Of.ACTIVATIONS,
        "How much of its range over all steps each layer has at one; ticks: calibration steps",
        range_vs_sigma, range_share_table,
        lambda traced: (traced.overview, traced.selected), order=4,
    ),
)  # fmt: skip
