"""What an analysis computes of statistics whatever a run selects: kept in the store.

An entry `store/analysis/<fingerprint>` belongs to the very numbers of the statistics (their shards'
digests), the weighting of the steps, and the code and arithmetic that made it: what is read from it
is what computing it again on this machine would give, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from taqdit.activations import Site
from taqdit.activations.overview import Overview, overview
from taqdit.activations.stored import Statistics
from taqdit.analysis.packed import (
    Packed,
    pack_overview,
    pack_profile,
    unpack_overview,
    unpack_profile,
)
from taqdit.analysis.profile import Profile, profile
from taqdit.analysis.selections import step_weights
from taqdit.errors import ConfigError, CorruptError
from taqdit.stages.checks.check import TableCheck
from taqdit.stages.context import StageContext, once, seal, stored
from taqdit.stages.fingerprints import target
from taqdit.stages.plan import Plan
from taqdit.stages.source import source_digest, source_unchanged
from taqdit.stages.stage_kind import Part, StageKind

NAME = KIND = "analysis"
BYTES = 10_000  # kept of a site at a step; 9,600 in the embedded model
_OVERVIEW, _PROFILE, _CHOICES = "overview", "profile", "choices"
T = TypeVar("T")


class KeptAnalysis:
    """Overview and profile of one run's statistics, read from the store or computed into it. The
    statistics are given the overview.

    What the data-driven rules choose from the profile is kept too, by `keep_choices`.
    """

    def __init__(self, context: StageContext, statistics: Statistics) -> None:
        self._statistics, self._weighting = statistics, context.plan.analysis.weighting
        self._known = 0  # choices in the store
        self._own_rule = target(context.plan, "timestep_selection").startswith("taqdit.")
        # The fingerprint names the backend, too.
        inputs = analysis_inputs(context, statistics)
        self._stage = context.open(ANALYSIS, inputs, lost=context.backend)
        statistics.recall(self.overview)

    @cached_property
    def overview(self) -> Overview:
        """A number per site and step."""
        return self._kept(
            _OVERVIEW, unpack_overview, lambda: overview(self._statistics), pack_overview
        )

    @cached_property
    def profile(self) -> Profile:
        """One pass over the histograms, steps weighted as the plan has it; with the choices that
        were made from it before."""
        weights = step_weights(self._statistics.sigmas, self._weighting)
        value = self._kept(
            _PROFILE, unpack_profile, lambda: profile(self._statistics, weights), pack_profile
        )
        choices = self._stored(_CHOICES, _unpack_choices) or {}
        value.evidence.recall(choices)
        self._known = len(choices)
        return value

    def keep_choices(self) -> None:
        """Keep what rules have chosen from the profile since it was read.

        Not beside a plugin's rule: the fingerprint does not know its code.
        """
        choices = self.profile.evidence.choices
        if self._own_rule and len(choices) > self._known:
            listed = [[key, list(steps)] for key, steps in choices.items()]
            self._stage.unseal()  # other contents under a name that the seal lists
            self._write(_CHOICES, Packed({}, {"choices": listed}))
            self._stage.seal()

    def _kept(
        self,
        name: str,
        unpack: Callable[[Packed, Sequence[Site]], T],
        compute: Callable[[], T],
        pack: Callable[[T], Packed],
    ) -> T:
        """What is stored under `name`, or what `compute` gives; one process at a time computes."""
        value = once(
            self._stage,
            name,
            lambda: self._stored(name, unpack),
            compute,
            lambda value: self._write(name, pack(value)),
        )
        seal(self._stage)
        return value

    def _stored(self, name: str, unpack: Callable[[Packed, Sequence[Site]], T]) -> T | None:
        """What the store holds, read and verified once; None if it is not there."""
        return stored(self._stage, _file(name), lambda: self._read(name, unpack))

    def _read(self, name: str, unpack: Callable[[Packed, Sequence[Site]], T]) -> T:
        shard = self._stage.read(_file(name), kind=KIND, index=name)
        try:
            return unpack(Packed(shard.tensors, shard.metadata), self._statistics.sites)
        except (ValueError, KeyError, TypeError, IndexError, ConfigError) as error:
            path = self._stage.path(_file(name))
            raise CorruptError(f"{path} is damaged: {error}") from error

    def _write(self, name: str, packed: Packed) -> None:
        if not source_unchanged():
            return  # what was computed may not be what it would be filed under
        self._stage.write(
            _file(name), packed.tensors, kind=KIND, index=name, metadata=packed.metadata
        )


def analysis_inputs(context: StageContext, statistics: Statistics) -> dict[str, Any]:
    """Everything that can change a bit of what is kept."""
    return {
        "source": source_digest(),
        "statistics": statistics.digests,
        "weighting": context.plan.analysis.weighting,
        "numpy": np.__version__,
        "backend": dict(context.backend),
    }


def _unpack_choices(packed: Packed, sites: Sequence[Site]) -> dict[Hashable, tuple[int, ...]]:
    """Chosen steps by what they were chosen by."""
    return {tuple(key): tuple(map(int, steps)) for key, steps in packed.metadata["choices"]}


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _parts(plan: Plan) -> tuple[Part, ...]:
    cells = len(plan.layout.sites) * plan.schedule.num_steps if plan.traces else 0
    return (Part("analysis", "analysis", cells * BYTES),)


ANALYSIS = StageKind(
    name=NAME,
    unit="table",
    made_from=("statistics",),
    check=TableCheck,
    parts=_parts,
    digests_of="statistics",
)
