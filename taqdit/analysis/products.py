"""Matrix products that other processes on the machine do not slow down."""

from __future__ import annotations

import itertools

import numpy as np

_ROWS = 16
_ALONE = 2**18  # multiplications that OpenBLAS does on the calling thread


def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one @ other of matrices (m, k), (k, n), in tiles that are small enough for one thread.

    The products of an analysis are many and take a millisecond each. OpenBLAS shares them among
    threads that spin until all are done: where another process holds a core, each waits for the
    scheduler, ten times as long as it computes.
    """
    if min(len(one), other.shape[1]) <= 1:  # BLAS shares vectors sooner; einsum uses none
        return np.asarray(np.einsum("ik,kj->ij", one, other))
    if one.size * other.shape[1] <= _ALONE:
        return one @ other
    rows = _parts(len(one), _ROWS)
    columns = _parts(other.shape[1], max(2, _ALONE // (_ROWS * len(other))))
    result = np.empty((len(one), other.shape[1]), np.result_type(one, other))
    for i, j in itertools.product(rows, columns):
        result[i, j] = one[i] @ other[:, j]
    return result


def _parts(length: int, most: int) -> list[slice]:
    """Even parts of at most `most`: a rest of one row would be a vector."""
    count = -(-length // most)
    ends = [length * part // count for part in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]
