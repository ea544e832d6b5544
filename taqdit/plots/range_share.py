"""How much of each site's range over all steps a single step has, and the calibration steps have.

They take an `Overview`: arrays (S, n) of S sites and n steps, step 0 being pure noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.activations.overview import covered_share, range_share
from taqdit.plots.kinds import FigureKind, Of
from taqdit.plots.overview import COLOURS, LINES, STREAMS, counted, step_columns, thin_lines
from taqdit.plots.style import (
    PAGE,
    Steps,
    mark_selected,
    new_figure,
    sigma_axis,
    step_ticks_on_top,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from taqdit.activations.overview import Overview


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


def range_share_table(overview: Overview, selected: Steps = ()) -> dict[str, Any]:
    """A row per site and step: its shares of the range, and whether the step is selected."""
    count = len(overview.sites)
    chosen = np.isin(np.arange(len(overview.sigmas)), np.asarray(selected, dtype=int))
    steps = {**step_columns(overview), "selected": chosen.astype(int)}
    return {
        "site": [site.name for site in overview.sites for _ in overview.sigmas],
        **{name: np.tile(column, count) for name, column in steps.items()},
        "min_to_max": range_share(overview.low, overview.high).ravel(),
        "p01_to_p99": range_share(overview.p01, overview.p99).ravel(),
    }


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


def _bundle(axis: Axes, sigmas: np.ndarray, rows: np.ndarray, stream: str) -> None:
    """A thin line per site; their median bold, with a white edge that lifts it off them."""
    from matplotlib.patheffects import withStroke

    rows = rows[np.isfinite(rows).any(axis=1)]
    if not len(rows):
        return
    look: dict[str, Any] = {"lw": 0.5, "alpha": 0.4 if len(rows) <= 24 else 0.2}
    thin_lines(axis, sigmas, rows, colours=COLOURS[stream], ls=LINES[stream], **look)
    look = {"lw": 1.8, "zorder": 3, "marker": "o" if len(sigmas) == 1 else None}
    look["path_effects"] = [withStroke(linewidth=3.2, foreground="white")]
    label = f"{STREAMS[stream]}: {counted(len(rows), 'site')}, median bold"
    known = np.isfinite(rows).any(axis=0)
    median = np.full(len(sigmas), np.nan)
    median[known] = np.nanmedian(rows[:, known], axis=0)
    axis.plot(sigmas, median, LINES[stream], color=COLOURS[stream], label=label, **look)


FIGURES = (
    FigureKind(
        "range_vs_sigma",
        Of.ACTIVATIONS,
        "How much of its range over all steps each layer has at one; ticks: calibration steps",
        range_vs_sigma,
        range_share_table,
        arguments=lambda traced: (traced.overview, traced.selected),
        order=4,
    ),
)
