"""A few captions through the denoiser on MLX: guided velocities step by step, and what its linears
are given on the way. What `outliers`, `hardness` and `likeness` stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taqdit.backend import mx, nn
from taqdit.models.options import tiny
from taqdit.models.pipeline import PipelineModel
from taqdit.models.sources import TinySource
from taqdit.schedule import flow

CFG_SCALE, STEPS = 2.0, 30
Call = Callable[[nn.Module, mx.array], mx.array]
Floats = NDArray[np.float32]


def loaded(folder: Path) -> PipelineModel:
    """The embedded model with the weights of a folder, float32."""
    model = replace(tiny(), source=TinySource(folder=folder)).load()
    if not isinstance(model, PipelineModel):
        raise TypeError(f"{model!r} is no pipeline")
    return model


class Trial:
    """Captions with their first noise, guided: positives first, then as many empty texts."""

    def __init__(self, model: PipelineModel, texts: Sequence[str], seed: int) -> None:
        rows = [model.encode(text) for text in texts] + [model.encode("")] * len(texts)
        self.tokens, self.pooled = (mx.array(np.stack(part)) for part in zip(*rows, strict=True))
        shape = (len(texts), *model.latent_shape)
        self.first = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        self.sigmas = flow(num_steps=STEPS).sigmas()

    def trajectory(self, model: PipelineModel) -> tuple[list[Floats], list[Floats]]:
        """The latents (N, h, w, 16) before each Euler step and the final one; the velocities."""
        latents, velocities = [self.first], []
        with self._denoiser(model) as velocity:
            for step in range(STEPS):
                velocities.append(velocity(latents[-1], step))
                width = self.sigmas[step + 1] - self.sigmas[step]
                latents.append((latents[-1] + width * velocities[-1]).astype(np.float32))
        return latents, velocities

    def velocities(self, model: PipelineModel, latents: Sequence[Floats]) -> list[Floats]:
        """The velocities at given latents, one set for each step (teacher-forced)."""
        with self._denoiser(model) as velocity:
            return [velocity(latents[step], step) for step in range(STEPS)]

    @contextmanager
    def _denoiser(self, model: PipelineModel) -> Iterator[Callable[[Floats, int], Floats]]:
        sigmas = mx.array(self.sigmas)
        with model.denoiser(
            tokens=self.tokens, pooled=self.pooled, sigmas=sigmas, cfg_scale=CFG_SCALE
        ) as denoise:

            def velocity(latent: Floats, step: int) -> Floats:
                x = mx.array(latent)
                return np.array((x - denoise(x, step)) / sigmas[step])

            yield velocity


@contextmanager
def calling(mmdit: nn.Module, calls: Mapping[str, Call]) -> Iterator[None]:
    """While it lasts, the linear at each path computes `calls[path](linear, x)`.

    Each has a class of its own meanwhile, as in `taqdit.tracer.taps`; parameters stay as they are.
    """
    modules = dict(mmdit.named_modules())
    own = {path: type(modules[path]) for path in calls}
    try:
        for path, call in calls.items():
            _set_class(modules[path], type("Called", (own[path],), {"__call__": call}))
        yield
    finally:
        for path, cls in own.items():
            _set_class(modules[path], cls)


def _set_class(module: nn.Module, cls: type) -> None:
    object.__setattr__(module, "__class__", cls)


def decibels(signal: Sequence[Any], noisy: Sequence[Any]) -> float:
    """10 log10(sum s^2 / sum (s - n)^2) over all arrays."""
    power = sum(float(np.square(s, dtype=np.float64).sum()) for s in signal)
    error = sum(
        float(np.square(s - n, dtype=np.float64).sum()) for s, n in zip(signal, noisy, strict=True)
    )
    return 10 * float(np.log10(power / max(error, 1e-30)))


def psnr(pictures: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
    """dB of each picture (N, h, w, 3) against the reference's, 255 at the peak."""
    error = np.square(pictures.astype(np.float64) - reference).mean(axis=(1, 2, 3)) / 255**2
    decibel: NDArray[np.float64] = -10 * np.log10(error.clip(1e-10))
    return decibel
