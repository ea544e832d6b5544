"""The host's part of tracing: what was reduced on the device becomes the sums of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from taqdit.errors import NumericError
from taqdit.statistics import BatchSums, BinCounts, Layout
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
class Evaluated:
    """One forward as it was reduced. `joint`: per-channel numbers of all sites side by side, and
    `row_low`, `row_high` (S, R); `codes`: values and peaks by site, to be counted, or `counted`;
    `tokens` by site."""

    step: int
    joint: Mapping[str, np.ndarray]
    codes: Mapping[str, tuple[np.ndarray, np.ndarray]]
    counted: Mapping[str, Counted]
    tokens: Mapping[str, int]


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

    def take(self, forward: Evaluated) -> None:
        """Raises NumericError naming site, step and prompt if a value is NaN or Inf."""
        counts = {**self._static, **forward.counted}
        counts |= {name: self.count(*codes) for name, codes in forward.codes.items()}
        self._static = {name: kept for name, kept in counts.items() if name == STATIC}
        sums = self._sums(forward, [counts[site.name] for site in self._layout.sites])
        if not self._masked:
            self._refuse_nonfinite(sums, forward)
        self._found(forward.step, sums)

    def count(self, values: np.ndarray, peaks: np.ndarray) -> Counted:
        """The codes of a site, counted."""
        return self.folds.counted(values), self.together.counted(peaks)

    def _sums(self, forward: Evaluated, counts: Sequence[Counted]) -> BatchSums:
        joint = forward.joint
        fold_low, fold_high = self.folds.extremes(joint["row_low"], joint["row_high"])
        return BatchSums(
            tokens=np.array([forward.tokens[site.name] for site in self._layout.sites]),
            missing=joint.get("missing"),
            fold_low=fold_low,
            fold_high=fold_high,
            values=[values for values, _ in counts],
            peaks=[peaks for _, peaks in counts],
            **{name: joint[name] for name in PER_CHANNEL},
        )

    def _refuse_nonfinite(self, sums: BatchSums, forward: Evaluated) -> None:
        low, high = forward.joint["row_low"], forward.joint["row_high"]
        for number, (site, values) in enumerate(zip(self._layout.sites, sums.values, strict=True)):
            if not ((values.rows & 0xFF) == 0xFF).any():
                continue
            bad = np.flatnonzero(~(np.isfinite(low[number]) & np.isfinite(high[number])))
            row = int(bad[0]) % len(self._batch.indices) if len(bad) else 0
            raise NumericError(
                f"{site.name} holds NaN or Inf at step {forward.step} of trajectory"
                f" {self._batch.indices[row]} (prompt {self._batch.texts[row]!r}); nothing of its"
                " batch was stored. Try model.a16=false or a lower sampler.cfg_scale;"
                " tracer.nonfinite=count counts such values and goes on"
            )
