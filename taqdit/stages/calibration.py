"""Stage `calibration`: a view of the trajectories, of which nothing is kept in the store."""

from __future__ import annotations

import math

from taqdit.calibration.points import selections
from taqdit.quantizer import BITS
from taqdit.stages.conditioning import FLOAT16, FLOAT32, row_size
from taqdit.stages.plan import Plan
from taqdit.stages.stage_kind import Part, StageKind
from taqdit.timestep_selection.evidence import Evidence
from taqdit.timestep_selection.steps import TrajectorySteps

NAME = "calibration"


def count_points(plan: Plan) -> int:
    """Calibration points of the run; asks the rule for every trajectory, as rules may differ."""
    if NAME not in plan.stages:
        return 0
    blank = Evidence.blank(plan.schedule.num_steps, BITS)
    first = TrajectorySteps(plan.schedule.sigmas(), seed=plan.sampler.seed, evidence=blank)
    chosen = selections(plan.select, first, plan.sampler.num_trajectories)
    return sum(int(selection.counts.sum()) for selection in chosen)


def _parts(plan: Plan) -> tuple[Part, ...]:
    """The calibration.npz of a run's folder."""
    points = count_points(plan) if plan.export else 0
    texts = min(len(plan.prompts.texts), plan.sampler.num_trajectories)
    nbytes = points * (math.prod(plan.model.latent_shape) * FLOAT32 + FLOAT16 + FLOAT32)
    nbytes += 2 * texts * row_size(plan.model) * FLOAT16
    return (Part("export", "calibration.npz", nbytes if points else 0),)


CALIBRATION = StageKind(name=NAME, unit="point", made_from=("trajectories",), parts=_parts)
