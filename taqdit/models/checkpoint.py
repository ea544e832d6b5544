"""Real checkpoints, through DiffusionKit's own loaders and key mapping.

The loaders take their settings from module globals (`model_io.LOCAl_SD3_CKPT`, `_FLOAT16`, the
shared `_CONFIG` objects). They are set for one load and put back, so that one model never
influences another, and every file comes from where `HubSource` found it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from taqdit.backend import mx, nn
from taqdit.models.diffusionkit import MMDiTConfig, VAEDecoderConfig, model_io
from taqdit.models.hub import TEXT_REPO
from taqdit.models.text import ClipEncoder, T5Encoder, Vocabulary

_T5_TOKENS = 512
_PREFIXES = {
    "vae_encoder": "first_stage_model.encoder.",
    "vae_decoder": "first_stage_model.decoder.",
}
_globals = threading.RLock()  # held while the library's globals are ours


class CheckpointParts:
    """Builds each part when asked, from the files that `source` fetched."""

    def __init__(self, source: Any, files: Mapping[str, Path], *, w16: bool) -> None:
        self._source, self._files, self._w16 = source, files, w16

    def mmdit(self) -> nn.Module:
        """The transformer. Raises ModelError."""
        with self._loading(self._source.file):
            mmdit = self._load_mmdit()
            mx.eval(mmdit.parameters())
        return mmdit

    def adaln(self) -> dict[str, mx.array]:
        """The transformer's adaLN parameters by name, read anew from its file."""
        with self._loading(self._source.file):
            return dict(self._load_mmdit(only_modulation_dict=True))

    def decoder(self) -> nn.Module:
        """The decoder of the VAE. Raises ModelError."""
        with self._loading(self._source.file):
            decoder = model_io.load_vae_decoder(key=self._source.repo, float16=self._w16)
            mx.eval(decoder.parameters())
        return decoder

    def text(self) -> dict[str, Any]:
        """Text encoders and tokenizers, by the names a DiffusionPipeline gives them."""
        parts = self._clip("clip_l", "tokenizer_l", pad_with_eos=True)
        parts |= self._clip("clip_g", "tokenizer_g", pad_with_eos=False)
        return parts | (self._t5() if self._source.use_t5 else {})

    def _load_mmdit(self, *, only_modulation_dict: bool = False) -> Any:
        return model_io.load_mmdit(
            key=self._source.repo,
            model_key=self._source.repo,
            float16=self._w16,
            low_memory_mode=False,
            only_modulation_dict=only_modulation_dict,
        )

    def _clip(self, encoder: str, tokenizer: str, *, pad_with_eos: bool) -> dict[str, Any]:
        with self._loading(f"{encoder}/model.fp16.safetensors"):
            clip = model_io.load_text_encoder(TEXT_REPO, self._w16, encoder)
            mx.eval(clip.parameters())
        with self._loading(f"{tokenizer}/vocab.json"):
            tokens = model_io.load_tokenizer(
                TEXT_REPO, f"{tokenizer}_vocab", f"{tokenizer}_merges", pad_with_eos
            )
        tokens.vocab, tokens.max_length = Vocabulary(tokens.vocab), clip.max_length
        return {encoder: clip, tokenizer: tokens}

    def _t5(self) -> dict[str, Any]:
        with self._loading("t5/t5xxl.safetensors"):
            encoder = model_io.load_t5_encoder(float16=self._w16, low_memory_mode=False)
            mx.eval(encoder.parameters())
        with self._loading("spiece.model"):
            tokenizer = model_io.load_t5_tokenizer(max_context_length=_T5_TOKENS)
        return {"t5_encoder": encoder, "t5_tokenizer": tokenizer}

    @contextmanager
    def _loading(self, file: str) -> Iterator[None]:
        """The library's globals set for this checkpoint; its errors about `file` in one line."""
        try:
            with _globals, _replaced(model_io, self._settings()):
                yield
        except (ValueError, KeyError, IndexError, OSError, RuntimeError) as error:
            raise self._source.problem(file, f"cannot be loaded ({_reason(error)})") from error

    def _settings(self) -> dict[str, Any]:
        """Values of `model_io`'s globals while this checkpoint is loaded."""
        source, key = self._source, self._source.repo
        config = MMDiTConfig(**source.mmdit) if source.mmdit else model_io._CONFIG[key]
        settings: dict[str, Any] = {
            "LOCAl_SD3_CKPT": None,
            "_FLOAT16": mx.float16,
            "_CONFIG": {key: dataclasses.replace(config, low_memory_mode=False)},
            "_MMDIT": {key: {key: source.file, "vae": source.file}},
            "_PREFIX": {key: _PREFIXES},
            "hf_hub_download": self._download,
            "CLIPTextModel": ClipEncoder,
            "SD3T5Encoder": T5Encoder,
            "map_clip_text_encoder_weights": _without_buffers(
                model_io.map_clip_text_encoder_weights
            ),
        }
        if source.vae:
            vae = VAEDecoderConfig(**source.vae)
            settings["VAEDecoderConfig"] = lambda: vae
        return settings

    def _download(self, repo: str, file: str) -> str:
        """In place of hf_hub_download: what was fetched already.

        The loader also asks for the transformer's config.json and ignores it; a local checkpoint
        has none.
        """
        if repo == self._source.repo and file == "config.json":
            return ""
        return str(self._files[file])


def _without_buffers(mapper: Callable[..., Any]) -> Callable[..., Any]:
    """CLIP's key mapping without `position_ids`, a buffer in older exports and no parameter."""
    return lambda key, value: [] if key.endswith("position_ids") else mapper(key, value)


@contextmanager
def _replaced(module: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """The module's attributes replaced while the context lasts."""
    with ExitStack() as stack:
        for name, value in values.items():
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


def _reason(error: Exception) -> str:
    """The library's error in one line, at most 160 characters."""
    text = f"no tensor {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:160] or type(error).__name__
