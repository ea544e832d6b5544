"""Options of the config group `model`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from taqdit.errors import require
from taqdit.models.sources import HubSource, TinySource
from taqdit.models.spec import LATENT_CHANNELS, ModelSpec
from taqdit.models.tiny import config as tiny_config

__all__ = ["sd3_medium", "sd35_large", "tiny"]

_log = logging.getLogger(__name__)

_CLIP_TOKENS, _T5_TOKENS = 77, 512
_POOLED = 768 + 1280  # CLIP-L and CLIP-G
_POSITIONS = 192  # side of SD3's position table, in latent pixels
# Parameters, counted on DiffusionKit's own modules.
_CLIPS, _T5, _VAE_DECODER = 123_650_304 + 694_659_840, 4_762_310_656, 49_545_475


def tiny(
    *,
    local_ckpt: str | None = None,
    low_memory: bool = False,
    use_t5: bool = False,
    w16: bool = False,
    a16: bool = False,
    latent_size: tuple[int, int] = (8, 8),
) -> ModelSpec:
    """The embedded model: captioned shapes of 64 x 64 pixels, 4.0 M parameters.

    `local_ckpt` replaces its transformer by a file of the same names and shapes. Only latents of
    8 x 8 were trained; other sizes meet untrained position embeddings.
    """
    sizes = tiny_config()
    transformer, trained = sizes["mmdit"], (sizes["latent_size"], sizes["latent_size"])
    require(
        (not use_t5, "use_t5=True: the tiny model has no T5 encoder; set it to false"),
        _size_check(latent_size, transformer["max_latent_resolution"]),
    )
    if tuple(latent_size) != trained:
        _log.warning("latent_size=%s: the tiny model was trained on %s", latent_size, trained)
    source = TinySource(mmdit=_path(local_ckpt))
    return ModelSpec(
        name="tiny",
        latent_shape=(*latent_size, LATENT_CHANNELS),
        num_text_tokens=2 * sizes["clip_l"]["max_length"],  # as many zero rows follow
        pooled_width=transformer["pooled_text_embed_dim"],
        parameters=source.parameters(),
        hidden=transformer["hidden_size_override"],
        source=source,
        blocks=transformer["depth_multimodal"],
        mlp_ratio=transformer["mlp_ratio"],
        w16=w16,
        a16=a16,
        low_memory=low_memory,
    )


def sd3_medium(
    *,
    local_ckpt: str | None = None,
    low_memory: bool = False,
    use_t5: bool = True,
    w16: bool = True,
    a16: bool = True,
    latent_size: tuple[int, int] = (32, 32),
) -> ModelSpec:
    """Stable Diffusion 3 medium, 2.1 B parameters, from the Hugging Face hub."""
    return _stable_diffusion(
        HubSource(
            repo="argmaxinc/mlx-stable-diffusion-3-medium",
            file="sd3_medium.safetensors",
            local=_path(local_ckpt),
            use_t5=use_t5,
        ),
        latent_size,
        name="sd3_medium",
        hidden=1536,
        blocks=24,
        mmdit={"mmdit": 2_084_877_376, "adaln": 675_197_952},
        low_memory=low_memory,
        w16=w16,
        a16=a16,
    )


def sd35_large(
    *,
    local_ckpt: str | None = None,
    low_memory: bool = False,
    use_t5: bool = True,
    w16: bool = True,
    a16: bool = True,
    latent_size: tuple[int, int] = (32, 32),
) -> ModelSpec:
    """Stable Diffusion 3.5 large, 8.1 B parameters, from the Hugging Face hub."""
    return _stable_diffusion(
        HubSource(
            repo="argmaxinc/mlx-stable-diffusion-3.5-large",
            file="sd3.5_large.safetensors",
            local=_path(local_ckpt),
            use_t5=use_t5,
        ),
        latent_size,
        name="sd35_large",
        hidden=2432,
        blocks=38,
        mmdit={"mmdit": 8_146_095_936, "adaln": 2_686_343_424},
        low_memory=low_memory,
        w16=w16,
        a16=a16,
    )


def _stable_diffusion(
    source: HubSource, latent_size: tuple[int, int], *, mmdit: dict[str, int], **facts: Any
) -> ModelSpec:
    """The spec of one release; `facts` are fields of ModelSpec as they are."""
    require(_size_check(latent_size, _POSITIONS))
    text = _CLIPS + (_T5 if source.use_t5 else 0)
    return ModelSpec(
        latent_shape=(*latent_size, LATENT_CHANNELS),
        num_text_tokens=_CLIP_TOKENS + (_T5_TOKENS if source.use_t5 else _CLIP_TOKENS),
        pooled_width=_POOLED,
        parameters={**mmdit, "vae": _VAE_DECODER, "text": text},
        source=source,
        use_t5=source.use_t5,
        **facts,
    )


def _path(local_ckpt: str | None) -> Path | None:
    return Path(local_ckpt).expanduser() if local_ckpt else None


def _size_check(latent_size: tuple[int, int], largest: int) -> tuple[bool, str]:
    holds = len(latent_size) == 2 and all(
        isinstance(side, int) and side % 2 == 0 and 2 <= side <= largest for side in latent_size
    )
    return holds, (
        f"latent_size={list(latent_size)} must be two even numbers (height, width; 8 pixels each)"
        f" from 2 to {largest}"
    )
