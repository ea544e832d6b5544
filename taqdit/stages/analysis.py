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
from taqdit.stages.context import Bench, Waiting, seal
from taqdit.stages.plan import fingerprint, target
from taqdit.stages.source import source_digest, source_unchanged
from taqdit.store import Stage

NAME = KIND = "analysis"
_OVERVIEW, _PROFILE, _CHOICES = "overview", "profile", "choices"
T = TypeVar("T")


class KeptAnalysis:
    """Overview and profile of one run's statistics, read from the store or computed into it. The
    statistics are given the overview.

    What the data-driven rules choose from the profile is kept too, by `keep_choices`.
    """

    def __init__(self, bench: Bench, statistics: Statistics) -> None:
        self._statistics, self._weighting = statistics, bench.plan.analysis.weighting
        self._known = 0  # choices in the store
        self._own_rule = target(bench.plan, "timestep_selection").startswith("taqdit.")
        inputs = analysis_inputs(bench, statistics)
        mark = fingerprint(inputs)
        if NAME in bench.plan.refresh:
            Stage.set_aside(bench.store, NAME, mark)
        self._stage = Stage.open(
            bench.store,
            NAME,
            fingerprint=mark,
            inputs=inputs,
            backend=bench.backend,
            lost=bench.backend,  # the fingerprint names it, too
        )
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
        found = self._kept(
            _PROFILE, unpack_profile, lambda: profile(self._statistics, weights), pack_profile
        )
        choices = self._stored(_CHOICES, _unpack_choices) or {}
        found.evidence.recall(choices)
        self._known = len(choices)
        return found

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
        found, waiting = self._stored(name, unpack), Waiting(self._stage, name)
        while found is None:
            with self._stage.claim(name) as mine:
                found = self._stored(name, unpack)  # another process may have been faster
                if mine and found is None:
                    found = compute()
                    self._write(name, pack(found))
            if found is None:
                waiting.pause()
        seal(self._stage)
        return found

    def _stored(self, name: str, unpack: Callable[[Packed, Sequence[Site]], T]) -> T | None:
        """What the store holds, read and verified once; None if it is not there. Moves a corrupt
        file aside."""
        found: list[T] = []
        self._stage.valid([_file(name)], verify=lambda _: found.append(self._read(name, unpack)))
        return found[0] if found else None

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


def analysis_inputs(bench: Bench, statistics: Statistics) -> dict[str, Any]:
    """Everything that can change a bit of what is kept."""
    return {
        "source": source_digest(),
        "statistics": statistics.digests,
        "weighting": bench.plan.analysis.weighting,
        "numpy": np.__version__,
        "backend": dict(bench.backend),
    }


def _unpack_choices(packed: Packed, sites: Sequence[Site]) -> dict[Hashable, tuple[int, ...]]:
    """Chosen steps by what they were chosen by."""
    return {tuple(key): tuple(map(int, steps)) for key, steps in packed.metadata["choices"]}


def _file(name: str) -> str:
    return f"{name}.safetensors"
