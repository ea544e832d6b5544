"""What every training stage shares: its seeds, its schedule, averages of weights, checkpoints.

Schedules follow steps, never the clock, and every random number comes from the run's seed and the
stage's name: the same call gives the same weights on the same machine and number of threads.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from taqdit.errors import ModelError
from taqdit.models.tiny.scenes import Scenes, Split, sample_scenes
from taqdit.models.tiny.train.run import Run
from taqdit.store import publish_bytes

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Dice:
    """A stage's random numbers: `numpy` for data, `torch` for noise; `initialised` for weights."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.numpy = np.random.default_rng(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def state(self) -> dict[str, Any]:
        """Where both generators stand."""
        return {"numpy": self.numpy.bit_generator.state, "torch": self.torch.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self.numpy.bit_generator.state = state["numpy"]
        self.torch.set_state(state["torch"])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.torch)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from [0, 1)."""
        return torch.rand(shape, generator=self.torch)

    def initialised(self, kind: type[AnyModule], *arguments: object) -> AnyModule:
        """A module with weights drawn from this seed; torch's own generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return kind(*arguments)


def dice_of(run: Run, stage: str) -> Dice:
    """The random numbers of a stage, its own whatever other stages use."""
    return Dice(zlib.crc32(stage.encode()) + run.seed)


class Trapezoid:
    """Learning rate factors: a linear warm-up, a plateau, a linear descent over the last part."""

    def __init__(
        self, optimiser: torch.optim.Optimizer, steps: int, *, warmup: int, descent: float
    ) -> None:
        self.optimiser, self.steps = optimiser, steps
        self.warmup, self.descent = max(1, min(warmup, steps // 5)), max(1, round(descent * steps))
        self.rates = [group["lr"] for group in optimiser.param_groups]

    def set(self, step: int) -> None:
        """Sets the learning rates of step 0, 1, .., steps - 1."""
        factor = min(1.0, (step + 1) / self.warmup, (self.steps - step) / self.descent)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor


class Average:
    """An exponential moving average of a module's weights, short-sighted at first."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.values = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the module's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [p.detach() for p in self.module.parameters()]
        torch._foreach_lerp_(self.values, current, 1 - decay)

    @torch.no_grad()
    def apply(self, module: nn.Module | None = None) -> None:
        """Puts the averages into the module, or into another one of its kind."""
        target = self.module if module is None else module
        for parameter, value in zip(target.parameters(), self.values, strict=True):
            parameter.copy_(value)


def descend(
    loss: Tensor, optimiser: torch.optim.Optimizer, parameters: Iterable[Tensor], clip: float = 1.0
) -> None:
    """One optimiser step on `loss`, gradients clipped to the norm `clip`."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()


def drawn(
    count: int, rng: np.random.Generator, split: Split = "train", two_objects: float = 0.3
) -> tuple[Scenes, Tensor]:
    """Scenes of a split and their pictures `(count, 3, 64, 64)` in [-1, 1]."""
    scenes = sample_scenes(count, rng, split, two_objects)
    return scenes, pictures(scenes, rng)


def pictures(scenes: Scenes, rng: np.random.Generator) -> Tensor:
    """The scenes drawn, `(N, 3, 64, 64)` in [-1, 1], channels last in memory."""
    from taqdit.models.tiny.render import render

    return torch.from_numpy(render(scenes, rng)).permute(0, 3, 1, 2) * 2 - 1


def publish(path: Path, module: nn.Module) -> None:
    """Writes a module's parameters under their torch names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_bytes(path, save({k: v.contiguous() for k, v in module.state_dict().items()}))


def restore(path: Path, module: AnyModule, stage: str) -> AnyModule:
    """Loads what `publish` wrote, frozen for use; says which stage is missing."""
    if not path.exists():
        raise ModelError(f"{path} does not exist; run the stage '{stage}' first")
    module.load_state_dict(load(path.read_bytes()))
    return module.eval().requires_grad_(False)
