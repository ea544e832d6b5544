"""How much memory a run of a model takes: an estimate, from sizes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taqdit.models.spec import ModelSpec

# Buffers of a token's width alive in a block: residual, normed, q, k, v, attention, MLP (4 + 4).
_BLOCK_BUFFERS = 14
# Full-resolution feature maps of the decoder's last blocks, alive together, and their channels.
_DECODER_BUFFERS, _DECODER_CHANNELS = 6, 128


def peak_bytes(spec: ModelSpec, batch: int, *, num_steps: int) -> int:
    """The largest of the three phases: encoding, sampling `batch` trajectories, decoding one.

    Weights stay resident but for what `low_memory` drops; sampling adds one guided forward (twice
    the batch) and the modulation of every step; decoding adds full-resolution feature maps.
    """
    return max(_encoding(spec), _sampling(spec, batch, num_steps), _decoding(spec))


def _weights(spec: ModelSpec, *parts: str) -> int:
    return sum(spec.parameters.get(part, 0) for part in parts) * (2 if spec.w16 else 4)


def _resident(spec: ModelSpec) -> int:
    return _weights(spec, "mmdit", *(() if spec.low_memory else ("text",)))


def _encoding(spec: ModelSpec) -> int:
    return _weights(spec, "mmdit", "text")


def _sampling(spec: ModelSpec, batch: int, num_steps: int) -> int:
    height, width, _ = spec.latent_shape
    tokens = height * width // 4 + spec.num_text_tokens
    rows, size = 2 * batch, 2 if spec.a16 else 4
    forward = rows * tokens * (_BLOCK_BUFFERS * spec.hidden + spec.token_width) * size
    # An adaLN linear maps hidden -> outputs, with a bias: outputs = parameters / (hidden + 1).
    outputs = spec.parameters["adaln"] // (spec.hidden + 1)
    modulation = rows * outputs * (num_steps + 1) * size
    released = _weights(spec, "adaln") if spec.low_memory else 0
    return _resident(spec) - released + forward + modulation


def _decoding(spec: ModelSpec) -> int:
    height, width, _ = spec.image_shape
    maps = _DECODER_BUFFERS * _DECODER_CHANNELS * height * width
    attention = 2 * (spec.latent_shape[0] * spec.latent_shape[1]) ** 2
    return _resident(spec) + _weights(spec, "vae") + (maps + attention) * (2 if spec.a16 else 4)
