"""One site at one timestep as a file of diagnostics has it, and what may be said of it.

Fixed bins over [-8, 8] say nothing about values outside: what depends on them is NaN here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from taqdit.activations import Histogram
from taqdit.activations.diagnostics import (
    BELOW_ZERO,
    COUNT,
    EDGES,
    HIGH,
    HISTOGRAM,
    LOW,
    MEAN,
    OUTSIDE,
    STD,
)
from taqdit.activations.overview import ratio_to_median

LARGEST = float(np.finfo(np.float32).max)
MOST = 2.0**53
_ENDS = np.concatenate([[-np.inf], EDGES, [np.inf]])
_WIDTH = float(EDGES[1] - EDGES[0])
_AGREE = 0.02  # relative error of the variance beyond which bins are too wide for a kurtosis
_SLACK = 1e-9  # relative, of interpolated counts


@dataclass(frozen=True, eq=False)
class Cell:
    """Per channel (C,) float64: `count`, `mean`, `std`, `low`, `high` (+Inf and -Inf where a
    channel has no value). `histogram` (512,) on EDGES; `outside` (2,): values below and above, or
    None where the file does not say."""

    count: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    histogram: np.ndarray
    outside: np.ndarray | None

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Cell:
        """From the arrays of a file. ValueError with the reason if they contradict each other."""
        numbers = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        for name, array in numbers.items():
            bound = MOST if name in (COUNT, HISTOGRAM, OUTSIDE) else LARGEST
            least = -bound if name in (MEAN, LOW, HIGH) else 0.0
            if array.min() < least or array.max() > bound:
                raise ValueError(f"{name} must lie in [{least:g}, {bound:g}]")
        if (numbers[LOW] > numbers[HIGH]).any():
            channel = int(np.flatnonzero(numbers[LOW] > numbers[HIGH])[0])
            raise ValueError(f"min is larger than max in channel {channel}")
        count = np.broadcast_to(numbers[COUNT], numbers[MEAN].shape)
        cell = cls(
            count,
            numbers[MEAN],
            numbers[STD],
            np.where(count > 0, numbers[LOW], np.inf),
            np.where(count > 0, numbers[HIGH], -np.inf),
            numbers[HISTOGRAM],
            numbers.get(OUTSIDE),
        )
        cell._require_totals()
        return cell

    def _require_totals(self) -> None:
        known = self.inside + (0 if self.outside is None else float(self.outside.sum()))
        if known > self.total + self._slack:
            raise ValueError(f"histogram holds {known:,.0f} values, count {self.total:,.0f}")
        within = min(self.lowest, 0) >= EDGES[0] and max(self.highest, 0) <= EDGES[-1]
        if (within or self.outside is not None) and known < self.total - self._slack:
            raise ValueError(f"histogram holds {known:,.0f} values of {self.total:,.0f}")

    @cached_property
    def total(self) -> float:
        """Values."""
        return float(self.count.sum())

    @cached_property
    def inside(self) -> float:
        """Values that the histogram holds."""
        return float(self.histogram.sum())

    @property
    def _slack(self) -> float:
        return 0.5 + _SLACK * self.total

    @cached_property
    def lowest(self) -> float:
        """The smallest value; +Inf if there is none."""
        return float(self.low.min())

    @cached_property
    def highest(self) -> float:
        """The largest value; -Inf if there is none."""
        return float(self.high.max())

    @cached_property
    def below(self) -> tuple[float, float]:
        """Least and most values that may lie below the bins; what else is missing lies above."""
        if self.outside is not None:
            return float(self.outside[0]), float(self.outside[0])
        missing = max(self.total - self.inside, 0.0)
        least = missing if self.highest <= EDGES[-1] else 0.0
        return least, (0.0 if self.lowest >= EDGES[0] else missing)

    @property
    def negative(self) -> tuple[float, float]:
        """Bounds of the share of values below zero; equal where the share is known."""
        inside = float(self.histogram[BELOW_ZERO].sum())
        least, most = ((inside + below) / max(self.total, 1) for below in self.below)
        return least, most

    @property
    def ranges(self) -> np.ndarray:
        """max - min of each channel, (C,)."""
        return np.maximum(self.high - self.low, 0)

    @property
    def channel_ratio(self) -> float:
        """Absmax of the top channel over that of the median channel; channels of zeros left out."""
        peaks = np.maximum(np.maximum(self.high, -self.low), 0)
        return ratio_to_median(peaks)

    def percentile(self, percent: float) -> float:
        """Interpolated in a bin; NaN where the bin is not known, or wider than 1/32."""
        places = {bins.percentile_bounds(percent) for bins in self._readings if self.total}
        if len(places) != 1 or np.ptp(next(iter(places))) > _WIDTH:
            return float("nan")
        return float(np.mean([bins.percentile(percent) for bins in self._readings]))

    def kurtosis(self) -> float:
        """Fourth standardised moment; NaN where a value lies outside the bins, or where they are
        so wide that they miss the variance by 2 percent."""
        if self.total - self.inside > self._slack or not self.total:
            return float("nan")
        bins = self._readings[0]
        centres, widths = (bins.left + bins.right) / 2, bins.right - bins.left
        apart = centres - np.average(centres, weights=bins.counts)
        variance = float(np.average(apart**2 + widths**2 / 12, weights=bins.counts))
        known = self._variance
        return bins.kurtosis() if abs(variance - known) <= _AGREE * known else float("nan")

    @property
    def _variance(self) -> float:
        """Of all values, from the channels' moments."""
        mean = np.average(self.mean, weights=self.count)
        return float(np.average(self.std**2 + (self.mean - mean) ** 2, weights=self.count))

    @cached_property
    def _readings(self) -> list[Histogram]:
        """What the file may mean: a histogram of all values, or the two extreme ones."""
        return [self._with(below) for below in dict.fromkeys(self.below)]

    def _with(self, below: float) -> Histogram:
        """All values in bins, `below` of those outside below the others; cut at the extremes."""
        above = max(self.total - self.inside - below, 0)
        ends = np.rint(np.cumsum(np.concatenate([[0, below], self.histogram, [above]])))
        counts = np.diff(ends).astype(np.int64)
        used = counts > 0
        ends = np.clip(_ENDS, self.lowest, self.highest)
        return Histogram(ends[:-1][used], ends[1:][used], counts[used])
