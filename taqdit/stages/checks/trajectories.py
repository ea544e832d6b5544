"""What the shards and images of trajectories must be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from taqdit.prompts.options import Prompts
from taqdit.stages.checks.check import Alike, Check, Problem, first_gap, not_finite
from taqdit.stages.checks.latents import LatentLook
from taqdit.stages.fingerprints import fingerprint
from taqdit.store import Shard
from taqdit.trajectories.pictures import picture_name
from taqdit.trajectories.shards import KIND, misfit, shard_name

_INDEX = re.compile(r"(\d{6,})\.(safetensors|png)")


class TrajectoryCheck(Check):
    """Latents of the steps, all with the same noise levels, and images of one size."""

    kind = KIND
    tells_gaps = True

    def __init__(self, stage: str, inputs: Mapping[str, Any], files: Sequence[str]) -> None:
        super().__init__(stage, inputs, files)
        self._levels, self._sizes = Alike(), Alike()
        self._look = LatentLook()

    def index(self, name: str, shard: Shard) -> int | None:
        """The trajectory's number."""
        return _number(name)

    def contents(self, name: str, shard: Shard) -> Iterator[Problem]:
        """Shapes and count by stage.json, prompt and seed, and how the latents look."""
        tensors = shard.tensors
        if (words := misfit(self.inputs, tensors)) is not None:
            yield "shape", words
            return
        yield from self._origin(shard)
        bad = list(not_finite(tensors))
        yield from bad
        sigmas = tensors["sigmas"]
        self._levels.add(name, sigmas.tobytes() + tensors["timesteps"].tobytes())
        if not bad:
            steps = tensors.get("steps", np.arange(len(sigmas)))
            yield from self._look.add(name, tensors["latents"], steps, sigmas[steps])

    @cached_property
    def _prompts(self) -> Prompts:
        return Prompts.kept(self.inputs)

    def _origin(self, shard: Shard) -> Iterator[Problem]:
        index = shard.metadata["index"]
        expected = self._prompts.origin(index, self.inputs["seed"])
        found = {key: shard.metadata.get(key) for key in expected}
        if found == expected or fingerprint(self.inputs) != shard.metadata.get("stage"):
            return  # or it is stage.json that is not what it was, which is told
        if found["prompt_sha256"] != expected["prompt_sha256"]:
            text = self._prompts.text(index)
            yield "prompt", f"it was sampled for another prompt than {text!r}"
        if found["seed"] != expected["seed"]:
            yield "seed", f"its seed is {str(found['seed'])[:20]}, expected {expected['seed']}"

    def owner(self, name: str) -> str | None:
        """The trajectory's number."""
        number = _number(name)
        return None if number is None else str(number)

    def picture(self, name: str, pixels: np.ndarray) -> Iterator[Problem]:
        """The same size as the others, and something to see."""
        self._sizes.add(name, pixels.shape)
        if np.ptp(pixels.reshape(-1, 3), axis=0).max() == 0:
            yield "blank", "all its pixels are the same"

    def close(self) -> Iterator[tuple[str | None, str, str]]:
        """Trajectories unlike the others, and numbers that are left out."""
        yield from self._look.compare()
        for odd, _, _ in self._levels.odd():
            yield odd, "levels", "its sigmas or timesteps are not those of the other trajectories"
        for odd, found, usual in self._sizes.odd():
            yield odd, "shape", f"it has {found} pixels, others {usual}"
        numbers = {n for name in self.files if (n := _number(name)) is not None}
        shards = {n for n in numbers if shard_name(n) in self.files}
        size = int(self.inputs["batch_size"])
        own = {n for n in shards if shard_name(n) not in self.misplaced}
        wanted = -(-(max(own, default=-1) + 1) // size) * size
        if left := wanted - sum(number < wanted for number in shards):
            lacking = "1 trajectory" if left == 1 else f"{left} trajectories"
            words = f"{lacking} missing, the first is {first_gap(shards)}"
            yield None, "gap", f"{words}; a run that needs them samples them"
        for number in sorted(numbers - shards):
            yield picture_name(number), "gap", "it is an image without a trajectory"


def _number(name: str) -> int | None:
    match = _INDEX.fullmatch(name)
    return int(match[1]) if match else None
