"""The embedded model's parts, built from its files on DiffusionKit's own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taqdit.backend import mx, nn
from taqdit.models.diffusionkit import (
    CLIPTextModel,
    CLIPTextModelConfig,
    MMDiT,
    MMDiTConfig,
    Tokenizer,
    VAEDecoder,
)
from taqdit.models.spec import LATENT_CHANNELS, ModelSpec
from taqdit.models.text import Vocabulary

_RGB = 3


class TinyParts:
    """Builds each part when asked; `files` by name, in DiffusionKit's own parameter names."""

    def __init__(self, source: Any, files: Mapping[str, Path], spec: ModelSpec) -> None:
        self._source, self._files = source, files
        self._weights = mx.float16 if spec.w16 else mx.float32
        self._activations = mx.float16 if spec.a16 else mx.float32
        self._sizes = json.loads(files["config.json"].read_text(encoding="utf-8"))

    def mmdit(self) -> nn.Module:
        """The transformer. Raises ModelError."""
        config = MMDiTConfig(
            **self._sizes["mmdit"] | {"low_memory_mode": False, "dtype": self._activations}
        )
        return self._load(MMDiT(config), "mmdit.safetensors")

    def adaln(self) -> dict[str, mx.array]:
        """The transformer's adaLN parameters by name, read anew from its file."""
        weights = dict(self._read("mmdit.safetensors"))
        return {name: value for name, value in weights.items() if "adaLN_modulation" in name}

    def decoder(self) -> nn.Module:
        """The decoder of the VAE. Raises ModelError."""
        vae = self._sizes["vae"]
        sizes = vae["block_out_channels"], vae["layers_per_block"], vae["resnet_groups"]
        decoder = VAEDecoder(LATENT_CHANNELS, _RGB, *sizes)
        return self._load(decoder, "vae.safetensors", prefix="decoder.")

    def text(self) -> dict[str, Any]:
        """Text encoders and tokenizers, by the names a DiffusionPipeline gives them."""
        encoders = {name: self._clip(name) for name in ("clip_l", "clip_g")}
        tokenizers = {
            "tokenizer_l": self._tokenizer(pad_with_eos=True),
            "tokenizer_g": self._tokenizer(pad_with_eos=False),
        }
        return encoders | tokenizers

    def _clip(self, name: str) -> nn.Module:
        config = CLIPTextModelConfig(vocab_size=self._sizes["vocab_size"], **self._sizes[name])
        return self._load(CLIPTextModel(config), f"{name}.safetensors")

    def _tokenizer(self, *, pad_with_eos: bool) -> Any:
        vocabulary = json.loads(self._files["vocab.json"].read_text(encoding="utf-8"))
        lines = self._files["merges.txt"].read_text(encoding="utf-8").strip().split("\n")[1:]
        ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
        tokenizer = Tokenizer(ranks, Vocabulary(vocabulary), pad_with_eos)
        tokenizer.max_length = self._sizes["clip_l"]["max_length"]
        return tokenizer

    def _load(self, module: nn.Module, name: str, *, prefix: str = "") -> nn.Module:
        try:
            module.load_weights(self._read(name, prefix=prefix), strict=True)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise self._source.problem(name, f"does not fit ({reason})") from error
        mx.eval(module.parameters())
        return module

    def _read(self, name: str, *, prefix: str = "") -> list[tuple[str, mx.array]]:
        weights: Any = mx.load(str(self._files[name]))
        return [
            (key.removeprefix(prefix), value.astype(self._weights))
            for key, value in weights.items()
            if key.startswith(prefix)
        ]
