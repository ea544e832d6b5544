"""What one run is made from, as objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.activations import Layout
from taqdit.analysis.options import AnalysisOptions
from taqdit.calibration.imported import ImportedCalibrationSet, import_npz
from taqdit.calibration.points import Trajectories, selected, selections
from taqdit.models.sites import SitePath, site_paths
from taqdit.models.spec import ModelSpec
from taqdit.plots.options import PlotOptions
from taqdit.prompts.options import Prompts
from taqdit.sampler import ALL, FINAL, Sampler
from taqdit.schedule import Schedule
from taqdit.timestep_selection.evidence import Evidence
from taqdit.timestep_selection.selection import Rule
from taqdit.timestep_selection.steps import TrajectorySteps
from taqdit.tracer.options import TracerOptions


@dataclass(frozen=True)
class Plan:
    """A checked configuration as objects; `config` is the resolved mapping it came from.

    `needs` names the stages that run and all that they are made from.
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
    needs: frozenset[str]
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

    @property
    def made_elsewhere(self) -> bool:
        """Whether files made elsewhere take the place of all stages."""
        return not (self.imported is None and self.imported_statistics is None)

    @cached_property
    def points(self) -> ImportedCalibrationSet | None:
        """The imported calibration set, read once; None without one. Raises InputError."""
        return None if self.imported is None else import_npz(self.imported)

    @cached_property
    def traced_points(self) -> ImportedCalibrationSet | None:
        """Those points of it that are traced: `tracer.num_trajectories` of them, drawn."""
        if self.points is None:
            return None
        return self.points.sample(self.tracer.traced(len(self.points)), seed=self.sampler.seed)

    @cached_property
    def misfits(self) -> list[str]:
        """Why the model cannot be given the imported points."""
        model, points = self.model, self.points
        return [] if points is None else points.misfits(model.latent_shape, model.pooled_width)

    @property
    def analyses(self) -> bool:
        """Whether statistics are analysed where there are some."""
        return "analysis" in self.stages and self.analysis.enabled

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
        paths = {path.site: path for path in site_paths(self.model)}
        return tuple(paths[site] for site in self.tracer.chosen(paths))

    @property
    def traces(self) -> bool:
        """Whether statistics are made or read from the store."""
        asked = "statistics" in self.needs and self.imported_statistics is None
        return bool(asked and self.traced and not self.misfits)

    @property
    def layout(self) -> Layout:
        """The traced sites side by side."""
        return Layout(tuple(path.site for path in self.traced), self.tracer.folds)

    @property
    def traced_batches(self) -> int:
        """Batches that are traced: whole ones, that hold `tracer.num_trajectories`."""
        traced = self.tracer.traced(self.sampler.num_trajectories)
        return -(-traced // self.sampler.batch_size)


def chosen_steps(plan: Plan, trajectories: Trajectories) -> list[list[int]]:
    """The selected steps of each trajectory."""
    first = TrajectorySteps(trajectories.sigmas, seed=plan.sampler.seed, evidence=plan.evidence)
    chosen = selections(plan.select, first, len(trajectories))
    return [selection.indices.tolist() for selection in chosen]
