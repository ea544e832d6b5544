"""What the shards of statistics must be."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from taqdit.activations import Layout, StepStatistics
from taqdit.activations.step_shards import KIND, PART
from taqdit.stages.checks.check import Check, Problem, first_gap, not_finite
from taqdit.store import Shard

_STEP = re.compile(r"(trajectories|checkpoint|part)_(\d{7,})_step_(\d{4,})\.safetensors")


class StatisticsCheck(Check):
    """Statistics of the sites that stage.json names, at every step."""

    kind = KIND
    tells_gaps = True

    def index(self, name: str, shard: Shard) -> str | None:
        """Extent (of a part: batch) and step."""
        match = _STEP.fullmatch(name)
        return match and f"{int(match[2])}/{int(match[3])}"

    def shard(self, name: str, shard: Shard) -> Iterator[Problem]:
        """Parts are of another kind than the rest."""
        self.kind = PART if name.startswith(PART) else KIND
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
                yield None, "gap", f"{words}, the first is {first_gap(steps)}; a run makes them"


def _impossible(found: StepStatistics) -> Iterator[Problem]:
    """Moments that no data have. Ends are infinite where there was no finite value."""
    seen = found.count > 0
    yield from not_finite({"mean": found.mean, "m2": found.m2})
    if (found.m2 < 0).any() or not (found.low[seen] <= found.high[seen]).all():
        yield "nonfinite", "a variance is negative, or a minimum above its maximum"
    yield from not_finite({"low": found.low[seen], "high": found.high[seen]})
    if np.isnan(found.fold_low).any() or np.isnan(found.fold_high).any():
        yield "nonfinite", "fold_low or fold_high holds NaN"
