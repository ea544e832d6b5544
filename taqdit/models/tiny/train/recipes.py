"""Ten ways of quantizing the linears of the blocks, simulated: what they cost on given weights.

Weights and inputs are rounded and multiplied in float32. Scales, smoothing factors and Hessians
come from calibration captions, the figures from others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taqdit.backend import mx
from taqdit.errors import require
from taqdit.models.pipeline import PipelineModel
from taqdit.models.sites import site_paths
from taqdit.models.tiny.train.trial import Call, Trial, calling

Matrix = NDArray[np.float64]
GROUP, DAMPING, EPSILON = 64, 0.01, 1e-12
SHARED = {"qkv_in": ("q_proj", "k_proj", "v_proj")}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`weights`: row, group (of 64 inputs) or gptq (groups, errors handed on), None float.
    `inputs`: one static scale per site, or one per token; None float."""

    weights: str | None = None
    weight_bits: int = 4
    inputs: str | None = None
    input_bits: int = 8
    smooth: float | None = None  # SmoothQuant's alpha, arXiv:2211.10438, eq. 4
    hadamard: bool = False

    def __post_init__(self) -> None:
        words = (None, "row", "group", "gptq"), (None, "static", "token")
        require(
            (self.weights in words[0], f"weights={self.weights!r} must be one of {words[0]}"),
            (self.inputs in words[1], f"inputs={self.inputs!r} must be one of {words[1]}"),
            (
                not (self.hadamard and self.inputs == "static"),
                "hadamard=True with inputs='static': no absmax of rotated inputs is known",
            ),
        )


RECIPES = {
    "W4A16 row": Recipe(weights="row"),
    "W4A16 g64": Recipe(weights="group"),
    "W8A8 static": Recipe(weights="row", weight_bits=8, inputs="static"),
    "W8A8 token": Recipe(weights="row", weight_bits=8, inputs="token"),
    "W4A8 row static": Recipe(weights="row", inputs="static"),
    "W4A8 g64 static": Recipe(weights="group", inputs="static"),
    "W4A8 g64 token": Recipe(weights="group", inputs="token"),
    "W4A8 g64 static SmoothQuant": Recipe(weights="group", inputs="static", smooth=0.5),
    "W4A8 g64 token SmoothQuant": Recipe(weights="group", inputs="token", smooth=0.5),
    "W4A8 GPTQ token Hadamard": Recipe(weights="gptq", inputs="token", hadamard=True),
}


@dataclass(frozen=True)
class Seen:
    """Of the inputs of a site: absmax (steps, channels), and the sum of x x^T (C, C)."""

    peaks: Matrix
    moments: Matrix


def block_linears(model: PipelineModel) -> dict[str, str]:
    """Path of every linear of the blocks -> its site."""
    paths: dict[str, str] = {}
    for each in site_paths(model.spec):
        place, head = each.site.name.rpartition(".")[2], each.path.rpartition(".")[0]
        if each.path.startswith("multimodal"):
            names = SHARED.get(place) or (each.path.rpartition(".")[2],)
            paths |= {f"{head}.{name}": each.site.name for name in names}
    return paths


def seen(model: PipelineModel, trial: Trial) -> dict[str, Seen]:
    """What the captions of a trial show at every site, the model's own trajectories."""
    sites = {each.path: each.site.name for each in site_paths(model.spec)}
    peaks: dict[str, list[Any]] = {site: [] for site in sites.values()}
    moments: dict[str, Any] = dict.fromkeys(sites.values(), 0.0)

    def reading(site: str) -> Call:
        def call(module: Any, x: mx.array) -> mx.array:
            flat = x.reshape(-1, x.shape[-1])
            peaks[site].append(np.array(mx.abs(flat).max(axis=0)))
            moments[site] = moments[site] + np.array(flat.T @ flat).astype(np.float64)
            own: mx.array = super(type(module), module).__call__(x)
            return own

        return call

    with calling(model.mmdit, {path: reading(site) for path, site in sites.items()}):
        trial.trajectory(model)
    return {s: Seen(np.stack(peaks[s]).astype(np.float64), moments[s]) for s in peaks}


@contextmanager
def quantized(model: PipelineModel, recipe: Recipe, sites: Mapping[str, Seen]) -> Iterator[None]:
    """While it lasts, the linears of the model's blocks compute as the recipe says."""
    linears, modules = block_linears(model), dict(model.mmdit.named_modules())
    weights = {path: np.array(modules[path].weight).astype(np.float64) for path in linears}
    columns: dict[str, Matrix] = {}
    for path, site in linears.items():
        top = np.abs(weights[path]).max(axis=0)
        columns[site] = np.maximum(columns.get(site, top), top)
    calls = {
        path: _call(recipe, weights[path], sites[site], columns[site])
        for path, site in linears.items()
    }
    with calling(model.mmdit, calls):
        yield


