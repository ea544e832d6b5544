"""The host's part of tracing: what was reduced on the device becomes the sums of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from taqdit.activations import BatchSums, BinCounts, Layout
from taqdit.errors import NumericError
from taqdit.tracer.counting import OneFold, RowFolds

STATIC = "embed.context_in"  # the conditioning: the same at every step of a batch
PER_CHANNEL = ("shift", "sums", "squares", "low", "high", "negative", "top", "near")
Counted = tuple[BinCounts, BinCounts]  # of all values by fold, and of the tokens' absmax


class Rows(Protocol):
    """The trajectories of a batch."""

    @property
    def indices(self) -> Sequence[int]: ...

    @property
    def texts(self) -> Sequence[str]: ...


@dataclass(frozen=True, eq=False)
class Part:
    """Sites that were reduced together: token vectors per site, and their codes, to be counted,
    unless they are `counted` or known from the first step."""

    names: tuple[str, ...]
    tokens: int
    values: Sequence[np.ndarray]
    peaks: Sequence[np.ndarray]
    counted: Mapping[str, Counted]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One forward as it was reduced. `joint`: per-channel numbers of all sites side by side, and
    `row_low`, `row_high` (S, R), the sites in the order of `parts`."""

    step: int
    joint: Mapping[str, np.ndarray]
    parts: Sequence[Part]


class HostSide:
    """Counts the codes of each forward, looks for NaN and Inf, and tells `found` the sums."""

    def __init__(
        self,
        layout: Layout,
        batch: Rows,
        found: Callable[[int, BatchSums], None],
        *,
        masked: bool,
    ) -> None:
        self.folds = RowFolds(batch.indices, folds=layout.folds)
        self.together = OneFold(2 * len(batch.indices))
        self._layout, self._batch, self._found, self._masked = layout, batch, found, masked
        self._static: dict[str, Counted] = {}
        self._known: tuple[tuple[str, ...], np.ndarray, np.ndarray] | None = None

    def take(self, forward: Evaluated) -> None:
        """Raises NumericError naming site, step and prompt if a value is NaN or Inf."""
        counts = dict(self._static)
        for part in forward.parts:
            counts |= {**part.counted, **self.count(part)}
        self._static = {name: kept for name, kept in counts.items() if name == STATIC}
        joint = self._in_layout(forward)
        sums = self._sums(forward, joint, [counts[site.name] for site in self._layout.sites])
        if not self._masked:
            self._refuse_nonfinite(sums, forward.step, joint["row_low"], joint["row_high"])
        self._found(forward.step, sums)

    def count(self, part: Part) -> dict[str, Counted]:
        """The codes of each site, counted; nothing if there are none."""
        if not part.values:
            return {}
        return {
            name: (self.folds.counted(part.values, i), self.together.counted(part.peaks, i))
            for i, name in enumerate(part.names)
        }

    def _sums(
        self, forward: Evaluated, joint: Mapping[str, np.ndarray], counts: Sequence[Counted]
    ) -> BatchSums:
        tokens = {name: part.tokens for part in forward.parts for name in part.names}
        fold_low, fold_high = self.folds.extremes(joint["row_low"], joint["row_high"])
        return BatchSums(
            tokens=np.array([tokens[site.name] for site in self._layout.sites]),
            missing=joint.get("missing"),
            fold_low=fold_low,
            fold_high=fold_high,
            values=[values for values, _ in counts],
            peaks=[peaks for _, peaks in counts],
            **{name: joint[name] for name in PER_CHANNEL},
        )

    def _in_layout(self, forward: Evaluated) -> dict[str, np.ndarray]:
        """The joint arrays with the sites in the order of the layout."""
        sites, channels = self._order(tuple(name for part in forward.parts for name in part.names))
        return {
            name: array[sites] if array.ndim == 2 else array[channels]
            for name, array in forward.joint.items()
        }

    def _order(self, read: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Where the layout's sites, and their channels, stand among those that were read."""
        if self._known and self._known[0] == read:
            return self._known[1:]
        widths = [self._layout.sites[self._layout.index(name)].width for name in read]
        begin = dict(zip(read, np.cumsum([0, *widths]).tolist(), strict=False))
        places = {name: place for place, name in enumerate(read)}
        sites = np.array([places[site.name] for site in self._layout.sites])
        channels = [np.arange(site.width) + begin[site.name] for site in self._layout.sites]
        self._known = read, sites, np.concatenate(channels)
        return self._known[1:]

    def _refuse_nonfinite(
        self, sums: BatchSums, step: int, low: np.ndarray, high: np.ndarray
    ) -> None:
        for number, (site, values) in enumerate(zip(self._layout.sites, sums.values, strict=True)):
            if not ((values.rows & 0xFF) == 0xFF).any():
                continue
            bad = np.flatnonzero(~(np.isfinite(low[number]) & np.isfinite(high[number])))
            row = int(bad[0]) % len(self._batch.indices) if len(bad) else 0
            raise NumericError(
                f"{site.name} holds NaN or Inf at step {step} of trajectory"
                f" {self._batch.indices[row]} (prompt {self._batch.texts[row]!r}); nothing of its"
                " batch was stored. Try model.a16=false or a lower sampler.cfg_scale;"
                " tracer.nonfinite=count counts such values and goes on"
            )
