"""Trajectories: the latents of the steps, from noise to image, as one shard each.

Sampling is a generator over the steps of a batch; the caller decides what to keep and when to
stop. Shapes: a batch of N latents is (N, h, w, 16); a stored trajectory is (num_steps + 1, h, w,
16), float32, the last one the final latent that the VAE decodes. One that keeps fewer steps names
them in a tensor `steps` (k,) int32.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from taqdit.errors import NumericError
from taqdit.prompts.options import Prompts
from taqdit.sampler import ALL, Sampler
from taqdit.store import Shard, Stage, sha256_hex
from taqdit.store.digest import STAGE, corrupt

KIND = "trajectory"

Guided = Callable[[Sequence[str]], tuple[Any, Any]]


class Probe(Protocol):
    """Reads the activations of a batch's forwards, one forward per step; see `taqdit.tracer`."""

    @property
    def pending(self) -> list[Any]:
        """Arrays to be evaluated with the latent of the step."""

    def watch(self, denoise: Any) -> Any:
        """A denoiser with the same outputs that is read."""

    def collect(self) -> None:
        """Hand on what was read. Raises NumericError."""

    def finish(self) -> None:
        """Wait until all that was read is handed on. Raises NumericError."""


def shard_name(index: int) -> str:
    """File name of trajectory `index`."""
    return f"{index:06d}.safetensors"


def batch_indices(batch: int, size: int) -> range:
    """The trajectories of a batch: always `size` of them, whatever is asked for."""
    return range(batch * size, (batch + 1) * size)


def steps(
    model: Any,
    *,
    tokens: Any,
    pooled: Any,
    seeds: Sequence[int],
    sigmas: np.ndarray,
    sampler: Sampler,
    probe: Probe | None = None,
) -> Generator[tuple[int, Any], None, None]:
    """Yield (step, latent) for step 0 .. num_steps of one batch, each latent evaluated.

    The latent of `step` is what the model sees at that step; the last one is the final latent.
    tokens (2N, n, 4096) and pooled (2N, d) hold the positives, then the negatives. The model's
    parameters are as before when the generator ends, fails or is closed. A probe reads the forward
    of each step before its latent is yielded, with one evaluation for both.
    """
    from taqdit.backend import mx

    levels = mx.array(sigmas)
    last = len(sigmas) - 1
    with model.denoiser(
        tokens=tokens, pooled=pooled, sigmas=levels, cfg_scale=sampler.cfg_scale
    ) as denoise:
        denoise = probe.watch(denoise) if probe else denoise
        latent = model.first_latent(seeds, levels[0])
        mx.eval(latent)
        yield 0, latent
        for step in range(last):
            latent = sampler.advance(denoise, latent, levels, step)
            mx.eval(*(probe.pending if probe else ()), latent)
            if probe:
                probe.collect()
            yield step + 1, latent
        if probe:
            probe.finish()


@dataclass(frozen=True)
class Batch:
    """What one batch is made from: trajectory indices with their prompts and noise seeds."""

    indices: range
    texts: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, number: int, *, sampler: Sampler, prompts: Prompts) -> Batch:
        """Batch `number` of a run."""
        indices = batch_indices(number, sampler.batch_size)
        return cls(
            indices,
            tuple(prompts.text(i) for i in indices),
            tuple(prompts.seed(i, sampler.seed) for i in indices),
        )


