"""What shards and images of each kind of stage must be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from taqdit.activations import Layout, StepStatistics
from taqdit.activations.stored import KIND as STATISTICS
from taqdit.activations.stored import PART
from taqdit.prompts.options import Prompts
from taqdit.stages.plan import fingerprint
from taqdit.store import Shard
from taqdit.store_tools.checks import Alike, Check, Problem, Unknown, not_finite, told
from taqdit.store_tools.latent_checks import LatentLook
from taqdit.trajectories import conditioning, trajectory
from taqdit.trajectories.pictures import picture_name
from taqdit.words import counted

_STEP = re.compile(r"(trajectories|checkpoint|part)_(\d{7,})_step_(\d{4,})\.safetensors")
_INDEX = re.compile(r"(\d{6,})\.(safetensors|png)")


class Conditioning(Check):
    """Rows of one shape, named by their texts."""

    def __init__(self, stage: str, inputs: Mapping[str, Any], files: Sequence[str]) -> None:
        super().__init__(stage, inputs, files)
        self._shapes = Alike()

    def index(self, name: str, shard: Shard) -> str | None:
        """The digest of its text."""
        text = str(shard.metadata.get("text"))
        return conditioning.text_digest(text) if conditioning.shard_name(text) == name else None

    def shard(self, name: str, shard: Shard) -> Iterator[Problem]:
        """A row under another's name is no stray file."""
        if self.index(name, shard) is None:
            yield "place", "it holds the row of another text than its name says"
        else:
            yield from super().shard(name, shard)

    def contents(self, name: str, shard: Shard) -> Iterator[Problem]:
        """`tokens (n, 4096)` and `pooled (d,)`, not all the same."""
        shapes = {key: each.shape for key, each in shard.tensors.items()}
        if set(shapes) != {"tokens", "pooled"}:
            yield "shape", f"it holds {told(shapes)}, not tokens and pooled"
            return
        self._shapes.add(name, told(shapes))
        bad = list(not_finite(shard.tensors))
        yield from bad
        if not bad and any(np.ptp(each) == 0 for each in shard.tensors.values()):
            yield "dead", "an embedding has one value throughout"

    def close(self) -> Iterator[tuple[str | None, str, str]]:
        """Rows of another shape than most."""
        for name, found, usual in self._shapes.odd():
            yield name, "shape", f"it holds {found}, others {usual}"


class Trajectories(Check):
    """Latents of the steps, all with the same noise levels, and images of one size."""

    kind = trajectory.KIND

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
        if (words := trajectory.misfit(self.inputs, tensors)) is not None:
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
        there = {n for name in self.files if (n := _number(name)) is not None}
        shards = {n for n in there if trajectory.shard_name(n) in self.files}
        size = int(self.inputs["batch_size"])
        own = {n for n in shards if trajectory.shard_name(n) not in self.misplaced}
        wanted = -(-(max(own, default=-1) + 1) // size) * size
        if left := wanted - sum(number < wanted for number in shards):
            words = f"{counted(left, 'trajectory')} missing, the first is {_first_gap(shards)}"
            yield None, "gap", words + "; a run that needs them samples them"
        for number in sorted(there - shards):
            yield picture_name(number), "gap", "it is an image without a trajectory"


class StepShards(Check):
    """Statistics of the sites that stage.json names, at every step."""

    kind = STATISTICS

    def index(self, name: str, shard: Shard) -> str | None:
        """Extent (of a part: batch) and step."""
        match = _STEP.fullmatch(name)
        return match and f"{int(match[2])}/{int(match[3])}"

    def shard(self, name: str, shard: Shard) -> Iterator[Problem]:
        """Parts are of another kind than the rest."""
        self.kind = PART if name.startswith(PART) else STATISTICS
        yield from super().shard(name, shard)

    def contents(self, name: str, shard: Shard) -> Iterator[Problem]:
        """Arrays that fit the sites, and moments that can be."""
        try:
            layout = Layout.of(shard.metadata["sites"], folds=int(shard.metadata["folds"]))
            found = StepStatistics.of_tensors(layout, shard.tensors)
        except (ValueError, KeyError, TypeError) as error:
            yield "shape", f"it does not hold statistics: {error}"
            return
        names = [site.name for site in layout.sites]
        if (names, layout.folds) != (self.inputs["sites"], self.inputs["folds"]):
            yield "shape", "its sites or folds are not those of the stage"
            return
        yield from _impossible(found)
        if len(found.missing) and (missing := int(found.missing.sum())):
            yield "undefined", f"{missing} values that it was made of were NaN or Inf"
        for number, site in enumerate(layout.sites):
            part = layout.span(number)
            if found.count[part].any() and found.low[part].min() == found.high[part].max():
                yield "dead", f"site {site.name} has one value throughout"

    def close(self) -> Iterator[tuple[str | None, str, str]]:
        """Whether every step is there."""
        matches = [match for match in map(_STEP.fullmatch, self.files) if match]
        whole = [m for m in matches if m[1] == "trajectories"]
        own = {int(match[2]) for match in whole if match[0] not in self.misplaced}
        for extent in sorted(own):
            steps = {int(match[3]) for match in whole if int(match[2]) == extent}
            if (lacking := int(self.inputs["num_steps"]) - len(steps)) > 0:
                words = f"of {extent} trajectories {lacking} steps are missing"
                yield None, "gap", f"{words}, the first is {_first_gap(steps)}; a run makes them"


class Tables(Check):
    """Tables that may say that something is not defined: NaN is a warning."""

    def contents(self, name: str, shard: Shard) -> Iterator[Problem]:
        """NaN, of a site that is constant for instance."""
        for key, array in sorted(shard.tensors.items()):
            if array.dtype.kind == "f" and (number := int(np.isnan(array).sum())):
                yield "undefined", f"{key} holds {number} NaN of {array.size}"


_CHECKS: Mapping[str, type[Check]] = {
    "conditioning": Conditioning,
    "trajectories": Trajectories,
    "statistics": StepShards,
    "weights": Tables,
    "analysis": Tables,
    "figures": Check,
}


def check_of(stage: str, inputs: Mapping[str, Any], files: Sequence[str]) -> Check:
    """The check of a kind of stage."""
    return (_CHECKS.get(stage, Unknown) if inputs else Unknown)(stage, inputs, files)


def _impossible(found: StepStatistics) -> Iterator[Problem]:
    """Moments that no data have. Ends are infinite where there was no finite value."""
    seen = found.count > 0
    yield from not_finite({"mean": found.mean, "m2": found.m2})
    if (found.m2 < 0).any() or not (found.low[seen] <= found.high[seen]).all():
        yield "nonfinite", "a variance is negative, or a minimum above its maximum"
    yield from not_finite({"low": found.low[seen], "high": found.high[seen]})
    if np.isnan(found.fold_low).any() or np.isnan(found.fold_high).any():
        yield "nonfinite", "fold_low or fold_high holds NaN"


def _number(name: str) -> int | None:
    match = _INDEX.fullmatch(name)
    return int(match[1]) if match else None


def _first_gap(numbers: set[int]) -> int:
    """The smallest number from 0 that is not among them."""
    return next(number for number in count() if number not in numbers)
