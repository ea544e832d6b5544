"""A model with a formula in place of a network: milliseconds a run, for tests of everything else.

The data are Gaussian around a mean that depends on the prompt, so the ideal denoiser is known.
Reached from a configuration as `model._target_=analytic.gaussian` with TAQDIT_PLUGINS=analytic.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from taqdit.models.spec import ModelSpec
from taqdit.schedule import Schedule

__all__ = ["gaussian", "poisoned", "slow", "straight"]

STD = 0.5
TOKENS, TOKEN_WIDTH, POOLED = 4, 8, 6


@dataclass(frozen=True)
class Analytic:
    """Source and model in one. `nan_step`: poison row 1 there; `seconds`: sleep per step."""

    nan_step: int | None = None
    seconds: float = 0.0
    latent_shape: tuple = (4, 4, 16)
    spec: ModelSpec | None = None
    mmdit = None

    def locate(self):
        return {}

    def fetch(self):
        return {}

    def load(self, spec):
        return Analytic(self.nan_step, self.seconds, spec.latent_shape, spec)

    def encode(self, text):
        rng = np.random.default_rng([len(text), *text.encode()])
        tokens = rng.standard_normal((TOKENS, TOKEN_WIDTH), np.float32)
        return tokens, rng.standard_normal(POOLED, np.float32)

    def release_text_encoders(self):
        pass

    def first_latent(self, seeds, sigma0):
        from taqdit.backend import mx

        rows = [np.random.default_rng(seed).standard_normal(self.latent_shape) for seed in seeds]
        return mx.array(np.stack(rows).astype(np.float32)) * sigma0

    def timesteps(self, sigmas):
        return sigmas * 1000

    @contextmanager
    def denoiser(self, *, tokens, pooled, sigmas, cfg_scale):
        from taqdit.backend import mx

        positive, negative = pooled[:, :1].split(2)
        mean = (negative + cfg_scale * (positive - negative))[:, :, None, None]

        def denoise(latent, step):
            time.sleep(self.seconds)
            s = sigmas[step]
            share = (1 - s) * STD**2 / ((1 - s) ** 2 * STD**2 + s**2)
            clean = mean + share * (latent - (1 - s) * mean)
            if step == self.nan_step:
                poison = mx.where(mx.arange(len(latent)) == 1, mx.array(float("nan")), 0.0)
                clean = clean + poison[:, None, None, None]
            return clean

        yield denoise

    def decode(self, latents):
        rows = np.array(latents)[..., :3]
        pixels = np.clip(rows * 40 + 128, 0, 255).astype(np.uint8)
        return pixels.repeat(8, axis=1).repeat(8, axis=2)


def straight(*, num_steps=30, shift=3.0):
    """A schedule of the same name and settings with other sigmas."""

    class Straight(Schedule):
        def sigmas(self):
            return np.linspace(1, 0, self.num_steps + 1, dtype=np.float32)

    return Straight(num_steps, shift)


def _spec(source, latent_size, **options):
    return ModelSpec(
        name="analytic",
        latent_shape=(*latent_size, 16),
        num_text_tokens=TOKENS,
        pooled_width=POOLED,
        parameters={"mmdit": 0, "adaln": 0, "vae": 0, "text": 0},
        hidden=1,
        source=source,
        token_width=TOKEN_WIDTH,
        blocks=0 if source.nan_step else 1,  # its shape alone: there is nothing to read
        **options,
    )


def gaussian(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The ideal denoiser of Gaussian data."""
    return _spec(Analytic(), latent_size, use_t5=use_t5, w16=w16, a16=a16)


def poisoned(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The same, with NaN in row 1 of its answer at step 3."""
    return _spec(Analytic(nan_step=3), latent_size)


def slow(
    *, local_ckpt=None, low_memory=False, use_t5=False, w16=False, a16=False, latent_size=(8, 8)
):
    """The same, 20 ms a step."""
    return _spec(Analytic(seconds=0.02), latent_size)
