"""Figures of several runs side by side: losses, ranges over time.

A loss is in dB of SQNR below the best static quantizer; lines through dots are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.plots.style import DASHES, PAGE, new_figure, series_look, style
from taqdit.quantizer import BITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS = "loss of SQNR against the best static quantizer (dB)"
TALL = 9.5  # inches: no figure is higher than a page
ASIDE = 0.012  # of the setting's span: how far lines stand apart
ACROSS = 3  # panels side by side


@dataclass(frozen=True, eq=False)
class LossRow:
    """Losses of one run, (3,) dB, widths as in BITS, and half of their 95 % intervals (NaN: not
    known). Rows of one `group` stand together; `name` has the same look everywhere."""

    group: str
    name: str
    loss: np.ndarray
    half_width: np.ndarray


@dataclass(frozen=True, eq=False)
class LossLine:
    """Losses of one selection against a setting: `x` (n,), rising; `loss` and `half_width` (n, 3),
    widths as in BITS. Lines of one `panel` share axes."""

    panel: str
    name: str
    x: np.ndarray
    loss: np.ndarray
    half_width: np.ndarray


@dataclass(frozen=True, eq=False)
class RangeCurve:
    """One set of trajectories: `values` (n,) at `timesteps` (n,), from noise to image."""

    name: str
    timesteps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Ticks:
    """The timesteps (k,) that a selection chooses."""

    name: str
    timesteps: np.ndarray


def loss_by_selection(rows: Sequence[LossRow]) -> Figure:
    """A dot and its interval per run, a panel per width; groups below their titles."""
    looks = _looks([row.name for row in rows])
    places, titles = _places(rows)
    height = min(0.9 + 0.17 * (max(places) + 2), TALL)
    with style():
        figure = new_figure(PAGE, max(height, 1.5))
        axes = figure.subplots(1, len(BITS), sharey=True)
        for width, (axis, bits) in enumerate(zip(axes, BITS, strict=True)):
            for row, place in zip(rows, places, strict=True):
                _interval(axis, row, place, width, looks[row.name])
            axis.set_title(f"{bits} bits", loc="left")
            axis.set_xlim(left=0)
            axis.grid(visible=False, axis="y")
            axis.tick_params(axis="y", length=0)
        names = [row.name for row in rows]
        axes[0].set_yticks([*places, *titles], labels=[*names, *titles.values()])
        for label in axes[0].get_yticklabels()[len(places) :]:
            label.set_fontweight("bold")
        axes[0].set_ylim(max(places) + 0.7, min([*places, *titles]) - 0.7)
        figure.supxlabel(LOSS, fontsize=8)
    return figure


def loss_by_selection_table(rows: Sequence[LossRow]) -> dict[str, list[Any]]:
    """A row per run, in the order drawn; dB."""
    table: dict[str, list[Any]] = {
        "group": [row.group for row in rows],
        "selection": [row.name for row in rows],
    }
    return table | _columns([(row.loss, row.half_width) for row in rows])


def loss_against(lines: Sequence[LossLine], setting: str) -> Figure:
    """Loss against a setting, a line per selection: a row per width, a column per value of all the
    rest; after ACROSS columns the next ones stand below."""
    panels = list(dict.fromkeys(line.panel for line in lines))
    looks = _looks([line.name for line in lines])
    across = min(len(panels), ACROSS)
    deep = -(-len(panels) // across) * len(BITS)
    with style():
        figure = new_figure(PAGE if across > 1 else 0.62 * PAGE, min(0.9 + 1.2 * deep, TALL))
        axes = figure.subplots(deep, across, sharex=True, squeeze=False)
        for axis in axes.ravel():
            axis.set_axis_off()  # until something stands there
        for place, panel in enumerate(panels):
            band, column = divmod(place, across)
            within = [line for line in lines if line.panel == panel]
            for width, top in enumerate(_tops(lines)):
                axis = axes[band * len(BITS) + width, column]
                axis.set_axis_on()
                _losses(axis, within, width, looks)
                axis.set_ylim(0, top)
                axis.tick_params(labelleft=column == 0)
            axes[band * len(BITS), column].set_title(panel, loc="left")
        for row, axis in enumerate(axes[:, 0]):
            axis.set_ylabel(f"{BITS[row % len(BITS)]} bits")
        _setting_axis(axes[0, 0], np.concatenate([line.x for line in lines]))
        figure.supxlabel(setting, fontsize=8)
        figure.supylabel("loss (dB)", fontsize=8)
        handles = [_handle(name, look) for name, look in looks.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 3))
    return figure


def loss_against_table(lines: Sequence[LossLine], setting: str) -> dict[str, list[Any]]:
    """A row per dot; dB."""
    dots = [(line, place) for line in lines for place in range(len(line.x))]
    table: dict[str, list[Any]] = {
        "panel": [line.panel for line, _ in dots],
        "selection": [line.name for line, _ in dots],
        setting: [float(line.x[place]) for line, place in dots],
    }
    return table | _columns([(line.loss[i], line.half_width[i]) for line, i in dots])


def ranges_over_time(curves: Sequence[RangeCurve], ticks: Sequence[Ticks]) -> Figure:
    """A line per set of trajectories against the timestep; below, a row of ticks per selection."""
    looks = _looks_by_part([curve.name for curve in curves])
    low = 0.16 * max(len(ticks), 1) + 0.1
    with style():
        figure = new_figure(PAGE, min(2.9 + low, TALL))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, low))
        for curve in curves:
            look = {**looks[curve.name], "marker": ""}
            upper.plot(curve.timesteps, curve.values, label=curve.name, **look)
        upper.set(ylabel="median channel range,\nmedian over the sites")
        for place, each in enumerate(ticks):
            lower.plot(
                each.timesteps, np.full(len(each.timesteps), place), "|", color="black", ms=6
            )
        lower.set_yticks(range(len(ticks)), labels=[each.name for each in ticks])
        lower.set_ylim(len(ticks) - 0.4, -0.6)
        lower.tick_params(axis="y", length=0)
        lower.set_xlabel("timestep (noise → image); ticks: calibration steps")
        lower.invert_xaxis()
        if len(curves) > 1 or curves[0].name:
            figure.legend(loc="outside upper center", ncols=min(len(curves), 3))
    return figure


def ranges_over_time_table(
    curves: Sequence[RangeCurve], ticks: Sequence[Ticks]
) -> dict[str, list[Any]]:
    """A row per step of each curve, then one per tick (no value)."""
    rows = [("range", c.name, float(t), float(v)) for c in curves
            for t, v in zip(c.timesteps, c.values, strict=True)]  # fmt: skip
    rows += [
        ("selected", each.name, float(t), float("nan")) for each in ticks for t in each.timesteps
    ]
    names = ("kind", "name", "timestep", "median_range")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _columns(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[Any]]:
    """Losses (3,) and half intervals (3,) of each row by column, dB."""
    table: dict[str, list[Any]] = {}
    for width, bits in enumerate(BITS):
        table[f"loss_{bits}bit_db"] = [float(loss[width]) for loss, _ in rows]
        table[f"half_width_{bits}bit_db"] = [float(half[width]) for _, half in rows]
    return table


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> colour, dash and marker."""
    return {name: series_look(place) for place, name in enumerate(dict.fromkeys(names))}


