"""Figures of one layer's channels: how wide the range of each is, and how large it is over time.

A table has n steps, from noise (step 0) to image, and C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from taqdit.activations.overview import top_channels
from taqdit.plots.drawing import FigureKind, Of
from taqdit.plots.style import (
    BLUE,
    DARK,
    GREY,
    PAGE,
    VERMILLION,
    integer_ticks,
    new_figure,
    sigmas_on_top,
    steps_below,
    style,
)
from taqdit.plots.ticks import log_limits, log_marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from taqdit.activations.overview import LayerTable

ALL_ROWS, MOST_ROWS, NAMED_ROWS = 256, 128, 16  # of channel_time
NAMED_BARS, BARS_WIDTH = 6, 4.6 * 72  # of channel_ranges; points, a little less than it comes to


def channel_ranges(table: LayerTable) -> Figure:
    """Left: a bar per channel, max - min over all steps, the top 2 % in red, the largest named.

    Right: the same numbers sorted, to see how heavy the tail is.
    """
    ranges, top = _channel_ranges(table)
    channels = len(ranges)
    scale, limits = _range_axis(ranges)
    with style():
        figure = new_figure(PAGE, 2.3)
        bars, ranks = figure.subplots(1, 2, sharey=True, width_ratios=(3.4, 1))
        bars.set(yscale=scale, ylim=limits, xlim=(-0.5, channels - 0.5))
        wide = min(0.8 * BARS_WIDTH / channels, 8.0)
        rest = np.setdiff1d(np.arange(channels), top)
        for which, colour, least in ((rest, BLUE, 0.35), (top, VERMILLION, 0.6)):
            x, y = _upright(which, limits[0], ranges[which])
            (line,) = bars.plot(x, y, color=colour, lw=max(wide, least), solid_capstyle="butt")
            line.set(rasterized=channels > ALL_ROWS)
        bars.set(xlabel="channel", ylabel="max − min over all steps")
        red = f"top 2 % ({len(top):,} of {channels:,}) in red"
        title = red if ranges.any() else f"all {channels:,} channels constant"
        bars.set_title(f"{table.site.name}, {title}", loc="left")
        bars.grid(axis="x", visible=False)
        integer_ticks(bars.xaxis, 8)
        _name_bars(bars, ranges, top[:NAMED_BARS])
        falling, rank = np.sort(ranges)[::-1], np.arange(1, channels + 1)
        ranks.plot(rank, falling, color=BLUE)
        ranks.plot(rank[: len(top)], falling[: len(top)], color=VERMILLION, lw=2)
        ranks.axhline(np.median(ranges), color=DARK, ls="--", lw=0.6, label="median")
        ranks.set(xscale="log", xlim=(0.8, 1.25 * channels), xlabel="rank")
        ranks.legend(loc="upper right")
    return figure


def channel_range_table(table: LayerTable) -> dict[str, np.ndarray]:
    """A row per channel: extremes over all steps, their distance, whether it is drawn in red."""
    ranges, top = _channel_ranges(table)
    channels = np.arange(len(ranges))
    low, high = table.low.min(axis=0), table.high.max(axis=0)
    red = np.isin(channels, top).astype(int)
    return {"channel": channels, "min": low, "max": high, "range": ranges, "top": red}


def channel_time(table: LayerTable) -> Figure:
    """Heatmap of max |value| per channel and step, time left to right, largest channel on top.

    Above the 16 largest channels, each named; below the others, in all up to 256 channels, of a
    wider layer the 128 largest. Colours are logarithmic; zero is grey.
    """
    from matplotlib.colors import LogNorm

    rows, cells = _largest_channels(table)
    parts = [part for part in np.split(np.arange(len(rows)), [NAMED_ROWS]) if len(part)]
    tall = [0.115 * len(parts[0]), 2.0][: len(parts)]
    low, high = log_limits(cells)
    low = max(low, high / 1e5)
    with style():
        figure = new_figure(PAGE, 1.1 + sum(tall))
        axes = figure.subplots(len(parts), 1, sharex=True, squeeze=False, height_ratios=tall)[:, 0]
        for axis, part in zip(axes, parts, strict=True):
            shown = np.ma.masked_less_equal(cells[part], 0)
            colours = LogNorm(low, high)
            image = axis.imshow(shown, norm=colours, aspect="auto", interpolation="nearest")
            axis.set_facecolor(GREY)
            axis.grid(False)
            named = np.arange(0, len(part), 1 if axis is axes[0] else -(-len(part) // 16))
            axis.set_yticks(named, labels=[str(rows[part[row]]) for row in named])
        axes[-1].set_ylabel("channel" if len(parts) == 1 else f"the next {len(parts[1])}")
        if len(parts) > 1:
            axes[0].set_ylabel(f"{NAMED_ROWS} largest channels")
        label = "max |value|" if cells.all() else "max |value| (grey: 0)"
        bar = figure.colorbar(image, ax=axes, label=label, aspect=40, pad=0.01)
        marks = log_marks(low, high)
        bar.set_ticks(marks, labels=[f"{mark:g}" for mark in marks])
        bar.minorticks_off()
        steps = np.unique((np.linspace(0, cells.shape[1] - 1, 11) + 0.5).astype(int))
        steps_below(axes[-1], steps, steps)
        sigmas_on_top(axes[0], steps, table.sigmas[steps])
        figure.suptitle(table.site.name, x=0.01, ha="left", size=8)
    return figure


def channel_time_table(table: LayerTable) -> dict[str, np.ndarray]:
    """A row per drawn channel, from the largest on, and step."""
    rows, cells = _largest_channels(table)
    step = np.tile(np.arange(cells.shape[1]), len(rows))
    return {
        "channel": np.repeat(rows, cells.shape[1]),
        "step": step,
        "timestep": table.timesteps[step],
        "sigma": table.sigmas[step],
        "absmax": cells.ravel(),
    }


def _channel_ranges(table: LayerTable) -> tuple[np.ndarray, np.ndarray]:
    """max - min over all steps (C,), and the top 2 % of the channels, the largest first."""
    ranges = table.high.max(axis=0) - table.low.min(axis=0)
    return ranges, top_channels(ranges)


def _range_axis(ranges: np.ndarray) -> tuple[str, tuple[float, float]]:
    """Scale and limits, with room for names above the bars: log if some tower above the rest."""
    positive = ranges[ranges > 0]
    if not len(positive):
        return "linear", (0.0, 1.0)
    high = float(positive.max())
    if high < 30 * np.median(positive):
        return "linear", (0.0, 1.2 * high)
    low = max(float(positive.min()) / 1.5, high / 1e6)
    return "log", (low, high * (high / low) ** 0.2)


def _upright(x: np.ndarray, low: float, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertical lines as one broken line, which is drawn much faster than thousands."""
    gap = np.full(len(x), np.nan)
    ends = np.stack([np.full(len(x), low), np.maximum(high, low), gap], axis=1)
    return np.stack([x, x, gap], axis=1).ravel(), ends.ravel()


