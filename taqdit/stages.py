"""The stages of a run: each reuses what the store holds and computes what is missing.

A stage's folder is named by the fingerprint of everything that can change its numbers. Batches are
claimed before they are computed, so that several processes can share one stage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taqdit import conditioning, images, trajectory
from taqdit.errors import NumericError, StorageError
from taqdit.plan import Plan, conditioning_inputs, fingerprint, trajectory_inputs
from taqdit.progress import Progress
from taqdit.store import Stage

log = logging.getLogger(__name__)
POLL_SECONDS = 0.2  # how often batches that another process computes are looked at


@dataclass
class StageReport:
    """What a stage made and what it found in the store."""

    name: str
    folder: str
    made: int = 0
    reused: int = 0
    seconds: float = 0.0
    moved_aside: list[tuple[str, str]] = field(default_factory=list)
    note: str | None = None


class Bench:
    """What the stages of one run share: the plan, the store, the backend, the model once loaded."""

    def __init__(self, plan: Plan, store: Path) -> None:
        self.plan, self.store = plan, store
        self.reports: list[StageReport] = []

    @cached_property
    def backend(self) -> dict[str, Any]:
        """Versions, device and BLAS of the arithmetic."""
        from taqdit.backend import describe

        return dict(describe())

    @cached_property
    def model(self) -> Any:
        """The model, loaded when first asked for."""
        log.info("loading %s", self.plan.model.name)
        return self.plan.model.load()

    @contextmanager
    def stage(self, name: str, inputs: dict[str, Any]) -> Iterator[tuple[Stage, StageReport]]:
        """Open a stage's folder and report on it; `refresh` moves an existing one aside first."""
        started = time.perf_counter()
        mark = fingerprint(inputs)
        if name in self.plan.refresh and (aside := Stage.set_aside(self.store, name, mark)):
            log.info("refresh: the former %s was moved aside to %s", name, aside.name)
        stage = Stage.open(self.store, name, fingerprint=mark, inputs=inputs, backend=self.backend)
        report = StageReport(name, f"{name}/{stage.folder.name}")
        report.note = stage.backend_note(self.backend)
        if report.note:
            log.warning("%s was %s; this is another backend", report.folder, report.note)
        self.reports.append(report)
        try:
            yield stage, report
        finally:
            report.seconds = round(time.perf_counter() - started, 3)
            report.moved_aside = list(stage.moved_aside)

    def require(self, name: str, missing: Iterable[object]) -> None:
        """Raise StorageError if something is missing in a stage that this run may not compute."""
        count = len(list(missing))
        if count and name not in self.plan.stages:
            raise StorageError(
                f"the stage {name} lacks {count} units and stages={list(self.plan.stages)} does"
                f" not compute it; add {name} to stages"
            )


def encode_prompts(bench: Bench) -> conditioning.Conditioning:
    """Stage `conditioning`: one row per unique text that the run uses, and the negative."""
    plan = bench.plan
    with bench.stage("conditioning", conditioning_inputs(plan)) as (stage, report):
        missing = conditioning.missing_texts(stage, plan.texts)
        bench.require("conditioning", missing)
        report.reused = len({*plan.texts, conditioning.NEGATIVE}) - len(missing)
        if missing:
            stage.admit(bench.backend, allow_change=plan.allow_backend_change)
            encode = bench.model.encode
            report.made = sum(1 for _ in conditioning.encode(stage, missing, encode))
        seal(stage)
        return conditioning.Conditioning(stage)


def seal(stage: Stage) -> None:
    """Write SEALED.json unless it lists just what the folder holds."""
    if stage.unsealed_or_changed(stage.names()):
        stage.seal()


def sample_trajectories(
    bench: Bench, guided: trajectory.Guided, progress: Progress
) -> trajectory.TrajectorySet:
    """Stage `trajectories`: a shard, and a PNG if asked for, per trajectory."""
    plan = bench.plan
    with bench.stage("trajectories", trajectory_inputs(plan)) as (stage, report):
        work = TrajectoryWork(bench, stage, guided, progress)
        pending = work.incomplete_batches()
        bench.require("trajectories", pending)
        report.reused = plan.trajectories_computed - work.shards_missing
        if pending:
            stage.admit(bench.backend, allow_change=plan.allow_backend_change)
            progress.start(work.steps_missing)
        report.made = work.complete(pending)
        seal(stage)
        return trajectory.TrajectorySet(
            stage, count=plan.sampler.num_trajectories, prompts=plan.prompts
        )


