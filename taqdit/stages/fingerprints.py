"""What the fingerprints of stages of data are taken of, and which config keys are among it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taqdit.calibration.imported import ImportedCalibrationSet
from taqdit.sampler import SELECTED
from taqdit.stages.plan import Plan
from taqdit.store import canonical_json, sha256_file, sha256_hex

SCHEMA = 1  # of the stages' numbers: raise it when the same inputs give other bytes
STATISTICS_SCHEMA = 1

# Every config key changes the numbers of a stage, whose kind names it in `keys` (these of the
# trajectories and of what is made from them, or of the statistics alone), or no stored number.
NUMERIC = (
    "model._target_",
    "model.use_t5",
    "model.w16",
    "model.a16",
    "model.latent_size",
    "prompts._target_",
    "prompts.num",
    "schedule._target_",
    "schedule.num_steps",
    "schedule.shift",
    "sampler._target_",
    "sampler.cfg_scale",
    "sampler.seed",
    "sampler.batch_size",
    "sampler.latents",
    "sampler.latents_dtype",
)
TRACED = (
    "tracer._target_",
    "tracer.folds",
    "tracer.blocks",
    "tracer.streams",
    "tracer.sites",
    "tracer.nonfinite",
    "inputs.calibration",  # the digest of the file counts, not its path
)
COSMETIC = (
    "model.local_ckpt",  # the digest of its weights counts, not its path
    "model.low_memory",
    "prompts.path",  # the texts in it count
    "prompts.allow_outside",  # the texts count
    "prompts.store_conditioning",  # the rows are the same
    "sampler.num_trajectories",  # an extent: asking for more adds shards
    "sampler.images",
    "tracer.num_trajectories",  # an extent: asking for more goes on from what is there (of an
    # imported set it is how many points are drawn, which counts)
    "timestep_selection",  # a view of the trajectories; with sampler.latents=selected it counts
    "plots",
    "tracking",
    "stages",
    "refresh",
    "preflight",
    "allow_backend_change",
    "output_dir",
    "calibration",
    "statistics",
    "analysis",
    "inputs.statistics",  # drawn as they are
    "pair",  # what refers to it counts
)


def conditioning_inputs(plan: Plan) -> dict[str, Any]:
    """Everything that can change a conditioning row, but the text itself."""
    return {
        "schema": SCHEMA,
        "model": plan.model.name,
        "model_option": target(plan, "model"),
        "options": dict(plan.model.options),
        "weights": plan.weights,
    }


def trajectory_inputs(plan: Plan) -> dict[str, Any]:
    """Everything that can change a latent of trajectory i."""
    return {
        **conditioning_inputs(plan),
        "latent_shape": list(plan.model.latent_shape),
        "prompts": list(plan.prompts.texts),
        "prompt_seeds": list(plan.prompts.seeds),
        "schedule_option": target(plan, "schedule"),
        "sampler_option": target(plan, "sampler"),
        "num_steps": plan.schedule.num_steps,
        "shift": plan.schedule.shift,
        "cfg_scale": plan.sampler.cfg_scale,
        "seed": plan.sampler.seed,
        "batch_size": plan.sampler.batch_size,
        **_storage_inputs(plan),
    }


def _storage_inputs(plan: Plan) -> dict[str, Any]:
    """What is stored of a trajectory, if it is not all of it as it was computed."""
    sampler = plan.sampler
    if sampler.stores_all:
        return {}
    chosen = {"selection": plan.config["timestep_selection"]} if sampler.latents == SELECTED else {}
    return {"latents": sampler.latents, "latents_dtype": sampler.latents_dtype, **chosen}


def imported_inputs(plan: Plan, points: ImportedCalibrationSet) -> dict[str, Any]:
    """Everything that can change a forward of an imported calibration set's traced points."""
    assert plan.imported is not None
    assert plan.points is not None
    drawn = {"seed": plan.sampler.seed} if len(points) < len(plan.points) else {}
    return {
        **conditioning_inputs(plan),
        "latent_shape": list(plan.model.latent_shape),
        "calibration": sha256_file(plan.imported),
        "num_steps": points.num_steps,
        "points": len(points),
        "batch_size": plan.sampler.batch_size,
        **drawn,
    }


def statistics_inputs(plan: Plan) -> dict[str, Any]:
    """Everything that can change a number of the statistics, but how many batches they cover."""
    points = plan.traced_points
    return {
        **(trajectory_inputs(plan) if points is None else imported_inputs(plan, points)),
        "statistics_schema": STATISTICS_SCHEMA,
        "sites": [site.name for site in plan.layout.sites],
        "folds": plan.tracer.folds,
        "nonfinite": plan.tracer.nonfinite,
    }


def target(plan: Plan, group: str) -> str:
    """The option of a group, as the configuration names it."""
    return str(plan.config[group]["_target_"])


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a stage's inputs, 64 hex digits."""
    return sha256_hex(canonical_json(inputs).encode())
