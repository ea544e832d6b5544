"""Panels of all sites, one per place; in a heatmap a row per layer: rows, heights and labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from taqdit.plots.ticks import log_marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar

    from taqdit.activations import Site
    from taqdit.activations.overview import Overview

PLACES = ("qkv_in", "o_in", "fc1_in", "post_gelu")  # in the order of a block's forward
OUTSIDE = "outside the blocks"
STREAMS = {"img": "image", "txt": "text", "joint": "image and text"}
Panel = tuple[list["Site"], np.ndarray]  # a site of each row's layer, cells (rows, n)
LINE = 0.125  # inches that a row label takes


def sites_by_place(overview: Overview, sites: np.ndarray) -> dict[str, np.ndarray]:
    """Title of a panel -> its sites: a panel per place, one for what lies outside the blocks."""
    panels = {place: np.intersect1d(sites, overview.where(place=place)) for place in PLACES}
    panels[OUTSIDE] = np.setdiff1d(sites, np.concatenate(list(panels.values())))
    return {title: members for title, members in panels.items() if len(members)}


def panels_of(sites: Sequence[Site], values: np.ndarray) -> dict[str, Panel]:
    """Title -> its rows of `values` (S, n), image layers above text layers.

    A panel per place, which share their rows (NaN where a layer lacks the site), and one for what
    lies outside the blocks.
    """
    order = sorted(range(len(sites)), key=lambda i: list(STREAMS).index(sites[i].stream))
    rows = {layer(sites[i]): sites[i] for i in reversed(order) if sites[i].place in PLACES}
    names = list(reversed(rows))
    panels: dict[str, Panel] = {}
    for place in PLACES:
        cells = np.full((len(names), values.shape[1]), np.nan)
        members = [i for i in order if sites[i].place == place]
        cells[[names.index(layer(sites[i])) for i in members]] = values[members]
        if members:
            panels[place] = [rows[name] for name in names], cells
    outside = [i for i in range(len(sites)) if sites[i].place not in PLACES]
    if outside:
        panels[OUTSIDE] = [sites[i] for i in outside], values[outside]
    return panels


def layer(site: Site) -> str:
    """The site's name without its place: `mm_07_img`, `uni_03`, `embed`."""
    return site.name.rpartition(".")[0]


def panel_height(rows: int) -> float:
    """Inches of a panel with so many rows."""
    return min(max(0.16 * rows, 0.32), 3.8)


def panel_title(title: str, sites: list[Site]) -> str:
    """What lies outside the blocks is named."""
    return f"{title}: {', '.join(site.name for site in sites)}" if title == OUTSIDE else title


def label_rows(axis: Axes, sites: list[Site], *, named: bool) -> None:
    """As many names as fit, from the first of each stream; a white line between the streams."""
    stride = int(np.ceil(LINE * len(sites) / panel_height(len(sites))))
    streams = [site.stream for site in sites]
    begins = [i for i in range(len(sites)) if i == 0 or streams[i] != streams[i - 1]]
    shown: list[int] = []
    for begin, end in pairwise([*begins, len(sites)]):
        shown += range(begin, max(end - stride, begin) + 1, stride)
    axis.set_yticks(shown if named else [], labels=[layer(sites[i]) for i in shown if named])
    for begin in begins[1:]:
        axis.axhline(begin - 0.5, color="white", lw=1.5)


def log_ticks(
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
