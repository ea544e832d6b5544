"""The host's part of tracing: what was reduced on the device becomes the sums of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from taqdit.activations import BatchSums, BinCounts, Layout
from taqdit.errors import NumericError
from taqdit.tracer.counting import OneFold, RowFolds
from taqdit.tracer.reduce import Reduced

STATIC = "embed.context_in"  # the conditioning: the same at every step of a batch
Counted = tuple[BinCounts, BinCounts]  # of all values by fold, and of the tokens' absmax


@dataclass(eq=False)
class Group:
    """Sites that were reduced together, of `tokens` token vectors each.

    `values`, `peaks`: what is to be counted, as `RowFolds.lazy` gives it; empty where that is
    `counted`, or known from the first step.
    """

    names: tuple[str, ...]
    tokens: int
    sums: Reduced
    values: list[Any]
    peaks: list[Any]
    counted: dict[str, Counted] = field(default_factory=dict)

    def on_host(self) -> Group:
        """The same once it is evaluated; the sums stay where they are."""
        values, peaks = ([*map(_on_host, codes)] for codes in (self.values, self.peaks))
        return replace(self, values=values, peaks=peaks, counted=dict(self.counted))


@dataclass(frozen=True, eq=False)
class Forward:
    """One forward as it was reduced; `sums` are those of all groups, side by side."""

    step: int
    sums: Reduced
    groups: Sequence[Group]

    @property
    def pending(self) -> list[Any]:
        """What has to be evaluated before it is `on_host`."""
        codes = [array for group in self.groups for array in (*group.values, *group.peaks)]
        return [*self.sums.arrays, *codes]

    def on_host(self) -> Forward:
        """The same once it is evaluated."""
        groups = [group.on_host() for group in self.groups]
        return Forward(self.step, self.sums.map(_on_host), groups)


class HostSide:
    """Counts the codes of each forward, looks for NaN and Inf, and calls `add(step, sums)`.

    `indices` are the numbers of the batch's trajectories, or of another `unit`; `texts` their
    prompts.
    """

    def __init__(
        self,
        layout: Layout,
        indices: Sequence[int],
        texts: Sequence[str],
        add: Callable[[int, BatchSums], None],
        *,
        masked: bool,
        unit: str = "trajectory",
    ) -> None:
        self.folds = RowFolds(indices, folds=layout.folds)
        self.together = OneFold(2 * len(indices))
        self._layout, self._indices, self._texts = layout, indices, texts
        self._add, self._masked, self._unit = add, masked, unit
        self._static: dict[str, Counted] = {}
        self._known: tuple[tuple[str, ...], np.ndarray, np.ndarray] | None = None

    def take(self, forward: Forward) -> None:
        """Raises NumericError naming site, step and prompt if a value is NaN or Inf."""
        counts = dict(self._static)
        for group in forward.groups:
            counts |= {**group.counted, **self.count(group)}
        self._static = {name: counted for name, counted in counts.items() if name == STATIC}
        tokens = {name: group.tokens for group in forward.groups for name in group.names}
        sites, channels = self._order(tuple(tokens))
        low, high = forward.sums.row_low[sites], forward.sums.row_high[sites]
        fold_low, fold_high = self.folds.extremes(low, high)
        names = [site.name for site in self._layout.sites]
        values, peaks = zip(*(counts[name] for name in names), strict=True)
        if not self._masked:
            self._refuse_nonfinite(values, forward.step, np.isfinite(low) & np.isfinite(high))
        sums = BatchSums(
            tokens=np.array([tokens[name] for name in names]),
            channels=forward.sums.channels.map(lambda array: array[channels]),
            fold_low=fold_low,
            fold_high=fold_high,
            values=values,
            peaks=peaks,
        )
        self._add(forward.step, sums)

    def count(self, group: Group) -> dict[str, Counted]:
        """The codes of each site, counted; nothing if there are none."""
        if not group.values:
            return {}
        return {
            name: (self.folds.counted(group.values, i), self.together.counted(group.peaks, i))
            for i, name in enumerate(group.names)
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

    def _refuse_nonfinite(self, values: Sequence[BinCounts], step: int, finite: np.ndarray) -> None:
        """`finite` (S, R) bool: whether the extremes of a row are."""
        for site, counts, rows in zip(self._layout.sites, values, finite, strict=True):
            if not ((counts.rows & 0xFF) == 0xFF).any():
                continue
            row = int(rows.argmin()) % len(self._indices)  # the first that is not
            raise NumericError(
                f"{site.name} holds NaN or Inf at step {step} of {self._unit}"
                f" {self._indices[row]} (prompt {self._texts[row]!r}); nothing of its"
                " batch was stored. Try model.a16=false or a lower sampler.cfg_scale;"
                " tracer.nonfinite=count counts such values and goes on"
            )


def _on_host(array: Any) -> np.ndarray:
    """An evaluated array as the host sees it, not copied."""
    return np.array(array, copy=False)
