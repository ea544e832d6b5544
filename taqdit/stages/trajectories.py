"""Stage `trajectories`: a shard, and a PNG if asked for, per trajectory."""

from __future__ import annotations

import math
from collections import deque
from functools import cached_property
from typing import Any

import numpy as np

from taqdit.errors import NumericError
from taqdit.sampler import ALL, SELECTED
from taqdit.stages import out_of_memory as memory
from taqdit.stages.checks.trajectories import TrajectoryCheck
from taqdit.stages.context import StageContext
from taqdit.stages.fingerprints import NUMERIC, trajectory_inputs
from taqdit.stages.plan import Plan
from taqdit.stages.progress import Progress
from taqdit.stages.stage_kind import Part, StageKind
from taqdit.store import Stage, parallel
from taqdit.trajectories import pictures as images
from taqdit.trajectories import shards
from taqdit.trajectories.sampling import Batch, Guided, Sampling, batch_indices

CLAIM = "batch"
PNG_BYTES_PER_VALUE = 1.0  # uncompressed pixels: an upper bound for pictures


class TrajectoryWork:
    """The batches of one trajectory stage: what is missing of them, sampled and published."""

    def __init__(
        self, context: StageContext, stage: Stage, guided: Guided, progress: Progress
    ) -> None:
        self.context, self.plan, self.stage = context, context.plan, stage
        self.guided, self.progress = guided, progress
        self.sigmas = self.plan.schedule.sigmas()
        self.steps_missing = self.made = 0

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The timesteps (num_steps + 1,) as the model sees them, in float32."""
        from taqdit.backend import mx

        return np.array(self.context.model.timesteps(mx.array(self.sigmas)).astype(mx.float32))

    @property
    def sampling(self) -> Sampling:
        """What batches are sampled with: the model, without its text encoders if memory is low."""
        model = self.context.model
        if self.plan.model.low_memory:
            model.release_text_encoders()
        return Sampling(model, self.guided, self.sigmas, self.plan.sampler)

    def incomplete_batches(self) -> list[int]:
        """Numbers of the batches that lack a valid shard or image."""
        pending, self.steps_missing = [], 0
        for number in range(self.plan.sampler.num_batches):
            trajectories, pictures = self.missing(number)
            self.steps_missing += self.plan.schedule.num_steps if trajectories else 0
            if trajectories or pictures:
                pending.append(number)
        return pending

    def is_stored(self, number: int) -> bool:
        """Whether every trajectory of a batch is in the store and valid."""
        return not self._missing_shards(number)

    def missing(self, number: int) -> tuple[list[int], list[int]]:
        """Indices of the batch without a valid shard, and those without a valid picture."""
        indices = batch_indices(number, self.plan.sampler.batch_size)
        lacking = self._missing_shards(number)
        if not self.plan.sampler.images:
            return lacking, []
        shape, stage = self.plan.model.image_shape, self.stage.fingerprint
        owners = {images.picture_name(i): images.picture_owner(stage, i) for i in indices}
        pictures = self.stage.valid(
            owners, verify=lambda path: images.verify_picture(path, shape, owner=owners[path.name])
        )
        return lacking, [i for i in indices if images.picture_name(i) not in pictures]

    def _missing_shards(self, number: int) -> list[int]:
        """Indices of the batch without a valid shard."""
        indices = batch_indices(number, self.plan.sampler.batch_size)
        units = {shards.shard_name(i): i for i in indices}
        valid = self.stage.valid(
            units, verify=lambda path: shards.read_trajectory(self.stage, units[path.name])
        )
        return [i for i in indices if shards.shard_name(i) not in valid]

    def batch(self, number: int) -> Batch:
        """What a batch is made from."""
        return Batch.of(number, sampler=self.plan.sampler, prompts=self.plan.prompts)

    def publish(self, batch: Batch, latents: np.ndarray, wanted: set[int]) -> None:
        """Store the trajectories that are wanted of a batch, several at a time."""
        plan, timesteps = self.plan, self.timesteps

        def publish(row: int) -> None:
            shards.write_trajectory(
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
        self.made += len(wanted)

    def decode(self, index: int) -> None:
        """Decode the final latent of a trajectory and publish the picture."""
        latent = shards.final_latent(self.stage, index)
        try:
            with memory.decoding(self.plan.model):
                picture = decode(self.context.model, latent)
        except NumericError as error:
            prompt = self.plan.prompts.text(index)
            raise NumericError(f"trajectory {index} (prompt {prompt!r}): {error}") from error
        images.write_picture(
            self.stage.path(images.picture_name(index)),
            picture,
            owner=images.picture_owner(self.stage.fingerprint, index),
        )


def decode(model: Any, latent: np.ndarray) -> np.ndarray:
    """Picture (H, W, 3) uint8 of a final latent (h, w, 16). Raises NumericError."""
    from taqdit.backend import mx

    pictures: np.ndarray = model.decode(mx.array(latent[None]))
    return pictures[0]


def count_latents(plan: Plan) -> int:
    """Latents that the run stores, of all trajectories."""
    if plan.sampler.latents == SELECTED:  # rules may differ per trajectory
        return sum(len(plan.stored_steps(index)) for index in range(plan.trajectories_computed))
    return plan.trajectories_computed * len(plan.stored_steps(0))


def _parts(plan: Plan) -> tuple[Part, ...]:
    everyone = range(plan.trajectories_computed)
    pictured = everyone if plan.sampler.images else ()
    latent = math.prod(plan.model.latent_shape) * np.dtype(plan.sampler.latents_dtype).itemsize
    picture = int(math.prod(plan.model.image_shape) * PNG_BYTES_PER_VALUE)
    return (
        Part(
            "trajectory",
            "trajectories",
            count_latents(plan) * latent,
            frozenset(map(shards.shard_name, everyone)),
        ),
        Part(
            "picture",
            "pictures",
            len(pictured) * picture,
            frozenset(map(images.picture_name, pictured)),
            words="pictures at most {}",
        ),
    )


TRAJECTORIES = StageKind(
    name="trajectories",
    unit="trajectory",
    made_from=("conditioning",),
    check=TrajectoryCheck,
    inputs=trajectory_inputs,
    keys=NUMERIC,
    used=lambda _: True,
    parts=_parts,
)
