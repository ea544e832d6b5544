"""Drawn figures in the store: of the same numbers, code and style, a figure is drawn once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.activations.stored import Statistics
from taqdit.stages.checks.check import Check
from taqdit.stages.fingerprints import fingerprint, target
from taqdit.stages.plan import Plan
from taqdit.stages.source import source_digest, source_unchanged
from taqdit.stages.stage_kind import StageKind
from taqdit.store import Stage, canonical_json, sha256_hex
from taqdit.trajectories.trajectory_set import TrajectorySet

STAGE = KIND = "figures"


class StoredFigures:
    """The files of figures, by the figure's name. `inputs` names all that they are made from."""

    def __init__(self, store: Path, inputs: Mapping[str, Any], *, refresh: bool = False) -> None:
        whole = {**inputs, "source": source_digest(), "matplotlib": version("matplotlib")}
        name = fingerprint(whole)
        if refresh:
            Stage.set_aside(store, STAGE, name)
        self._stage = Stage.open(store, STAGE, fingerprint=name, inputs=whole, backend={}, lost={})

    def get(self, name: str) -> dict[str, bytes] | None:
        """The files of a figure by suffix; None if it is not there. Moves a corrupt one aside."""
        file = f"{name}.safetensors"
        if not self._stage.valid([file], verify=lambda _: self._read(name)):
            return None
        return {suffix: array.tobytes() for suffix, array in self._read(name).items()}

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        """Keep the files of a figure, if the code that drew it is still what it is filed under."""
        if not source_unchanged():
            return
        arrays = {suffix: np.frombuffer(data, np.uint8) for suffix, data in files.items()}
        self._stage.write(f"{name}.safetensors", arrays, kind=KIND, index=name, metadata={})

    def seal(self) -> None:
        """What is there is listed, and whole."""
        if self._stage.unsealed_or_changed(self._stage.names()):
            self._stage.seal()

    def _read(self, name: str) -> dict[str, np.ndarray]:
        return self._stage.read(f"{name}.safetensors", kind=KIND, index=name).tensors


@dataclass(frozen=True)
class RunFigures:
    """Where the figures of one run are kept: those that runs over the same data share, and those
    that show its own selection."""

    shared: StoredFigures
    own: StoredFigures

    def seal(self) -> None:
        """Those of both kinds."""
        self.shared.seal()
        self.own.seal()


def run_figures(
    plan: Plan,
    store: Path,
    trajectories: TrajectorySet,
    statistics: Statistics | None,
    chosen: Sequence[Sequence[int]],
) -> RunFigures | None:
    """Where figures of the same data, options and selection are kept; None if none is drawn.

    `chosen` holds the selected steps of each trajectory.
    """
    plots = plan.plots
    if STAGE not in plan.stages or not plots.drawn:
        return None
    data = {
        "trajectories": trajectories.fingerprint,
        "count": len(trajectories),
        "statistics": statistics and [statistics.fingerprint, statistics.extent],
        "layers": plots.layers and list(plots.layers),
        "formats": list(plots.formats),
        "analysis": asdict(plan.analysis),
        "weights": "weights" in plan.stages,
        "seed": plan.sampler.seed,
        "backends": [trajectories.backends, statistics and statistics.backends],
    }
    selection = {
        "selected": sha256_hex(canonical_json([list(steps) for steps in chosen]).encode()),
        "rule": target(plan, "timestep_selection"),
    }
    anew = bool({STAGE, *FIGURES.made_from} & set(plan.refresh))
    shared = StoredFigures(store, data, refresh=anew)
    return RunFigures(shared, StoredFigures(store, {**data, **selection}, refresh=anew))


def _data(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Whose data figures of these inputs show: fingerprints by stage."""
    statistics = inputs.get("statistics")
    own = statistics[0] if isinstance(statistics, list) and statistics else None
    return {"trajectories": inputs.get("trajectories"), "statistics": own}


FIGURES = StageKind(
    name=STAGE, unit="figure", made_from=("trajectories", "statistics"), check=Check, data=_data
)
