"""Histograms of few bins, as trackers take them."""

from __future__ import annotations

import numpy as np


def merge_bins(
    counts: np.ndarray, edges: np.ndarray, *, most: int
) -> tuple[list[int], list[float]]:
    """At most `most` bins with the same total: neighbours are added up, infinite outer edges
    moved to the nearest finite one. `counts` (k,), k >= 1, `edges` (k + 1,).

    Counts that are no whole numbers become some: none moves by 1, the total by 0.5 at most.
    """
    each = -(-len(counts) // most)
    starts = np.arange(0, len(counts), each)
    finite = edges[np.isfinite(edges)]
    edges = np.clip(edges, finite.min(), finite.max()) if finite.size else edges
    upto = np.rint(np.cumsum(np.add.reduceat(counts, starts, dtype=np.float64)))
    return (
        np.diff(upto, prepend=0.0).astype(np.int64).tolist(),
        np.append(edges[starts], edges[-1]).tolist(),
    )
