"""Are the outliers of a site a channel or a token? One figure of all sites.

A channel that is large on every token wants its own scale; a few large tokens want another remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.plots.drawing import FigureKind, Of
from taqdit.plots.panels import PLACES
from taqdit.plots.style import GREY, PAGE, new_figure, style
from taqdit.plots.ticks import log_marks
from taqdit.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

    from taqdit.activations.overview import Overview

MARKERS = dict(zip((*PLACES, "context_in", "linear_in"), "os^DPX", strict=True))
NAMED = 8  # sites
NEAR = 7  # pixels from a point to its name; further off, a line joins them


@dataclass(frozen=True, eq=False)
class _Spot:
    """A place for a name: how far from the point, on which side (-1, 0 or 1 in x and y), the lower
    left corner less the point, the text's box, the line from the point to it."""

    far: int
    side: np.ndarray
    offset: np.ndarray
    box: Bbox
    leader: Path


def outliers(overview: Overview) -> Figure:
    """Largest channel against largest token of each site, both over their median, at worst.

    Right: one channel is larger than the rest. Up: one token is. Colour: share of the tokens on
    which the top channel is large. The most extreme sites are named. Both axes are logarithmic;
    sites without finite ratios are counted, not drawn.
    """
    table = outlier_table(overview)
    points = np.stack([table["channel_ratio"], table["token_ratio"]], axis=1)
    shown = np.flatnonzero(np.isfinite(points).all(axis=1) & (points > 0).all(axis=1))
    with style():
        figure = new_figure(PAGE, 4.2)
        figure.set_layout_engine("none")  # placed by hand: names are fitted into a known frame
        axis = figure.add_axes((0.095, 0.11, 0.695, 0.86))
        _ratio_axes(axis, points[shown])
        colours = _scatter(axis, overview, points, table["large_share"], shown)
        bar = figure.colorbar(colours, cax=figure.add_axes((0.83, 0.11, 0.02, 0.45)))
        bar.set_label("share of tokens on which\nthe top channel is large")
        bar.outline.set_visible(False)
        if len(shown) < len(points):
            text = f"not drawn:\n{counted(len(points) - len(shown), 'site')} without\nfinite ratios"
            figure.text(0.815, 0.60, text, fontsize=7, va="bottom")
        extreme = sorted(shown, key=lambda i: -points[i].max())[:NAMED]
        names = [overview.sites[i].name for i in extreme]
        _name_points(axis, names, points[extreme], points[shown])
    return figure


def outlier_table(overview: Overview) -> dict[str, Any]:
    """A row per site: both ratios at their worst steps, the share at the channel's worst step."""
    sites = np.arange(len(overview.sites))
    channel, token = _worst(overview.channel_ratio), _worst(overview.token_ratio)
    return {
        "site": [site.name for site in overview.sites],
        "channel_ratio": overview.channel_ratio[sites, channel],
        "token_ratio": overview.token_ratio[sites, token],
        "large_share": overview.large_share[sites, channel],
        "channel_step": channel,
        "token_step": token,
    }


def _worst(values: np.ndarray) -> np.ndarray:
    """The step of the largest finite value of each site."""
    return np.where(np.isfinite(values), values, -np.inf).argmax(axis=1)


def _ratio_axes(axis: Axes, points: np.ndarray) -> None:
    """Logarithmic from 1 (all alike), the diagonal, and what lies on either side of it."""
    lowest = 0.9 * points.min(initial=1.0)
    ends = []
    for name, values, what in zip("xy", points.T, ("channel", "token"), strict=True):
        ends.append(2 * values.max(initial=2.0))
        marks = log_marks(lowest, ends[-1])
        label = f"top {what} / median {what} (largest absolute values, worst step)"
        axis.set(**{f"{name}scale": "log", f"{name}lim": (lowest, ends[-1]), f"{name}label": label})
        axis.set(**{f"{name}ticks": marks, f"{name}ticklabels": [f"{mark:g}" for mark in marks]})
    axis.minorticks_off()
    axis.plot([lowest, min(ends)], [lowest, min(ends)], color="0.6", lw=0.8, ls=":", zorder=1)
    look: dict[str, Any] = {"transform": axis.transAxes, "color": "0.45", "style": "italic"}
    axis.text(0.015, 0.985, "token outliers", va="top", **look)
    axis.text(0.985, 0.02, "channel outliers", ha="right", **look)