def _looks_by_part(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """As `_looks`; names `a, b` with few kinds of `b` share a colour by `a` and a dash by `b`."""
    parts = [name.partition(", ")[::2] for name in names]
    firsts, rests = (list(dict.fromkeys(each)) for each in zip(*parts, strict=True))
    if len(firsts) > 7 or not 1 < len(rests) <= len(DASHES):
        return _looks(names)
    return {
        name: {"color": f"C{firsts.index(first)}", "ls": DASHES[rests.index(rest)]}
        for name, (first, rest) in zip(names, parts, strict=True)
    }


def _places(rows: Sequence[LossRow]) -> tuple[list[int], dict[int, str]]:
    """Where each row stands, and the titles of the groups: a line of their own."""
    places: list[int] = []
    titles: dict[int, str] = {}
    at, last = 0, None
    for row in rows:
        if row.group != last and row.group:
            titles[at] = row.group
            at += 1
        last = row.group
        places.append(at)
        at += 1
    return places, titles


def _interval(axis: Axes, row: LossRow, place: int, width: int, look: dict[str, Any]) -> None:
    loss, half = row.loss[width], row.half_width[width]
    if not np.isfinite(loss):
        axis.annotate("no value", (0, place), va="center", fontsize=6.5)
        return
    if np.isfinite(half):
        axis.hlines(place, max(loss - half, 0), loss + half, color=look["color"], lw=1.1)
    axis.plot([loss], [place], ms=4, clip_on=False, **{**look, "ls": ""})


def _losses(
    axis: Axes, lines: Sequence[LossLine], width: int, looks: dict[str, dict[str, Any]]
) -> None:
    """Lines and their intervals at one width, beside each other."""
    gap = ASIDE * float(np.ptp(np.concatenate([line.x for line in lines])))
    for line in lines:  # set apart, or intervals would hide each other
        look, loss, half = looks[line.name], line.loss[:, width], line.half_width[:, width]
        x = line.x + gap * (list(looks).index(line.name) - (len(looks) - 1) / 2)
        axis.plot(x, loss, ms=3.5, lw=1.0, **look)
        axis.vlines(x, np.maximum(loss - half, 0), loss + half, color=look["color"], lw=0.8)


def _tops(lines: Sequence[LossLine]) -> list[float]:
    """Where each width's axes end: above all losses and intervals."""
    ends = np.concatenate([line.loss + np.nan_to_num(line.half_width) for line in lines])
    return [float(1.05 * np.nanmax(each, initial=0.0)) or 1.0 for each in ends.T]


def _handle(name: str, look: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], ms=3.5, lw=1.0, label=name, **look)


def _setting_axis(axis: Axes, x: np.ndarray) -> None:
    """Ticks on the values themselves where they are few."""
    values = np.unique(x)
    if len(values) <= 8:
        axis.set_xticks(values, labels=[f"{value:g}" for value in values])
    gap = 0.08 * (values[-1] - values[0]) or 0.5
    axis.set_xlim(values[0] - gap, values[-1] + gap)
