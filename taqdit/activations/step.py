"""Statistics of all sites at one step: what a batch adds, how two merge, how they are stored.

C channels are those of all sites side by side (see Layout), S sites, F folds of trajectories.
Moments are merged in float64 (Chan, Golub & LeVeque, 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from taqdit.activations.bins import octave_of
from taqdit.activations.counts import MOST, BinCounts, joined, split, table_shapes
from taqdit.activations.site import Layout

_VALUES, _PEAKS = "values", "peaks"
_NONE = np.empty(0, np.uint32)


class ChannelSums(NamedTuple):
    """Sums over the tokens of one batch at one step, (C,) each: lazy on a device, or numpy's.

    `shift` float32, and the sums of x - shift and of its square, float32 from a device and float64
    from the host; `low`, `high` float32;
    `negative`, `top`, `near`: tokens below zero, in the octave of the channel's absmax, and in
    that octave or the one below; `missing`: tokens that hold NaN or Inf (None: not one).
    """

    shift: Any
    sums: Any
    squares: Any
    low: Any
    high: Any
    negative: Any
    top: Any
    near: Any
    missing: Any = None

    def map(self, change: Callable[[Any], Any]) -> ChannelSums:
        """Every array changed."""
        return ChannelSums(*(None if array is None else change(array) for array in self))


@dataclass(frozen=True, eq=False)
class BatchSums:
    """One batch at one step, on the host.

    tokens (S,) int64: token vectors per site. `fold_low`, `fold_high` (F, S) float32. `values` and
    `peaks`: bin counts per site, of all values by fold, and of the tokens' absmax.
    """

    tokens: np.ndarray
    channels: ChannelSums
    fold_low: np.ndarray
    fold_high: np.ndarray
    values: Sequence[BinCounts]
    peaks: Sequence[BinCounts]


@dataclass(frozen=True, eq=False)
class StepStatistics:
    """All sites at one step (or at several, merged), over any number of batches.

    `tokens` (S,) int64; `mean`, `m2` (C,) float64, m2 the sum of squared deviations; `low`, `high`
    (C,) float32; `negative` (C,) uint32; `large` (2, C) uint32: tokens in the octave of the
    channel's absmax, and in the one below; `missing` (C,) uint32, tokens with NaN or Inf, or (0,)
    where there was none; `fold_low`, `fold_high` (F, S) float32; `values`, `peaks`: bin counts per
    site, of all values by fold and of token absmaxima.
    """

    layout: Layout
    tokens: np.ndarray
    missing: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    low: np.ndarray
    high: np.ndarray
    negative: np.ndarray
    large: np.ndarray
    fold_low: np.ndarray
    fold_high: np.ndarray
    values: Sequence[BinCounts]
    peaks: Sequence[BinCounts]

    @classmethod
    def of_batch(cls, layout: Layout, batch: BatchSums) -> StepStatistics:
        """The statistics of one batch."""
        tokens, of = batch.tokens.astype(np.int64), batch.channels
        some = of.missing is not None and bool(of.missing.any())
        missing = of.missing.astype(np.uint32) if some else _NONE
        count = np.maximum(_finite(layout, tokens, missing), 1)
        sums = of.sums.astype(np.float64)
        constant = of.low == of.high
        mean = np.where(constant, of.low, of.shift + sums / count)
        m2 = np.where(constant, 0, np.maximum(of.squares - sums * sums / count, 0))
        large = np.stack([of.top, of.near - of.top])
        return cls(
            layout,
            tokens,
            missing,
            mean,
            m2,
            of.low,
            of.high,
            of.negative.astype(np.uint32),
            large.astype(np.uint32),
            batch.fold_low,
            batch.fold_high,
            batch.values,
            batch.peaks,
        )

    @property
    def count(self) -> np.ndarray:
        """Finite values of each channel, (C,) int64."""
        return _finite(self.layout, self.tokens, self.missing)

    @property
    def variance(self) -> np.ndarray:
        """Population variance of each channel, (C,) float64."""
        return self.m2 / np.maximum(self.count, 1)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel, (C,) float64."""
        return np.sqrt(self.variance)

    @property
    def absmax(self) -> np.ndarray:
        """Largest magnitude of each channel, (C,) float32; 0 where there is no finite value."""
        return np.maximum(np.maximum(self.high, -self.low), np.float32(0))

    def merged(self, other: StepStatistics) -> StepStatistics:
        """Both together. Raises OverflowError if anything counts beyond 32 bits."""
        if self.layout != other.layout:
            raise ValueError("statistics of different sites or folds cannot be merged")
        if (self.tokens + other.tokens > MOST).any():
            raise OverflowError(f"more than {MOST:,} tokens; lower tracer.num_trajectories")
        mean, m2 = _pooled(self, other)
        return StepStatistics(
            self.layout,
            self.tokens + other.tokens,
            _both_missing(self, other),
            mean,
            m2,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.negative + other.negative,
            _large(self, other),
            np.minimum(self.fold_low, other.fold_low),
            np.maximum(self.fold_high, other.fold_high),
            [one.merged(two) for one, two in zip(self.values, other.values, strict=True)],
            [one.merged(two) for one, two in zip(self.peaks, other.peaks, strict=True)],
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """As plain arrays, to be stored; `of_tensors` reads them back."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        for name in (_VALUES, _PEAKS):
            parts = joined(getattr(self, name))
            plain |= {f"{name}_{part}": array for part, array in parts.items()}
        return plain

    @classmethod
    def of_tensors(cls, layout: Layout, tensors: Mapping[str, np.ndarray]) -> StepStatistics:
        """Read back what `tensors` gave. Raises ValueError if the arrays do not fit the layout."""
        expected = _shapes(layout)
        for name, folds in ((_VALUES, layout.folds), (_PEAKS, 1)):
            rows = np.size(tensors.get(f"{name}_rows", ()))
            tables = table_shapes(rows=rows, folds=folds, sites=len(layout.sites))
            expected |= {f"{name}_{part}": shape for part, shape in tables.items()}
        for name, (dtype, shape) in expected.items():
            array = tensors.get(name)
            if array is None or array.dtype != dtype or array.shape not in (shape, _empty(name)):
                raise ValueError(f"its array {name!r} is no {np.dtype(dtype)} of shape {shape}")
        parts: dict[str, Any] = {name: tensors[name] for name in _PLAIN}
        for name in (_VALUES, _PEAKS):
            parts[name] = split({part: tensors[f"{name}_{part}"] for part in tables})
        return cls(layout, **parts)


_PLAIN = [
    field.name for field in fields(StepStatistics) if field.name not in ("layout", _VALUES, _PEAKS)
]


def _shapes(layout: Layout) -> dict[str, tuple[type, tuple[int, ...]]]:
    sites, channels, folds = len(layout.sites), layout.channels, layout.folds
    return {
        "tokens": (np.int64, (sites,)),
        "missing": (np.uint32, (channels,)),
        "mean": (np.float64, (channels,)),
        "m2": (np.float64, (channels,)),
        "low": (np.float32, (channels,)),
        "high": (np.float32, (channels,)),
        "negative": (np.uint32, (channels,)),
        "large": (np.uint32, (2, channels)),
        "fold_low": (np.float32, (folds, sites)),
        "fold_high": (np.float32, (folds, sites)),
    }


def _empty(name: str) -> tuple[int, ...] | None:
    """The shape of an array that may be left empty; None where it may not."""
    return (0,) if name == "missing" else None


def _finite(layout: Layout, tokens: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Finite values of each channel, (C,) int64."""
    count = layout.spread(tokens)
    return count - missing if len(missing) else count


def _both_missing(one: StepStatistics, two: StepStatistics) -> np.ndarray:
    if not (len(one.missing) and len(two.missing)):
        return one.missing if len(one.missing) else two.missing
    return one.missing + two.missing


def _pooled(one: StepStatistics, two: StepStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations (C,) of both together."""
    total = np.maximum(one.count + two.count, 1)
    share = two.count / total
    delta = two.mean - one.mean
    return one.mean + share * delta, one.m2 + two.m2 + delta**2 * (one.count * share)


def _large(one: StepStatistics, two: StepStatistics) -> np.ndarray:
    """Tokens in the octave of the common absmax, and in the one below, (2, C)."""
    octaves = [octave_of(part.absmax) for part in (one, two)]
    top = np.maximum(*octaves)
    total = np.zeros_like(one.large)
    for part, octave in zip((one, two), octaves, strict=True):
        first, second = part.large
        total[0] += np.where(octave == top, first, 0)
        total[1] += np.where(octave == top, second, np.where(octave == top - 1, first, 0))
    return total
