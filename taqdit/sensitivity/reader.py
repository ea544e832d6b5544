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
from taqdit.sensitivity.layout import SensitivityLayout
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
        self._folds = np.array([index % layout.folds for index in indices])
        self._onto = merging(first_alike(np.array(tokens)))
        self._read: list[tuple[int, Gradients, tuple[mx.array, mx.array]]] = []

    def watch(self, denoise: Denoise) -> Denoise:
        """A denoiser with the same outputs (see `gradients`) that is differentiated."""

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
                weights = self._weights(found)
                mx.eval(found, weights)  # one graph at a time
                self._read.append((step, found._replace(at_outputs={}), weights))
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
        if not self._read:
            raise RuntimeError("no forward has been differentiated since the last collect")
        step, first, _ = self._read[0]
        power = np.array(mx.square(first.velocity).sum(axis=(1, 2, 3)))
        probes = [(*self._sites(found), *self._linears(sums)) for _, found, sums in self._read]
        self._read = []
        channels, bins, cut, zeroed, outputs, inputs = zip(*probes, strict=True)
        sums = StepSensitivity(
            trajectories=np.array(self._indices, np.int64),
            power=power.astype(np.float32),
            channels=_mean(channels),
            **packed_bins([_mean_bins(of_site) for of_site in zip(*bins, strict=True)]),
            tails=np.stack(cut, axis=1),
            zeroed=np.stack(zeroed, axis=1),
            outputs=_mean(outputs),
            inputs=_mean(inputs),
        )
        self._refuse_nonfinite(sums, step)
        self._add(step, sums)

    def finish(self) -> None:
        """Nothing waits."""

    def _weights(self, found: Gradients) -> tuple[mx.array, mx.array]:
        """`weight_sums` of all linears side by side: (N, O), (N, I)."""
        sums = [
            weight_sums(found.at_outputs[each.name], found.inputs[each.site])
            for each in self._layout.linears
        ]
        outputs, inputs = zip(*sums, strict=True)
        return mx.concatenate(list(outputs), axis=1), mx.concatenate(list(inputs), axis=1)

    def _linears(self, sums: tuple[mx.array, mx.array]) -> list[np.ndarray]:
        """Of one probe: outputs (F, O), inputs (F, I)."""
        return [self._by_fold(np.array(part)) for part in sums]

    def _sites(self, found: Gradients) -> tuple[np.ndarray, list[Any], np.ndarray, np.ndarray]:
        """Of one probe: channels (2, F, C), bins of each site, tails and zeroed (N, S, ..)."""
        layout, rows = self._layout, np.tile(self._folds, 2)
        channels, bins, cut = [], [], []
        for number, site in enumerate(layout.sites):
            gradient = merged(found.at_inputs[site.name], self._onto, stream=site.stream)
            squares = mx.square(gradient)
            halves = np.split(np.array(squares.sum(axis=1)), 2)
            channels.append(np.stack([self._by_fold(half) for half in halves]))
            values = np.array(found.inputs[site.name])
            bins.append(masses(values, np.array(squares), rows, count=layout.folds))
            ends, half_steps = layout.ends[number], layout.half_steps[number]
            cut.append(tails(values, np.array(gradient), ends=ends, half_steps=half_steps))
        tails_, zeroed = (np.stack(part, axis=1) for part in zip(*cut, strict=True))
        return np.concatenate(channels, axis=-1), bins, tails_, zeroed

    def _by_fold(self, rows: np.ndarray) -> np.ndarray:
        """Sums (F, ..) over the trajectories of each fold, of rows (N, ..)."""
        sums = np.zeros((self._layout.folds, *rows.shape[1:]), np.float32)
        np.add.at(sums, self._folds, rows)
        return sums

    def _refuse_nonfinite(self, sums: StepSensitivity, step: int) -> None:
        squares = sums.squares(self._layout).sum(axis=(1, 2))
        odd = [
            site.name
            for site, value in zip(self._layout.sites, squares, strict=True)
            if not np.isfinite(value)
        ]
        if odd or not np.isfinite(sums.outputs).all():
            where = odd[0] if odd else "a weight"
            raise NumericError(
                f"the gradient at {where} is NaN or Inf at step {step}; try model.a16=false"
            )


def weight_sums(at_outputs: mx.array, inputs: mx.array) -> tuple[mx.array, mx.array]:
    """Squared gradients by a weight of each trajectory, summed for each output channel, (N, O), and
    for each input channel, (N, I).

    The gradient by the weight (O, I) of a linear is that by what leaves it, (R, T, O), times what
    enters, (R, T, I); of one trajectory it is summed over both halves, as they share the weight.
    """
    by_output, entering = (_by_trajectory(array) for array in (at_outputs, inputs))
    squares = mx.square(by_output.transpose(0, 2, 1) @ entering)  # (N, O, I)
    return squares.sum(axis=2), squares.sum(axis=1)


def _by_trajectory(array: mx.array) -> mx.array:
    """(2N, T, C) as (N, 2T, C): a trajectory's positive and negative tokens together."""
    return mx.concatenate(array.split(2), axis=1)


def _mean(probes: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(probes, axis=0), np.float32)


def _mean_bins(probes: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Means over probes of sums (F, k); which bins hold values does not depend on the probe."""
    codes = np.unique(np.concatenate([held for held, _ in probes]))
    sums = np.zeros((len(probes[0][1]), len(codes)))
    for held, part in probes:
        sums[:, np.searchsorted(codes, held)] += part / len(probes)
    return codes, sums
