"""What the stages minimise, and how pictures are compared."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from taqdit.models.tiny.scenes import ATTRIBUTES, POSITIONS, Scenes, present

OBJECT_WEIGHT, CELL_WEIGHT = 5.0, 1.5


def reconstruction(output: Tensor, picture: Tensor) -> Tensor:
    """L1 + 2 L2, objects (pixels far from the median colour) weighing six times more, plus the L1
    of horizontal and vertical differences, which asks for sharp edges."""
    error = output - picture
    median = picture.flatten(2).median(2).values[:, :, None, None]
    far = (picture - median).abs().amax(1, keepdim=True) > 0.25
    weighted = (1 + OBJECT_WEIGHT * far) * (error.abs() + 2 * error**2)
    across, down = error.diff(dim=3), error.diff(dim=2)
    return weighted.mean() + 0.5 * (across.abs().mean() + down.abs().mean())


def divergence(mean: Tensor, std: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the posterior from a standard normal, per element."""
    return 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()


def psnr(output: Tensor, picture: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    error = (output.clamp(-1, 1) - picture.clamp(-1, 1)) / 2
    decibels = -10 * (error.detach() ** 2).mean((1, 2, 3)).clamp_min(1e-10).log10()
    return float(decibels.mean())


def attributes(logits: Tensor, scenes: Scenes) -> Tensor:
    """Sum of the cross-entropies of all attributes, each over the scenes that have it."""
    parts = logits.split(list(ATTRIBUTES.values()), 1)
    losses = [
        F.cross_entropy(part[torch.from_numpy(mask)], torch.from_numpy(scenes[name][mask]))
        for (name, mask), part in zip(present(scenes).items(), parts, strict=True)
        if mask.any()
    ]
    return torch.stack(losses).sum()


def noise_level(uniform: Tensor, normal: Tensor, pick: Tensor) -> Tensor:
    """Sigmas `(N,)` from three columns of random numbers: logit-normal (0.4, 1.1), 15 per cent
    uniform instead, so that both ends are trained."""
    usual = torch.sigmoid(0.4 + 1.1 * normal)
    return torch.where(pick < 0.15, uniform, usual).clamp(1e-3, 1.0)


def cell_weights(scenes: Scenes, texts: Sequence[str]) -> Tensor:
    """Weights `(N, 1, 8, 8)` of mean 1 that favour the latent cells where the caption puts the
    objects. They depend on nothing but what the caption says (a caption without a place weighs
    all cells alike), so the velocity that minimises the loss stays the conditional mean."""
    weights = _MAPS[[_place(scenes, i, text) for i, text in enumerate(texts)]]
    return torch.from_numpy(weights)[:, None]


def _place(scenes: Scenes, index: int, text: str) -> int:
    """0: unknown; 1 .. 9: a single object's position; 10, 11: two objects, by relation."""
    relation, position = int(scenes["rel"][index]), int(scenes["pos"][index])
    if relation == 0:
        return 1 + position if POSITIONS[position] in text else 0
    return 9 + relation if " and " not in text and text else 0


def _map(centres: Sequence[tuple[float, float]]) -> np.ndarray:
    """A soft bump of 18 pixels about each centre (x, y), on the grid of 8 x 8 cells."""
    middle = 8 * np.arange(8) + 4.0
    bump = np.zeros((8, 8))
    for x, y in centres:
        square = (middle[None] - x) ** 2 + (middle[:, None] - y) ** 2
        bump = np.maximum(bump, np.exp(-square / (2 * 11.0**2)))
    weights = 1 + CELL_WEIGHT * bump
    return (weights / weights.mean()).astype(np.float32)


def _maps() -> np.ndarray:
    grid = (20.0, 32.0, 44.0)
    places: list[list[tuple[float, float]]] = [[]]
    places += [[(x, y)] for y in grid for x in grid]
    places += [[(17.0, 32.0), (47.0, 32.0)], [(32.0, 17.0), (32.0, 47.0)]]
    return np.stack([_map(centres) for centres in places])


_MAPS = _maps()
