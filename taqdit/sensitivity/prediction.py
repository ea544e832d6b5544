"""What a quantizer would do to the velocity, from the sums of a step alone: no model is run.

To first order, errors of different sites and weights are independent and their squares add up. What
a range cuts off and what is rounded to zero are known functions of the value: they are charged as
the square of <g, e>. The rest of rounding is noise: sum of g^2 times its mean square in each
histogram bin. The error of a weight is noise as well, its g^2 a product of output and input.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from taqdit.activations.bins import SIGN, bounds_of
from taqdit.quantizer import Quantizer, decibel
from taqdit.sensitivity.layout import ENDS, ZEROED, SensitivityLayout
from taqdit.sensitivity.sums import StepSensitivity
from taqdit.sensitivity.tails import interpolated


def site_error(
    sums: StepSensitivity, layout: SensitivityLayout, site: str, quantizer: Quantizer
) -> np.ndarray:
    """Squared velocity error of a step by fold, (Q, F): summed over a fold's trajectories.

    The quantizer's arrays are (Q,) or a single number: static, one for the whole tensor. Raises
    KeyError for a site that the layout has not.
    """
    number = layout.layout.index(site)
    scale, zero_point = np.broadcast_arrays(quantizer.scale, quantizer.zero_point)
    many = Quantizer(np.atleast_1d(scale), np.atleast_1d(zero_point), quantizer.bits)
    noise = noise_error(sums, number, many)
    return noise + systematic_error(sums, layout, number, many)


def noise_error(sums: StepSensitivity, site: int, quantizer: Quantizer) -> np.ndarray:
    """Of values that are rounded to a code other than zero's, (Q, F); quantizers (Q,)."""
    codes, masses = sums.bins(site)
    magnitude = codes.astype(np.int64) & (SIGN - 1)
    left, right = bounds_of(np.where(codes & SIGN, -magnitude, magnitude))
    scale, lowest = quantizer.scale[:, None], -quantizer.zero_point[:, None]
    highest = lowest + 2**quantizer.bits - 1
    below, until = (_noise_integral(u / scale, lowest, highest) for u in (left, right))
    squares = scale**2 * (until - below) / ((right - left) / scale)  # values spread evenly in a bin
    return squares @ masses.astype(np.float64).T


def _noise_integral(u: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Integral of the squared rounding error up to u, in steps of the quantizer (less a constant),
    without that of what is rounded to zero and beyond the range."""
    inside = np.clip(u, lowest, highest)
    code = np.rint(inside)
    return code / 12 + ((inside - code) ** 3 - np.clip(inside, -0.5, 0.5) ** 3) / 3


def systematic_error(
    sums: StepSensitivity, layout: SensitivityLayout, site: int, quantizer: Quantizer
) -> np.ndarray:
    """Of values beyond the range or rounded to zero, (Q, F); quantizers (Q,).

    Squares of the projection of both together, means over the probes.
    """
    ends, tails = layout.ends[site].astype(np.float64), sums.tails[:, :, site].astype(np.float64)
    steps, zeroed = layout.half_steps[site].astype(np.float64), sums.zeroed[:, :, site]
    low, high, half = slice(ENDS // 2), slice(ENDS // 2, None), quantizer.scale / 2
    below, above = slice(ZEROED // 2), slice(ZEROED // 2, None)
    pull = (
        interpolated(tails[..., low], ends[low], quantizer.low)
        + interpolated(tails[..., high], ends[high], quantizer.high)
        # a range that ends at zero cuts off all that lies beyond it
        + (quantizer.low < 0) * _from_zero(zeroed[..., below], steps[below], -half)
        + (quantizer.high > 0) * _from_zero(zeroed[..., above], steps[above], half)
    )
    by_trajectory = np.square(pull).mean(axis=1)  # (N, Q)
    errors = np.zeros((layout.folds, len(half)))
    np.add.at(errors, sums.trajectories % layout.folds, by_trajectory)
    return errors.T


def _from_zero(zeroed: np.ndarray, steps: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`interpolated`, where at zero there is nothing."""
    order = np.argsort(np.append(steps, 0), kind="stable")
    nothing = np.zeros((*zeroed.shape[:-1], 1))
    whole = np.concatenate([zeroed, nothing], axis=-1)[..., order]
    return interpolated(whole, np.append(steps, 0)[order], at)


def weight_error(
    sums: StepSensitivity, layout: SensitivityLayout, linear: str, error: np.ndarray
) -> np.ndarray:
    """Squared velocity error of a step by fold, (F,), of an error (O, I) that is added to a weight:
    of rounding at any width and group, or any other that is noise.

    g^2 of the weight of output o and input i is taken as outputs[o] inputs[i] / sum: on the
    embedded model as good as g^2 itself (4 bits: rank correlation .984, itself .985). A massive
    input counts as what it is. Raises KeyError for a linear that the layout has not.
    """
    outputs = sums.outputs[:, layout.outputs[linear]].astype(np.float64)
    inputs = sums.inputs[:, layout.inputs[linear]].astype(np.float64)
    squares = np.square(error, dtype=np.float64)
    total = outputs.sum(axis=1)
    return np.einsum("fo,oi,fi->f", outputs, squares, inputs) / np.where(total > 0, total, 1)


def total_error(
    sums: StepSensitivity,
    layout: SensitivityLayout,
    *,
    activations: Mapping[str, Quantizer],
    weights: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Squared velocity error of a step by fold, (F,), of everything at once.

    `activations` are quantizers of sites, of a single number each; `weights` errors of linears.
    """
    total = np.zeros(layout.folds)
    for site, quantizer in activations.items():
        total += site_error(sums, layout, site, quantizer)[0]
    for linear, error in weights.items():
        total += weight_error(sums, layout, linear, error)
    return total


def velocity_decibel(errors: np.ndarray, powers: np.ndarray, weights: np.ndarray) -> float:
    """Squared errors relative to the power of the velocity, dB; all (n,) by step, weighted.

    -Inf without an error, NaN where the velocity is zero as well.
    """
    return float(decibel(np.dot(weights, errors), np.dot(weights, powers)))
