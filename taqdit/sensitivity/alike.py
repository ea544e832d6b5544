"""Identical text rows: their errors are identical too, and add up as one.

The rows of zeros that pad a text (SD3 attends to them) enter every linear as the same numbers, so a
quantizer rounds them all the same way. What such an error does to the velocity is the sum of the
gradients at these rows times it: the gradients are summed onto the first of them before anything is
squared. Squared one by one, the errors of text sites come out up to 12 dB too low on the embedded
model, which has 16 such rows.
"""

from __future__ import annotations

import numpy as np

from taqdit.backend import mx


def first_alike(tokens: np.ndarray) -> np.ndarray:
    """(R, n) int64: for each token of (R, n, d) the first one of its row with the same numbers."""
    return np.stack([_first_of(row) for row in np.asarray(tokens)])


def _first_of(row: np.ndarray) -> np.ndarray:
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(token.tobytes(), at) for at, token in enumerate(row)])


def merging(first: np.ndarray) -> mx.array | None:
    """(R, n, n) float32 of 0 and 1 that sums tokens onto the first that is alike, from (R, n).

    None where no two are alike.
    """
    own = np.arange(first.shape[1])
    if (first == own).all():
        return None
    return mx.array((first[:, None, :] == own[:, None]).astype(np.float32))


def merged(gradient: mx.array, onto: mx.array | None, *, stream: str) -> mx.array:
    """Gradients (R, T, C) at a site with those of identical text tokens summed onto the first.

    The others become zero. Text comes first where both streams are joint; the image has none.
    """
    if onto is None or stream == "img":
        return gradient
    count = onto.shape[1]
    text = onto @ gradient[:, :count]
    if gradient.shape[1] == count:
        return text
    return mx.concatenate([text, gradient[:, count:]], axis=1)
