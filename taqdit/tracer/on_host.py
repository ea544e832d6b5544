"""Sites reduced by numpy where the device is the CPU: read in place, a block at a time.

Each operation of MLX on the CPU passes over an activation in memory; here the passes over a block
meet it in the processor's own cache. R rows (of the guided batch), T tokens a row, C channels;
blocks (k, m, C) are m tokens of k rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np

from taqdit.activations import SHIFT, BinCounts, ChannelSums
from taqdit.activations.bins import PER_ROW, SIGN, octave_of
from taqdit.backend import mx
from taqdit.tracer.sums import STATIC, RowFolds, SiteSums, on_host

MOST_PENDING = 256 * 2**20  # bytes of activations that wait for the end of a step
BLOCK = 2**17  # values of a block
CHUNK = 32  # addends that are summed in float32; their sums are summed in float64
ONE = np.zeros(1, int)  # the fold of what is not kept by fold


class HostReader:
    """Keeps the activations of one forward until they are evaluated, then reduces them."""

    def __init__(self, folds: RowFolds, *, masked: bool) -> None:
        self._folds, self._masked = folds, masked
        self._kept: dict[str, mx.array] = {}
        self._reduced: dict[str, SiteSums] = {}
        self._static_read = False

    def read(self, name: str, activation: mx.array) -> None:
        """An activation (R, .., C) of any float type, as the forward is built."""
        if name == STATIC and self._static_read:
            return
        self._static_read |= name == STATIC
        self._kept[name] = activation.astype(mx.float32)
        if sum(array.nbytes for array in self._kept.values()) > MOST_PENDING:
            mx.eval(*self._kept.values())  # a large model's activations would fill the memory
            self._reduced = self.taken()()

    def built(self) -> None:
        """The forward is built: nothing is left to do before it is evaluated."""

    @property
    def pending(self) -> list[mx.array]:
        """What has to be evaluated before `taken`."""
        return list(self._kept.values())

    def taken(self) -> Callable[[], dict[str, SiteSums]]:
        """What reduces the forward that was evaluated; the next one may be read meanwhile."""
        kept = {name: on_host(array) for name, array in self._kept.items()}
        reduced, self._kept, self._reduced = self._reduced, {}, {}

        def sums() -> dict[str, SiteSums]:
            now = {n: site_sums(a, self._folds, masked=self._masked) for n, a in kept.items()}
            return {**reduced, **now}

        return sums


def site_sums(values: np.ndarray, folds: RowFolds, *, masked: bool = False) -> SiteSums:
    """The sums of a site's activations (R, .., C) float32.

    `masked` leaves NaN and Inf out of all but the histograms; otherwise they spoil the moments of
    their channels and show in the histograms.
    """
    values = values.reshape(len(values), -1, values.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        extremes = _extremes(values, masked=masked)
        channels, bins, peaks = _about(values, extremes, folds, masked=masked)
    return SiteSums(
        tokens=values.shape[0] * values.shape[1],
        channels=channels,
        row_low=extremes.row_low,
        row_high=extremes.row_high,
        values=bins,
        peaks=peaks,
    )


class _Extremes(NamedTuple):
    """Of each channel (C,): the mean, float32, the extremes, and the tokens that hold NaN or Inf
    (None: not looked for); the extremes of each row (R,)."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    missing: np.ndarray | None
    row_low: np.ndarray
    row_high: np.ndarray


def _extremes(values: np.ndarray, *, masked: bool) -> _Extremes:
    rows, tokens, width = values.shape
    low, high = np.full((rows, width), np.inf, "f4"), np.full((rows, width), -np.inf, "f4")
    total, missing = np.zeros(width), np.zeros(width, np.int64)
    for row, token in _blocks(values.shape):
        lows = highs = numbers = values[row, token]
        if masked:
            finite = np.isfinite(numbers)
            lows, highs, numbers = (_where(finite, numbers, x) for x in (np.inf, -np.inf, 0))
            missing += _number(~finite)
        np.minimum(low[row], lows.min(axis=1), out=low[row])
        np.maximum(high[row], highs.max(axis=1), out=high[row])
        total += _sum(numbers)
    return _Extremes(
        mean=(total / np.maximum(rows * tokens - missing, 1)).astype(np.float32),
        low=low.min(axis=0),
        high=high.max(axis=0),
        missing=missing if masked else None,
        row_low=low.min(axis=1),
        row_high=high.max(axis=1),
    )


def _about(
    values: np.ndarray, of: _Extremes, folds: RowFolds, *, masked: bool
) -> tuple[ChannelSums, BinCounts, BinCounts]:
    """Sums about the mean; the bins of all values by fold, and of the tokens' absmax."""
    sums, squares = np.zeros((2, values.shape[-1]))
    negative, top, near = np.zeros((3, values.shape[-1]), np.int64)
    bins, peaks = [], []
    octave = octave_of(np.maximum(np.maximum(of.high, -of.low), 0)).astype(np.uint16) * PER_ROW
    below = np.maximum(octave, PER_ROW) - PER_ROW
    for row, token in _blocks(values.shape):
        part = values[row, token]
        codes = (part.view(np.uint32) >> np.uint32(SHIFT)).astype(np.uint16)
        magnitudes = codes & np.uint16(SIGN - 1)
        flags = [part < 0, magnitudes >= octave, magnitudes >= below]
        apart = part - of.mean
        if masked:
            finite = np.isfinite(part)
            flags = [flag & finite for flag in flags]
            apart = _where(finite, apart, 0)
        for total, flag in zip((negative, top, near), flags, strict=True):
            total += _number(flag)
        sums += _sum(apart)
        squares += _sum(np.square(apart, out=apart))
        bins.append(BinCounts.of_codes(codes, folds.of_row[row], folds=folds.folds))
        peaks.append(BinCounts.of_codes(magnitudes.max(axis=2).reshape(1, -1), ONE, folds=1))
    channels = ChannelSums(of.mean, sums, squares, of.low, of.high, negative, top, near, of.missing)
    return channels, reduce(BinCounts.merged, bins), reduce(BinCounts.merged, peaks)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Rows and tokens of the blocks of (R, T, C): some whole rows, or a part of one."""
    rows, tokens, width = shape
    some = min(tokens, max(1, BLOCK // (width * CHUNK)) * CHUNK)
    together = max(1, BLOCK // (tokens * width)) if some == tokens else 1
    for row in range(0, rows, together):
        for token in range(0, tokens, some):
            yield slice(row, row + together), slice(token, token + some)


def _sum(block: np.ndarray) -> np.ndarray:
    """Sum of each channel, float64, of a block (k, m, C) float32."""
    return sum(np.add.reduce(part, axis=1).sum(axis=0, dtype=np.float64) for part in _chunks(block))


def _number(flags: np.ndarray) -> np.ndarray:
    """How many flags (k, m, C) of each channel are set, int64."""
    parts = _chunks(flags.view(np.uint8))
    return sum(
        np.add.reduce(part, axis=1, dtype=np.uint8).sum(axis=0, dtype=np.int64) for part in parts
    )


def _chunks(block: np.ndarray) -> Iterator[np.ndarray]:
    """A block as parts (n, at most CHUNK, C)."""
    _, tokens, width = block.shape
    whole = tokens // CHUNK * CHUNK
    if whole:
        yield block[:, :whole].reshape(-1, CHUNK, width)
    if tokens > whole:
        yield block[:, whole:]


def _where(finite: np.ndarray, values: np.ndarray, other: float) -> np.ndarray:
    return np.where(finite, values, np.float32(other))
