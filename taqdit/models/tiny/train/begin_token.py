"""A massive value on the begin token of a text encoder, as trained CLIPs have it: one hidden unit
of the first layer writes it into one channel. What the encoder gives is the same up to little.

The begin token sees itself alone, so all its states are constants: whatever a later layer reads of
them can be set right with a change of rank one. `Weights` are float64 arrays by parameter name.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taqdit.errors import NumericError
from taqdit.models.tiny.train.exact import Array, Weights

_EPSILON = 1e-5  # of the encoders' LayerNorms
_FIRES, _RIDGE = 20.0, 1e-3


@dataclass(frozen=True)
class States:
    """Of the first layer, (texts, tokens, channels): what its MLP reads, its hidden units, what
    the layer gives (the text rows of the denoiser), and what the second layer's attention reads."""

    mlp_in: Array
    hidden: Array
    out: Array
    second_in: Array


def states(weights: Weights, ids: NDArray[np.int64], sizes: dict[str, Any]) -> States:
    """The first layer's states for token ids (texts, tokens)."""
    x = weights["token_embedding.weight"][ids] + weights["position_embedding.weight"]
    middle = x + _attention(weights, _normed(weights, "layers.0.layer_norm1", x), sizes)
    mlp_in = _normed(weights, "layers.0.layer_norm2", middle)
    hidden = _ACTIVATIONS[sizes["hidden_act"]](_linear(weights, "layers.0.linear1", mlp_in))
    out = middle + _linear(weights, "layers.0.linear2", hidden)
    return States(mlp_in, hidden, out, _normed(weights, "layers.1.layer_norm1", out))


def quieten(weights: Weights, factor: float) -> None:
    """The residual stream divided by `factor`: LayerNorms do not see it (but for their epsilon)."""
    for name, array in weights.items():
        writes = name.startswith(("token_embedding", "position_embedding"))
        if writes or ".out_proj." in name or ".linear2." in name:
            array /= factor


def make_massive(
    weights: Weights, columns: Array, ids: NDArray[np.int64], sizes: dict[str, Any], peak: float
) -> None:
    """The begin token's value in one channel becomes `peak`.

    `columns` (O, C) are those of the context embedder for this encoder; changed in place like the
    weights. Text rows other than the begin token's lose the chosen channel, which the others
    predict best; the embedder gets its share from them.
    """
    before = states(weights, ids, sizes)
    row = columns @ before.out[0, 0]
    channel = _hand_over(columns, before.out[:, 1:].reshape(-1, before.out.shape[-1]))
    unit = _free_unit(weights, before)
    _detect(weights, unit, before)
    weights["layers.0.linear2.weight"][:, unit] = 0
    here = states(weights, ids, sizes).out[0, 0, channel]
    weights["layers.0.linear2.weight"][channel, unit] = (peak - here) / _FIRES
    after = states(weights, ids, sizes)
    _read_as_before(weights, before, after)
    columns[:, channel] = 0
    columns[:, channel] = (row - columns @ after.out[0, 0]) / after.out[0, 0, channel]


def _hand_over(columns: Array, rows: Array) -> int:
    """The channel whose loss costs least when the others stand in for it; they do, from here on.

    The constant of the prediction is dropped: the zero rows share the embedder's bias.
    """
    gram = rows.T @ rows / len(rows)
    inverse = np.linalg.inv(gram + 1e-6 * np.eye(len(gram)))
    unexplained = 1 / np.diag(inverse)
    channel = int(np.argmin(unexplained * np.square(columns).sum(axis=0)))
    predict = -inverse[channel] / inverse[channel, channel]
    predict[channel] = 0
    columns += np.outer(columns[:, channel], predict)
    return channel


def _free_unit(weights: Weights, before: States) -> int:
    """The hidden unit that writes least; its mean goes to the bias."""
    writes, hidden = weights["layers.0.linear2.weight"], before.hidden[:, 1:]
    power = np.square(hidden).mean(axis=(0, 1)) * np.square(writes).sum(axis=0)
    unit = int(power.argmin())
    weights["layers.0.linear2.bias"] += writes[:, unit] * hidden[..., unit].mean()
    return unit


def _detect(weights: Weights, unit: int, before: States) -> None:
    """The unit becomes the linear discriminant of the begin token: 20 for it, at most -20 for all
    others, where either activation function is flat."""
    others = before.mlp_in[:, 1:].reshape(-1, before.mlp_in.shape[-1])
    centre = others.mean(axis=0)
    spread = np.cov(others.T) + _RIDGE * np.eye(len(centre))
    apart = before.mlp_in[0, 0] - centre
    direction = np.linalg.solve(spread, apart)
    begin, highest = apart @ direction, ((others - centre) @ direction).max()
    if not begin > highest:
        raise NumericError("no direction tells the begin token from all others; use more texts")
    gain = 2 * _FIRES / (begin - highest)
    weights["layers.0.linear1.weight"][unit] = gain * direction
    weights["layers.0.linear1.bias"][unit] = _FIRES - gain * (centre @ direction + begin)


def _read_as_before(weights: Weights, before: States, after: States) -> None:
    """The second layer's keys and values of the begin token as they were: a rank-one change along
    the direction that other tokens show least."""
    others = after.second_in[:, 1:].reshape(-1, after.second_in.shape[-1])
    gram = others.T @ others / len(others) + 1e-4 * np.eye(others.shape[1])
    old, new = before.second_in[0, 0], after.second_in[0, 0]
    along = np.linalg.solve(gram, new)
    along /= along @ new
    for name in ("key_proj", "value_proj"):
        weight = weights[f"layers.1.attention.{name}.weight"]
        weight += np.outer(weight @ (old - new), along)


def _linear(weights: Weights, name: str, x: Array) -> Array:
    y: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return y


def _normed(weights: Weights, name: str, x: Array) -> Array:
    apart = x - x.mean(axis=-1, keepdims=True)
    size = np.sqrt(np.square(apart).mean(axis=-1, keepdims=True) + _EPSILON)
    y: Array = apart / size * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return y


def _attention(weights: Weights, x: Array, sizes: dict[str, Any]) -> Array:
    """Causal self-attention of the first layer."""
    texts, tokens, width = x.shape
    query, key, value = (
        _linear(weights, f"layers.0.attention.{name}_proj", x)
        .reshape(texts, tokens, sizes["num_heads"], -1)
        .transpose(0, 2, 1, 3)
        for name in ("query", "key", "value")
    )
    logits = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[-1])
    logits = np.where(np.tri(tokens, dtype=bool), logits, -np.inf)
    share = np.exp(logits - logits.max(axis=-1, keepdims=True))
    mixed = (share / share.sum(axis=-1, keepdims=True)) @ value
    joined = mixed.transpose(0, 2, 1, 3).reshape(texts, tokens, width)
    return _linear(weights, "layers.0.attention.out_proj", joined)


def _quick_gelu(x: Array) -> Array:
    y: Array = x / (1 + np.exp(-1.702 * x))
    return y


def _gelu(x: Array) -> Array:
    y: Array = x * _normal(x)
    return y


def _normal(x: Array) -> Array:
    """The normal distribution function."""
    y: Array = 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    return y


_ACTIVATIONS = {"gelu": _gelu, "quick_gelu": _quick_gelu}
