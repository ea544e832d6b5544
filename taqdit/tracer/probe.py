"""Reads the sites of one batch while it is sampled, and reduces them step by step.

A probe changes no number of the forward that it watches: taps read what enters a module, and all
reductions are evaluated together with the step's latent, so that no activation outlives its step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from taqdit.backend import mx
from taqdit.errors import NumericError
from taqdit.statistics import BatchSums, BinCounts, Layout
from taqdit.tracer.counting import OneFold, RowFolds
from taqdit.tracer.reduce import Reduced, reduced
from taqdit.tracer.taps import Taps

Denoise = Callable[[Any, int], Any]
STATIC = "embed.context_in"  # the conditioning: the same at every step of a batch
MOST_PENDING = 256 * 2**20  # bytes of codes that wait for the end of a step
_JOINED = ("shift", "sums", "squares", "low", "high", "negative", "top", "near")


class Rows(Protocol):
    """The trajectories of a batch."""

    @property
    def indices(self) -> Sequence[int]: ...

    @property
    def texts(self) -> Sequence[str]: ...


class Probe:
    """Reads one batch: `watch` its denoiser, evaluate `pending` with each latent, then `collect`.

    `found(step, sums)` is told what each step showed.
    """

    def __init__(
        self,
        taps: Taps,
        layout: Layout,
        batch: Rows,
        found: Callable[[int, BatchSums], None],
        *,
        masked: bool = False,
    ) -> None:
        self._taps, self._layout, self._batch, self._masked = taps, layout, batch, masked
        self._found = found
        self._folds = RowFolds(batch.indices, folds=layout.folds)
        self._all = OneFold(2 * len(batch.indices))
        self._step: int | None = None
        self._read: dict[str, Reduced] = {}
        self._lazy: dict[str, tuple[Any, Any]] = {}  # values and peaks, to be counted
        self._counts: dict[str, tuple[BinCounts, BinCounts]] = {}
        self._joint: dict[str, Any] = {}
        self._tokens: dict[str, int] = {}

    def watch(self, denoise: Denoise) -> Denoise:
        """A denoiser with the same outputs whose first forward after each `collect` is read.

        A solver's further forwards within a step (Heun's correction) are not: the statistics are
        those of the stored latents.
        """

        def watched(latent: Any, step: int) -> Any:
            if self._step is not None:
                return denoise(latent, step)
            try:
                with self._taps.reading(self._reduce):
                    clean = denoise(latent, step)
            finally:  # a Ctrl-C on the way into the context's own exit would skip it
                self._taps.restore()
            self._step = step
            self._join()
            return clean

        return watched

    @property
    def pending(self) -> list[Any]:
        """What has to be evaluated before `collect`."""
        lazy = [array for pair in self._lazy.values() for array in pair]
        return [*self._joint.values(), *lazy]

    def collect(self) -> None:
        """Hand on the sums of the step that was read; `pending` has been evaluated.

        Raises NumericError naming site, step and prompt if a value is NaN or Inf, unless masked.
        """
        if self._step is None:
            raise RuntimeError("no forward has been read since the last collect")
        step, self._step = self._step, None
        rows = np.array(self._joint["row_low"]), np.array(self._joint["row_high"])
        sums = self._sums(*rows)
        self._joint = {}
        self._read = {name: kept for name, kept in self._read.items() if name == STATIC}
        if not self._masked:
            self._refuse_nonfinite(sums, step, *rows)
        self._found(step, sums)

    def _sums(self, row_low: np.ndarray, row_high: np.ndarray) -> BatchSums:
        """What was evaluated, on the host."""
        self._count()
        counts = [self._counts[site.name] for site in self._layout.sites]
        fold_low, fold_high = self._folds.extremes(row_low, row_high)
        joint = {name: np.array(self._joint[name]) for name in _JOINED}
        missing = np.array(self._joint["missing"]) if self._masked else None
        return BatchSums(
            tokens=np.array([self._tokens[site.name] for site in self._layout.sites]),
            missing=missing,
            fold_low=fold_low,
            fold_high=fold_high,
            values=[values for values, _ in counts],
            peaks=[peaks for _, peaks in counts],
            **joint,
        )

    def _reduce(self, name: str, activation: Any) -> None:
        if name in self._read:
            return  # the static site, known from the first step
        self._read[name], codes = reduced(activation, masked=self._masked)
        self._tokens[name] = codes.peaks.size
        self._lazy[name] = self._folds.lazy(codes.values), self._all.lazy(codes.peaks)
        if sum(array.nbytes for pair in self._lazy.values() for array in pair) > MOST_PENDING:
            self._evaluate_early()

    def _evaluate_early(self) -> None:
        """Count what is pending within the step: a large model's codes would fill the memory."""
        parts = [[a for a in self._read[name] if a is not None] for name in self._lazy]
        mx.eval(*self._lazy.values(), *parts)
        self._count()

    def _count(self) -> None:
        """Count the codes that were evaluated, and let them go."""
        for name, (values, peaks) in self._lazy.items():
            self._counts[name] = self._folds.counted(values), self._all.counted(peaks)
        self._lazy = {}

    def _join(self) -> None:
        """Per-channel numbers of all sites side by side: one array to evaluate, not one a site."""
        parts = [self._read[site.name] for site in self._layout.sites]
        for name in _JOINED:
            self._joint[name] = mx.concatenate([getattr(part, name) for part in parts])
        if self._masked:
            missing = [part.missing for part in parts if part.missing is not None]
            self._joint["missing"] = mx.concatenate(missing)
        for name in ("row_low", "row_high"):
            self._joint[name] = mx.stack([getattr(part, name) for part in parts])

    def _refuse_nonfinite(
        self, sums: BatchSums, step: int, low: np.ndarray, high: np.ndarray
    ) -> None:
        for site, values, lows, highs in zip(
            self._layout.sites, sums.values, low, high, strict=True
        ):
            if not ((values.rows & 0xFF) == 0xFF).any():
                continue
            bad = np.flatnonzero(~(np.isfinite(lows) & np.isfinite(highs)))
            row = int(bad[0]) % len(self._batch.indices) if len(bad) else 0
            raise NumericError(
                f"{site.name} holds NaN or Inf at step {step} of trajectory"
                f" {self._batch.indices[row]} (prompt {self._batch.texts[row]!r}); nothing of its"
                " batch was stored. Try model.a16=false or a lower sampler.cfg_scale;"
                " tracer.nonfinite=count counts such values and goes on"
            )
