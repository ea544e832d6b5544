"""Reads the sites of one batch while it is sampled, and reduces them step by step.

A probe changes no number of the forward that it watches: taps read what enters a module, and all
reductions are evaluated together with the step's latent, so that no activation outlives its step.
On the CPU they are computed on a thread beside the forward's, and counted on a third one while the
next step is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taqdit.activations import BatchSums, Layout
from taqdit.backend import mx, side_stream
from taqdit.tracer.background import Background
from taqdit.tracer.host import STATIC, Forward, Group, HostSide
from taqdit.tracer.reduce import joined, reduced
from taqdit.tracer.taps import Taps

Denoise = Callable[[Any, int], Any]
MOST_GATHERED = 16 * 2**20  # bytes of small activations that are reduced together
MOST_PENDING = 256 * 2**20  # bytes of codes that wait for the end of a step


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
        self._taps, self._masked = taps, masked
        self._host = HostSide(layout, indices, texts, add, masked=masked, unit=unit)
        self._background = Background()
        self._forward: Forward | None = None
        self._gathered: dict[Any, list[tuple[str, Any]]] = {}  # activations of one shape
        self._groups: list[Group] = []
        self._waiting = 0  # bytes of the codes of this step that are not counted yet

    def watch(self, denoise: Denoise) -> Denoise:
        """A denoiser with the same outputs whose first forward after each `collect` is read.

        A solver's further forwards within a step (Heun's correction) are not: the statistics are
        those of the stored latents.
        """

        def watched(latent: Any, step: int) -> Any:
            if self._forward is not None:
                return denoise(latent, step)
            try:
                with self._taps.reading(self._gather):
                    clean = denoise(latent, step)
            finally:  # a Ctrl-C on the way into the context's own exit would skip it
                self._taps.restore()
            for key in list(self._gathered):
                self._reduce(key)
            with mx.stream(side_stream()):
                sums = joined([group.sums for group in self._groups])
            self._forward = Forward(step, sums, self._groups)
            return clean

        return watched

    @property
    def pending(self) -> list[Any]:
        """What has to be evaluated before `collect`."""
        return self._forward.pending if self._forward else []

    def collect(self) -> None:
        """Hand on what was read of a step; `pending` has been evaluated.

        Raises NumericError naming site, step and prompt if a value of an earlier step was NaN or
        Inf, unless masked; `finish` raises it for the last one.
        """
        if self._forward is None:
            raise RuntimeError("no forward has been read since the last collect")
        forward = self._forward.on_host()
        self._forward, self._waiting = None, 0
        self._groups = [group for group in self._groups if group.names == (STATIC,)]
        for static in self._groups:  # counted once
            static.values, static.peaks = [], []
        self._background.run(lambda: self._host.take(forward))

    def finish(self) -> None:
        """Wait until every step was added. Raises as `collect`."""
        self._background.wait()

    def _gather(self, name: str, activation: Any) -> None:
        """Keep the activation until some of its shape can be reduced together."""
        if name == STATIC and any(group.names == (STATIC,) for group in self._groups):
            return
        key = STATIC if name == STATIC else (activation.shape, activation.dtype)
        alike = self._gathered.setdefault(key, [])
        alike.append((name, activation))
        if len(alike) * activation.nbytes > MOST_GATHERED:
            self._reduce(key)

    def _reduce(self, key: Any) -> None:
        names, activations = zip(*self._gathered.pop(key), strict=True)
        with mx.stream(side_stream()):  # beside the forward, which does not wait for it
            sums, codes = reduced(activations, masked=self._masked)
            values = self._host.folds.lazy(codes.values)
            peaks = self._host.together.lazy(codes.peaks[..., None])
        tokens = codes.peaks.size // len(names)
        self._groups.append(Group(names, tokens, sums, values, peaks))
        self._waiting += codes.values.nbytes
        if self._waiting > MOST_PENDING:
            self._count_early()

    def _count_early(self) -> None:
        """Count what is pending within the step: a large model's codes would fill the memory.

        So would its activations, where a GPU counts the codes at once: they wait to be reduced.
        """
        for group in self._groups:
            mx.eval(*group.sums.arrays, *group.values, *group.peaks)
            group.counted |= self._host.count(group.on_host())
            group.values, group.peaks = [], []
        self._waiting = 0
