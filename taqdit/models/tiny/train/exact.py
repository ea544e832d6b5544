"""Changes of a denoiser's weights that leave what it computes as it was, up to rounding.

They move size from one place to another: from the weights that read a channel to the channel, and
back. `Weights` are float64 arrays by DiffusionKit's parameter names, changed in place; a stream's
path is that of its transformer block, `multimodal_transformer_blocks.3.image_transformer_block`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]
ATTENTION, MLP, FINAL = 0, 3, 0
"""Which of adaLN's chunks is the shift of a modulated LayerNorm; the next one is its scale."""


def scale_modulated(
    weights: Weights, path: str, chunk: int, readers: Sequence[str], factors: Array
) -> Array:
    """A modulated LayerNorm's output times `factors` (C,), the columns of `readers` divided.

    Returns the factors that were applied, which float16 rounds a little.
    y = LN(x) (1 + scale) + shift: both shift and 1 + scale are rows of adaLN (SD3's block).
    """
    adaln, width = f"{path}.adaLN_modulation.layers.1", len(factors)
    shift = slice(chunk * width, (chunk + 1) * width)
    scale = slice((chunk + 1) * width, (chunk + 2) * width)
    bias = weights[f"{adaln}.bias"]
    # 1 + scale of a small factor is a difference: factors are those that float16 holds exactly.
    gain = 1 + bias[scale]
    factors = (1 + (factors * gain - 1).astype(np.float16).astype(np.float64)) / gain
    bias[scale] = factors * gain - 1
    bias[shift] *= factors
    for rows in (shift, scale):
        weights[f"{adaln}.weight"][rows] *= factors[:, None]
    for reader in readers:
        weights[f"{path}.{reader}.weight"] /= factors
    return factors


def shift_modulated(weights: Weights, path: str, chunk: int, reader: str, shift: Array) -> None:
    """`shift` (C,) added to a modulated LayerNorm's output, taken from its reader's bias.

    Only where every reader has a bias: k_proj of DiffusionKit has none.
    """
    width = len(shift)
    weights[f"{path}.adaLN_modulation.layers.1.bias"][chunk * width : (chunk + 1) * width] += shift
    weights[f"{path}.{reader}.bias"] -= weights[f"{path}.{reader}.weight"] @ shift


def mix_values(weights: Weights, streams: Sequence[str], mixing: Array) -> None:
    """The attention's output times `mixing` (C, C), block-diagonal over the heads.

    Attention weighs values and adds them, head by head, so any invertible matrix within a head
    commutes with it: v_proj of both streams takes it up, o_proj of both is multiplied by its
    inverse. Where a stream ends with its attention (the last text block) there is no o_proj.
    """
    inverse = np.linalg.inv(mixing)
    for stream in streams:
        attention = f"{stream}.attn"
        weights[f"{attention}.v_proj.weight"] = mixing @ weights[f"{attention}.v_proj.weight"]
        weights[f"{attention}.v_proj.bias"] = mixing @ weights[f"{attention}.v_proj.bias"]
        if f"{attention}.o_proj.weight" in weights:
            weights[f"{attention}.o_proj.weight"] = weights[f"{attention}.o_proj.weight"] @ inverse


def refit(weights: Weights, linear: str, inputs: Array, outputs: Array, ridge: float) -> None:
    """The linear whose outputs (n, O) for the changed inputs (n, I) are nearest to the former
    ones: least squares with its bias, each weight held to its value by `ridge` (a share of the
    input's variance)."""
    weight = weights[f"{linear}.weight"]
    mean, target = inputs.mean(axis=0), outputs.mean(axis=0)
    centred = inputs - mean
    rest = outputs - target - centred @ weight.T
    gram = centred.T @ centred
    # in units of each input's own size: a massive unit is held as firmly as any other
    size = np.sqrt(np.diag(gram).clip(1e-12))
    normal = gram / np.outer(size, size) + ridge * np.eye(len(size))
    change = np.linalg.solve(normal, (centred.T @ rest) / size[:, None]) / size[:, None]
    weights[f"{linear}.weight"] = weight + change.T
    weights[f"{linear}.bias"] = target - (weight + change.T) @ mean
