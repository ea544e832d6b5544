"""Activations reduced on the device: sums about the mean, extremes, counts, codes.

Everything here is lazy: nothing is evaluated, and what is returned holds no activation once it is.
R rows (of the guided batch), T tokens a row, G sites of C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from taqdit.activations import SHIFT, ChannelSums
from taqdit.backend import mx

CHUNK = 32  # addends summed one after another in float32; their sums are summed again
_MAGNITUDE = 0xFFF
_NONFINITE = 0xFF0  # smallest magnitude code of Inf and NaN


class Reduced(NamedTuple):
    """G sites side by side, lazy on the device or on the host: their channels, and the lowest and
    highest value of each row, (G, R)."""

    channels: ChannelSums
    row_low: Any
    row_high: Any

    @property
    def arrays(self) -> list[Any]:
        """All of them."""
        return [array for array in (*self.channels, *self[1:]) if array is not None]

    def map(self, change: Callable[[Any], Any]) -> Reduced:
        """Every array changed."""
        return Reduced(self.channels.map(change), change(self.row_low), change(self.row_high))


class Codes(NamedTuple):
    """Of every value, (R, T, G, C) uint16; and the magnitude of each token's largest, (R, T, G)."""

    values: mx.array
    peaks: mx.array


def reduced(activations: Sequence[mx.array], *, masked: bool = False) -> tuple[Reduced, Codes]:
    """The reductions of activations (R, .., C) of one shape and any float type, side by side.

    Many small ones cost as few operations as one. `masked` leaves NaN and Inf out of all but the
    codes; otherwise they spoil the moments of their channels and show in the codes.
    """
    rows, width = activations[0].shape[0], activations[0].shape[-1]
    parts = [array.astype(mx.float32).reshape(rows, -1, width) for array in activations]
    values = mx.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
    if masked:
        return _masked(values, len(parts))
    tokens = mx.array(values.shape[0] * values.shape[1])
    return _reduced(values, values, values, tokens, sites=len(parts))


def _masked(values: mx.array, sites: int) -> tuple[Reduced, Codes]:
    finite = mx.isfinite(values)
    missing = mx.logical_not(finite).sum(axis=(0, 1))
    tokens = values.shape[0] * values.shape[1]
    lows, highs = (mx.where(finite, values, mx.array(bound)) for bound in (mx.inf, -mx.inf))
    count = mx.maximum(tokens - missing, 1)
    sums, codes = _reduced(values, lows, highs, count, finite, sites=sites)
    return sums._replace(channels=sums.channels._replace(missing=missing)), codes


def _reduced(
    values: mx.array,
    lows: mx.array,
    highs: mx.array,
    count: mx.array,
    finite: mx.array | None = None,
    *,
    sites: int,
) -> tuple[Reduced, Codes]:
    """`lows` and `highs` are the values (R, T, G * C), where not `finite` +Inf and -Inf."""
    rows, tokens, width = values.shape
    row_low, row_high = lows.min(axis=1), highs.max(axis=1)  # (R, G * C)
    low, high = row_low.min(axis=0), row_high.max(axis=0)
    flat = values.reshape(-1, width)
    numbers = flat if finite is None else mx.where(finite.reshape(-1, width), flat, 0)
    shift = column_sums(numbers) / count
    apart = flat - shift
    if finite is not None:
        apart = mx.where(finite.reshape(-1, width), apart, 0)
    codes = (flat.view(mx.uint32) >> SHIFT).astype(mx.uint16)
    magnitudes = codes & _MAGNITUDE
    octave = _octave(low, high)
    channels = ChannelSums(
        shift=shift,
        sums=column_sums(apart),
        squares=column_sums(mx.square(apart)),
        low=low,
        high=high,
        negative=(lows.reshape(-1, width) < 0).sum(axis=0),
        top=_at_least(magnitudes, octave, finite),
        near=_at_least(magnitudes, mx.maximum(octave, 1) - 1, finite),
    )
    sums = Reduced(
        channels,
        row_low.reshape(rows, sites, -1).min(axis=2).T,
        row_high.reshape(rows, sites, -1).max(axis=2).T,
    )
    by_site = (rows, tokens, sites, -1)
    peaks = magnitudes.reshape(by_site).max(axis=3)
    return sums, Codes(codes.reshape(by_site), peaks)


def column_sums(values: mx.array) -> mx.array:
    """Sums over the first axis of (n, C), CHUNK addends at a time.

    The error grows with the root of CHUNK and of the number of levels, not with that of n.
    """
    width = values.shape[-1]
    while len(values) > CHUNK:
        whole = len(values) // CHUNK * CHUNK
        heads = values[:whole].reshape(-1, CHUNK, width).sum(axis=1)
        rest = values[whole:]
        values = mx.concatenate([heads, rest.sum(axis=0)[None]]) if len(rest) else heads
    return values.sum(axis=0)


def _octave(low: mx.array, high: mx.array) -> mx.array:
    """Biased exponent of each channel's absmax, uint16."""
    absmax = mx.maximum(mx.maximum(high, -low), 0)
    return (absmax.view(mx.uint32) >> 23).astype(mx.uint16)


def _at_least(magnitudes: mx.array, octave: mx.array, finite: mx.array | None) -> mx.array:
    """How many tokens of each channel lie in this octave or above it, NaN and Inf left out."""
    large = magnitudes >= octave * 16
    if finite is not None:
        large = mx.logical_and(large, magnitudes < _NONFINITE)
    return large.sum(axis=0)
