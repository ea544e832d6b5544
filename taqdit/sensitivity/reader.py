"""Reads how sensitive the guided velocity is, step by step: a probe of `Sampling.replay`.

probe = SensitivityProbe(layout.taps(model), layout, batch.indices, add, sigmas=sigmas,
                         tokens=sampling.guided(batch.texts)[0])
for step in sampling.replay(batch, latents, steps, probe):
    ...  # add(step, StepSensitivity) was called
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taqdit.backend import mx
from taqdit.errors import NumericError
from taqdit.sensitivity.alike import first_alike, merged, merging
from taqdit.sensitivity.gradients import Denoise, Gradients, Projections, gradients
from taqdit.sensitivity.layout import CELL, SensitivityLayout
from taqdit.sensitivity.sums import StepSensitivity, packed_bins
from taqdit.sensitivity.tails import masses, tails
from taqdit.tracer.taps import Taps

_EVERY = Projections()


class SensitivityProbe:
    """Reads one batch: each forward of the denoiser that it watches is built once per probe.

    `indices` are the numbers of the batch's trajectories, `sigmas` (num_steps + 1,) the grid,
    `tokens` (2N, n, d) the text that they are sampled with. `add(step, sums)` is called for every
    step in order, by `collect`.
    """

    def __init__(
        self,
        taps: Taps,
        layout: SensitivityLayout,
        indices: Sequence[int],
        add: Callable[[int, StepSensitivity], None],
        *,
        sigmas: np.ndarray,
        tokens: Any,
        projections: Projections = _EVERY,
    ) -> None:
        self._taps, self._layout, self._indices = taps, layout, indices
        self._add, self._sigmas, self._projections = add, np.asarray(sigmas), projections
        self._onto = merging(first_alike(np.array(tokens)))
        self._steps: list[tuple[int, int, Gradients, mx.array]] = []

    def watch(self, denoise: Denoise) -> Denoise:
        """A denoiser with the same outputs that is differentiated."""

        def watched(latent: mx.array, step: int) -> mx.array:
            for probe in range(self._projections.probes):
                direction = self._projections.of(self._indices, step, probe, latent.shape[1:])
                found = gradients(
                    denoise,
                    self._taps,
                    self._layout,
                    latent=latent,
                    step=step,
                    sigma=float(self._sigmas[step]),
                    direction=mx.array(direction),
                )
                cells = self._cells(found)
                mx.eval(found, cells)  # one graph at a time
                self._steps.append((step, probe, found._replace(at_outputs={}), cells))
            return found.clean

        return watched

    @property
    def pending(self) -> list[mx.array]:
        """Nothing: every backward was evaluated when it was built."""
        return []

    def collect(self) -> None:
        """Reduce and hand on what was read of a step.

        Raises NumericError naming the site if a gradient is NaN or Inf.
        """
        if not self._steps:
            raise RuntimeError("no forward has been differentiated since the last collect")
        step = self._steps[0][0]
        probes = [self._on_host(found) for _, _, found, _ in self._steps]
        cells = np.mean([np.array(cells) for *_, cells in self._steps], axis=0)
        power = np.array(mx.square(self._steps[0][2].velocity).sum(axis=(1, 2, 3)))
        self._steps = []
        channels, bins, cut = zip(*probes, strict=True)
        sums = StepSensitivity(
            trajectories=np.array(self._indices, np.int64),
            power=power.astype(np.float32),
            channels=np.asarray(np.mean(channels, axis=0, dtype=np.float32)),
            **packed_bins([_mean_bins(of_site) for of_site in zip(*bins, strict=True)]),
            tails=np.stack(cut, axis=1),
            cells=cells.astype(np.float32),
        )
        self._refuse_nonfinite(sums, step)
        self._add(step, sums)

    def finish(self) -> None:
        """Nothing waits."""

    def _cells(self, found: Gradients) -> mx.array:
        """Sum over trajectories of the squared gradients by all weights, (W,), cell by cell."""
        parts = [
            cell_sums(found.at_outputs[each.name], found.inputs[each.site]).reshape(-1)
            for each in self._layout.linears
        ]
        return mx.concatenate(parts)

    def _on_host(self, found: Gradients) -> Any:
        """Of one probe: channels (2, F, C), bins of each site, tails (N, S, ENDS)."""
        layout = self._layout
        folds = np.array([index % layout.folds for index in self._indices])
        channels, bins, cut = [], [], []
        for site, ends in zip(layout.sites, layout.ends, strict=True):
            gradient = merged(found.at_inputs[site.name], self._onto, stream=site.stream)
            squares = mx.square(gradient)
            values = np.array(found.inputs[site.name])
            own = np.array(gradient)
            channels.append(_by_fold(np.array(squares.sum(axis=1)), folds, layout.folds))
            rows = np.tile(folds, 2)
            bins.append(masses(values, np.array(squares), rows, count=layout.folds))
            cut.append(tails(values, own, ends))
        return np.concatenate(channels, axis=-1), bins, np.stack(cut, axis=1)

    def _refuse_nonfinite(self, sums: StepSensitivity, step: int) -> None:
        squares = sums.squares(self._layout).sum(axis=(1, 2))
        odd = [
            site.name
            for site, value in zip(self._layout.sites, squares, strict=True)
            if not np.isfinite(value)
        ]
        if odd or not np.isfinite(sums.cells).all():
            where = odd[0] if odd else "a weight"
            raise NumericError(
                f"the gradient at {where} is NaN or Inf at step {step}; try model.a16=false"
            )


def cell_sums(at_outputs: mx.array, inputs: mx.array) -> mx.array:
    """Sums over trajectories and over cells of the squared gradient by a weight, (O, cells).

    The gradient by the weight (O, I) of a linear is that by what leaves it, (R, T, O), times what
    enters, (R, T, I); of one trajectory it is summed over both halves, as they share the weight.
    """
    by_output, entering = (_by_trajectory(array) for array in (at_outputs, inputs))
    gradient = by_output.transpose(0, 2, 1) @ entering  # (N, O, I)
    _, rows, width = gradient.shape
    squares = mx.square(gradient).sum(axis=0)
    if width % CELL:
        squares = mx.pad(squares, [(0, 0), (0, -width % CELL)])
    return squares.reshape(rows, -1, CELL).sum(axis=2)


def _by_trajectory(array: mx.array) -> mx.array:
    """(2N, T, C) as (N, 2T, C): a trajectory's positive and negative tokens together."""
    return mx.concatenate(array.split(2), axis=1)


def _by_fold(rows: np.ndarray, folds: np.ndarray, count: int) -> np.ndarray:
    """Sums (2, F, C) of rows (2N, C), positives and negatives, over the trajectories of a fold."""
    sums = np.zeros((2, count, rows.shape[-1]), np.float32)
    for half, part in enumerate(np.split(rows, 2)):
        np.add.at(sums[half], folds, part)
    return sums


def _mean_bins(probes: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Means over probes of sums (F, k); which bins hold values does not depend on the probe."""
    codes = np.unique(np.concatenate([held for held, _ in probes]))
    sums = np.zeros((len(probes[0][1]), len(codes)))
    for held, part in probes:
        sums[:, np.searchsorted(codes, held)] += part / len(probes)
    return codes, sums
