"""Stage `statistics`: a shard per step with the statistics of all sites.

A step's statistics are merged over the batches in their order, so that a run that was cut off and
goes on gives the same bytes. Batches are read while they are sampled where nothing came between;
stored ones are replayed. Checkpoints keep what is merged so far.
"""

from __future__ import annotations

import time

from taqdit import activations, trajectory
from taqdit.errors import NumericError
from taqdit.stages.bench import Bench
from taqdit.stages.trajectories import TrajectoryWork
from taqdit.statistics import BatchSums, StepStatistics
from taqdit.store import Stage
from taqdit.tracer import COUNT

CHECKPOINT_SECONDS = 60.0  # at least, between two checkpoints
KEPT = 2  # checkpoints


class StatisticsWork:
    """Completes the steps of one statistics stage."""

    def __init__(self, bench: Bench, stage: Stage, work: TrajectoryWork) -> None:
        self.bench, self.plan, self.stage, self.work = bench, bench.plan, stage, work
        self.layout = self.plan.layout
        self.batches = self.plan.traced_batches
        self.extent = self.batches * self.plan.sampler.batch_size
        self._totals: dict[int, StepStatistics] = {}
        self._covered: dict[int, int] = {}  # batches merged, of every step that is missing
        self._written = time.monotonic()
        self.made = 0  # steps published by this object

    def missing_steps(self) -> list[int]:
        """Steps without a valid shard for all batches."""
        names = {s: activations.file_name(self.extent, s) for s in range(len(self.work.sigmas) - 1)}
        return [s for s, name in names.items() if not self._valid(name, self.extent, s)]

    def resume(self) -> None:
        """Begin each missing step with the longest run of batches that is stored."""
        self._totals, self._covered = {}, {}
        extents = activations.stored_extents(self.stage)
        for step in self.missing_steps():
            self._covered[step] = 0
            for extent in sorted((e for e in extents if e < self.extent), reverse=True):
                if extent % self.plan.sampler.batch_size == 0 and self._load(step, extent):
                    break

    def steps_to_replay(self, pending: list[int]) -> int:
        """Forwards to repeat, if the batches that are pending will be read while sampled."""
        stored = [number for number in range(self.batches) if number not in pending]
        return sum(number >= done for done in self._covered.values() for number in stored)

    def probe(self, batch: trajectory.Batch, number: int) -> trajectory.Probe | None:
        """Reads the batch while it is sampled, if all before it are merged."""
        if not self._covered or number >= self.batches:
            return None
        self.catch_up(number)
        if set(self._covered.values()) != {number}:
            return None  # another process is at an earlier batch: this one is replayed later
        return self._probe(batch)

    def stored(self, number: int) -> None:
        """A batch that was read is in the store: its statistics may be, too."""
        self._covered = dict.fromkeys(self._covered, number + 1)
        self._checkpoint()
        self.finish()

    def catch_up(self, until: int | None = None) -> None:
        """Replay stored batches before `until` (None: all), as far as they are there."""
        end = self.batches if until is None else until
        for number in range(min(self._covered.values(), default=end), end):
            if not self.work.is_stored(number):
                return
            self._replay(number)
            self._checkpoint()

    def finish(self) -> None:
        """Publish the steps that cover every batch."""
        done = [step for step, covered in self._covered.items() if covered == self.batches]
        for step in done:
            self._write(activations.file_name(self.extent, step), self.extent, step)
            del self._covered[step], self._totals[step]
            self.made += 1

    def discard_checkpoints(self) -> None:
        """Remove the checkpoints on the way here: what they hold is published."""
        extents = activations.checkpoint_extents(self.stage)
        self._discard([extent for extent in extents if extent <= self.extent])

    def _probe(self, batch: trajectory.Batch) -> trajectory.Probe:
        from taqdit.tracer.probe import Probe
        from taqdit.tracer.taps import Taps

        read = self.plan.traced
        taps = Taps(
            self.bench.model.mmdit,
            {each.site.name: each.path for each in read},
            widths={each.site.name: each.site.width for each in read},
        )
        masked = self.plan.tracer.nonfinite == COUNT
        return Probe(taps, self.layout, batch, self._add, masked=masked)

    def _add(self, step: int, sums: BatchSums) -> None:
        """Merge what a batch showed at a step."""
        if step not in self._covered:
            return
        part = StepStatistics.of_batch(self.layout, sums)
        try:
            known = self._totals.get(step)
            self._totals[step] = part if known is None else known.merged(part)
        except OverflowError as error:
            raise NumericError(f"statistics of step {step}: {error}") from error

    def _replay(self, number: int) -> None:
        plan = self.plan
        behind = [step for step, covered in self._covered.items() if covered == number]
        batch = trajectory.Batch.of(number, sampler=plan.sampler, prompts=plan.prompts)
        latents = [
            trajectory.read_trajectory(self.work.stage, index)["latents"] for index in batch.indices
        ]
        for _ in trajectory.replay(
            self.work.sampling_model(),
            batch,
            self.work.guided,
            latents,
            steps=behind,
            sigmas=self.work.sigmas,
            sampler=plan.sampler,
            probe=self._probe(batch),
        ):
            self.work.progress.advance(1)
        self._covered |= dict.fromkeys(behind, number + 1)

    def _checkpoint(self) -> None:
        """Keep what is merged, if the last checkpoint is some time ago."""
        if time.monotonic() - self._written < CHECKPOINT_SECONDS:
            return
        for step, covered in self._covered.items():
            extent = covered * self.plan.sampler.batch_size
            name = activations.checkpoint_name(extent, step)
            if 0 < extent < self.extent and not self.stage.path(name).exists():
                self._write(name, extent, step)
        mine = [e for e in activations.checkpoint_extents(self.stage) if e < self.extent]
        self._discard(mine[:-KEPT])
        self._written = time.monotonic()

    def _discard(self, extents: list[int]) -> None:
        names = self.stage.names()
        for extent in extents:
            begin = activations.checkpoint_prefix(extent)
            self.stage.discard(name for name in names if name.startswith(begin))

    def _write(self, name: str, extent: int, step: int) -> None:
        activations.write_step(
            self.stage,
            name,
            self._totals[step],
            extent=extent,
            step=step,
            sigma=float(self.work.sigmas[step]),
            timestep=float(self.work.timesteps[step]),
        )

    def _valid(self, name: str, extent: int, step: int) -> bool:
        return bool(self.stage.valid([name], verify=lambda _: self._read(name, extent, step)))

    def _load(self, step: int, extent: int) -> bool:
        """Begin a step with what is stored for `extent` trajectories, if that is valid."""
        for name in (
            activations.file_name(extent, step),
            activations.checkpoint_name(extent, step),
        ):
            if self._valid(name, extent, step):
                self._totals[step] = self._read(name, extent, step)
                self._covered[step] = extent // self.plan.sampler.batch_size
                return True
        return False

    def _read(self, name: str, extent: int, step: int) -> StepStatistics:
        return activations.read_step(self.stage, name, extent=extent, step=step, layout=self.layout)
