"""Sampling: a generator over the steps of a batch of trajectories, from noise to image.

The caller decides what to keep and when to stop. The latents of a batch are (N, h, w, 16).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from taqdit.errors import NumericError
from taqdit.prompts.options import Prompts
from taqdit.sampler import Sampler

Guided = Callable[[Sequence[str]], tuple[Any, Any]]
"""Texts -> tokens (2N, n, 4096) and pooled (2N, d) of a guided forward, the positives first."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """What batches are sampled with; `sigmas` (num_steps + 1,) are the noise levels."""

    model: Any
    guided: Guided
    sigmas: np.ndarray
    sampler: Sampler

    def sample(
        self, batch: Batch, probe: Probe | None = None
    ) -> Generator[tuple[int, np.ndarray], None, None]:
        """Yield (step, latents (N, h, w, 16)) of a batch for step 0 .. num_steps.

        The latent of `step` is what the model sees at that step; the last one is the final latent.
        The model's parameters are as before when the generator ends, fails or is closed. A probe
        reads the forward of each step before its latent is yielded, with one evaluation for both.
        Raises NumericError for NaN and Inf, naming the step, the trajectory and its prompt.
        """
        from taqdit.backend import mx

        sigmas = mx.array(self.sigmas)
        with self._denoiser(batch, sigmas) as denoise:
            denoise = probe.watch(denoise) if probe else denoise
            latent = self.model.first_latent(batch.seeds, sigmas[0])
            mx.eval(latent)
            yield 0, _finite(latent, 0, batch, probe)
            for step in range(len(sigmas) - 1):
                latent = self.sampler.advance(denoise, latent, sigmas, step)
                mx.eval(*(probe.pending if probe else ()), latent)
                if probe:
                    probe.collect()
                yield step + 1, _finite(latent, step + 1, batch, probe)
            if probe:
                probe.finish()

    def replay(
        self, batch: Batch, latents: Sequence[np.ndarray], steps: Sequence[int], probe: Probe
    ) -> Iterator[int]:
        """Repeat the forwards of stored trajectories for a probe, yielding each step repeated.

        `latents` holds (num_steps + 1, h, w, 16) of every trajectory of the batch. On the same
        backend the probe reads the same bits as while the batch was sampled.
        """
        from taqdit.backend import mx

        with self._denoiser(batch, mx.array(self.sigmas)) as denoise:
            watched = probe.watch(denoise)
            for step in steps:
                watched(mx.array(np.stack([rows[step] for rows in latents])), step)
                mx.eval(*probe.pending)
                probe.collect()
                yield step
            probe.finish()

    def _denoiser(self, batch: Batch, sigmas: Any) -> AbstractContextManager[Any]:
        tokens, pooled = self.guided(batch.texts)
        denoiser: AbstractContextManager[Any] = self.model.denoiser(
            tokens=tokens, pooled=pooled, sigmas=sigmas, cfg_scale=self.sampler.cfg_scale
        )
        return denoiser


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


def batch_indices(batch: int, size: int) -> range:
    """The trajectories of a batch: always `size` of them, whatever is asked for."""
    return range(batch * size, (batch + 1) * size)


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


def _finite(latent: Any, step: int, batch: Batch, probe: Probe | None) -> np.ndarray:
    """The latents of a batch in numpy. Raises NumericError if one holds NaN or Inf."""
    rows = np.array(latent)
    if np.isfinite(rows).all():
        return rows
    if probe:
        probe.finish()  # it names the site where it began
    row = int(np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2, 3)))[0])
    raise NumericError(
        f"the latent before step {step} of trajectory {batch.indices[row]} holds NaN or Inf"
        f" (prompt {batch.texts[row]!r}, seed {batch.seeds[row]}); nothing of its batch was stored."
        " Try model.a16=false, a lower sampler.cfg_scale, or check the weights"
    )
