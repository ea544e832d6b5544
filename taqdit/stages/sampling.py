"""Sampling and tracing: trajectories are read while they are made, stored ones are replayed."""

from __future__ import annotations

from taqdit.activations.stored import Statistics
from taqdit.stages.context import Bench, seal
from taqdit.stages.plan import statistics_inputs, trajectory_inputs
from taqdit.stages.progress import Progress
from taqdit.stages.statistics import StatisticsWork
from taqdit.stages.trajectories import CLAIM, NoTracing, TrajectoryWork
from taqdit.trajectories import trajectory
from taqdit.trajectories.stored import TrajectorySet


def sample_and_trace(
    bench: Bench, guided: trajectory.Guided, progress: Progress, *, trace: bool
) -> tuple[TrajectorySet, Statistics | None]:
    """Stages `trajectories` and, if asked to trace, `statistics`."""
    plan = bench.plan
    with bench.stage("trajectories", trajectory_inputs(plan)) as (stage, report):
        work = TrajectoryWork(bench, stage, guided, progress)
        pending = work.incomplete_batches()
        bench.require("trajectories", pending)
        if pending:
            stage.admit(bench.backend, allow_change=plan.allow_backend_change)
        statistics = None
        try:
            if trace:
                statistics = _trace(bench, work, pending)
            else:
                progress.start(work.steps_missing)
                work.complete(pending, NoTracing())
        finally:
            report.made = work.made
        report.reused = plan.trajectories_computed - work.made
        if not stage.is_claimed(CLAIM):  # else the process that is at work seals it
            seal(stage)
        found = TrajectorySet(stage, count=plan.sampler.num_trajectories, prompts=plan.prompts)
        return found, statistics


def _trace(bench: Bench, work: TrajectoryWork, pending: list[int]) -> Statistics:
    """Stage `statistics`, completing the pending batches of trajectories on the way."""
    with bench.stage("statistics", statistics_inputs(bench.plan)) as (stage, report):
        with StatisticsWork(bench, stage, work) as tracing:
            bench.require("statistics", tracing.missing)
            if tracing.missing:
                stage.admit(bench.backend, allow_change=bench.plan.allow_backend_change)
            work.progress.start(work.steps_missing + tracing.steps_to_replay(pending))
            try:
                work.complete(pending, tracing)
            finally:
                report.made = tracing.made
            report.reused = bench.plan.schedule.num_steps - tracing.made
        tracing.seal()
        return Statistics(stage, extent=tracing.extent)
