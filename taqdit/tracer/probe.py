"""Reads the sites of one batch while it is sampled, and reduces them step by step.

A probe changes no number of the forward that it watches: taps read what enters a module. On a GPU
the reductions are evaluated together with the step's latent; on the CPU the activations are, and
numpy reduces them on a thread of its own while the next step is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taqdit.activations import BatchSums, Layout
from taqdit.backend import on_cpu
from taqdit.tracer.background import Background
from taqdit.tracer.on_device import DeviceReader
from taqdit.tracer.on_host import HostReader
from taqdit.tracer.sums import BatchSide, RowFolds
from taqdit.tracer.taps import Taps

Denoise = Callable[[Any, int], Any]


class Probe:
    """Reads one batch: `watch` its denoiser, evaluate `pending` with each latent, then `collect`;
    `finish` when the batch is through.

    `indices` are the numbers of its trajectories (or of what else `unit` names: they tell the
    folds apart), `texts` their prompts. `add(step, sums)` is called for every step in order, at
    the latest by `finish`.
    """

    def __init__(
        self,
        taps: Taps,
        layout: Layout,
        indices: Sequence[int],
        add: Callable[[int, BatchSums], None],
        *,
        texts: Sequence[str],
        masked: bool = False,
        unit: str = "trajectory",
    ) -> None:
        folds = RowFolds(indices, folds=layout.folds)
        self._taps = taps
        self._reader = (HostReader if on_cpu() else DeviceReader)(folds, masked=masked)
        self._batch = BatchSide(layout, indices, texts, add, folds, masked=masked, unit=unit)
        self._background = Background()
        self._step: int | None = None  # whose forward has been read

    def watch(self, denoise: Denoise) -> Denoise:
        """A denoiser with the same outputs whose first forward after each `collect` is read.

        A solver's further forwards within a step (Heun's correction) are not: the statistics are
        those of the stored latents.
        """

        def watched(latent: Any, step: int) -> Any:
            if self._step is not None:
                return denoise(latent, step)
            try:
                with self._taps.reading(self._reader.read):
                    clean = denoise(latent, step)
            finally:  # a Ctrl-C on the way into the context's own exit would skip it
                self._taps.restore()
            self._reader.built()
            self._step = step
            return clean

        return watched

    @property
    def pending(self) -> list[Any]:
        """What has to be evaluated before `collect`."""
        return self._reader.pending

    def collect(self) -> None:
        """Hand on what was read of a step; `pending` has been evaluated.

        Raises NumericError naming site, step and prompt if a value of an earlier step was NaN or
        Inf, unless masked; `finish` raises it for the last one.
        """
        if self._step is None:
            raise RuntimeError("no forward has been read since the last collect")
        step, sums = self._step, self._reader.taken()
        self._step = None
        self._background.run(lambda: self._batch.take(step, sums()))

    def finish(self) -> None:
        """Wait until every step was added. Raises as `collect`."""
        self._background.wait()
