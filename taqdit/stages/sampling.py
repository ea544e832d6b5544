"""Sampling and tracing: trajectories are read while they are made, stored ones are replayed."""

from __future__ import annotations

import time

from taqdit import trajectory
from taqdit.activations import Statistics
from taqdit.plan import statistics_inputs, trajectory_inputs
from taqdit.progress import Progress
from taqdit.stages.bench import POLL_SECONDS, Bench, seal
from taqdit.stages.statistics import StatisticsWork
from taqdit.stages.trajectories import TrajectoryWork


def sample_and_trace(
    bench: Bench, guided: trajectory.Guided, progress: Progress, *, trace: bool
) -> tuple[trajectory.TrajectorySet, Statistics | None]:
    """Stages `trajectories` and, if asked to trace, `statistics`."""
    plan = bench.plan
    with bench.stage("trajectories", trajectory_inputs(plan)) as (stage, report):
        work = TrajectoryWork(bench, stage, guided, progress)
        pending = work.incomplete_batches()
        bench.require("trajectories", pending)
        report.reused = plan.trajectories_computed - work.shards_missing
        if pending:
            stage.admit(bench.backend, allow_change=plan.allow_backend_change)
        statistics = None
        if trace:
            statistics = _trace(bench, work, pending)
        else:
            progress.start(work.steps_missing)
            work.complete(pending)
        report.made = work.made
        seal(stage)
        found = trajectory.TrajectorySet(
            stage, count=plan.sampler.num_trajectories, prompts=plan.prompts
        )
        return found, statistics


def _trace(bench: Bench, work: TrajectoryWork, pending: list[int]) -> Statistics:
    """Stage `statistics`, completing the pending batches of trajectories on the way."""
    with bench.stage("statistics", statistics_inputs(bench.plan)) as (stage, report):
        tracing = StatisticsWork(bench, stage, work)
        missing = tracing.missing_steps()
        bench.require("statistics", missing)
        report.reused = bench.plan.schedule.num_steps - len(missing)
        if missing:
            stage.admit(bench.backend, allow_change=bench.plan.allow_backend_change)
        while missing:
            with stage.claim("tracing") as mine:
                if mine:
                    tracing.resume()
                    work.progress.start(work.steps_missing + tracing.steps_to_replay(pending))
                    work.complete(pending, tracing)
                    tracing.catch_up()
                    tracing.finish()
                else:  # another process traces; this one samples beside it, and looks again
                    work.progress.start(work.steps_missing)
                    work.complete(pending)
                    time.sleep(POLL_SECONDS)
            pending, missing = work.incomplete_batches(), tracing.missing_steps()
        if pending:
            work.progress.start(work.steps_missing)
        work.complete(pending)
        report.made = tracing.made
        with stage.claim("tracing") as mine:
            if mine:  # else the process that traces more of this stage seals it
                tracing.discard_checkpoints()
                seal(stage)
        return Statistics(stage, extent=tracing.extent)
