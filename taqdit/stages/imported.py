"""Stage `statistics` of an imported calibration set: one forward of the model for each point.

The file tells no trajectories. The points of one prompt are a fold's together, so that no fold
holds a part of a trajectory; intervals are over prompts. Steps are the file's distinct timesteps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from taqdit.activations import BatchSums, StepStatistics
from taqdit.activations import step_shards as activations
from taqdit.activations.stored import Statistics
from taqdit.calibration.imported import ImportedCalibrationSet
from taqdit.calibration.points import Batch
from taqdit.errors import NumericError
from taqdit.stages.context import StageContext, once, seal, stored
from taqdit.stages.progress import Progress
from taqdit.stages.statistics import CLAIM, STATISTICS, site_probe
from taqdit.store import Stage

log = logging.getLogger(__name__)


def trace_imported(context: StageContext, progress: Progress) -> Statistics:
    """The statistics of the plan's imported points; steps that are stored are not traced again."""
    points = context.plan.traced_points
    assert points is not None
    with context.stage(STATISTICS) as (stage, report):
        work = ImportedWork(context, stage, points, progress)
        missing = [step for step in range(points.num_steps) if work.read(step) is None]
        context.admit(stage, missing)
        forwards = sum(-(-int(count) // work.size) for count in points.counts[missing])
        whole = context.plan.points
        log.info(
            "tracing %d of %d points at %d steps: %d forwards",
            len(points),
            len(whole) if whole else 0,
            points.num_steps,
            forwards,
        )
        progress.start(forwards)
        try:
            for step in missing:
                work.complete(step)
        finally:
            report.made = work.made
        report.reused = points.num_steps - work.made
        seal(stage)
        return Statistics(stage, extent=len(points))


class ImportedWork:
    """The steps of an imported set: read from the store, or traced and published."""

    def __init__(
        self,
        context: StageContext,
        stage: Stage,
        points: ImportedCalibrationSet,
        progress: Progress,
    ) -> None:
        self.context, self.plan, self.stage = context, context.plan, stage
        self.points, self.progress = points, progress
        self.size, self.layout = self.plan.sampler.batch_size, self.plan.layout
        self.made = 0

    def read(self, step: int) -> StepStatistics | None:
        """A step, if it is stored and valid."""
        name, extent = self._name(step), len(self.points)
        read = partial(activations.read_step, extent=extent, step=step, layout=self.layout)
        return stored(self.stage, name, lambda: read(self.stage, name))

    def complete(self, step: int) -> None:
        """Trace a step and publish it, unless another process does."""
        trace, write = partial(self._trace, step), partial(self._write, step)
        once(self.stage, f"{CLAIM}-{step:04d}", partial(self.read, step), trace, write)

    def _name(self, step: int) -> str:
        return activations.file_name(len(self.points), step)

    def _write(self, step: int, statistics: StepStatistics) -> None:
        activations.write_step(
            self.stage,
            self._name(step),
            statistics,
            extent=len(self.points),
            step=step,
            sigma=float(self.points.sigmas[step]),
            timestep=float(self.points.timesteps[step]),
        )
        self.made += 1

    def _trace(self, step: int) -> StepStatistics:
        merged: StepStatistics | None = None
        try:
            for sums in self._read_batches(step):
                part = StepStatistics.of_batch(self.layout, sums)
                merged = part if merged is None else merged.merged(part)
        except OverflowError as error:
            raise NumericError(f"statistics of step {step}: {error}") from error
        assert merged is not None  # every step has a point
        return merged

    def _read_batches(self, step: int) -> Iterator[BatchSums]:
        for batch in self.points.batches(step, self.size):
            yield self._forward(step, batch)
            self.progress.advance(1)

    def _forward(self, step: int, batch: Batch) -> BatchSums:
        """What one forward of some points shows."""
        from taqdit.backend import mx

        read: list[BatchSums] = []
        numbers = batch.prompt_indices.tolist()
        probe = site_probe(
            self.context,
            lambda _, sums: read.append(sums),
            indices=numbers,
            texts=[self.points.prompts[number] for number in numbers],
            unit="prompt",
        )
        tokens, pooled = guided_pairs([self.points.pair(k) for k in numbers])
        level = mx.array(np.array([self.points.sigmas[step], 0], np.float32))
        with self.context.model.denoiser(
            tokens=tokens, pooled=pooled, sigmas=level, cfg_scale=self.points.cfg_scale
        ) as denoise:
            watched = probe.watch(lambda latent, _: denoise(latent, 0))
            watched(mx.array(batch.latents), step)
            mx.eval(*probe.pending)
            probe.collect()
            probe.finish()
        return read[0]


def guided_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Any, Any]:
    """Rows of one guided forward: of pairs of tokens (2, n, 4096) and pooled (2, d) the positives,
    then each one's own negative, as mlx arrays (2N, n, 4096) and (2N, d)."""
    from taqdit.backend import mx

    tokens, pooled = (
        np.stack([pair[part][half] for half in (0, 1) for pair in pairs]) for part in (0, 1)
    )
    return mx.array(tokens), mx.array(pooled)
