"""One backward of a random projection: how the guided velocity depends on every activation.

With a zero delta added to what enters the linears of every site, and one to what leaves each, the
gradient g of <r, v> by a delta is J^T r, J the Jacobian of the guided velocity v. Over random r of
unit covariance E <g, e>^2 = |J e|^2: the squared velocity error that an activation error e makes,
to first order (Hutchinson's estimator of the trace, Commun. Stat. Simul. Comput. 19(2), 1990).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from taqdit.backend import mx
from taqdit.errors import require
from taqdit.sensitivity.layout import SensitivityLayout
from taqdit.tracer.taps import Taps

Denoise = Callable[[mx.array, int], mx.array]
KINDS = (RADEMACHER, NORMAL) = ("rademacher", "normal")


@dataclass(frozen=True, kw_only=True)
class Projections:
    """Random directions in the space of velocities: `probes` for each trajectory and step.

    A direction is a function of (seed, trajectory, step, probe). Raises ConfigError for values out
    of range.
    """

    seed: int = 0
    probes: int = 1
    kind: str = RADEMACHER

    def __post_init__(self) -> None:
        require(
            (0 <= self.seed < 2**32, f"seed={self.seed} must lie in [0, 2^32)"),
            (1 <= self.probes <= 1024, f"probes={self.probes} must lie in [1, 1024]"),
            (self.kind in KINDS, f"kind={self.kind} must be one of {', '.join(KINDS)}"),
        )

    def of(
        self, trajectories: Sequence[int], step: int, probe: int, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Directions (N, *shape) float32 of some trajectories: mean 0, unit covariance."""
        draws = [np.random.default_rng([self.seed, i, step, probe]) for i in trajectories]
        if self.kind == NORMAL:
            return np.stack([draw.standard_normal(shape, np.float32) for draw in draws])
        return np.stack([draw.integers(0, 2, shape) * 2 - 1 for draw in draws]).astype(np.float32)


class Gradients(NamedTuple):
    """Of one projection of the guided velocity, lazy; R = 2N rows, the positives first.

    `clean`, `velocity` (N, h, w, 16). By site `inputs`, `at_inputs` (R, T, C): the activation and
    the gradient by it; by linear `at_outputs` (R, T, O). All float32.
    """

    clean: mx.array
    velocity: mx.array
    inputs: dict[str, mx.array]
    at_inputs: dict[str, mx.array]
    at_outputs: dict[str, mx.array]


def gradients(
    denoise: Denoise,
    taps: Taps,
    layout: SensitivityLayout,
    *,
    latent: mx.array,
    step: int,
    sigma: float,
    direction: mx.array,
) -> Gradients:
    """The gradients of <direction, v> at latents (N, h, w, 16), v = (latent - clean) / sigma.

    `denoise(latent, step)` is the guided clean latent. `taps` are those of the layout; the model is
    as before when this returns or raises, and its parameters were never touched. A model of float16
    activations computes in float32 from its first site on: its outputs are then not bit-equal.
    """
    site_of = {each.name: each.site for each in layout.linears}

    def projected(
        inputs: dict[str, mx.array], outputs: dict[str, mx.array]
    ) -> tuple[mx.array, mx.array, mx.array, dict[str, mx.array]]:
        seen: dict[str, mx.array] = {}

        def shifted(name: str, linear: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
            site = site_of[name]
            seen[site] = x
            return linear(x + inputs[site]) + outputs[name]

        try:
            with taps.around(shifted):
                clean = denoise(latent, step)
        finally:  # a Ctrl-C on the way into the context's own exit would skip it
            taps.restore()
        velocity = (latent - clean) / sigma
        return (direction * velocity).sum(), clean, velocity, seen

    deltas = _zeros(layout, rows=2 * len(latent))
    (_, clean, velocity, seen), found = mx.value_and_grad(projected, argnums=(0, 1))(*deltas)
    at_inputs, at_outputs = ({name: _flat(g) for name, g in part.items()} for part in found)
    inputs = {name: _flat(x).astype(mx.float32) for name, x in seen.items()}
    return Gradients(clean, velocity, inputs, at_inputs, at_outputs)


def _zeros(
    layout: SensitivityLayout, *, rows: int
) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Deltas of what enters each site and of what leaves each linear, (rows, T, 1, width)."""
    tokens = {site.name: count for site, count in zip(layout.sites, layout.tokens, strict=True)}
    inputs = {
        site.name: mx.zeros((rows, tokens[site.name], 1, site.width)) for site in layout.sites
    }
    outputs = {
        each.name: mx.zeros((rows, tokens[each.site], 1, each.outputs)) for each in layout.linears
    }
    return inputs, outputs


def _flat(array: mx.array) -> mx.array:
    """(R, T, 1, C) as (R, T, C)."""
    return array.reshape(len(array), -1, array.shape[-1])
