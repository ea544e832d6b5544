"""The uniform affine quantizer: a real number becomes one of 2^bits codes, zero is one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BITS = (8, 6, 4)  # the widths that are compared


@dataclass(frozen=True, eq=False)
class Quantizer:
    """code = clip(round(x / scale) + zero_point, 0, 2^bits - 1); x is read back as
    scale (code - zero_point). `scale` > 0 and `zero_point` are float64 arrays of any one shape,
    that broadcasts against what is quantized; `zero_point` holds whole numbers.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    bits: int

    @classmethod
    def of_range(cls, low: np.ndarray, high: np.ndarray, *, bits: int) -> Quantizer:
        """For values in [low, high], widened to hold zero: scale = (high - low) / (2^bits - 1).

        The zero point is rounded, so the ends move by up to half a step. An empty range ([0, 0])
        gets scale 1. Raises ValueError unless 1 <= bits <= 16 and low <= high.
        """
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not 1 <= bits <= 16:
            raise ValueError(f"bits={bits} must lie in [1, 16]")
        if (low > high).any():
            raise ValueError("low must not lie above high")
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = (high - low) / (2**bits - 1)
        scale = np.where(scale > 0, scale, 1.0)
        return cls(scale, np.rint(-low / scale) + 0.0, bits)

    @property
    def low(self) -> np.ndarray:
        """The smallest number that a code stands for."""
        return -self.scale * self.zero_point

    @property
    def high(self) -> np.ndarray:
        """The largest."""
        return self.scale * (2**self.bits - 1 - self.zero_point)

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Codes, whole numbers in float64."""
        return np.clip(np.rint(x / self.scale) + self.zero_point, 0, 2**self.bits - 1)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """What is read back: x through its codes."""
        return self.scale * (self.codes(x) - self.zero_point)


def decibel(signal: np.ndarray | float, noise: np.ndarray | float) -> np.ndarray:
    """SQNR = 10 log10(signal / noise); Inf without noise, NaN where both are zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10 * np.log10(np.divide(signal, noise)))
