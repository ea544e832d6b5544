"""One solver step of the probability-flow ODE; options of the config group `sampler`.

`denoise(latent, step)` is the model's estimate of the clean latent at the noise level of `step`.
The functions read like the algorithms of Karras et al. (arXiv:2206.00364) and work on any array
type with arithmetic (mlx while sampling, float64 numpy in the tests).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from taqdit.errors import require

__all__ = ["euler", "heun"]

LATENTS = (ALL, SELECTED, FINAL) = ("all", "selected", "final")
DTYPES = (AS_COMPUTED, HALF) = ("float32", "float16")

Array = Any
Denoise = Callable[[Array, int], Array]


def euler_step(denoise: Denoise, latent: Array, sigmas: Array, step: int) -> Array:
    """Latent at `step + 1` by Euler's rule (arXiv:2206.00364, algorithm 1 without correction)."""
    derivative = (latent - denoise(latent, step)) / sigmas[step]
    return latent + derivative * (sigmas[step + 1] - sigmas[step])


def heun_step(denoise: Denoise, latent: Array, sigmas: Array, step: int) -> Array:
    """Latent at `step + 1` by Heun's second-order rule (arXiv:2206.00364, algorithm 1).

    The step into sigma = 0 is Euler's: the derivative does not exist there.
    """
    derivative = (latent - denoise(latent, step)) / sigmas[step]
    width = sigmas[step + 1] - sigmas[step]
    trial = latent + derivative * width
    if step + 2 == len(sigmas):
        return trial
    correction = (trial - denoise(trial, step + 1)) / sigmas[step + 1]
    return latent + (derivative + correction) / 2 * width


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How trajectories are drawn. Trajectory i uses prompt i mod P and noise seed `seed + i`.

    Batch k holds the trajectories k * batch_size .. (k + 1) * batch_size - 1 and is always
    computed whole: the last bits of a latent depend on the rows it shared a forward with.

    `latents` says which are stored: of all steps, of the selected ones and the final one, or the
    final one alone; `latents_dtype` what they are rounded to when stored. Raises ConfigError for
    values out of range.
    """

    cfg_scale: float = 2.0
    seed: int = 0
    num_trajectories: int = 16
    batch_size: int = 8
    images: bool = True
    latents: str = ALL
    latents_dtype: str = AS_COMPUTED

    advance: ClassVar[Callable[..., Array]]  # (denoise, latent, sigmas, step) -> latent

    def __post_init__(self) -> None:
        size, scale = self.num_trajectories, self.cfg_scale
        dtype = self.latents_dtype
        require(
            (
                0 < scale <= 100,
                f"cfg_scale={scale} must lie in (0, 100]; 1 samples without guidance",
            ),
            (0 <= self.seed < 2**32 - 2**20, f"seed={self.seed} must lie in [0, 2^32 - 2^20)"),
            (1 <= size <= 2**20, f"num_trajectories={size} must lie in [1, 1048576]"),
            (1 <= self.batch_size <= 1024, f"batch_size={self.batch_size} must lie in [1, 1024]"),
            (
                self.latents in LATENTS,
                f"latents={self.latents} must be one of {', '.join(LATENTS)}",
            ),
            (dtype in DTYPES, f"latents_dtype={dtype} must be one of {', '.join(DTYPES)}"),
        )
        object.__setattr__(self, "cfg_scale", float(scale))  # fingerprints tell 2 from 2.0

    @property
    def stores_all(self) -> bool:
        """Whether the latents of all steps are stored as they were computed."""
        return (self.latents, self.latents_dtype) == (ALL, AS_COMPUTED)

    def evaluations(self, num_steps: int) -> int:
        """Model evaluations of one trajectory."""
        return num_steps

    @property
    def num_batches(self) -> int:
        """Batches that cover `num_trajectories`."""
        return -(-self.num_trajectories // self.batch_size)


class euler(Sampler):
    """First order, one model evaluation per step; bit-equal to DiffusionKit's `sample_euler`."""

    advance = staticmethod(euler_step)


class heun(Sampler):
    """Second order, two model evaluations per step (one in the last)."""

    advance = staticmethod(heun_step)

    def evaluations(self, num_steps: int) -> int:
        """Two per step, one in the last."""
        return 2 * num_steps - 1
