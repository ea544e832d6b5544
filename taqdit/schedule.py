"""The noise levels of a trajectory, exactly as DiffusionKit's `get_sigmas` computes them.

`sigma` runs from 1 (pure noise) to 0 (image); `num_steps` model evaluations lie between
`num_steps + 1` latents. Options of the config group `schedule`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from taqdit.errors import require

__all__ = ["flow"]

TRAINING_STEPS = 1000  # SD3's timestep is 1000 sigma


@dataclass(frozen=True)
class Schedule:
    """A sigma grid: `num_steps` model evaluations and the flow-matching `shift`.

    Raises ConfigError for values out of range.
    """

    num_steps: int = 30
    shift: float = 3.0

    def __post_init__(self) -> None:
        steps, shift = self.num_steps, self.shift
        require(
            (1 <= steps <= TRAINING_STEPS, f"num_steps={steps} must lie in [1, 1000]"),
            (0.1 <= shift <= 100, f"shift={shift} must lie in [0.1, 100]; SD3 uses 3"),
        )
        object.__setattr__(self, "shift", float(shift))  # fingerprints tell 3 from 3.0

    def sigmas(self) -> np.ndarray:
        """Noise levels (num_steps + 1,), float32, strictly decreasing from 1 to 0.

        The shift acts twice at the image end (the last sigma before 0 is about 0.0089 at shift 3),
        as in DiffusionKit: the grid is even between the shifted ends, then shifted again.
        """
        from taqdit.backend import mx

        shifted = self._shifted(mx.array([TRAINING_STEPS, 1])) * TRAINING_STEPS
        first, last = shifted.tolist()
        sigmas = self._shifted(mx.linspace(first, last, self.num_steps))
        return np.append(np.array(sigmas), np.float32(0))

    def _shifted(self, timesteps: Any) -> Any:
        fraction = timesteps / float(TRAINING_STEPS)
        if self.shift == 1.0:
            return fraction
        return self.shift * fraction / (1 + (self.shift - 1) * fraction)


class flow(Schedule):
    """SD3's rectified-flow grid (arXiv:2403.03206, section 5.3.2 for the shift)."""
