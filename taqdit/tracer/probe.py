"""Reads the sites of one batch while it is sampled, and reduces them step by step.

A probe changes no number of the forward that it watches: taps read what enters a module, and all
reductions are evaluated together with the step's latent, so that no activation outlives its step.
On the CPU they are computed on a thread beside the forward's, and counted on a third one while the
next step is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taqdit.backend import mx, side_stream
from taqdit.statistics import BatchSums, Layout
from taqdit.tracer.background import Background
from taqdit.tracer.host import PER_CHANNEL, STATIC, Counted, Evaluated, HostSide, Rows
from taqdit.tracer.reduce import Reduced, reduced
from taqdit.tracer.taps import Taps

Denoise = Callable[[Any, int], Any]
MOST_PENDING = 256 * 2**20  # bytes of codes that wait for the end of a step


class Probe:
    """Reads one batch: `watch` its denoiser, evaluate `pending` with each latent, then `collect`;
    `finish` when the batch is through.

    `found(step, sums)` is told what each step showed, in order, at the latest by `finish`.
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
        self._taps, self._layout, self._masked = taps, layout, masked
        self._host = HostSide(layout, batch, found, masked=masked)
        self._background = Background()
        self._step: int | None = None
        self._read: dict[str, Reduced] = {}
        self._lazy: dict[str, tuple[Any, Any]] = {}  # values and peaks, to be counted
        self._waiting = 0  # bytes of the codes of all in _lazy, as if they were kept
        self._counted: dict[str, Counted] = {}  # of this step, counted early
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
            with mx.stream(side_stream()):
                self._join([self._read[site.name] for site in self._layout.sites])
            return clean

        return watched

    @property
    def pending(self) -> list[Any]:
        """What has to be evaluated before `collect`."""
        lazy = [array for pair in self._lazy.values() for array in pair]
        return [*self._joint.values(), *lazy]

    def collect(self) -> None:
        """Hand on what was read of a step; `pending` has been evaluated.

        Raises NumericError naming site, step and prompt if a value of an earlier step was NaN or
        Inf, unless masked; `finish` raises it for the last one.
        """
        if self._step is None:
            raise RuntimeError("no forward has been read since the last collect")
        forward = Evaluated(
            self._step,
            {name: _on_host(array) for name, array in self._joint.items()},
            {name: (_on_host(v), _on_host(p)) for name, (v, p) in self._lazy.items()},
            self._counted,
            dict(self._tokens),
        )
        self._step, self._waiting = None, 0
        self._joint, self._lazy, self._counted = {}, {}, {}
        self._read = {name: kept for name, kept in self._read.items() if name == STATIC}
        self._background.run(lambda: self._host.take(forward))

    def finish(self) -> None:
        """Wait until `found` was told of every step. Raises as `collect`."""
        self._background.wait()

    def _reduce(self, name: str, activation: Any) -> None:
        if name in self._read:
            return  # the static site, known from the first step
        with mx.stream(side_stream()):  # beside the forward, which does not wait for it
            self._read[name], codes = reduced(activation, masked=self._masked)
            lazy = self._host.folds.lazy(codes.values), self._host.together.lazy(codes.peaks)
        self._lazy[name] = lazy
        self._tokens[name] = codes.peaks.size
        self._waiting += codes.values.nbytes
        if self._waiting > MOST_PENDING:
            self._count_early()

    def _count_early(self) -> None:
        """Count what is pending within the step: a large model's codes would fill the memory.

        So would its activations, where a GPU counts the codes at once: they wait to be reduced.
        """
        parts = [[a for a in self._read[name] if a is not None] for name in self._lazy]
        mx.eval(*self._lazy.values(), *parts)
        for name, (values, peaks) in self._lazy.items():
            self._counted[name] = self._host.count(_on_host(values), _on_host(peaks))
        self._lazy, self._waiting = {}, 0

    def _join(self, parts: Sequence[Reduced]) -> None:
        """Per-channel numbers of all sites side by side: one array to evaluate, not one a site."""
        for name in PER_CHANNEL:
            self._joint[name] = mx.concatenate([getattr(part, name) for part in parts])
        if self._masked:
            missing = [part.missing for part in parts if part.missing is not None]
            self._joint["missing"] = mx.concatenate(missing)
        for name in ("row_low", "row_high"):
            self._joint[name] = mx.stack([getattr(part, name) for part in parts])


def _on_host(array: Any) -> np.ndarray:
    """An evaluated array as the host sees it, not copied."""
    return np.array(array, copy=False)
