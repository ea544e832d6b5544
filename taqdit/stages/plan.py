"""What one run is made from, as objects, and the fingerprints that name its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.activations import Layout
from taqdit.analysis.options import AnalysisOptions
from taqdit.calibration.points import Trajectories, selected, selections
from taqdit.models.sites import SitePath, site_paths
from taqdit.models.spec import ModelSpec
from taqdit.plots.options import PlotOptions
from taqdit.prompts.options import Prompts
from taqdit.sampler import ALL, FINAL, SELECTED, Sampler
from taqdit.schedule import Schedule
from taqdit.store import canonical_json, sha256_hex
from taqdit.timestep_selection.evidence import Evidence
from taqdit.timestep_selection.selection import Rule
from taqdit.timestep_selection.steps import TrajectorySteps
from taqdit.tracer.options import TracerOptions

SCHEMA = 1  # of the stages' numbers: raise it when the same inputs give other bytes
STATISTICS_SCHEMA = 1
TRACING = {"statistics", "analysis", "figures", "report"}  # stages that need statistics


@dataclass(frozen=True)
class Plan:
    """A checked configuration as objects; `config` is the resolved mapping it came from.

    `evidence` is what a data-driven `select` chooses by, once there are statistics.
    """

    config: Mapping[str, Any]
    model: ModelSpec
    prompts: Prompts
    schedule: Schedule
    sampler: Sampler
    select: Rule
    tracer: TracerOptions
    analysis: AnalysisOptions
    plots: PlotOptions
    tracking: Any
    stages: tuple[str, ...]
    refresh: tuple[str, ...]
    preflight: str
    export: bool
    export_layers: bool
    export_statistics: bool
    allow_backend_change: bool
    output_dir: Path
    imported: Path | None
    imported_statistics: Path | None
    evidence: Evidence | None = None

    @property
    def trajectories_computed(self) -> int:
        """Trajectories in whole batches: at least the number asked for."""
        return self.sampler.num_batches * self.sampler.batch_size

    def stored_steps(self, trajectory: int) -> np.ndarray:
        """The steps whose latents are stored, ascending, (k,) int64; num_steps is the final one."""
        num_steps = self.schedule.num_steps
        if self.sampler.latents == ALL:
            return np.arange(num_steps + 1)
        if self.sampler.latents == FINAL:
            return np.array([num_steps])
        steps = TrajectorySteps(self.schedule.sigmas(), trajectory, self.sampler.seed)
        chosen = selected(self.select, steps)
        return np.append(np.unique(chosen.indices), num_steps)

    @cached_property
    def weights(self) -> dict[str, str]:
        """Digests of the model's files, taken once: every stage names the same."""
        return self.model.weights()

    @property
    def texts(self) -> list[str]:
        """The unique prompts that the trajectories of this run use, in order."""
        used = range(min(len(self.prompts.texts), self.trajectories_computed))
        return list(dict.fromkeys(self.prompts.texts[i] for i in used))

    @property
    def traced(self) -> tuple[SitePath, ...]:
        """The sites that are read, with the modules they are read at."""
        there = {each.site: each for each in site_paths(self.model)}
        return tuple(there[site] for site in self.tracer.chosen(there))

    @property
    def traces(self) -> bool:
        """Whether statistics are made or read from the store."""
        asked = set(self.stages) & TRACING
        return bool(asked and self.traced and self.imported_statistics is None)

    @property
    def layout(self) -> Layout:
        """The traced sites side by side."""
        return Layout(tuple(each.site for each in self.traced), self.tracer.folds)

    @property
    def traced_batches(self) -> int:
        """Batches that are traced: whole ones, that hold `tracer.num_trajectories`."""
        traced = self.tracer.traced(self.sampler.num_trajectories)
        return -(-traced // self.sampler.batch_size)


# Every config key is in one table: it changes trajectories (and what is made from them), the
# statistics alone, or no stored number.
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
)
COSMETIC = (
    "model.local_ckpt",  # the digest of its weights counts, not its path
    "model.low_memory",
    "prompts.path",  # the texts in it count
    "prompts.allow_outside",  # the texts count
    "prompts.store_conditioning",  # the rows are the same
    "sampler.num_trajectories",  # an extent: asking for more adds shards
    "sampler.images",
    "tracer.num_trajectories",  # an extent: asking for more goes on from what is there
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
    "inputs",
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


def statistics_inputs(plan: Plan) -> dict[str, Any]:
    """Everything that can change a number of the statistics, but how many batches they cover."""
    return {
        **trajectory_inputs(plan),
        "statistics_schema": STATISTICS_SCHEMA,
        "sites": [site.name for site in plan.layout.sites],
        "folds": plan.tracer.folds,
        "nonfinite": plan.tracer.nonfinite,
    }


def target(plan: Plan, group: str) -> str:
    """The option function of a group, as the configuration names it."""
    return str(plan.config[group]["_target_"])


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a stage's inputs, 64 hex digits."""
    return sha256_hex(canonical_json(inputs).encode())


def chosen_steps(plan: Plan, trajectories: Trajectories) -> list[list[int]]:
    """The selected steps of each trajectory."""
    first = TrajectorySteps(trajectories.sigmas, seed=plan.sampler.seed, evidence=plan.evidence)
    chosen = selections(plan.select, first, len(trajectories))
    return [selection.indices.tolist() for selection in chosen]
