"""Stage `statistics`: a shard per step with the statistics of all sites.

A step's statistics are merged over the batches in their order, so that a run that was cut off and
goes on, and several processes at once, give the same bytes. A process merges the steps whose claim
it holds. What it reads while it samples a batch it merges at once where the batch is the next one;
for other steps it leaves a part in the store, for whoever merges them. Batches that were stored
without being read are replayed, by steps. Checkpoints keep what is merged so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from taqdit.activations import BatchSums, StepStatistics
from taqdit.activations import step_shards as activations
from taqdit.activations.bins import PER_ROW
from taqdit.activations.stored import Statistics
from taqdit.errors import NumericError
from taqdit.stages.checks.statistics import StatisticsCheck
from taqdit.stages.context import StageContext, Waiting, seal
from taqdit.stages.fingerprints import TRACED, statistics_inputs
from taqdit.stages.merging import KEPT, Merging, StepFiles
from taqdit.stages.plan import Plan
from taqdit.stages.stage_kind import Part, StageKind
from taqdit.stages.trajectories import CLAIM as TRAJECTORIES
from taqdit.stages.trajectories import TrajectoryWork
from taqdit.store import Stage, disk
from taqdit.tracer.options import COUNT
from taqdit.trajectories import sampling, shards

CHECKPOINT_SECONDS = 60.0  # at least, between two checkpoints
SHARES = 8  # parts that the steps are claimed in, so that processes share a replay
AHEAD = 2  # batches per process that may wait in parts
CLAIM, SEALING = "merging", "sealing"
CHANNEL_BYTES = 36  # mean, m2 float64; low, high float32; negative, large (2) uint32
HISTOGRAM_ROWS = 42  # signs and exponents of a site at a step; 37 to 45 in the embedded model


class StatisticsWork:
    """Completes the steps of one statistics stage; a context manager that holds claims."""

    def __init__(self, context: StageContext, stage: Stage, work: TrajectoryWork) -> None:
        disk.allow_open_files()  # a step that is merged holds two: its claim, its checkpoint
        self.context, self.plan, self.stage, self.work = context, context.plan, stage, work
        self.layout, self.batches = self.plan.layout, self.plan.traced_batches
        batch_size = self.plan.sampler.batch_size
        self.files = StepFiles(stage, self.layout, self.batches * batch_size, batch_size)
        self.steps = range(len(work.sigmas) - 1)
        self.missing = [step for step in self.steps if not self.files.is_published(step)]
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
        return sorted({merging.covered for merging in self._mine.values()})

    @property
    def crowded(self) -> bool:
        """Whether parts of more batches lie here than AHEAD for each process that samples."""
        batches = {number for number, _ in self.files.parts}
        return len(batches) > AHEAD * (1 + len(self.work.stage.claimants(TRAJECTORIES)))

    def steps_to_replay(self, pending: list[int]) -> int:
        """Forwards to repeat, if the batches that are pending will be read while sampled."""
        files, listed, parts = self.files, activations.listed(self.stage), self.files.parts
        stored = [number for number in range(self.batches) if number not in pending]
        begun = {
            step: max(files.begun(step, listed), default=0) // files.batch_size
            for step in self.missing
        }
        return sum(
            number >= begun[step] and (number, step) not in parts
            for step in self.missing
            for number in stored
        )

    def probe(self, batch: sampling.Batch, number: int) -> sampling.Probe | None:
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

    def statistics(self) -> Statistics:
        """What is stored, once it is complete."""
        return Statistics(self.stage, extent=self.files.extent)

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
        for step in self.steps:
            self.files.discard(step, self.batches)
        # of more batches, that nobody goes on with
        self.stage.discard(activations.part_name(*part) for part in self.files.parts)
        seal(self.stage)

    def _take(self) -> bool:
        """Claim a share of the missing steps that nobody holds; whether there were any."""
        share, taken = -(-len(self.steps) // SHARES), 0
        for step in [step for step in self.missing if step not in self._mine]:
            claim = ExitStack()
            unit = f"{CLAIM}-{self.files.extent:07d}-{step:04d}"
            mine = claim.enter_context(self.stage.claim(unit))
            if self.files.is_published(step):
                self.missing.remove(step)
            elif mine:
                self._mine[step] = self.files.begin(step, claim.pop_all())
                taken += 1
            claim.close()
            if taken == share:
                break
        return taken > 0

    def _merge_stored(self) -> None:
        """Bring the steps held as far as there are batches."""
        for number in range(min(self.awaited, default=self.batches), self.batches):
            behind = [step for step, merging in self._mine.items() if merging.covered == number]
            if behind and self.work.is_stored(number):
                self._merge_batch(number, behind)
                self._checkpoint()
        self._publish_complete()
        self._checkpoint()

    def _publish_complete(self) -> None:
        """Publish the steps that cover every batch, and let them go."""
        for step, merging in list(self._mine.items()):
            if merging.covered == self.batches:
                self.files.publish(merging, step, self._level)
                self.made += 1
                self.missing.remove(step)
                self._let_go(step)

    def _merge_batch(self, number: int, behind: list[int]) -> None:
        """Merge a stored batch into the steps that lack it: from parts, else by a replay."""
        left = []
        for step in behind:
            part = self.files.part(number, step)
            if part is None:
                left.append(step)
            else:
                self._merge(step, part)
        if left:
            self._replay(number, left)

    def _probe(self, batch: sampling.Batch, number: int) -> sampling.Probe:
        return site_probe(
            self.context, partial(self._add, number), indices=batch.indices, texts=batch.texts
        )

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
        batch = self.work.batch(number)
        probe = self._probe(batch, number)
        if not self.plan.sampler.stores_all:
            for _ in self.work.sampling.sample(batch, probe):
                pass
            return
        stage = self.work.stage
        latents = [shards.read_trajectory(stage, index)["latents"] for index in batch.indices]
        for _ in self.work.sampling.replay(batch, latents, steps, probe):
            self.work.progress.advance(1)

    def _checkpoint(self) -> None:
        """Keep what is merged, if the last checkpoint is some time ago or many parts lie here."""
        if time.monotonic() - self._written < CHECKPOINT_SECONDS and not self.crowded:
            return
        for step, merging in self._mine.items():
            self.files.checkpoint(merging, step, self._level)
        self._written = time.monotonic()

    def _level(self, step: int) -> tuple[float, float]:
        return float(self.work.sigmas[step]), float(self.work.timesteps[step])

    def _let_go(self, step: int) -> None:
        self._mine.pop(step).claim.close()


def site_probe(
    context: StageContext,
    add: Callable[[int, BatchSums], None],
    *,
    indices: Sequence[int],
    texts: Sequence[str],
    unit: str = "trajectory",
) -> sampling.Probe:
    """Reads the plan's sites in the forwards of one batch; the arguments as `Probe` takes them."""
    from taqdit.tracer.probe import Probe
    from taqdit.tracer.taps import Taps

    plan = context.plan
    taps = Taps(
        context.model.mmdit,
        {path.site.name: path.path for path in plan.traced},
        widths={path.site.name: path.site.width for path in plan.traced},
    )
    masked = plan.tracer.nonfinite == COUNT
    return Probe(taps, plan.layout, indices, add, texts=texts, masked=masked, unit=unit)


def statistics_bytes(plan: Plan) -> int:
    """Bytes of the statistics of all steps, in memory while they are made and then on the disk.

    Exact per channel; a histogram holds only the exponents that occur, HISTOGRAM_ROWS being usual.
    """
    layout = plan.layout
    counts = HISTOGRAM_ROWS * (2 + layout.folds * 4 * PER_ROW)
    per_step = layout.channels * CHANNEL_BYTES + len(layout.sites) * (counts + 8 * layout.folds)
    return plan.schedule.num_steps * per_step


def _parts(plan: Plan) -> tuple[Part, ...]:
    """Not counted by their names: what is read so far lies in checkpoints."""
    nbytes = statistics_bytes(plan) if plan.traces else 0
    words = "statistics {} and up to twice that meanwhile"
    return (Part("statistics", "traced", nbytes, meanwhile=KEPT, words=words),)


STATISTICS = StageKind(
    name=activations.KIND,
    unit="step",
    made_from=("trajectories",),
    check=StatisticsCheck,
    inputs=statistics_inputs,
    keys=TRACED,
    used=lambda plan: plan.traces,
    parts=_parts,
)
