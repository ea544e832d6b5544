"""What a quantizer would do to the velocity, from the sums of a step alone: no model is run.

To first order, errors of different sites and weights are independent and their squares add up. An
activation's rounding is noise: sum of g^2 times the mean square of what rounding does to the values
of each histogram bin. What a range cuts off is not: it is the square of <g, clipping error>. The
error of a weight is noise as well, cell by cell.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from taqdit.activations.bins import SIGN, bounds_of
from taqdit.analysis.noise import bin_errors
from taqdit.quantizer import Quantizer, decibel
from taqdit.sensitivity.layout import CELL, ENDS, SensitivityLayout
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
    return rounding_error(sums, number, many) + clipping_error(sums, layout, number, many)


def rounding_error(sums: StepSensitivity, site: int, quantizer: Quantizer) -> np.ndarray:
    """Of values within the range, as noise: (Q, F)."""
    codes, masses = sums.bins(site)
    magnitude = codes.astype(np.int64) & (SIGN - 1)
    left, right = bounds_of(np.where(codes & SIGN, -magnitude, magnitude))
    return bin_errors(left, right, quantizer, clipping=False) @ masses.astype(np.float64).T


def clipping_error(
    sums: StepSensitivity, layout: SensitivityLayout, site: int, quantizer: Quantizer
) -> np.ndarray:
    """Of values beyond the range, (Q, F): squares of the projection, means over the probes."""
    ends, half = layout.ends[site].astype(np.float64), ENDS // 2
    tails = sums.tails[:, :, site].astype(np.float64)  # (N, P, ENDS)
    cut = interpolated(tails[..., :half], ends[:half], quantizer.low)
    cut = cut + interpolated(tails[..., half:], ends[half:], quantizer.high)
    return _by_fold(np.square(cut).mean(axis=1), sums.trajectories, layout.folds).T


def weight_error(
    sums: StepSensitivity, layout: SensitivityLayout, linear: str, error: np.ndarray
) -> float:
    """Squared velocity error of a step, summed over all its trajectories, of an error (O, I) that
    is added to a weight; any error. Raises KeyError for a linear that the layout has not."""
    number = next((i for i, each in enumerate(layout.linears) if each.name == linear), None)
    if number is None:
        raise KeyError(linear)
    cells = sums.cells[layout.cells(number)].reshape(layout.linears[number].cells)
    return float((cells * cell_means(error)).sum(dtype=np.float64))


def cell_means(error: np.ndarray) -> np.ndarray:
    """Mean square over each cell of an error (O, I) of a weight, (O, cells a row) float64."""
    starts = np.arange(0, error.shape[1], CELL)
    sums = np.add.reduceat(np.square(error, dtype=np.float64), starts, axis=1)
    return sums / np.diff(np.append(starts, error.shape[1]))


def total_error(
    sums: StepSensitivity,
    layout: SensitivityLayout,
    *,
    activations: Mapping[str, Quantizer],
    weights: Mapping[str, np.ndarray],
) -> float:
    """Squared velocity error of a step, over all its trajectories, of everything at once.

    `activations` are quantizers of sites, of a single number each; `weights` errors of linears.
    """
    sites = (site_error(sums, layout, site, each).sum() for site, each in activations.items())
    linears = (weight_error(sums, layout, linear, each) for linear, each in weights.items())
    return float(sum(sites) + sum(linears))


def velocity_decibel(errors: np.ndarray, powers: np.ndarray, weights: np.ndarray) -> float:
    """Squared errors relative to the power of the velocity, dB; all (n,) by step, weighted.

    -Inf without an error, NaN where the velocity is zero as well.
    """
    error, power = np.dot(weights, errors), np.dot(weights, powers)
    return float(decibel(error, power))


def _by_fold(values: np.ndarray, trajectories: np.ndarray, folds: int) -> np.ndarray:
    """Sums (F, ..) over the trajectories of each fold, of values (N, ..)."""
    sums = np.zeros((folds, *values.shape[1:]))
    np.add.at(sums, trajectories % folds, values)
    return sums