def _call(recipe: Recipe, weight: Matrix, site: Seen, columns: Matrix) -> Call:
    """What one linear computes: y = Q(x T) (Q(W T^-T))^T + b with the recipe's transform T."""
    transform = np.eye(weight.shape[1])
    peak = site.peaks.max(axis=0)
    if recipe.smooth is not None:
        factors = peak.clip(1e-5) ** recipe.smooth / columns.clip(1e-5) ** (1 - recipe.smooth)
        transform, peak = transform / factors, peak / factors
    if recipe.hadamard:
        transform = transform @ hadamard(len(transform))
    rounded = weight @ np.linalg.inv(transform).T
    if recipe.weights == "row":
        rounded = by_row(rounded, recipe.weight_bits)
    elif recipe.weights == "group":
        rounded = by_group(rounded, recipe.weight_bits)
    elif recipe.weights == "gptq":
        hessian = transform.T @ site.moments @ transform
        rounded = gptq(rounded, hessian, recipe.weight_bits)
    matrix = mx.array(transform.astype(np.float32))
    product = mx.array(rounded.T.astype(np.float32))
    plain = recipe.smooth is None and not recipe.hadamard
    top = 2.0 ** (recipe.input_bits - 1) - 1
    fixed = mx.array(float(peak.max() / top))

    def call(module: Any, x: mx.array) -> mx.array:
        tokens = x.reshape(-1, x.shape[-1])  # one product, not one a token
        tokens = tokens if plain else tokens @ matrix
        if recipe.inputs is not None:
            token = mx.maximum(mx.abs(tokens).max(axis=-1, keepdims=True), EPSILON) / top
            scale = fixed if recipe.inputs == "static" else token
            tokens = mx.clip(mx.round(tokens / scale), -top, top) * scale
        y: mx.array = (tokens @ product).reshape(*x.shape[:-1], -1)
        return y + module.bias if "bias" in module else y

    return call


def by_row(weight: Matrix, bits: int) -> Matrix:
    """Symmetric, a scale for each row (output) from its absmax, rounded to nearest."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=1, keepdims=True).clip(EPSILON) / top
    return np.round(weight / scale).clip(-top, top) * scale


def grid(weight: Matrix, bits: int) -> tuple[Matrix, Matrix]:
    """Offset and step of each weight, by its group of 64 inputs: those of `mx.quantize`, where the
    end that is farther from 0 and 0 itself are on the grid."""
    groups = weight.reshape(len(weight), -1, GROUP)
    low, high = groups.min(axis=2), groups.max(axis=2)
    step = ((high - low) / (2**bits - 1)).clip(1e-7)
    edge = np.where(np.abs(low) > np.abs(high), low, high)
    step = np.where(np.abs(low) > np.abs(high), step, -step)
    levels = np.round(edge / step)
    step = np.where(levels == 0, step, edge / np.where(levels == 0, 1, levels))
    edge = np.where(levels == 0, 0, edge)
    return np.repeat(edge, GROUP, axis=1), np.repeat(step, GROUP, axis=1)


def by_group(weight: Matrix, bits: int) -> Matrix:
    """MLX's own 4-bit weights (`nn.quantize`): affine in groups of 64, rounded to nearest."""
    codes, scales, biases = mx.quantize(mx.array(weight.astype(np.float32)), GROUP, bits)
    return np.array(mx.dequantize(codes, scales, biases, GROUP, bits)).astype(np.float64)


def gptq(weight: Matrix, hessian: Matrix, bits: int) -> Matrix:
    """GPTQ (arXiv:2210.17323, algorithm 1): the error of each column goes to those not yet
    rounded. Groups fixed beforehand, columns by falling diagonal of the Hessian."""
    damped = hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    order = np.argsort(-np.diag(damped))
    low, step = (part[:, order] for part in grid(weight, bits))
    left, inverse = weight[:, order].copy(), np.linalg.inv(damped[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    rounded = np.empty_like(left)
    for j in range(left.shape[1]):
        code = np.round((left[:, j] - low[:, j]) / step[:, j]).clip(0, 2**bits - 1)
        rounded[:, j] = code * step[:, j] + low[:, j]
        error = (left[:, j] - rounded[:, j]) / upper[j, j]
        left[:, j + 1 :] -= np.outer(error, upper[j, j + 1 :])
    return rounded[:, np.argsort(order)]


def hadamard(size: int) -> Matrix:
    """Orthogonal, entries of +-size^-1/2, with random signs; `size` a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    signs = np.random.default_rng(size).choice([-1.0, 1.0], size)
    return signs[:, None] * matrix / np.sqrt(size)
