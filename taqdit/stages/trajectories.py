"""Stage `trajectories`: a shard, and a PNG if asked for, per trajectory."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np

from taqdit.errors import NumericError
from taqdit.sampler import ALL
from taqdit.stages import out_of_memory as memory
from taqdit.stages.context import Bench, Waiting
from taqdit.stages.progress import Progress
from taqdit.store import Stage, parallel
from taqdit.trajectories import pictures as images
from taqdit.trajectories import trajectory

CLAIM = "batch"


class Tracing(Protocol):
    """What reads the batches while they are sampled, and those that are stored."""

    @property
    def awaited(self) -> list[int]:
        """Numbers of the batches that it needs next."""

    @property
    def crowded(self) -> bool:
        """Whether so much waits to be merged that batches ahead should not be sampled yet."""

    def probe(self, batch: trajectory.Batch, number: int) -> trajectory.Probe | None:
        """What reads the batch while it is sampled, if anything does."""

    def catch_up(self) -> bool:
        """Use what is stored; whether nothing is missing any more."""


class NoTracing:
    """Nothing is read."""

    awaited: ClassVar[list[int]] = []
    crowded = False

    def probe(self, batch: trajectory.Batch, number: int) -> None:
        """Nothing reads the batch."""

    def catch_up(self) -> bool:
        """Nothing is missing."""
        return True


class TrajectoryWork:
    """Completes the batches of one trajectory stage."""

    def __init__(
        self, bench: Bench, stage: Stage, guided: trajectory.Guided, progress: Progress
    ) -> None:
        self.bench, self.plan, self.stage = bench, bench.plan, stage
        self.guided, self.progress = guided, progress
        self.sigmas = self.plan.schedule.sigmas()
        self.steps_missing = self.made = 0

    def incomplete_batches(self) -> list[int]:
        """Numbers of the batches that lack a valid shard or image."""
        pending, self.steps_missing = [], 0
        for number in range(self.plan.sampler.num_batches):
            shards, pictures = self._missing(number)
            self.steps_missing += self.plan.schedule.num_steps if shards else 0
            if shards or pictures:
                pending.append(number)
        return pending

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The timesteps (num_steps + 1,) as the model sees them, in float32."""
        from taqdit.backend import mx

        return np.array(self.bench.model.timesteps(mx.array(self.sigmas)).astype(mx.float32))

    def is_stored(self, number: int) -> bool:
        """Whether every trajectory of a batch is in the store and valid."""
        return not self._missing_shards(number)

    def complete(self, pending: list[int], tracing: Tracing) -> None:
        """Compute the pending batches and all that `tracing` lacks.

        Where other processes work on something, wait for them, and go on if they die.
        """
        waiting = Waiting(self.stage)
        while not tracing.catch_up() or pending:
            left = [number for number in pending if not self._try(number, pending[0], tracing)]
            if len(left) == len(pending):
                waiting.pause()
            else:
                waiting.over()
            pending = left or tracing.awaited

    def _try(self, number: int, first: int, tracing: Tracing) -> bool:
        """Complete a batch unless another process is at it, or too much waits to be merged.

        The `first` batch of all that are pending is never put off: the others wait for it.
        """
        if number != first and tracing.crowded:
            return False
        with self.stage.claim(f"{CLAIM}-{number:06d}") as mine:
            if mine:
                self._complete_batch(number, tracing)
        if mine:
            tracing.catch_up()
        return mine

    def _missing(self, number: int) -> tuple[list[int], list[int]]:
        """Indices of the batch without a valid shard, and those without a valid picture."""
        indices = trajectory.batch_indices(number, self.plan.sampler.batch_size)
        lacking = self._missing_shards(number)
        if not self.plan.sampler.images:
            return lacking, []
        shape, mark = self.plan.model.image_shape, self.stage.fingerprint
        owners = {images.picture_name(i): images.picture_owner(mark, i) for i in indices}
        pictures = self.stage.valid(
            owners, verify=lambda path: images.verify_picture(path, shape, owner=owners[path.name])
        )
        return lacking, [i for i in indices if images.picture_name(i) not in pictures]

    def _missing_shards(self, number: int) -> list[int]:
        """Indices of the batch without a valid shard."""
        indices = trajectory.batch_indices(number, self.plan.sampler.batch_size)
        units = {trajectory.shard_name(i): i for i in indices}
        shards = self.stage.valid(
            units, verify=lambda path: trajectory.read_trajectory(self.stage, units[path.name])
        )
        return [i for i in indices if trajectory.shard_name(i) not in shards]

    def _complete_batch(self, number: int, tracing: Tracing) -> None:
        shards, pictures = self._missing(number)
        if shards:
            self._sample(number, set(shards), tracing)
        for index in pictures:
            self._decode(index)

    def _sample(self, number: int, wanted: set[int], tracing: Tracing) -> None:
        plan, model = self.plan, self.sampling_model()
        batch = trajectory.Batch.of(number, sampler=plan.sampler, prompts=plan.prompts)
        shape = (len(batch.indices), len(self.sigmas), *plan.model.latent_shape)
        latents = np.empty(shape, np.float32)
        probe = tracing.probe(batch, number)
        for step, rows in trajectory.sample(
            model, batch, self.guided, sigmas=self.sigmas, sampler=plan.sampler, probe=probe
        ):
            latents[:, step] = rows
            self.progress.advance(1 if step else 0)
        self._publish(batch, latents, wanted)
        self.made += len(wanted)

    def _publish(self, batch: trajectory.Batch, latents: np.ndarray, wanted: set[int]) -> None:
        """Store the trajectories that are wanted of a batch, several at a time."""
        plan, timesteps = self.plan, self.timesteps

        def publish(row: int) -> None:
            trajectory.write_trajectory(
                self.stage,
                batch,
                row,
                latents=latents[row],
                sigmas=self.sigmas,
                timesteps=timesteps,
                prompts=plan.prompts,
                steps=None
                if plan.sampler.latents == ALL
                else plan.stored_steps(batch.indices[row]),
                dtype=plan.sampler.latents_dtype,
            )

        rows = [row for row, index in enumerate(batch.indices) if index in wanted]
        deque(parallel.each(publish, rows), maxlen=0)

    def _decode(self, index: int) -> None:
        """Decode the final latent of a trajectory and publish the picture."""
        latent = trajectory.final_latent(self.stage, index)
        try:
            with memory.decoding(self.plan.model):
                picture = decode(self.bench.model, latent)
        except NumericError as error:
            prompt = self.plan.prompts.text(index)
            raise NumericError(f"trajectory {index} (prompt {prompt!r}): {error}") from error
        images.write_picture(
            self.stage.path(images.picture_name(index)),
            picture,
            owner=images.picture_owner(self.stage.fingerprint, index),
        )

    def sampling_model(self) -> Any:
        """The model, without its text encoders if memory is low."""
        model = self.bench.model
        if self.plan.model.low_memory:
            model.release_text_encoders()
        return model


def decode(model: Any, latent: np.ndarray) -> np.ndarray:
    """Picture (H, W, 3) uint8 of a final latent (h, w, 16). Raises NumericError."""
    from taqdit.backend import mx

    pictures: np.ndarray = model.decode(mx.array(latent[None]))
    return pictures[0]
