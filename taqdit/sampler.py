"""One solver step of the probability-flow ODE; options of the config group `sampler`.

`denoise(latent, step)` is the model's estimate of the clean latent at the noise level of `step`.
The functions read like the algorithms of Karras et al. (arXiv:2206.00364) and work on any array
type with arithmetic (mlx while sampling, float64 numpy in the tests).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taqdit.errors import require

__all__ = ["Sampler", "euler", "heun"]

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


@dataclass(frozen=True)
class Sampler:
    """How trajectories are drawn. Trajectory i uses prompt i mod P and noise seed `seed + i`.

    Batch k holds the trajectories k * batch_size .. (k + 1) * batch_size - 1 and is always
    computed whole: the last bits of a latent depend on the rows it shared a forward with.

    `latents` says which are stored: of all steps, of the selected ones and the final one, or the
    final one alone; `latents_dtype` what they are rounded to when stored.
    """

    name: str
    advance: Callable[[Denoise, Array, Array, int], Array]
    cfg_scale: float
    seed: int
    num_trajectories: int
    batch_size: int
    images: bool
    latents: str = ALL
    latents_dtype: str = AS_COMPUTED

    @property
    def stores_all(self) -> bool:
        """Whether the latents of all steps are stored as they were computed."""
        return (self.latents, self.latents_dtype) == (ALL, AS_COMPUTED)

    def evaluations(self, num_steps: int) -> int:
        """Model evaluations of one trajectory."""
        return num_steps if self.advance is euler_step else 2 * num_steps - 1

    @property
    def num_batches(self) -> int:
        """Batches that cover `num_trajectories`."""
        return -(-self.num_trajectories // self.batch_size)


def _sampler(
    name: str,
    advance: Callable[[Denoise, Array, Array, int], Array],
    *,
    cfg_scale: float,
    seed: int,
    num_trajectories: int,
    batch_size: int,
    images: bool,
    latents: str,
    latents_dtype: str,
) -> Sampler:
    require(
        (
            0 < cfg_scale <= 100,
            f"cfg_scale={cfg_scale} must lie in (0, 100]; 1 samples without guidance",
        ),
        (0 <= seed < 2**32 - 2**20, f"seed={seed} must lie in [0, 2^32 - 2^20)"),
        (
            1 <= num_trajectories <= 2**20,
            f"num_trajectories={num_trajectories} must lie in [1, 1048576]",
        ),
        (1 <= batch_size <= 1024, f"batch_size={batch_size} must lie in [1, 1024]"),
        (latents in LATENTS, f"latents={latents} must be one of {', '.join(LATENTS)}"),
        (
            latents_dtype in DTYPES,
            f"latents_dtype={latents_dtype} must be one of {', '.join(DTYPES)}",
        ),
    )
    return Sampler(
        name,
        advance,
        float(cfg_scale),
        seed,
        num_trajectories,
        batch_size,
        images,
        latents,
        latents_dtype,
    )


def euler(
    *,
    cfg_scale: float = 2.0,
    seed: int = 0,
    num_trajectories: int = 16,
    batch_size: int = 8,
    images: bool = True,
    latents: str = ALL,
    latents_dtype: str = AS_COMPUTED,
) -> Sampler:
    """First order, one model evaluation per step; bit-equal to DiffusionKit's `sample_euler`."""
    return _sampler(
        "euler",
        euler_step,
        cfg_scale=cfg_scale,
        seed=seed,
        num_trajectories=num_trajectories,
        batch_size=batch_size,
        images=images,
        latents=latents,
        latents_dtype=latents_dtype,
    )


def heun(
    *,
    cfg_scale: float = 2.0,
    seed: int = 0,
    num_trajectories: int = 16,
    batch_size: int = 8,
    images: bool = True,
    latents: str = ALL,
    latents_dtype: str = AS_COMPUTED,
) -> Sampler:
    """Second order, two model evaluations per step (one in the last)."""
    return _sampler(
        "heun",
        heun_step,
        cfg_scale=cfg_scale,
        seed=seed,
        num_trajectories=num_trajectories,
        batch_size=batch_size,
        images=images,
        latents=latents,
        latents_dtype=latents_dtype,
    )
