"""Figures of several runs side by side: losses, ranges over time, pictures.

A loss is in dB of SQNR below the best static quantizer; lines through dots are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.plots.scores import DASHES, MARKERS
from taqdit.plots.style import GREY, PAGE, new_figure, style
from taqdit.quantizer import BITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS = "loss of SQNR against the best static quantizer (dB)"
TALL = 9.5  # inches: no figure is higher than a page
ASIDE = 0.012  # of the setting's span: how far lines stand apart
LABELS = 1.7  # inches beside the pictures
PICTURE = 1.1  # inches that a picture takes at most


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
    """8-bit losses of one selection against a setting: `x`, `loss`, `half_width` all (n,), x
    rising. Lines of one `panel` share axes."""

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
    for width, bits in enumerate(BITS):
        table[f"loss_{bits}bit_db"] = [float(row.loss[width]) for row in rows]
        table[f"half_width_{bits}bit_db"] = [float(row.half_width[width]) for row in rows]
    return table


def loss_against(lines: Sequence[LossLine], setting: str) -> Figure:
    """8-bit loss against a setting, a line per selection, a panel per value of all the rest."""
    panels = list(dict.fromkeys(line.panel for line in lines))
    looks = _looks([line.name for line in lines])
    columns = min(len(panels), 3)
    deep = -(-len(panels) // columns)
    wide = PAGE if columns > 1 else 0.62 * PAGE
    x = np.concatenate([line.x for line in lines])
    gap = ASIDE * float(np.ptp(x))  # or intervals would hide each other
    with style():
        figure = new_figure(wide, min(0.6 + 1.9 * deep, TALL))
        axes = figure.subplots(deep, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=False):
            for line in lines:
                if line.panel == panel:
                    place = list(looks).index(line.name) - (len(looks) - 1) / 2
                    _line(axis, line, looks[line.name], aside=place * gap)
            axis.set_title(panel, loc="left")
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        _setting_axis(axes[0], x)
        axes[0].set_ylim(bottom=0)
        figure.supxlabel(setting, fontsize=8)
        figure.supylabel("8-bit loss (dB)", fontsize=8)
        found = {line.name: line for line in reversed(lines)}
        handles = [_handle(name, looks[name]) for name in looks if name in found]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 3))
    return figure


def loss_against_table(lines: Sequence[LossLine], setting: str) -> dict[str, list[Any]]:
    """A row per dot; dB."""
    table: dict[str, list[Any]] = {"panel": [], "selection": [], setting: []}
    table |= {"loss_8bit_db": [], "half_width_8bit_db": []}
    for line in lines:
        for x, loss, half in zip(line.x, line.loss, line.half_width, strict=True):
            cells = (line.panel, line.name, float(x), float(loss), float(half))
            for column, cell in zip(table.values(), cells, strict=True):
                column.append(cell)
    return table


def ranges_over_time(curves: Sequence[RangeCurve], ticks: Sequence[Ticks]) -> Figure:
    """A line per set of trajectories against the timestep; below, a row of ticks per selection."""
    looks = _looks([curve.name for curve in curves])
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
    table: dict[str, list[Any]] = {"kind": [], "name": [], "timestep": [], "median_range": []}
    rows = [("range", c.name, float(t), float(v)) for c in curves
            for t, v in zip(c.timesteps, c.values, strict=True)]  # fmt: skip
    rows += [
        ("selected", each.name, float(t), float("nan")) for each in ticks for t in each.timesteps
    ]
    for row in rows:
        for column, cell in zip(table.values(), row, strict=True):
            column.append(cell)
    return table


def picture_table(
    pictures: Sequence[Sequence[np.ndarray | None]], columns: Sequence[str], rows: Sequence[str]
) -> Figure:
    """Pictures (H, W, 3) uint8 in rows (one per prompt) and columns (one per set of
    trajectories); None leaves a place empty."""
    each = min(PICTURE, (PAGE - LABELS) / max(len(columns), 1))
    with style():  # prompts are foreign: no text of theirs is read as a formula
        figure = new_figure(LABELS + each * len(columns), 0.5 + each * len(rows))
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, text, members in zip(axes, rows, pictures, strict=True):
            for axis, picture in zip(line, members, strict=True):
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
                axis.spines[:].set(visible=True, color=GREY)
                if picture is not None:
                    axis.imshow(picture)
            line[0].set_ylabel(_wrapped(text, 22), fontsize=6, rotation=0, ha="right", va="center",
                               parse_math=False)  # fmt: skip
        for axis, title in zip(axes[0], columns, strict=True):
            axis.set_title(_wrapped(title, max(8, int(15 * each))), fontsize=7, parse_math=False)
    return figure


def picture_table_table(columns: Sequence[str], rows: Sequence[str]) -> dict[str, list[Any]]:
    """What stands where."""
    return {
        "set": [column for _ in rows for column in columns],
        "prompt": [row for row in rows for _ in columns],
    }


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> colour, dash and marker: seven colours, then again in another dash."""
    return {
        name: {
            "color": f"C{place % 7}",
            "ls": DASHES[(place // 7) % len(DASHES)],
            "marker": MARKERS[place % len(MARKERS)],
        }
        for place, name in enumerate(dict.fromkeys(names))
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


def _line(axis: Axes, line: LossLine, look: dict[str, Any], *, aside: float) -> None:
    x = line.x + aside
    axis.plot(x, line.loss, ms=3.5, lw=1.0, **look)
    low = np.maximum(line.loss - line.half_width, 0)
    axis.vlines(x, low, line.loss + line.half_width, color=look["color"], lw=0.8)


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


def _wrapped(text: str, width: int) -> str:
    from textwrap import fill

    return fill(text, width, break_long_words=False)
