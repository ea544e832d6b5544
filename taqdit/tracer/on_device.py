"""Sites reduced where they are computed, on a GPU: together with the step's latent, so that no
activation leaves the device or outlives its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from taqdit.activations import BinCounts
from taqdit.activations.bins import BINS
from taqdit.backend import mx
from taqdit.tracer.reduce import Reduced, reduced
from taqdit.tracer.sums import STATIC, RowFolds, SiteSums, on_host

MOST_GATHERED = 16 * 2**20  # bytes of small activations that are reduced together
MOST_PENDING = 256 * 2**20  # bytes of codes that wait for the end of a step


class _Group(NamedTuple):
    """Sites that were reduced together: `tokens` token vectors each, their sums, and the counts of
    each site's bins by fold seen (P, 8192) and of its tokens' absmax (1, 8192)."""

    names: tuple[str, ...]
    tokens: int
    sums: Reduced
    values: list[Any]
    peaks: list[Any]

    @property
    def arrays(self) -> list[Any]:
        return [*self.sums.arrays, *self.values, *self.peaks]

    def on_host(self) -> _Group:
        values, peaks = ([*map(on_host, counts)] for counts in (self.values, self.peaks))
        return self._replace(sums=self.sums.map(on_host), values=values, peaks=peaks)


class DeviceReader:
    """Reduces the activations of one forward as it is built."""

    def __init__(self, folds: RowFolds, *, masked: bool) -> None:
        self._folds, self._masked = folds, masked
        self._gathered: dict[Any, list[tuple[str, mx.array]]] = {}  # activations of one shape
        self._groups: list[_Group] = []
        self._waiting = 0  # bytes of the codes that are not counted yet
        self._static_read = False

    def read(self, name: str, activation: mx.array) -> None:
        """An activation (R, .., C) of any float type; kept until some of its shape can be reduced
        together."""
        if name == STATIC and self._static_read:
            return
        self._static_read |= name == STATIC
        key = activation.shape, activation.dtype
        alike = self._gathered.setdefault(key, [])
        alike.append((name, activation))
        if len(alike) * activation.nbytes > MOST_GATHERED:
            self._reduce(key)

    def built(self) -> None:
        """The forward is built."""
        for key in list(self._gathered):
            self._reduce(key)

    @property
    def pending(self) -> list[mx.array]:
        """What has to be evaluated before `taken`."""
        return [array for group in self._groups for array in group.arrays]

    def taken(self) -> Callable[[], dict[str, SiteSums]]:
        """What gives the sums of the forward that was evaluated."""
        groups = [group.on_host() for group in self._groups]
        self._groups, self._waiting = [], 0
        return lambda: {name: sums for group in groups for name, sums in self._sites(group)}

    def _reduce(self, key: Any) -> None:
        names, activations = zip(*self._gathered.pop(key), strict=True)
        sums, codes = reduced(activations, masked=self._masked)
        rows, tokens = codes.peaks.shape[:2]
        place, together = mx.array(self._folds.place), mx.zeros((rows,), mx.int32)
        values, peaks = [], []
        for site in range(len(names)):
            by_row = codes.values[:, :, site].reshape(rows, -1)
            values.append(scattered(by_row, place, len(self._folds.seen)))
            peaks.append(scattered(codes.peaks[:, :, site], together, 1))
        self._groups.append(_Group(names, rows * tokens, sums, values, peaks))
        self._waiting += codes.values.nbytes
        if self._waiting > MOST_PENDING:  # a large model's codes would fill the memory
            mx.eval(*self.pending)
            self._waiting = 0

    def _sites(self, group: _Group) -> Iterator[tuple[str, SiteSums]]:
        """Each site of a group that is on the host."""
        channels, folds = group.sums.channels, self._folds
        width = len(channels.low) // len(group.names)
        for number, name in enumerate(group.names):
            yield (
                name,
                SiteSums(
                    group.tokens,
                    channels.map(itemgetter(slice(number * width, (number + 1) * width))),
                    group.sums.row_low[number],
                    group.sums.row_high[number],
                    BinCounts.of(group.values[number], folds.seen, folds=folds.folds),
                    BinCounts.of(group.peaks[number], [0], folds=1),
                ),
            )


def scattered(codes: mx.array, group: mx.array, groups: int) -> mx.array:
    """Counts (groups, 8192) uint32 of codes (R, n), row r in group[r]."""
    places = (codes.astype(mx.int32) + group.astype(mx.int32)[:, None] * BINS).flatten()
    zeros = mx.zeros((groups * BINS,), dtype=mx.uint32)
    return zeros.at[places].add(mx.array(1, mx.uint32)).reshape(groups, BINS)
