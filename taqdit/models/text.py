"""What DiffusionKit's text side needs to run everywhere and on every prompt."""

from __future__ import annotations

import logging
from typing import Any

from taqdit.backend import mx, nn, tree_flatten
from taqdit.models.diffusionkit import CLIPTextModel, SD3T5Encoder, TransformerEncoder

_log = logging.getLogger(__name__)


class Vocabulary(dict[str, int]):
    """Token -> id; a character that is not in it reads as `?` (a warning says so, once each).

    DiffusionKit's tokenizer looks up characters directly and would end in a KeyError.
    """

    def __missing__(self, token: str) -> int:
        if "?" not in self:
            raise KeyError(token)
        _log.warning("the tokenizer does not know %r: it is read as '?'", token)
        self[token] = self["?</w>" if token.endswith("</w>") and "?</w>" in self else "?"]
        return self[token]


class _Exact(nn.Module):  # type: ignore[misc]
    """A module that takes new parameters only if their names and shapes are exactly its own.

    DiffusionKit checks neither when it loads a text encoder: a tensor that the file lacks would
    leave random numbers in its place.
    """

    def update(self, parameters: dict[str, Any], strict: bool = True) -> nn.Module:
        if not strict:
            return super().update(parameters, strict=False)
        return self.load_weights(tree_flatten(parameters), strict=True)


class ClipEncoder(_Exact, CLIPTextModel):  # type: ignore[misc]
    """DiffusionKit's CLIP text encoder."""


class _Stack(TransformerEncoder):  # type: ignore[misc]
    """The T5 stack without the memory limits, which exist on Apple's GPUs only."""

    def __call__(self, x: mx.array) -> mx.array:
        dtype = x.dtype
        bias = self.relative_attention_bias(x.shape[1], x.shape[1])
        for layer in self.layers:
            x = layer(x, mask=bias)
        normed: mx.array = self.ln(x)
        return normed.astype(dtype)


class T5Encoder(_Exact, SD3T5Encoder):  # type: ignore[misc]
    """DiffusionKit's T5 encoder, on any backend, keeping its layers after use."""

    def __init__(self, config: Any, low_memory_mode: bool = False) -> None:
        super().__init__(config, low_memory_mode=False)
        self.encoder = _Stack(config, low_memory_mode=False)
