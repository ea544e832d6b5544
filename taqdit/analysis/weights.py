"""What rounding costs the weights of each linear: round to nearest, at several granularities.

Per output channel or per group of input weights, the quantizer's range is that of the weights,
widened to hold zero; nothing is searched for, so this is the floor that better methods rise from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from taqdit.errors import NumericError
from taqdit.quantizer import BITS, Quantizer, decibel

_SIZES: Mapping[str, int | None] = MappingProxyType(
    {"channel": None, "group_128": 128, "group_64": 64, "group_32": 32}  # weights; None: the row
)
GRANULARITIES = tuple(_SIZES)
_LEVELS = 2 ** max(BITS)
_CHUNK = 2**16  # weights at a time: what of them is under way fits in a core's cache
_SAFE = 1e-15, 1e15  # steps between which float32 holds the square of an error
_PLAIN = ("shapes", "sqnr", "entropy", "saturation")


@dataclass(frozen=True, eq=False)
class WeightTable:
    """L linears, by G `GRANULARITIES`, by B `BITS`.

    `shapes` (L, 2) int64: out, in. The others (L, G, B) float64. `sqnr`: of the whole weight, dB;
    Inf where nothing is lost, as of a weight of zeros. `entropy`: Shannon entropy of the codes of
    the whole weight pooled, bits per code. `saturation`: share of weights that get the first or
    the last code; those in a group of zeros, which has no range, do not count as such.
    """

    layers: tuple[str, ...]
    shapes: np.ndarray
    sqnr: np.ndarray
    entropy: np.ndarray
    saturation: np.ndarray

    def tensors(self) -> dict[str, np.ndarray]:
        """As plain arrays, to be stored beside `layers`; `of_tensors` reads them back."""
        return {name: getattr(self, name) for name in _PLAIN}

    @classmethod
    def of_tensors(cls, layers: Sequence[str], tensors: Mapping[str, np.ndarray]) -> WeightTable:
        """Read back what `tensors` gave. Raises ValueError if the arrays do not fit the layers."""
        whole = len(layers), len(GRANULARITIES), len(BITS)
        for name in _PLAIN:
            plain = name == "shapes"
            dtype, shape = (np.int64, (len(layers), 2)) if plain else (np.float64, whole)
            array = tensors.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                raise ValueError(f"its array {name!r} is no {np.dtype(dtype)} of shape {shape}")
        return cls(tuple(layers), **{name: tensors[name] for name in _PLAIN})


def analyse_weights(weights: Iterable[tuple[str, np.ndarray]]) -> WeightTable:
    """The table of all layers; weights (out, in) are taken one at a time.

    Computed in float32, so an SQNR above some 120 dB is its rounding. Raises NumericError if a
    weight holds NaN or Inf.
    """
    layers, rows = [], []
    for layer, weight in weights:
        if not np.isfinite(weight).all():
            raise NumericError(f"the weight of {layer} holds NaN or Inf; check its checkpoint")
        layers.append(layer)
        rows.append(_row(weight))
    whole = len(layers), len(GRANULARITIES), len(BITS)
    columns = {
        name: np.array([row[name] for row in rows], np.float64).reshape(whole)
        for name in ("sqnr", "entropy", "saturation")
    }
    shapes = np.array([row["shape"] for row in rows], np.int64).reshape(len(layers), 2)
    return WeightTable(tuple(layers), shapes, **columns)


def _row(weight: np.ndarray) -> dict[str, Any]:
    """The numbers of one weight: `shape`, and (G, B) arrays."""
    noise = np.zeros((len(GRANULARITIES), len(BITS)))
    counts = np.zeros((*noise.shape, _LEVELS), np.int64)
    empty = np.zeros((len(GRANULARITIES), 1), np.int64)  # weights in groups of zeros
    signal = 0.0
    for chunk in _chunks(weight):
        signal += float(np.square(chunk, dtype=np.float64).sum())
        for g, size in enumerate(_SIZES.values()):
            for groups in _groups(chunk, size):
                low, high = (of(axis=1, keepdims=True) for of in (groups.min, groups.max))
                empty[g] += groups.shape[1] * np.count_nonzero((low == 0) & (high == 0))
                for b, bits in enumerate(BITS):
                    lost, codes = _round(groups, Quantizer.of_range(low, high, bits=bits))
                    noise[g, b] += lost
                    counts[g, b, : 2**bits] += codes
    last = np.stack([counts[:, b, 2**bits - 1] for b, bits in enumerate(BITS)], axis=1)
    return {
        "shape": weight.shape,
        "sqnr": np.where(noise > 0, decibel(np.asarray(signal), noise), np.inf),
        "entropy": _entropy(counts / weight.size),
        "saturation": (counts[..., 0] + last - empty) / weight.size,
    }


def _chunks(weight: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time."""
    rows = max(1, _CHUNK // weight.shape[1])
    for first in range(0, len(weight), rows):
        yield weight[first : first + rows]


def _groups(chunk: np.ndarray, size: int | None) -> Iterator[np.ndarray]:
    """(groups, size) arrays; the shorter groups at the ends of the rows follow by themselves."""
    width = chunk.shape[1]
    whole = width - width % (size or width)
    if whole:
        yield chunk[:, :whole].reshape(-1, size or width)
    if whole < width:
        yield chunk[:, whole:]


def _round(groups: np.ndarray, quantizer: Quantizer) -> tuple[float, np.ndarray]:
    """Sum of the squared errors, and how often each code occurs, (2^bits,)."""
    steps = quantizer.scale
    near = _SAFE[0] < steps.min() and steps.max() < _SAFE[1]
    dtype = np.float32 if near else np.float64
    own = Quantizer(steps.astype(dtype), quantizer.zero_point.astype(dtype), quantizer.bits)
    codes = own.codes(groups)
    errors = groups - own.scale * (codes - own.zero_point)
    counts = np.bincount(codes.astype(np.intp).ravel(), minlength=2**quantizer.bits)
    return float(np.square(errors).sum()), counts


def _entropy(share: np.ndarray) -> np.ndarray:
    """Shannon entropy along the last axis, in bits."""
    used = np.where(share > 0, share, 1)
    return np.asarray((used * np.log2(1 / used)).sum(axis=-1))
