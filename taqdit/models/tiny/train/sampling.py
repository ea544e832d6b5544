"""The sampler on the torch twin: DiffusionKit's Euler loop with guidance, some times faster on a
CPU than the real one, which `verify` compares it with."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taqdit.models.tiny.tokenizer import Encoder
from taqdit.models.tiny.train.mmdit import TextToImage
from taqdit.models.tiny.train.vae import VAE, from_model

STEPS, SHIFT, BATCH = 30, 3.0, 64


def sigmas(steps: int = STEPS, shift: float = SHIFT) -> NDArray[np.float32]:
    """DiffusionKit's grid, `(steps + 1,)`, from 1 to a last 0."""

    first, last = (float(1000 * _shifted(np.float64(t), shift)) for t in (1.0, 0.001))
    grid = _shifted(np.linspace(first, last, steps) / 1000, shift)
    return np.append(grid, 0.0).astype(np.float32)


def _shifted(t: Any, shift: float) -> Any:
    return shift * t / (1 + (shift - 1) * t)


def noise(count: int, seed: int) -> NDArray[np.float32]:
    """First latents `(count, 8, 8, 16)`, a function of the seed."""
    return np.random.default_rng(seed).standard_normal((count, 8, 8, 16)).astype(np.float32)


@dataclass(frozen=True)
class Sampler:
    """Both frozen modules, ready to draw."""

    net: TextToImage
    vae: VAE

    @torch.no_grad()
    def latents(self, texts: Sequence[str], first: NDArray[np.float32], cfg_scale: float) -> Tensor:
        """Final latents `(N, 16, 8, 8)` of one batch from first latents `(N, 8, 8, 16)`."""
        count = len(texts)
        ids = Encoder()([*texts, ""])
        context, pooled = self.net.encode(*(torch.from_numpy(a) for a in ids))
        rows = torch.cat([torch.arange(count), torch.full((count,), count)])
        context, pooled = context[rows], pooled[rows]
        x, grid = torch.from_numpy(first).permute(0, 3, 1, 2), sigmas()
        for sigma, after in pairwise(grid):
            time = torch.full((2 * count,), 1000 * float(sigma))
            velocity = self.net.mmdit(torch.cat([x, x]), context, pooled, time)
            positive, negative = velocity.chunk(2)
            x = x + float(after - sigma) * (negative + cfg_scale * (positive - negative))
        return x

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.float32]:
        """Pictures `(N, 64, 64, 3)` in [0, 1]."""
        pictures = self.vae.decoder(from_model(latents)) / 2 + 0.5
        array: NDArray[np.float32] = pictures.clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return array

    def __call__(
        self, texts: Sequence[str], *, cfg_scale: float, seed: int, batch: int = BATCH
    ) -> NDArray[np.uint8]:
        """Pictures `(N, 64, 64, 3)` uint8, as DiffusionKit truncates them."""
        first, parts = noise(len(texts), seed), []
        for start in range(0, len(texts), batch):
            part = slice(start, start + batch)
            parts.append(self.decode(self.latents(texts[part], first[part], cfg_scale)))
        return (np.concatenate(parts) * 255).astype(np.uint8)