class TrajectoryWork:
    """Completes the batches of one trajectory stage."""

    def __init__(
        self, bench: Bench, stage: Stage, guided: trajectory.Guided, progress: Progress
    ) -> None:
        self.bench, self.plan, self.stage = bench, bench.plan, stage
        self.guided, self.progress = guided, progress
        self.sigmas = self.plan.schedule.sigmas()
        self.shards_missing = 0
        self.steps_missing = 0

    def incomplete_batches(self) -> list[int]:
        """Numbers of the batches that lack a valid shard or image."""
        pending = []
        for number in range(self.plan.sampler.num_batches):
            shards, pictures = self._missing(number)
            self.shards_missing += len(shards)
            self.steps_missing += self.plan.schedule.num_steps if shards else 0
            if shards or pictures:
                pending.append(number)
        return pending

    def complete(self, pending: list[int]) -> int:
        """Compute the pending batches, waiting for those that another process works on.

        Returns the number of shards that this process made.
        """
        made = 0
        while pending:
            left = []
            for number in pending:
                with self.stage.claim(f"batch-{number:06d}") as mine:
                    if mine:
                        made += self._complete_batch(number)
                    else:
                        left.append(number)
            if len(left) == len(pending):
                time.sleep(POLL_SECONDS)
            pending = left
        return made

    def _missing(self, number: int) -> tuple[list[int], list[int]]:
        """Indices of the batch without a valid shard, and those without a valid picture."""
        indices = trajectory.batch_indices(number, self.plan.sampler.batch_size)
        units = {trajectory.shard_name(i): i for i in indices}
        shards = self.stage.valid(
            units, verify=lambda path: trajectory.read_trajectory(self.stage, units[path.name])
        )
        lacking = [i for i in indices if trajectory.shard_name(i) not in shards]
        if not self.plan.sampler.images:
            return lacking, []
        shape, mark = self.plan.model.image_shape, self.stage.fingerprint
        owners = {images.picture_name(i): images.picture_owner(mark, i) for i in indices}
        pictures = self.stage.valid(
            owners, verify=lambda path: images.verify_picture(path, shape, owner=owners[path.name])
        )
        return lacking, [i for i in indices if images.picture_name(i) not in pictures]

    def _complete_batch(self, number: int) -> int:
        shards, pictures = self._missing(number)
        if shards:
            self._sample(number, set(shards))
        for index in pictures:
            self._decode(index)
        return len(shards)

    def _sample(self, number: int, wanted: set[int]) -> None:
        plan, model = self.plan, self._sampling_model()
        batch = trajectory.Batch.of(number, sampler=plan.sampler, prompts=plan.prompts)
        shape = (len(batch.indices), len(self.sigmas), *plan.model.latent_shape)
        latents = np.empty(shape, np.float32)
        for step, rows in trajectory.sample(
            model, batch, self.guided, sigmas=self.sigmas, sampler=plan.sampler
        ):
            latents[:, step] = rows
            self.progress.advance(1 if step else 0)
        timesteps = model_timesteps(model, self.sigmas)
        for row, index in enumerate(batch.indices):
            if index in wanted:
                trajectory.write_trajectory(
                    self.stage,
                    batch,
                    row,
                    latents=latents[row],
                    sigmas=self.sigmas,
                    timesteps=timesteps,
                    prompts=plan.prompts,
                )

    def _decode(self, index: int) -> None:
        """Decode the final latent of a trajectory and publish the picture."""
        latent = trajectory.final_latent(self.stage, index)
        try:
            picture = decode(self.bench.model, latent)
        except NumericError as error:
            prompt = self.plan.prompts.text(index)
            raise NumericError(f"trajectory {index} (prompt {prompt!r}): {error}") from error
        images.write_picture(
            self.stage.path(images.picture_name(index)),
            picture,
            owner=images.picture_owner(self.stage.fingerprint, index),
        )

    def _sampling_model(self) -> Any:
        model = self.bench.model
        if self.plan.model.low_memory:
            model.release_text_encoders()
        return model


def model_timesteps(model: Any, sigmas: np.ndarray) -> np.ndarray:
    """The timesteps (num_steps + 1,) as the model sees them, in float32."""
    from taqdit.backend import mx

    return np.array(model.timesteps(mx.array(sigmas)).astype(mx.float32))


def decode(model: Any, latent: np.ndarray) -> np.ndarray:
    """Picture (H, W, 3) uint8 of a final latent (h, w, 16). Raises NumericError."""
    from taqdit.backend import mx

    pictures: np.ndarray = model.decode(mx.array(latent[None]))
    return pictures[0]
