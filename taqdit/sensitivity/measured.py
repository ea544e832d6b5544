"""What a quantized forward really does to the velocity: fake quantization, on the model itself.

Every number is rounded to what its code stands for, and the forward computes with that in floating
point; so the error is that of the codes alone. Nothing of the model is touched: what enters a
linear is rounded on its way in, and the error of a weight (O, I) is added as its own product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from taqdit.backend import mx
from taqdit.errors import require
from taqdit.quantizer import Quantizer
from taqdit.sensitivity.gradients import Denoise
from taqdit.sensitivity.layout import SensitivityLayout
from taqdit.tracer.taps import Taps


@dataclass(frozen=True, eq=False)
class FakeQuantized:
    """What is quantized: the activations of some sites, and the weights of some linears.

    `activations`: static quantizers of the whole tensor, arrays of a single number. `weights`: the
    error (O, I) of each weight, what is read back less the weight.
    """

    activations: Mapping[str, Quantizer] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def around(
        self, taps: Taps, layout: SensitivityLayout
    ) -> Callable[[Denoise, mx.array, int], mx.array]:
        """`run(denoise, latent, step)`: a forward with it. Raises ConfigError for unknown names."""
        site_of = {each.name: each.site for each in layout.linears}
        odd = [
            *(self.activations.keys() - {*site_of.values()}),
            *(self.weights.keys() - {*site_of}),
        ]
        require((not odd, f"quantized={odd}: the layout has none of these"))
        errors = {
            name: mx.array(error.T.astype(np.float32)) for name, error in self.weights.items()
        }

        def quantized(name: str, linear: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
            if site_of[name] in self.activations:
                x = fake_quantized(x, self.activations[site_of[name]])
            return linear(x) + x @ errors[name] if name in errors else linear(x)

        def run(denoise: Denoise, latent: mx.array, step: int) -> mx.array:
            try:
                with taps.around(quantized):
                    return denoise(latent, step)
            finally:  # a Ctrl-C on the way into the context's own exit would skip it
                taps.restore()

        return run


def fake_quantized(x: mx.array, quantizer: Quantizer) -> mx.array:
    """x through the codes of a quantizer of a single number, float32."""
    scale, zero_point = (float(np.squeeze(a)) for a in (quantizer.scale, quantizer.zero_point))
    lowest, highest = -zero_point, 2**quantizer.bits - 1 - zero_point
    return scale * mx.clip(mx.round(x.astype(mx.float32) / scale), lowest, highest)


class ErrorProbe:
    """Measures the squared velocity error of quantized forwards: a probe of `Sampling.replay`.

    `schemes` by name; beside every forward of the denoiser that it watches one is run for each.
    `add(step, power (N,), errors)` gets the sum of v^2 of each trajectory and, by name, the sum of
    the squared errors (N,), float64.
    """

    def __init__(
        self,
        taps: Taps,
        layout: SensitivityLayout,
        schemes: Mapping[str, FakeQuantized],
        add: Callable[[int, np.ndarray, dict[str, np.ndarray]], None],
        *,
        sigmas: np.ndarray,
    ) -> None:
        self._runs = {name: scheme.around(taps, layout) for name, scheme in schemes.items()}
        self._add, self._sigmas = add, np.asarray(sigmas)
        self._measured: tuple[int, np.ndarray, dict[str, np.ndarray]] | None = None

    def watch(self, denoise: Denoise) -> Denoise:
        """A denoiser with the same outputs, beside which the quantized ones are run."""

        def watched(latent: mx.array, step: int) -> mx.array:
            clean, sigma = denoise(latent, step), float(self._sigmas[step])
            power = _row_squares((latent - clean) / sigma)
            errors = {
                name: _row_squares((run(denoise, latent, step) - clean) / sigma)
                for name, run in self._runs.items()
            }
            self._measured = step, power, errors
            return clean

        return watched

    @property
    def pending(self) -> Sequence[mx.array]:
        """Nothing: every forward was evaluated when it was built."""
        return []

    def collect(self) -> None:
        """Hand on what was measured at a step."""
        if self._measured is None:
            raise RuntimeError("no forward has been measured since the last collect")
        measured, self._measured = self._measured, None
        self._add(*measured)

    def finish(self) -> None:
        """Nothing waits."""


def _row_squares(array: mx.array) -> np.ndarray:
    """Sums of squares (N,) float64 of (N, h, w, c)."""
    return np.square(np.array(array), dtype=np.float64).sum(axis=(1, 2, 3))
