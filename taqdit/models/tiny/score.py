"""Figures of merit of generated pictures, from what a classifier says of them (numpy only)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from taqdit.models.tiny.scenes import ATTRIBUTES, present

Attributes = dict[str, NDArray[np.int64]]


def read(logits: NDArray[np.float32]) -> Attributes:
    """The likeliest value of every attribute, `(N,)` each, from logits `(N, 52)`."""
    ends = np.cumsum(list(ATTRIBUTES.values()))[:-1]
    parts = zip(ATTRIBUTES, np.split(logits, ends, 1), strict=True)
    return {name: part.argmax(1) for name, part in parts}


def accuracy(
    predicted: Mapping[str, NDArray[np.int64]], scenes: Mapping[str, NDArray[np.int64]]
) -> dict[str, float]:
    """Per cent right for each attribute, over the scenes that have it, and `all`: every attribute
    of the scene right; `all_one` and `all_two` by the number of objects. NaN where there is no
    such scene."""
    masks = present(scenes)
    hits = {name: predicted[name] == scenes[name] for name in ATTRIBUTES}
    every = np.logical_and.reduce([hits[name] | ~masks[name] for name in ATTRIBUTES])
    rates = {name: _rate(hits[name], masks[name]) for name in ATTRIBUTES}
    two = scenes["rel"] > 0
    whole = {"all": _rate(every, np.ones_like(two))}
    return rates | whole | {"all_one": _rate(every, ~two), "all_two": _rate(every, two)}


def _rate(hit: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    return 100 * float(hit[mask].mean()) if mask.any() else float("nan")


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Frechet distance of two feature sets `(N, d)`, each taken for a Gaussian."""
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    between = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(between + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)
