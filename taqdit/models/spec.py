"""What is known of a model before it is loaded, and the interface of a loaded one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from taqdit.store import sha256_file

Array = Any  # an mlx array; mlx is not imported where a model is only described
LATENT_CHANNELS = 16
PIXELS = 8  # image pixels per latent pixel, along each side


class Model(Protocol):
    """A text-to-image denoiser. Latents are (N, h, w, 16) float32, N trajectories at a time."""

    @property
    def spec(self) -> ModelSpec:
        """What was loaded."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, 16)."""

    @property
    def mmdit(self) -> Any:
        """The transformer, an `mlx.nn.Module` of DiffusionKit's; what a tracer reads from."""

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one text: tokens (n, 4096) and pooled (d,), as DiffusionKit's `encode_text`.

        A text's row is the first of (text, ""); the empty text is the negative row. The dtype
        holds the encoders' numbers exactly: float16 with `w16`, else float32.
        """

    def release_text_encoders(self) -> None:
        """Drop the text encoders; the next `encode` loads them again."""

    def first_latent(self, seeds: Sequence[int], sigma0: Array) -> Array:
        """The latents (N, h, w, 16) at noise level `sigma0`, row i drawn from `seeds[i]` alone."""

    def timesteps(self, sigmas: Array) -> Array:
        """1000 sigma in the activation dtype, as the transformer sees it."""

    def denoiser(
        self, *, tokens: Array, pooled: Array, sigmas: Array, cfg_scale: float
    ) -> AbstractContextManager[Callable[[Array, int], Array]]:
        """A context that gives `denoise(latent (N, h, w, 16), step)`, the guided clean latent.

        tokens (2N, n, 4096) and pooled (2N, d) hold the positives, then the negatives; `sigmas`
        (num_steps + 1,) is the grid that `step` counts in. Raises ConfigError for cfg_scale <= 0.
        """

    def decode(self, latents: Array) -> np.ndarray:
        """Pictures (N, 8h, 8w, 3) uint8 of final latents (N, h, w, 16)."""


class Source(Protocol):
    """Where a model's files are."""

    def locate(self) -> dict[str, Path | None]:
        """Files by name, None where one is not on this machine; no network, no error."""

    def fetch(self) -> dict[str, Path]:
        """Files by name, downloaded where needed. Raises ModelError."""

    def load(self, spec: ModelSpec) -> Model:
        """The model. Raises ModelError."""


@dataclass(frozen=True)
class ModelSpec:
    """A model and its settings; light: nothing is loaded until `load`.

    `latent_shape` is (h, w, 16), `num_text_tokens` the rows that the tokens of one text have.
    `parameters` counts by part: mmdit (with adaln), adaln, vae, text. `blocks` counts multimodal
    blocks and `unified_blocks` those after them; 0 and 0: unknown, such a model has no sites.
    """

    name: str
    latent_shape: tuple[int, int, int]
    num_text_tokens: int
    pooled_width: int
    parameters: Mapping[str, int]
    hidden: int
    source: Source = field(repr=False)
    token_width: int = 4096
    blocks: int = 0
    unified_blocks: int = 0
    mlp_ratio: int = 4
    use_t5: bool = False
    w16: bool = False
    a16: bool = False
    low_memory: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(8h, 8w, 3) of a decoded picture."""
        height, width, _ = self.latent_shape
        return PIXELS * height, PIXELS * width, 3

    @property
    def options(self) -> dict[str, bool]:
        """The settings that change numbers, beside the weights and `latent_shape`."""
        return {"use_t5": self.use_t5, "w16": self.w16, "a16": self.a16}

    def weights(self) -> dict[str, str]:
        """SHA-256 by file name of every file that shapes the numbers.

        Downloads what is not here unless HF_HUB_OFFLINE is set. Raises ModelError.
        """
        return {name: _digest(path) for name, path in sorted(self.source.fetch().items())}

    def weights_present(self) -> bool:
        """Whether every file is on this machine. Never raises, never uses the network."""
        return all(self.source.locate().values())

    def weight_bytes(self) -> int:
        """Size of those of its files that are on this machine; none of them is read."""
        return sum(path.stat().st_size for path in self.source.locate().values() if path)

    def load(self) -> Model:
        """The model, ready to sample. Imports DiffusionKit; raises ModelError."""
        return self.source.load(self)


def _digest(path: Path) -> str:
    state = path.stat()
    return _digest_of_state(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=64)
def _digest_of_state(path: Path, *_state: int) -> str:
    return sha256_file(path)
