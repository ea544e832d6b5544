"""Sampling: a generator over the steps of a batch of trajectories, from noise to image.

The caller decides what to keep and when to stop. The latents of a batch are (N, h, w, 16).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from taqdit.errors import NumericError
from taqdit.prompts.options import Prompts
from taqdit.sampler import Sampler

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
