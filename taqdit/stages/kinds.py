"""The stages, in the order of the data flow: the one table that everything else reads them off."""

from __future__ import annotations

from collections.abc import Iterable

from taqdit.stages.analysis import ANALYSIS
from taqdit.stages.calibration import CALIBRATION
from taqdit.stages.conditioning import CONDITIONING
from taqdit.stages.figures import FIGURES
from taqdit.stages.fingerprints import fingerprint
from taqdit.stages.plan import Plan
from taqdit.stages.stage_kind import StageKind
from taqdit.stages.statistics import STATISTICS
from taqdit.stages.trajectories import TRAJECTORIES
from taqdit.stages.weights import WEIGHTS

REPORT = StageKind(name="report", unit="page", made_from=("statistics",))
KINDS = (
    CONDITIONING,
    TRAJECTORIES,
    STATISTICS,
    WEIGHTS,
    CALIBRATION,
    ANALYSIS,
    FIGURES,
    REPORT,
)


def stage_names() -> tuple[str, ...]:
    """What `stages=` may name."""
    return tuple(kind.name for kind in KINDS)


def stored() -> dict[str, StageKind]:
    """The kinds that have folders in the store, by name: what `refresh=` may name."""
    return {kind.name: kind for kind in KINDS if kind.stored}


def with_sources(names: Iterable[str]) -> frozenset[str]:
    """Stages and all that they are made from, directly or not."""
    sources = {kind.name: kind.made_from for kind in KINDS}
    known, new = set[str](), set(names)
    while new:
        known |= new
        new = {source for name in new for source in sources.get(name, ())} - known
    return frozenset(known)


def fingerprints(plan: Plan) -> dict[str, str]:
    """Of the stages of a plan whose folders it names, by their names: what a run refers to.

    Of what is made elsewhere nothing is made here but statistics.
    """
    return {
        kind.name: fingerprint(kind.inputs(plan))
        for kind in ([STATISTICS] if plan.made_elsewhere else KINDS)
        if kind.inputs is not None and kind.is_used(plan)
    }
