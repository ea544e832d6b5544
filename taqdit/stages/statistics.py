"""Stage `statistics`: a shard per step with the statistics of all sites.

A step's statistics are merged over the batches in their order, so that a run that was cut off and
goes on, and several processes at once, give the same bytes. A process merges the steps whose claim
it holds. What it reads while it samples a batch it merges at once where the batch is the next one;
for other steps it leaves a part in the store, for whoever merges them. Batches that were stored
without being read are replayed, by steps. Checkpoints keep what is merged so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from taqdit.activations import BatchSums, StepStatistics
from taqdit.activations import step_shards as activations
from taqdit.errors import NumericError
from taqdit.stages.context import Bench, Waiting, seal
from taqdit.stages.merging import Merging
from taqdit.stages.trajectories import CLAIM as TRAJECTORIES
from taqdit.stages.trajectories import TrajectoryWork
from taqdit.store import Stage, disk
from taqdit.tracer.options import COUNT
from taqdit.trajectories import trajectory

CHECKPOINT_SECONDS = 60.0  # at least, between two checkpoints
KEPT = 2  # checkpoints
SHARES = 8  # parts that the steps are claimed in, so that processes share a replay
AHEAD = 2  # batches per process that may wait in parts
CLAIM, SEALING = "merging", "sealing"


class StatisticsWork:
    """Completes the steps of one statistics stage; a context manager that holds claims."""

    def __init__(self, bench: Bench, stage: Stage, work: TrajectoryWork) -> None:
        disk.allow_open_files()  # a step that is merged holds two: its claim, its checkpoint
        self.bench, self.plan, self.stage, self.work = bench, bench.plan, stage, work
        self.layout = self.plan.layout
        self.batch_size = self.plan.sampler.batch_size
        self.batches = self.plan.traced_batches
        self.extent = self.batches * self.batch_size
        self.missing = [s for s in range(len(self.work.sigmas) - 1) if not self._published(s)]
        self.made = 0  # steps published by this object
        self._mine: dict[int, Merging] = {}
        self._written = time.monotonic()

    def __enter__(self) -> StatisticsWork:
        return self

    def __exit__(self, *_: object) -> None:
        for step in list(self._mine):
            self._let_go(step)

    @property
    def awaited(self) -> list[int]:
        """The batches that the steps of this process need next."""
        return sorted({each.covered for each in self._mine.values()})

    @property
    def crowded(self) -> bool:
        """Whether parts of more batches lie here than AHEAD for each process that samples."""
        listed = activations.listed(self.stage)
        batches = {each.number for each in listed if each.kind == activations.PART}
        return len(batches) > AHEAD * (1 + len(self.work.stage.claimants(TRAJECTORIES)))

    def steps_to_replay(self, pending: list[int]) -> int:
        """Forwards to repeat, if the batches that are pending will be read while sampled."""
        there = activations.listed(self.stage)
        parts = {(each.number, each.step) for each in there if each.kind == activations.PART}
        stored = [number for number in range(self.batches) if number not in pending]
        begun = {s: max(self._begun(s, there), default=0) // self.batch_size for s in self.missing}
        return sum(
            number >= begun[step] and (number, step) not in parts
            for step in self.missing
            for number in stored
        )

    def probe(self, batch: trajectory.Batch, number: int) -> trajectory.Probe | None:
        """Reads the batch while it is sampled, if any step lacks it."""
        return self._probe(batch, number) if self.missing and number < self.batches else None

    def catch_up(self) -> bool:
        """Merge what is stored into the steps held, and into those that nobody holds.

        Whether the statistics are complete.
        """
        self._merge_stored()
        while self._take():
            self._merge_stored()
        return not self.missing

    def seal(self) -> None:
        """Clear what was kept on the way, and seal; where others are at work, the last one does."""
        waiting = Waiting(self.stage, SEALING)
        while True:
            with self.stage.claim(SEALING) as mine:
                if mine:
                    self._seal_if_alone()
                    return
            waiting.pause()

    def _seal_if_alone(self) -> None:
        if self.stage.is_claimed(CLAIM):
            return
        for step in range(len(self.work.sigmas) - 1):
            self._discard(step, self.batches)
        parts = [e.name for e in activations.listed(self.stage) if e.kind == activations.PART]
        self.stage.discard(parts)  # of more batches, that nobody goes on with
        seal(self.stage)

    def _take(self) -> bool:
        """Claim a share of the missing steps that nobody holds; whether there were any."""
        share, taken = -(-(len(self.work.sigmas) - 1) // SHARES), 0
        for step in [step for step in self.missing if step not in self._mine]:
            claim = ExitStack()
            mine = claim.enter_context(self.stage.claim(f"{CLAIM}-{self.extent:07d}-{step:04d}"))
            if self._published(step):
                self.missing.remove(step)
            elif mine:
                self._mine[step] = self._begin(step, claim.pop_all())
                taken += 1
            claim.close()
            if taken == share:
                break
        return taken > 0

    def _begin(self, step: int, claim: ExitStack) -> Merging:
        """Go on from the longest run of batches that is stored."""
        there = activations.listed(self.stage)
        for extent in sorted(self._begun(step, there), reverse=True):
            for name in (
                activations.file_name(extent, step),
                activations.checkpoint_name(extent, step),
            ):
                if (found := self._stored(name, extent, step)) is not None:
                    return Merging(claim, extent // self.batch_size, found)
        return Merging(claim)

    def _begun(self, step: int, there: list[activations.Listed]) -> set[int]:
        """Extents below this one at which something is stored of a step."""
        return {
            each.number
            for each in there
            if each.step == step
            and each.kind != activations.PART
            and each.number < self.extent
            and each.number % self.batch_size == 0
        }

    def _merge_stored(self) -> None:
        """Bring the steps held as far as there are batches."""
        for number in range(min(self.awaited, default=self.batches), self.batches):
            behind = [step for step, each in self._mine.items() if each.covered == number]
            if behind and self.work.is_stored(number):
                self._merge_batch(number, behind)
                self._checkpoint()
        self._publish_complete()
        self._checkpoint()

    def _publish_complete(self) -> None:
        """Publish the steps that cover every batch, and let them go."""
        for step in [step for step, each in self._mine.items() if each.covered == self.batches]:
            self._write(activations.file_name(self.extent, step), self.extent, step)
            self.made += 1
            self.missing.remove(step)
            self._discard(step, self.batches)
            self._let_go(step)

    def _merge_batch(self, number: int, behind: list[int]) -> None:
        """Merge a stored batch into the steps that lack it: from parts, else by a replay."""
        left = []
        for step in behind:
            part = self._part(number, step)
            if part is None:
                left.append(step)
            else:
                self._merge(step, part)
        if left:
            self._replay(number, left)

    def _probe(self, batch: trajectory.Batch, number: int) -> trajectory.Probe:
        from taqdit.tracer.probe import Probe
        from taqdit.tracer.taps import Taps

        read = self.plan.traced
        taps = Taps(
            self.bench.model.mmdit,
            {each.site.name: each.path for each in read},
            widths={each.site.name: each.site.width for each in read},
        )
        masked, add = self.plan.tracer.nonfinite == COUNT, partial(self._add, number)
        return Probe(taps, self.layout, batch.indices, add, texts=batch.texts, masked=masked)

    def _add(self, number: int, step: int, sums: BatchSums) -> None:
        """Keep what a batch showed at a step: merged if it is the next one, else as a part."""
        mine = self._mine.get(step)
        if step not in self.missing or (mine and mine.covered > number):
            return
        part = StepStatistics.of_batch(self.layout, sums)
        if mine and mine.covered == number:
            self._merge(step, part)
        else:
            activations.write_part(self.stage, part, batch=number, step=step)

    def _merge(self, step: int, part: StepStatistics) -> None:
        try:
            self._mine[step].add(part)
        except OverflowError as error:
            raise NumericError(f"statistics of step {step}: {error}") from error

    def _replay(self, number: int, steps: list[int]) -> None:
        """Repeat the forwards of stored trajectories; of those that do not hold every latent as
        it was computed, all of them, and keep what other steps lack as parts."""
        plan, work = self.plan, self.work
        batch = trajectory.Batch.of(number, sampler=plan.sampler, prompts=plan.prompts)
        if not plan.sampler.stores_all:
            for _ in trajectory.sample(
                work.sampling_model(),
                batch,
                work.guided,
                sigmas=work.sigmas,
                sampler=plan.sampler,
                probe=self._probe(batch, number),
            ):
                pass
            return
        latents = [
            trajectory.read_trajectory(self.work.stage, index)["latents"] for index in batch.indices
        ]
        for _ in trajectory.replay(
            self.work.sampling_model(),
            batch,
            self.work.guided,
            latents,
            steps=steps,
            sigmas=self.work.sigmas,
            sampler=plan.sampler,
            probe=self._probe(batch, number),
        ):
            self.work.progress.advance(1)

    def _checkpoint(self) -> None:
        """Keep what is merged, if the last checkpoint is some time ago or many parts lie here."""
        if time.monotonic() - self._written < CHECKPOINT_SECONDS and not self.crowded:
            return
        for step, each in self._mine.items():
            extent = each.covered * self.batch_size
            name = activations.checkpoint_name(extent, step)
            if 0 < extent < self.extent and not self.stage.path(name).exists():
                self._write(name, extent, step)
                self._discard(step, each.covered, keep=KEPT)
        self._written = time.monotonic()

    def _discard(self, step: int, covered: int, *, keep: int = 0) -> None:
        """Remove the parts of a step that are merged and kept, and all but the last checkpoints."""
        of_step = [each for each in activations.listed(self.stage) if each.step == step]
        merged = [e for e in of_step if e.kind == activations.PART and e.number < covered]
        kept = [
            each
            for each in of_step
            if each.kind == activations.CHECKPOINT and each.number <= covered * self.batch_size
        ]
        self.stage.discard(each.name for each in merged + kept[: len(kept) - keep])

    def _let_go(self, step: int) -> None:
        self._mine.pop(step).claim.close()

    def _write(self, name: str, extent: int, step: int) -> None:
        statistics = self._mine[step].statistics
        assert statistics is not None
        activations.write_step(
            self.stage,
            name,
            statistics,
            extent=extent,
            step=step,
            sigma=float(self.work.sigmas[step]),
            timestep=float(self.work.timesteps[step]),
        )

    def _published(self, step: int) -> bool:
        return self._stored(activations.file_name(self.extent, step), self.extent, step) is not None

    def _stored(self, name: str, extent: int, step: int) -> StepStatistics | None:
        """A shard of a step, if it is there and valid."""
        read = partial(activations.read_step, extent=extent, step=step, layout=self.layout)
        return self._valid(name, lambda: read(self.stage, name))

    def _part(self, number: int, step: int) -> StepStatistics | None:
        """What a batch adds to a step, if it is there and valid."""
        read = partial(activations.read_part, batch=number, step=step, layout=self.layout)
        return self._valid(activations.part_name(number, step), lambda: read(self.stage))

    def _valid(self, name: str, read: Callable[[], StepStatistics]) -> StepStatistics | None:
        """What the file holds; None if it is not there, or corrupt, and then moved aside."""
        found: list[StepStatistics] = []
        self.stage.valid([name], verify=lambda _: found.append(read()))
        return found[-1] if found else None