def _name_bars(axis: Axes, ranges: np.ndarray, channels: np.ndarray) -> None:
    """The channels' numbers along the top, each with a thin line to its bar."""
    channels = np.sort(channels[ranges[channels] > 0])
    digit = 0.64 * 7  # points: a digit of DejaVu Sans at 7 points
    need = (digit * len(str(len(ranges))) + 4) / BARS_WIDTH * len(ranges)
    places = _apart(channels.astype(float), need, high=len(ranges))
    for channel, place in zip(channels, places, strict=True):
        axis.annotate(
            str(channel),
            (channel, ranges[channel]),
            (place, 1.0),
            textcoords=("data", "axes fraction"),
            ha="center",
            va="top",
            size=7,
            color=VERMILLION,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": DARK, "shrinkA": 1, "shrinkB": 0},
        )


def _apart(places: np.ndarray, need: float, *, high: float) -> np.ndarray:
    """Sorted places moved as far as is necessary to lie `need` apart, within 0 .. high."""
    apart = places.clip(need / 2, high - need / 2)
    for i in range(1, len(apart)):
        apart[i] = max(apart[i], apart[i - 1] + need)
    apart[-1:] = apart[-1:].clip(max=high - need / 2)
    for i in range(len(apart) - 2, -1, -1):
        apart[i] = min(apart[i], apart[i + 1] - need)
    return apart


def _largest_channels(table: LayerTable) -> tuple[np.ndarray, np.ndarray]:
    """The channels that are drawn, the largest first (R,), and their max |value| (R, n)."""
    absmax = np.maximum(np.abs(table.low), np.abs(table.high)).T
    order = np.argsort(-absmax.max(axis=1), kind="stable")
    rows = order if len(order) <= ALL_ROWS else order[:MOST_ROWS]
    return rows, absmax[rows]


FIGURES = (
    FigureKind(Of.LAYER, "Range of every channel, the top 2 % in red, of",
               channel_ranges, channel_range_table,
               lambda layer: (layer.table,), shared=True, order=3),
    FigureKind(Of.LAYER, "Largest magnitude of the largest channels over time of",
               channel_time, channel_time_table,
               lambda layer: (layer.table,), shared=True, order=4),
)  # fmt: skip
