"""A loaded model: DiffusionKit's own pipeline, denoiser and decoder behind our interface."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from taqdit.backend import mx, nn
from taqdit.errors import ConfigError, NumericError
from taqdit.models.diffusionkit import ModelSamplingDiscreteFlow, dk
from taqdit.models.modulation import AdaLNWeights, Modulation, adaln_parameters
from taqdit.models.spec import ModelSpec

_SHIFT = 3.0  # of DiffusionKit's own grid; ours comes from the schedule


class Parts(Protocol):
    """Builds the parts of a pipeline, each when it is needed."""

    def mmdit(self) -> nn.Module:
        """The transformer, its parameters evaluated. Raises ModelError."""

    def adaln(self) -> dict[str, mx.array]:
        """The transformer's adaLN parameters by name, read anew from its file."""

    def decoder(self) -> nn.Module:
        """The decoder of the VAE. Raises ModelError."""

    def text(self) -> dict[str, Any]:
        """Text encoders and tokenizers, by the names a DiffusionPipeline gives them."""


class Pipeline(dk.DiffusionPipeline):  # type: ignore[misc]
    """DiffusionKit's pipeline over our parts; the text encoders and the decoder load when used.

    The library's constructor sets module globals and loads everything at once; this one does not.
    """

    def __init__(self, parts: Parts, spec: ModelSpec) -> None:
        self.parts = parts
        self.float16_dtype = mx.float16
        self.dtype = mx.float16 if spec.w16 else mx.float32
        self.activation_dtype = mx.float16 if spec.a16 else mx.float32
        self.use_t5, self.use_clip_g = spec.use_t5, True
        self.t5 = None  # generate_image would load T5 if this name were absent
        self.low_memory_mode = False  # the library's own; it fails on current mlx
        self.sampler = ModelSamplingDiscreteFlow(shift=_SHIFT)
        self.latent_format = dk.SD3LatentFormat()
        self.mmdit = parts.mmdit()
        self._adaln = [] if spec.low_memory else list(adaln_parameters(self.mmdit).items())

    def load_mmdit(self, only_modulation_dict: bool = False) -> list[tuple[str, mx.array]]:
        """The adaLN parameters: what the library's `CFGDenoiser.clear_cache` asks for."""
        return self._adaln or list(self.parts.adaln().items())

    def check_and_load_models(self) -> None:
        """Load the text encoders and the decoder; the library's generate_image calls this."""
        self.load_text_encoders()
        self.load_decoder()

    def load_text_encoders(self) -> None:
        """Load the text encoders and tokenizers unless they are there. Raises ModelError."""
        if not hasattr(self, "clip_l"):
            self.__dict__.update(self.parts.text())

    def load_decoder(self) -> None:
        """Load the decoder of the VAE unless it is there. Raises ModelError."""
        if not hasattr(self, "decoder"):
            self.decoder = self.parts.decoder()

    def release_text_encoders(self) -> None:
        """Drop the text encoders."""
        for name in ("clip_l", "clip_g", "t5_encoder"):
            self.__dict__.pop(name, None)
        gc.collect()
        mx.clear_cache()


class PipelineModel:
    """The `Model` interface over a pipeline. See `taqdit.models.spec.Model`."""

    def __init__(self, spec: ModelSpec, parts: Parts) -> None:
        self.spec = spec
        self.pipeline = Pipeline(parts, spec)
        self._adaln = AdaLNWeights(self.mmdit, parts.adaln) if spec.low_memory else None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, 16)."""
        return self.spec.latent_shape

    @property
    def mmdit(self) -> nn.Module:
        """The transformer."""
        return self.pipeline.mmdit

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one text: tokens (n, 4096) and pooled (d,)."""
        self.pipeline.load_text_encoders()
        row = 0 if text else 1  # the negative is the second row beside any text
        parts = self.pipeline.encode_text(text)
        tokens, pooled = (part[row].astype(self.pipeline.dtype) for part in parts)
        return np.array(tokens), np.array(pooled)

    def release_text_encoders(self) -> None:
        """Drop the text encoders; the next `encode` loads them again."""
        self.pipeline.release_text_encoders()

    def first_latent(self, seeds: Sequence[int], sigma0: Any) -> mx.array:
        """(N, h, w, 16): DiffusionKit's first latent for each seed; no global generator is used."""
        noise = mx.concatenate([self._noise(seed) for seed in seeds])
        empty = self.pipeline.get_empty_latent(*self.latent_shape[:2])
        first: mx.array = self.pipeline.sampler.noise_scaling(mx.array(sigma0), noise, empty)
        return first

    def _noise(self, seed: int) -> mx.array:
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed={seed} must lie in [0, 2^32)")
        height, width, channels = self.latent_shape
        # The library draws with numpy.random.seed(seed); randn(...), channels first.
        draw = np.random.RandomState(seed).randn(1, channels, height, width)
        return mx.array(draw).transpose(0, 2, 3, 1)

    def timesteps(self, sigmas: mx.array) -> mx.array:
        """1000 sigma in the activation dtype."""
        timesteps: mx.array = self.pipeline.sampler.timestep(sigmas)
        return timesteps.astype(self.pipeline.activation_dtype)

    @contextmanager
    def denoiser(
        self, *, tokens: mx.array, pooled: mx.array, sigmas: mx.array, cfg_scale: float
    ) -> Iterator[Callable[[mx.array, int], mx.array]]:
        """`denoise(latent, step)`: DiffusionKit's `CFGDenoiser` at a step of the grid."""
        if not (math.isfinite(cfg_scale) and cfg_scale > 0):
            raise ConfigError(f"cfg_scale={cfg_scale} must be above 0; 1 samples without guidance")
        guided, timesteps = dk.CFGDenoiser(self.pipeline), self.timesteps(sigmas)
        tokens = tokens.astype(self.pipeline.activation_dtype)
        with self._modulation(pooled, timesteps[:-1]) as modulation:

            def denoise(latent: mx.array, step: int) -> mx.array:
                with modulation.installed():
                    clean: mx.array = guided(
                        latent, timesteps[step], sigmas[step], tokens, cfg_weight=cfg_scale
                    )
                return clean

            yield denoise

    @contextmanager
    def _modulation(self, pooled: mx.array, timesteps: mx.array) -> Iterator[Modulation]:
        """The adaLN outputs of the grid; with `low_memory` their weights are away meanwhile."""
        pooled = pooled.astype(self.pipeline.activation_dtype)
        if self._adaln is None:
            yield Modulation(self.mmdit, pooled, timesteps)
            return
        self.release_text_encoders()
        self._adaln.restore()  # a denoiser may be open already
        modulation = Modulation(self.mmdit, pooled, timesteps)
        try:
            self._adaln.release()
            yield modulation
        finally:
            self._adaln.restore()

    def decode(self, latents: mx.array) -> np.ndarray:
        """Pictures (N, 8h, 8w, 3) uint8 of final latents, one decoded at a time."""
        self.pipeline.load_decoder()
        return np.concatenate([self._picture(latent[None]) for latent in latents])

    def _picture(self, latent: mx.array) -> np.ndarray:
        decoded = self.pipeline.latent_format.process_out(latent)
        pixels = self.pipeline.decode_latents_to_image(
            decoded.astype(self.pipeline.activation_dtype)
        )
        if not mx.isfinite(pixels).all().item():
            raise NumericError(
                "the VAE decoder gave NaN or Inf; try model.a16=false, a lower sampler.cfg_scale,"
                " or sampler.images=false"
            )
        return np.array((pixels * 255).astype(mx.uint8))  # truncated, as the library does
