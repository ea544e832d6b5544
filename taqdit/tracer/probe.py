"""Reads the sites of one batch while it is sampled, and reduces them step by step.

A probe changes no number of the forward that it watches: taps read what enters a module, and all
reductions are evaluated together with the step's latent, so that no activation outlives its step.
On the CPU they are computed on a thread beside the forward's, and counted on a third one while the
next step is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from taqdit.activations import BatchSums, Layout
from taqdit.backend import mx, side_stream
from taqdit.tracer.background import Background
from taqdit.tracer.host import PER_CHANNEL, STATIC, Counted, Evaluated, HostSide, Part, Rows
from taqdit.tracer.reduce import Reduced, reduced
from taqdit.tracer.taps import Taps

Denoise = Callable[[Any, int], Any]
MOST_GATHERED = 16 * 2**20  # bytes of small activations that are reduced together
MOST_PENDING = 256 * 2**20  # bytes of codes that wait for the end of a step


@dataclass(eq=False)
class Group:
    """Sites that were reduced together; `values`, `peaks` are to be counted, or are `counted`."""

    names: tuple[str, ...]
    found: Reduced
    tokens: int
    values: list[Any]
    peaks: list[Any]
    counted: dict[str, Counted] = field(default_factory=dict)


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
        self._taps, self._masked = taps, masked
        self._host = HostSide(layout, batch, found, masked=masked)
        self._background = Background()
        self._step: int | None = None
        self._gathered: dict[Any, list[tuple[str, Any]]] = {}  # activations of one shape
        self._groups: list[Group] = []
        self._static: Group | None = None
        self._waiting = 0  # bytes of the codes of this step that are not counted yet
        self._joint: dict[str, Any] = {}

    def watch(self, denoise: Denoise) -> Denoise:
        """A denoiser with the same outputs whose first forward after each `collect` is read.

        A solver's further forwards within a step (Heun's correction) are not: the statistics are
        those of the stored latents.
        """

        def watched(latent: Any, step: int) -> Any:
            if self._step is not None:
                return denoise(latent, step)
            try:
                with self._taps.reading(self._gather):
                    clean = denoise(latent, step)
            finally:  # a Ctrl-C on the way into the context's own exit would skip it
                self._taps.restore()
            for key in list(self._gathered):
                self._reduce(key)
            self._step = step
            self._join()
            return clean

        return watched

    @property
    def pending(self) -> list[Any]:
        """What has to be evaluated before `collect`."""
        codes = [array for group in self._groups for array in (*group.values, *group.peaks)]
        return [*self._joint.values(), *codes]

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
            [_part(group) for group in self._groups],
        )
        self._step, self._waiting, self._joint = None, 0, {}
        self._static = next((each for each in self._groups if each.names == (STATIC,)), None)
        if self._static:  # counted once
            self._static.values, self._static.peaks = [], []
        self._groups = [self._static] if self._static else []
        self._background.run(lambda: self._host.take(forward))

    def finish(self) -> None:
        """Wait until `found` was told of every step. Raises as `collect`."""
        self._background.wait()

    def _gather(self, name: str, activation: Any) -> None:
        """Keep the activation until some of its shape can be reduced together."""
        if name == STATIC and self._static:
            return
        key = STATIC if name == STATIC else (activation.shape, activation.dtype)
        alike = self._gathered.setdefault(key, [])
        alike.append((name, activation))
        if len(alike) * activation.nbytes > MOST_GATHERED:
            self._reduce(key)

    def _reduce(self, key: Any) -> None:
        names, activations = zip(*self._gathered.pop(key), strict=True)
        with mx.stream(side_stream()):  # beside the forward, which does not wait for it
            found, codes = reduced(activations, masked=self._masked)
            values = self._host.folds.lazy(codes.values)
            peaks = self._host.together.lazy(codes.peaks[..., None])
        tokens = codes.peaks.size // len(names)
        self._groups.append(Group(names, found, tokens, values, peaks))
        self._waiting += codes.values.nbytes
        if self._waiting > MOST_PENDING:
            self._count_early()

    def _count_early(self) -> None:
        """Count what is pending within the step: a large model's codes would fill the memory.

        So would its activations, where a GPU counts the codes at once: they wait to be reduced.
        """
        for group in self._groups:
            kept = [array for array in group.found if array is not None]
            mx.eval(*kept, *group.values, *group.peaks)
            group.counted |= self._host.count(_part(group))
            group.values, group.peaks = [], []
        self._waiting = 0

    def _join(self) -> None:
        """Per-channel numbers of all sites side by side: one array to evaluate, not one a site."""
        names = [*PER_CHANNEL, "row_low", "row_high", *(["missing"] if self._masked else [])]
        with mx.stream(side_stream()):
            for name in names:
                parts = [getattr(group.found, name) for group in self._groups]
                self._joint[name] = mx.concatenate(parts)


def _part(group: Group) -> Part:
    values, peaks = ([_on_host(each) for each in codes] for codes in (group.values, group.peaks))
    return Part(group.names, group.tokens, values, peaks, dict(group.counted))


def _on_host(array: Any) -> np.ndarray:
    """An evaluated array as the host sees it, not copied."""
    return np.array(array, copy=False)
