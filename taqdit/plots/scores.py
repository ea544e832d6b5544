"""Which calibration steps are good enough: what each selection loses, and how many steps it takes.

A loss is in dB of SQNR: that of the best static quantizer of all steps less that of the one
calibrated on the selection. No selection is better than 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.analysis.scores import FITTED, ROUGH
from taqdit.plots.drawing import FigureKind, Of
from taqdit.plots.style import BLUE, PAGE, integer_ticks, new_figure, series_look, style
from taqdit.plots.ticks import log_marks
from taqdit.quantizer import BITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from taqdit.analysis.analyse import Analysis
    from taqdit.analysis.scores import Scores
    from taqdit.analysis.selections import Curve

SMALL = 0.01  # dB: nothing that a user would notice; no axis magnifies less
BARS, LINES = 30, 5  # largest over median loss from which their axis is logarithmic
WORSE, OWN = "#a9a9a9", "#f3ead3"
LINEAR_PART = f"linear up to {SMALL:g}, then logarithmic"
LOSS = "loss of SQNR against the best static quantizer (dB)"
CHOSEN = f"{FITTED} steps chosen from these statistics"
SHARED = f"{ROUGH} trajectories share folds"


def selection_scores(scores: Scores) -> Figure:
    """Loss of every selection with its 95 % interval, a panel per width, the best 8-bit on top.

    Grey bars are worse than the panel's best by more than the spread of trajectories explains, blue
    ones may be as good. The run's own selection has a tinted row.
    """
    order = _best_first(scores)
    height = 1.05 + max(0.19 * len(order), 0.4)
    with style():
        figure = new_figure(PAGE, height)
        axes = figure.subplots(1, len(BITS), sharey=True)
        numbers = scores.loss, scores.loss_low, scores.loss_high
        for width, (axis, bits) in enumerate(zip(axes, BITS, strict=True)):
            loss, low, high = (array[order, width] for array in numbers)
            worse = told_apart(scores, bits)[order]
            axis.set_title(f"{bits} bits", loc="left")
            log = _loss_axis(axis, "x", scores.loss, scores.loss_high, spread=BARS, room=1.4)
            _bars(axis, loss, low, high, worse)
            if scores.own is not None:
                axis.axhspan(*np.add(order.index(scores.own), (-0.5, 0.5)), color=OWN, zorder=0)
        axes[0].set_yticks(range(len(order)), labels=[_named(scores, i) for i in order])
        axes[0].set_ylim(len(order) - 0.5, -0.5)
        label = LOSS + (f", {LINEAR_PART}" if log else "")
        notes = [CHOSEN] * bool(scores.fitted.any()) + [SHARED] * (not scores.exact.all())
        marks = f"\n{'; '.join(notes)}" if notes else ""
        figure.supxlabel(label + _dynamic_note(scores.dynamic_gain) + marks, fontsize=8)
        _explain(figure, own=scores.own is not None)
    return figure


def selection_scores_table(scores: Scores) -> dict[str, list[Any]]:
    """A row per selection, in the order drawn: losses with their intervals at each width, dB;
    `dynamic_gain`: what a quantizer with a range for each step would win, the same in all rows."""
    order = _best_first(scores)
    table: dict[str, list[Any]] = {
        "rule": [scores.rules[i] for i in order],
        "steps_per_trajectory": scores.counts[order].tolist(),
        "own": [int(i == scores.own) for i in order],
    }
    for width, bits in enumerate(BITS):
        table |= _columns(scores, order, width)
        table[f"dynamic_gain_{bits}bit"] = [float(scores.dynamic_gain[width])] * len(order)
    return table


def score_versus_k(curves: Sequence[Curve], budget: float | None = None) -> Figure:
    """Loss against the number of calibration steps, a line and a 95 % band per rule.

    A panel per width. `budget` is the number at which rules are compared. The legend has the
    lowest 8-bit loss there (without a budget: at the fewest steps) first.
    """
    ranked = _ranked(curves, budget)
    counts = np.concatenate([curve.counts for curve in curves])
    ends = [np.concatenate([getattr(c, name) for c in curves]) for name in ("loss", "loss_high")]
    with style():
        columns = 3 if max(len(curve.rule) for curve in curves) > 18 else 4
        figure = new_figure(PAGE, 2.4 + 0.14 * -(-(len(curves) + 1) // columns))
        axes = figure.subplots(1, len(BITS), sharey=True)
        for width, (axis, bits) in enumerate(zip(axes, BITS, strict=True)):
            _count_axis(axis, counts if budget is None else np.append(counts, budget))
            log = _loss_axis(axis, "y", *ends, spread=LINES, room=1.05)
            for place, curve in ranked:
                _curve(axis, curve, width, **series_look(place))
            if budget is not None:
                label = f"compared at {budget:g} steps"
                axis.axvline(budget, color="black", lw=0.8, ls=":", zorder=1, label=label)
            axis.set_title(f"{bits} bits", loc="left")
        axes[0].set_ylabel(LOSS.replace(" the best", "\nthe best"))
        label = "calibration steps per trajectory"
        label += f" (loss: {LINEAR_PART})" if log else ""
        label += f"\n{CHOSEN}" if any(curve.fitted for curve in curves) else ""
        figure.supxlabel(label, fontsize=8)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    return figure


def score_versus_k_table(curves: Sequence[Curve], budget: float | None = None) -> dict[str, Any]:
    """A row per rule and number of steps, in the order of the legend; losses in dB."""
    table: dict[str, list[Any]] = {"rule": [], "steps_per_trajectory": []}
    for _, curve in _ranked(curves, budget):
        order = _by_count(curve)
        rows = {"rule": [curve.rule] * len(order)}
        rows["steps_per_trajectory"] = curve.counts[order].tolist()
        for width in range(len(BITS)):
            rows |= _columns(curve, order, width)
        table = {name: table.get(name, []) + column for name, column in rows.items()}
    return table


def told_apart(scores: Scores, bits: int) -> np.ndarray:
    """Which selections lose more than the panel's best for sure, (R,) bool: by differences within
    folds of trajectories, which can tell more than two intervals that overlap."""
    loss = scores.loss[:, BITS.index(bits)]
    if not np.isfinite(loss).any():
        return np.zeros(len(loss), bool)
    best = int(np.nanargmin(loss))
    return np.array([scores.losses.differ(i, best, bits) for i in range(len(loss))])


def _best_first(scores: Scores) -> list[int]:
    """Numbers of the selections by their 8-bit loss, unknown ones last."""
    return np.argsort(scores.loss[:, BITS.index(8)], kind="stable").tolist()


def _columns(scored: Scores | Curve, order: Sequence[int], width: int) -> dict[str, list[Any]]:
    """Losses and the ends of their intervals at one width."""
    names, bits = ("loss", "loss_low", "loss_high"), BITS[width]
    return {f"{name}_{bits}bit": getattr(scored, name)[order, width].tolist() for name in names}


def _named(scores: Scores, number: int) -> str:
    return f"{scores.label(number)} ({round(float(scores.counts[number]), 1):g})"


def _dynamic_note(gains: np.ndarray) -> str:
    """The other end of the scale, which lies beyond zero and would dwarf the bars."""
    known = [
        f"{_short(gain)} dB at {bits} bits"
        for bits, gain in zip(BITS, gains, strict=True)
        if np.isfinite(gain)
    ]
    return f"\na per-step dynamic quantizer gains {', '.join(known)}" if known else ""


def _short(value: float) -> str:
    """Two or three digits of a number of dB: `0`, `<0.001`, `0.012`, `1.20`."""
    if value == 0:
        return "0"
    if 0 < value < 0.0005:
        return "<0.001"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _bars(
    axis: Axes, loss: np.ndarray, low: np.ndarray, high: np.ndarray, worse: np.ndarray
) -> None:
    """A bar per row, its interval as a line, its number beyond both."""
    rows = np.arange(len(loss))
    colours = np.where(worse, WORSE, BLUE)
    axis.barh(rows, loss, height=0.62, color=colours.tolist())
    axis.hlines(rows, low, high, color="black", lw=0.9)
    axis.plot(high, rows, "|", color="black", ms=4, mew=0.9)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    for row, value, end in zip(rows, loss, np.fmax(loss, high), strict=True):
        known = np.isfinite(value)
        look: dict[str, Any] = {"va": "center", "fontsize": 6.5}
        look |= {"textcoords": "offset points", "xytext": (3, 0)}
        axis.annotate(_short(value) if known else "no value", (end if known else 0, row), **look)


def _explain(figure: Figure, *, own: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(facecolor=BLUE, label="lowest loss, or not told apart from it"),
        Patch(facecolor=WORSE, label="worse (paired by trajectories)"),
        Line2D([], [], color="black", lw=0.9, label="95 % interval"),
    ]
    if own:
        handles.append(Patch(facecolor=OWN, label="this run's selection"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=1.2)


def _loss_axis(
    axes: Axes, name: str, loss: np.ndarray, high: np.ndarray, *, spread: float, room: float
) -> bool:
    """From 0 to beyond the largest, `room` times as long; whether it is logarithmic.

    Logarithmic if the largest loss is more than `spread` times the median; then linear up to
    SMALL, since losses may be zero.
    """
    from matplotlib.ticker import MaxNLocator

    values = np.concatenate([loss.ravel(), high.ravel()])
    top = float(max(values[np.isfinite(values)].max(initial=0.0), SMALL))
    positive = loss[np.isfinite(loss) & (loss > 0)]
    log = bool(len(positive) and positive.max() > max(spread * np.median(positive), 3 * SMALL))
    axis: Axis = getattr(axes, f"{name}axis")
    if log:
        linear = max(0.5, 0.18 * np.log10(top / SMALL))  # decades: room for its two labels
        getattr(axes, f"set_{name}scale")("symlog", linthresh=SMALL, linscale=linear)
        marks = [0.0, *log_marks(SMALL, top, most=4)]
        axis.set_ticks(marks, labels=[f"{mark:g}" for mark in marks])
        axis.set_ticks([], minor=True)
    else:
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    scale = axis.get_transform()
    end = scale.inverted().transform(room * scale.transform([top]))
    axes.set(**{f"{name}lim": (0, float(end[0]))})
    return log


def _ranked(curves: Sequence[Curve], budget: float | None) -> list[tuple[int, Curve]]:
    """Curves with their numbers: the lowest 8-bit loss nearest the budget first."""
    target = min(curve.counts.min() for curve in curves) if budget is None else budget

    def loss(pair: tuple[int, Curve]) -> float:
        curve = pair[1]
        value = curve.loss[np.abs(curve.counts - target).argmin(), BITS.index(8)]
        return float(value) if np.isfinite(value) else np.inf

    return sorted(enumerate(curves), key=loss)


def _by_count(curve: Curve) -> list[int]:
    return np.argsort(curve.counts, kind="stable").tolist()


def _curve(axis: Axes, curve: Curve, width: int, **look: Any) -> None:
    order = _by_count(curve)
    x = curve.counts[order]
    loss, low, high = (a[order, width] for a in (curve.loss, curve.loss_low, curve.loss_high))
    name = curve.rule + FITTED * curve.fitted
    axis.plot(x, loss, ms=2.8, lw=1.0, label=name, clip_on=False, **look)
    if len(x) == 1:
        axis.vlines(x, low, high, color=look["color"], lw=0.8)
    else:
        axis.fill_between(x, low, high, color=look["color"], alpha=0.07, lw=0)


def _count_axis(axis: Axes, counts: np.ndarray) -> None:
    """Logarithmic from an eightfold on: few steps are where losses change."""
    low, high = float(counts.min()), float(counts.max())
    if high < 8 * low:
        gap = max(0.05 * (high - low), 1.5 if low == high else 0.0)
        axis.set_xlim(low - gap, high + gap)
        integer_ticks(axis.xaxis, 5)
        return
    axis.set(xscale="log", xlim=(low / 1.15, high * 1.15))
    marks = log_marks(low, high, most=6)
    axis.set_xticks(marks, labels=[f"{mark:g}" for mark in marks])
    axis.set_xticks([], minor=True)


def _caption(analysis: Analysis) -> str:
    compared = analysis.comparison
    return f"What calibrating on {compared.count} of {compared.num_steps} steps costs, by rule"


FIGURES = (
    FigureKind(Of.ANALYSIS, _caption, selection_scores, selection_scores_table,
               lambda analysis: (analysis.comparison.scores,), order=1, minimal=True),
    FigureKind(Of.ANALYSIS, "How many calibration steps are enough?",
               score_versus_k, score_versus_k_table,
               lambda analysis: (analysis.comparison.curves, analysis.comparison.count),
               shared=True, order=2),
)  # fmt: skip
