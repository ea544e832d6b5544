"""Latents that are intact and yet look wrong: dead, exploding, or begun from what is no noise.

On the way from noise to image a latent is x = sigma * noise + (1 - sigma) * image, and SD3's VAE is
scaled so that images have a standard deviation of about 1: one expects `spread(sigma)` =
sqrt(sigma^2 + (1 - sigma)^2), between 0.71 and 1. The embedded model's latents (16 trajectories, 30
steps, CFG 2) lie between 0.80 and 1.42 of it; their largest value is 9.1, and 1.9 times the median
of the step's. The limits leave room for higher CFG scales; what lies beyond is a warning, no fault.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

DEAD = 0.1  # of the expected spread
EXPLODED = 30.0  # expected spreads: where the largest value cannot be
BEYOND = 4.0  # times the median of the trajectories' largest values at the same step
COMPANY = 4  # trajectories that a median needs
START = 6.0  # standard errors of the mean and the spread of pure noise


def spread(sigmas: np.ndarray) -> np.ndarray:
    """The standard deviation that latents should have at noise levels (k,), about."""
    return np.sqrt(sigmas**2 + (1 - sigmas) ** 2)


class LatentLook:
    """Looks at the trajectories of a stage, one after the other, and compares them at the end."""

    def __init__(self) -> None:
        self._largest: dict[int, dict[str, float]] = {}  # step -> file name -> absmax
        self._told: set[str] = set()  # exploding by themselves

    def add(
        self, name: str, latents: np.ndarray, steps: np.ndarray, sigmas: np.ndarray
    ) -> Iterator[tuple[str, str]]:
        """What is suspicious of finite latents (k, h, w, 16) at `steps` (k,) with noise levels
        `sigmas` (k,): (kind, words)."""
        flat = latents.reshape(len(latents), -1).astype(np.float32, copy=False)
        mean, std = _moments(flat)
        largest = np.maximum(flat.max(axis=1), -flat.min(axis=1)).astype(np.float64)
        expected = spread(sigmas.astype(np.float64))
        if (dead := np.flatnonzero(std < DEAD * expected)).size:
            yield (
                "dead",
                self._at(dead, steps, std, "spread {:.3g}, expected about {:.2g}", expected),
            )
        elif (still := _constant_channels(latents)).size:
            yield "dead", f"channel {still[0]} of step {steps[0]} has one value throughout"
        if (wild := np.flatnonzero(largest > EXPLODED * expected)).size:
            self._told.add(name)
            words = "largest value {:.4g}, {:.2g} would be the expected spread"
            yield "exploding", self._at(wild, steps, largest, words, expected)
        if sigmas[0] == 1 and (off := _off_noise(mean[0], std[0], flat.shape[1])) > START:
            yield "start", f"its start is {off:.0f} standard errors off normal noise"
        for step, value in zip(steps.tolist(), largest.tolist(), strict=True):
            self._largest.setdefault(step, {})[name] = value

    def compare(self) -> Iterator[tuple[str, str, str]]:
        """(file name, kind, words) of those far beyond the others at the same step."""
        found: dict[str, tuple[int, float, float]] = {}
        for step, values in sorted(self._largest.items()):
            if len(values) < COMPANY:
                continue
            middle = float(np.median(list(values.values())))
            for name, value in values.items():
                if value > BEYOND * middle and name not in self._told:
                    found.setdefault(name, (step, value, middle))
        for name, (step, value, middle) in sorted(found.items()):
            words = f"from step {step} on: largest value {value:.4g}, of most others {middle:.3g}"
            yield name, "exploding", words

    @staticmethod
    def _at(
        rows: np.ndarray, steps: np.ndarray, values: np.ndarray, form: str, expected: np.ndarray
    ) -> str:
        first = int(rows[0])
        words = form.format(values[first], expected[first])
        return f"at {len(rows)} of {len(steps)} steps, first at step {steps[first]}: {words}"


def _constant_channels(latents: np.ndarray) -> np.ndarray:
    """Channels whose values at the first step are all one; of no meaning at a single pixel."""
    first = latents[0].reshape(-1, latents.shape[-1])
    return (
        np.flatnonzero(first.min(axis=0) == first.max(axis=0)) if len(first) > 1 else np.array([])
    )


def _moments(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each row, to some four digits: fast, for limits alone."""
    mean = flat.mean(axis=1).astype(np.float64)
    squares = np.einsum("ij,ij->i", flat, flat).astype(np.float64) / flat.shape[1]
    return mean, np.sqrt(np.maximum(squares - mean**2, 0))


def _off_noise(mean: float, std: float, size: int) -> float:
    """How far mean and standard deviation lie from those of as many normal values, in standard
    errors: 1 / sqrt(n) and 1 / sqrt(2 n)."""
    return float(max(abs(mean) * size**0.5, abs(std - 1) * (2 * size) ** 0.5))