def _scatter(
    axis: Axes, overview: Overview, points: np.ndarray, share: np.ndarray, shown: np.ndarray
) -> ScalarMappable:
    """The points; returns what a colour bar needs."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    map_ = matplotlib.colormaps["viridis"].with_extremes(bad=GREY)
    colours = ScalarMappable(Normalize(0, 1), map_)
    handles = []
    for place, marker in MARKERS.items():
        rows = np.intersect1d(shown, overview.where(place=place))
        if len(rows):
            x, y = points[rows].T
            look: dict[str, Any] = {"c": share[rows], "cmap": map_, "norm": colours.norm}
            look |= {"plotnonfinite": True, "edgecolors": "black", "lw": 0.4}
            axis.scatter(x, y, s=22, marker=marker, **look)
            look = {"ls": "", "ms": 5, "mew": 0.6, "mec": "black", "mfc": "white"}
            handles.append(Line2D([], [], marker=marker, label=place, **look))
    if handles:
        axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
    return colours


def _name_points(axis: Axes, names: Sequence[str], at: np.ndarray, others: np.ndarray) -> None:
    """Write each name near its point, where it hides and crosses least."""
    frame, dots = axis.get_window_extent(), axis.transData.transform(others)
    taken = [text.get_window_extent() for text in axis.texts]
    leaders: list[Path] = []
    for name, point, centre in zip(names, at, axis.transData.transform(at), strict=True):
        probe = axis.text(0, 0, name, fontsize=7)
        spots = _spots(centre, np.array(probe.get_window_extent().size))
        probe.remove()
        spot = min(spots, key=lambda spot: _cost(spot, frame, taken, leaders, dots))
        (dx, dy), side = spot.offset * 72 / axis.figure.dpi, spot.side
        line: dict[str, Any] = {"arrowstyle": "-", "lw": 0.4, "color": "0.3", "shrinkA": 0}
        line |= {"shrinkB": 2, "relpos": tuple((1 - side) / 2)}  # from the text's nearest edge
        arrow = line if spot.far > NEAR or side.all() else None
        look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "va": "bottom"}
        axis.annotate(name, point, (dx, dy), arrowprops=arrow, **look)
        taken.append(spot.box)
        leaders.append(spot.leader)


def _spots(centre: np.ndarray, size: np.ndarray) -> list[_Spot]:
    """Places for a text of `size` around a point, in pixels."""
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

    spots = []
    for far, x, y in product((NEAR, 14, 24, 36, 50, 70, 95), (1, -1, 0), (0, 1, -1)):
        if x or y:
            side = np.array([x, y])
            offset = far * side + size * (side - 1) / 2
            box = Bbox.from_bounds(*(centre + offset), *size)
            line = Path([centre + 3 * side, centre + far * side])
            spots.append(_Spot(far, side, offset, box, line))
    return spots


def _cost(
    spot: _Spot, frame: Bbox, taken: Sequence[Bbox], leaders: Sequence[Path], dots: np.ndarray
) -> float:
    """Lower is better: in the frame, then clear of other names and lines, then of points, near."""
    box, line = spot.box.padded(2), spot.leader
    inside = frame.contains(*box.min) and frame.contains(*box.max)
    names = sum(box.overlaps(other) for other in taken)
    crossings = sum(line.intersects_bbox(other) for other in taken)
    crossings += sum(each.intersects_bbox(box) or each.intersects_path(line) for each in leaders)
    points = 10 * box.count_contains(dots) + 3 * box.padded(6).count_contains(dots)
    return 1e6 * (not inside) + 1e4 * names + 100 * crossings + points + spot.far / 4


FIGURES = (
    FigureKind(Of.ACTIVATIONS,
               "Is an outlier a channel or a few tokens? Each layer at its worst step",
               outliers, outlier_table, lambda traced: (traced.overview,),
               possible=lambda traced: traced.knows("token_ratio"), shared=True, order=10),
)  # fmt: skip