def sample(
    model: Any,
    batch: Batch,
    guided: Guided,
    *,
    sigmas: np.ndarray,
    sampler: Sampler,
    probe: Probe | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (step, latents (N, h, w, 16)) of a batch, refusing NaN and Inf.

    `guided(texts)` gives the conditioning of a guided forward: tokens (2N, n, 4096) and pooled
    (2N, d), positives first. Raises NumericError naming the step, the trajectory and its prompt.
    """
    tokens, pooled = guided(batch.texts)
    with closing(
        steps(
            model,
            tokens=tokens,
            pooled=pooled,
            seeds=batch.seeds,
            sigmas=sigmas,
            sampler=sampler,
            probe=probe,
        )
    ) as run:
        for step, latent in run:
            rows = np.array(latent)
            if probe and not np.isfinite(rows).all():
                probe.finish()  # it names the site where it began
            refuse_nonfinite(rows, step, batch)
            yield step, rows


def replay(
    model: Any,
    batch: Batch,
    guided: Guided,
    latents: Sequence[np.ndarray],
    *,
    steps: Sequence[int],
    sigmas: np.ndarray,
    sampler: Sampler,
    probe: Probe,
) -> Iterator[int]:
    """Repeat the forwards of stored trajectories for a probe, yielding each step that is repeated.

    `latents` holds (num_steps + 1, h, w, 16) of every trajectory of the batch. On the same backend
    the probe reads the same bits as while the batch was sampled.
    """
    from taqdit.backend import mx

    tokens, pooled = guided(batch.texts)
    with model.denoiser(
        tokens=tokens, pooled=pooled, sigmas=mx.array(sigmas), cfg_scale=sampler.cfg_scale
    ) as denoise:
        watched = probe.watch(denoise)
        for step in steps:
            watched(mx.array(np.stack([rows[step] for rows in latents])), step)
            mx.eval(*probe.pending)
            probe.collect()
            yield step
        probe.finish()


def refuse_nonfinite(rows: np.ndarray, step: int, batch: Batch) -> None:
    """Raise NumericError if a latent of the batch holds NaN or Inf."""
    if np.isfinite(rows).all():
        return
    row = int(np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2, 3)))[0])
    raise NumericError(
        f"the latent before step {step} of trajectory {batch.indices[row]} holds NaN or Inf"
        f" (prompt {batch.texts[row]!r}, seed {batch.seeds[row]}); nothing of its batch was stored."
        " Try model.a16=false, a lower sampler.cfg_scale, or check the weights"
    )


def write_trajectory(
    stage: Stage,
    batch: Batch,
    row: int,
    *,
    latents: np.ndarray,
    sigmas: np.ndarray,
    timesteps: np.ndarray,
    prompts: Prompts,
    steps: np.ndarray | None = None,
    dtype: str = "float32",
) -> None:
    """Publish one trajectory: sigmas, timesteps and of latents (num_steps + 1, h, w, 16) those of
    `steps` (None: all), rounded to `dtype`. Raises NumericError if one does not fit it."""
    index = batch.indices[row]
    kept = latents if steps is None else latents[steps]
    stage.write(
        shard_name(index),
        {
            "latents": _rounded(kept, dtype, index),
            "sigmas": sigmas,
            "timesteps": timesteps,
            **({} if steps is None else {"steps": steps.astype(np.int32)}),
        },
        kind=KIND,
        index=index,
        metadata={
            "prompt_index": index % len(prompts.texts),
            "prompt_sha256": sha256_hex(batch.texts[row].encode()),
            "seed": batch.seeds[row],
            "batch": [batch.indices.start, batch.indices.stop],
        },
    )


def _rounded(latents: np.ndarray, dtype: str, index: int) -> np.ndarray:
    if latents.dtype == dtype:
        return latents
    with np.errstate(over="ignore"):
        found = latents.astype(dtype, copy=False)
    if not np.isfinite(found).all():
        largest = float(np.abs(latents).max())
        raise NumericError(
            f"a latent of trajectory {index} reaches {largest:.4g}, beyond {dtype};"
            " set sampler.latents_dtype=float32"
        )
    return found


def read_trajectory(stage: Stage, index: int) -> dict[str, np.ndarray]:
    """latents, sigmas and timesteps of a stored trajectory. Raises CorruptError."""
    return trajectory_shard(stage, index).tensors


def trajectory_shard(stage: Stage, index: int) -> Shard:
    """The shard of a stored trajectory. Raises CorruptError."""
    found = stage.read(shard_name(index), kind=KIND, index=index)
    try:
        words = misfit(stage.inputs, found.tensors)
    except (TypeError, ValueError) as error:
        raise corrupt(stage.path(STAGE), f"its inputs make no sense: {error}") from error
    if words:
        raise corrupt(stage.path(shard_name(index)), words)
    return found


def misfit(inputs: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str | None:
    """Why arrays are no trajectory of a stage made of `inputs`; None if they are one.

    What the inputs do not say the arrays must agree on. TypeError or ValueError for odd inputs.
    """
    none = np.empty(0, np.float32)
    latents, sigmas = tensors.get("latents", none), tensors.get("sigmas", none)
    levels = int(inputs.get("num_steps", sigmas.size - 1)) + 1
    steps = tensors.get("steps")
    kept = levels if steps is None else steps.size
    expected = {
        "latents": (kept, *inputs.get("latent_shape", latents.shape[1:])),
        "sigmas": (levels,),
        "timesteps": (levels,),
        **({} if steps is None else {"steps": (kept,)}),
    }
    shapes = {name: array.shape for name, array in tensors.items()}
    if shapes != expected:
        return f"it holds {_told(shapes)}, expected {_told(expected)}"
    dtype = np.dtype(inputs.get("latents_dtype", "float32" if inputs else latents.dtype))
    if latents.dtype != dtype:
        return f"its latents are {latents.dtype}, expected {dtype}"
    if sigmas.dtype.kind != "f" or tensors["timesteps"].dtype != sigmas.dtype:
        return "its sigmas or timesteps are no numbers"
    stored = inputs.get("latents", ALL if inputs or steps is None else None)
    if (stored == ALL) != (steps is None) or not _are_steps(steps, levels):
        return f"its steps are not those of sampler.latents={stored}"
    return None


def _told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name!r} {shape}" for name, shape in sorted(shapes.items())[:8])[:300]


def _are_steps(steps: np.ndarray | None, levels: int) -> bool:
    """Whether they ascend to the final latent; none stands for all."""
    return steps is None or bool(
        len(steps)
        and steps.dtype.kind == "i"
        and steps[0] >= 0
        and steps[-1] == levels - 1
        and (np.diff(steps) > 0).all()
    )


def final_latent(stage: Stage, index: int) -> np.ndarray:
    """The last latent (h, w, 16) float32 of a stored trajectory. Raises CorruptError."""
    return np.array(read_trajectory(stage, index)["latents"][-1], np.float32)
