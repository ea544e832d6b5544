"""Sampling and tracing: trajectories are read while they are made, stored ones are replayed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import ClassVar

import numpy as np

from taqdit.activations.stored import Statistics
from taqdit.stages.context import StageContext, Waiting, seal
from taqdit.stages.progress import Progress
from taqdit.stages.statistics import STATISTICS, StatisticsWork
from taqdit.stages.trajectories import CLAIM, TRAJECTORIES, TrajectoryWork
from taqdit.store import Stage
from taqdit.trajectories import sampling
from taqdit.trajectories.trajectory_set import TrajectorySet


def sample_and_trace(
    context: StageContext, guided: sampling.Guided, progress: Progress, *, trace: bool
) -> tuple[TrajectorySet, Statistics | None]:
    """Stages `trajectories` and, if asked to trace, `statistics`."""
    plan = context.plan
    with context.stage(TRAJECTORIES) as (stage, report):
        work = TrajectoryWork(context, stage, guided, progress)
        pending = work.incomplete_batches()
        context.admit(stage, pending)
        with _traced(context, work) if trace else nullcontext(NoTracing()) as tracing:
            progress.start(work.steps_missing + tracing.steps_to_replay(pending))
            try:
                with closing(turns(stage, pending, tracing)) as batches:
                    for number in batches:
                        _complete(work, number, tracing)
            finally:
                report.made = work.made
        report.reused = plan.trajectories_computed - work.made
        if not stage.is_claimed(CLAIM):  # else the process that is at work seals it
            seal(stage)
        trajectories = TrajectorySet(
            stage, count=plan.sampler.num_trajectories, prompts=plan.prompts
        )
        return trajectories, tracing.statistics()


class NoTracing:
    """Nothing is read."""

    awaited: ClassVar[list[int]] = []
    crowded = False

    def steps_to_replay(self, pending: list[int]) -> int:
        """Nothing is repeated."""
        return 0

    def probe(self, batch: sampling.Batch, number: int) -> None:
        """Nothing reads the batch."""

    def catch_up(self) -> bool:
        """Nothing is missing."""
        return True

    def statistics(self) -> None:
        """There are none."""


@contextmanager
def _traced(context: StageContext, work: TrajectoryWork) -> Iterator[StatisticsWork]:
    """Stage `statistics`, sealed in the end."""
    with context.stage(STATISTICS) as (stage, report):
        with StatisticsWork(context, stage, work) as tracing:
            context.admit(stage, tracing.missing)
            try:
                yield tracing
            finally:
                report.made = tracing.made
            report.reused = context.plan.schedule.num_steps - tracing.made
        tracing.seal()


def turns(
    stage: Stage, pending: list[int], tracing: StatisticsWork | NoTracing
) -> Generator[int, None, None]:
    """Yield the batches that are pending, and those that `tracing` awaits, each while this process
    holds its claim, until all are complete.

    Where other processes work on something, wait for them, and go on if they die. Where too much
    waits to be merged, batches are put off, but for the first one, which the others wait for.
    """
    waiting = Waiting(stage)
    while not tracing.catch_up() or pending:
        left = []
        for number in pending:
            mine = False
            if number == pending[0] or not tracing.crowded:
                with stage.claim(f"{CLAIM}-{number:06d}") as mine:
                    if mine:
                        yield number
            if mine:
                tracing.catch_up()
            else:
                left.append(number)
        if len(left) == len(pending):
            waiting.pause()
        else:
            waiting.over()
        pending = left or tracing.awaited


def _complete(work: TrajectoryWork, number: int, tracing: StatisticsWork | NoTracing) -> None:
    """Sample a batch unless all its trajectories are stored, and decode the pictures it lacks."""
    missing, pictures = work.missing(number)
    if missing:
        batch = work.batch(number)
        shape = (len(batch.indices), len(work.sigmas), *work.plan.model.latent_shape)
        latents = np.empty(shape, np.float32)
        for step, rows in work.sampling.sample(batch, tracing.probe(batch, number)):
            latents[:, step] = rows
            work.progress.advance(1 if step else 0)
        work.publish(batch, latents, set(missing))
    for index in pictures:
        work.decode(index)
