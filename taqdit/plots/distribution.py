"""The values of one layer on an axis: its scale, and counts in bins equally wide as drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from taqdit.plots.style import Steps

if TYPE_CHECKING:
    from matplotlib.axis import Axis

    from taqdit.activations.overview import LayerTable

BINS = 121  # odd: zero in the middle of an axis falls into a bin, not between two


@dataclass(frozen=True)
class ValueScale:
    """An axis of activations from `low` to `high`: linear, or asinh if `linear` is a number.

    asinh is linear well within ±linear and logarithmic well beyond. It has no kink as symlog has:
    counts in equally wide bins would jump there.
    """

    low: float
    high: float
    linear: float | None

    @classmethod
    def around(cls, low: float, high: float, *, half: float, most: float) -> ValueScale:
        """For values from `low` to `high`, half of them within ±half, nine in ten within ±most.

        asinh if the extremes lie more than two decades beyond the bulk.
        """
        far = max(-low, high)
        linear = float(np.clip(most, far / 1000, far / 10)) if far > 100 * half else None
        tight = cls(low, high, linear)
        first, last = tight.forward(np.array([low, high]))
        pad = 0.03 * (last - first) or 0.1 * abs(first) or 1.0
        low, high = tight.backward(np.array([first - pad, last + pad])).tolist()
        return cls(low, high, linear)

    @property
    def note(self) -> str:
        """What the label of the axis has to add."""
        return f"(logarithmic beyond ±{self.linear:.2g})" if self.linear else ""

    def forward(self, values: np.ndarray) -> np.ndarray:
        """Places along the axis."""
        return np.arcsinh(values / self.linear) if self.linear else values

    def backward(self, places: np.ndarray) -> np.ndarray:
        """Values at these places."""
        return np.sinh(places) * self.linear if self.linear else places

    def edges(self) -> np.ndarray:
        """Bins from end to end, equally wide along the axis; (BINS + 1,)."""
        first, last = self.forward(np.array([self.low, self.high]))
        return self.backward(np.linspace(first, last, BINS + 1))

    def apply(self, axis: Axis, *, most: int) -> None:
        """Give an axis this scale, these limits and at most about so many labels."""
        from matplotlib.ticker import MaxNLocator

        name = "x" if axis is axis.axes.xaxis else "y"
        if self.linear:
            getattr(axis.axes, f"set_{name}scale")("asinh", linear_width=self.linear)
            ticks = self.ticks(most)
            axis.set_ticks(list(ticks), labels=list(ticks.values()))
            axis.minorticks_off()
        else:
            axis.set_major_locator(MaxNLocator(min(most, 7)))
        axis.axes.set(**{f"{name}lim": (self.low, self.high)})

    def ticks(self, most: int) -> dict[float, str]:
        """Of an asinh axis: zero and, where there is room, 1, 2, 5 times the powers of ten or, if
        these would crowd, the powers alone."""
        assert self.linear
        first, last = self.forward(np.array([self.low, self.high]))
        room = (last - first) / most
        ends = np.log10([self.linear, max(-self.low, self.high)])
        powers = 10.0 ** np.arange(np.floor(ends[1]), np.floor(ends[0]) - 1, -1)
        factors = (5.0, 2.0, 1.0) if room < 0.6 else (1.0,)  # 2 is 0.69 from 1
        marks, outer = [0.0], np.inf
        for mark in np.outer(powers, factors).ravel():
            place = float(np.arcsinh(mark / self.linear))
            seen = self.low < -mark or mark < self.high
            if seen and room <= place <= outer - room:
                marks, outer = [*marks, -mark, mark], place
        marks = sorted(float(mark) for mark in marks if self.low < mark < self.high)
        return {mark: f"{mark:g}".replace("-", "−") for mark in marks}


@dataclass(frozen=True, eq=False)
class Distribution:
    """The values of some steps (m,): `counts` (m, BINS) between `edges` (BINS + 1,) of `scale`.

    Per step (m,): the exact extremes `low` and `high`, and the percentiles 1 and 99.
    """

    steps: np.ndarray
    scale: ValueScale
    edges: np.ndarray
    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p01: np.ndarray
    p99: np.ndarray


def distribution(table: LayerTable, steps: Steps) -> Distribution:
    """The table's histograms of these steps in the order of time, on one axis.

    The axis holds the values of all steps, so that every figure of a layer has the same. A bin of
    the table that lies across several of the axis gives each its share. Raises ValueError unless
    there are steps, all in 0 .. n - 1.
    """
    steps = np.unique(np.asarray(steps, dtype=int))
    if not len(steps) or steps[0] < 0 or steps[-1] >= len(table.sigmas):
        raise ValueError(f"steps must lie in 0 .. {len(table.sigmas) - 1}, not {steps.tolist()}")
    scale = _scale(table)
    edges = scale.edges()
    low, high = table.low[steps].min(axis=1), table.high[steps].max(axis=1)
    shares, inner = np.empty((len(steps), BINS)), np.empty((len(steps), 2))
    for i, counts in enumerate(table.counts[steps]):
        ends = np.clip(table.edges, low[i], high[i])  # no value lies beyond its step's extremes
        below = np.concatenate([[0.0], np.cumsum(counts)])
        shares[i] = np.diff(np.interp(edges, ends, below))
        inner[i] = np.interp(np.array([0.01, 0.99]) * below[-1], below, ends)
    return Distribution(steps, scale, edges, shares, low, high, inner[:, 0], inner[:, 1])


def distribution_table(table: LayerTable, steps: Steps) -> dict[str, np.ndarray]:
    """What `histogram_panels` and `ridgeline` draw: a row per step and bin."""
    drawn = distribution(table, steps)
    step = np.repeat(drawn.steps, BINS)
    return {
        "step": step,
        "timestep": table.timesteps[step],
        "sigma": table.sigmas[step],
        "min": np.repeat(drawn.low, BINS),
        "p01": np.repeat(drawn.p01, BINS),
        "p99": np.repeat(drawn.p99, BINS),
        "max": np.repeat(drawn.high, BINS),
        "bin_low": np.tile(drawn.edges[:-1], len(drawn.steps)),
        "bin_high": np.tile(drawn.edges[1:], len(drawn.steps)),
        "values": drawn.counts.ravel(),
    }


def number(value: float) -> str:
    """Three digits and a proper minus sign."""
    return f"{value:.3g}".replace("-", "−")


def _scale(table: LayerTable) -> ValueScale:
    """The axis for the values of all steps; the bulk to within a bin of the table."""
    low, high = float(table.low.min()), float(table.high.max())
    ends = np.clip(table.edges, low, high)
    sizes, counts = np.abs(ends[:-1] + ends[1:]) / 2, table.counts.sum(axis=0)
    order = np.argsort(sizes)
    below = np.cumsum(counts[order])
    places = np.searchsorted(below, np.array([0.5, 0.9]) * below[-1])
    half, most = sizes[order][np.minimum(places, len(sizes) - 1)].tolist()
    return ValueScale.around(low, high, half=half, most=most)
