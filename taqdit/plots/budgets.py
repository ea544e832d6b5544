"""How many calibration steps are enough: what rules lose with few and with many; see `scores`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.analysis.scores import FITTED
from taqdit.plots.kinds import FigureKind, Of
from taqdit.plots.scores import CHOSEN, LINEAR_PART, LOSS, loss_axis, loss_columns
from taqdit.plots.style import PAGE, integer_ticks, new_figure, series_look, style
from taqdit.plots.ticks import log_marks
from taqdit.quantizer import BITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from taqdit.analysis.compare import Curve

LINES = 5  # largest over median loss from which the axis is logarithmic


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
            log = loss_axis(axis, "y", *ends, spread=LINES, room=1.05)
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
            rows |= loss_columns(curve, order, width)
        table = {name: table.get(name, []) + column for name, column in rows.items()}
    return table


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


FIGURES = (
    FigureKind(
        "score_versus_k",
        Of.ANALYSIS,
        "How many calibration steps are enough?",
        score_versus_k,
        score_versus_k_table,
        arguments=lambda analysis: (analysis.comparison.curves, analysis.comparison.count),
        shared=True,
        order=2,
    ),
)
