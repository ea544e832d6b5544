"""What was published of SD3-medium's activations and weights, and how far a model is from it.

The figures were measured on the real model (287 linears, 100 COCO prompts, 30 Euler steps, CFG 4,
512 pixels) in a public repository's branches. Only kinds of sites are compared, never a number of
blocks: SD3-medium has 24, the embedded model 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from taqdit.models.tiny.train.exact import Array


class Kind(NamedTuple):
    """Of the sites of one stream and place: the median and the largest of their absmax, the median
    of the top channel's absmax over the median channel's, and of the overlap (Jaccard index) of
    the loudest channels of the first and the last third of the steps."""

    peak: float
    highest: float
    ratio: float
    overlap: float


class Rest(NamedTuple):
    """Of all sites: absmax over the steps, largest by smallest (median, 90th percentile, highest).
    Of the block linears: bits of entropy of 4-bit codes by row and in groups of 64 (medians), and
    the largest weight of any text fc1."""

    drift: float
    drift_p90: float
    drift_highest: float
    entropy_row: float
    entropy_g64: float
    text_fc1: float


KINDS = {
    "img qkv_in": Kind(14.3, 27.8, 8.3, 0.42),
    "img o_in": Kind(9.4, 17.6, 3.1, 0.07),
    "img fc1_in": Kind(7.8, 12.6, 6.5, 0.16),
    "img post_gelu": Kind(6.3, 16.5, 3.9, 0.03),
    "txt qkv_in": Kind(9.1, 16.7, 5.5, 0.23),
    "txt o_in": Kind(9.6, 18.0, 4.2, 0.12),
    "txt fc1_in": Kind(16.7, 358.0, 5.8, 0.28),
    "txt post_gelu": Kind(22.3, 412.8, 6.2, 0.25),
    "txt context_in": Kind(854.0, 854.0, 832.0, 1.0),
    "img linear_in": Kind(23.6, 23.6, 77.0, 0.10),
}
REST = Rest(1.34, 1.90, 3.54, 2.82, 3.27, 1.22)


def loud_count(width: int) -> int:
    """How many channels count as the loudest: 2 %, at least 4 (SD3's were the top 32 of 1536)."""
    return max(4, round(0.02 * width))


def kind_of(site: str) -> str:
    """'mm_03_img.qkv_in' -> 'img qkv_in'."""
    block, _, place = site.partition(".")
    return f"{ {'embed': 'txt', 'final': 'img'}.get(block, block[-3:]) } {place}"


def of_site(peaks: Array) -> Kind:
    """The figures of one site from its channels' absmax by step (steps, C); dead channels out."""
    top = peaks.max(axis=0)
    third, count = len(peaks) // 3, loud_count(int((top > 0).sum()))
    first, last = (
        set(np.argsort(-part.max(axis=0))[:count].tolist())
        for part in (peaks[:third], peaks[-third:])
    )
    ratio = float(top.max() / np.median(top[top > 0]))
    return Kind(float(top.max()), float(top.max()), ratio, len(first & last) / len(first | last))


def of_kinds(peaks: Mapping[str, Array]) -> dict[str, Kind]:
    """The figures of every kind, from each site's channel absmax by step."""
    rows: dict[str, list[Kind]] = {}
    for site, array in peaks.items():
        rows.setdefault(kind_of(site), []).append(of_site(array))
    return {
        kind: Kind(
            float(np.median([s.peak for s in sites])),
            max(s.highest for s in sites),
            float(np.median([s.ratio for s in sites])),
            float(np.median([s.overlap for s in sites])),
        )
        for kind, sites in rows.items()
    }


def of_rest(peaks: Mapping[str, Array], weights: Mapping[str, Array]) -> Rest:
    """The figures of all sites, and of the block linears' weights (out, in) by path."""
    drifts = [float(a.max(axis=1).max() / a.max(axis=1).min()) for a in peaks.values()]
    text = [w for path, w in weights.items() if "text" in path and path.endswith("fc1")]
    return Rest(
        float(np.median(drifts)),
        float(np.quantile(drifts, 0.9)),
        max(drifts),
        float(np.median([entropy(w, w.shape[1], symmetric=True) for w in weights.values()])),
        float(np.median([entropy(w, 64, symmetric=False) for w in weights.values()])),
        max(float(np.abs(w).max()) for w in text),
    )


def entropy(weight: Array, group: int, *, symmetric: bool) -> float:
    """Bits of entropy of the 4-bit codes of a weight, a scale for each `group` inputs of a row:
    symmetric from the absmax (15 codes), or affine from the range (16)."""
    groups = weight.reshape(-1, group)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    if symmetric:
        codes = np.round(groups / np.abs(groups).max(axis=1, keepdims=True).clip(1e-12) * 7) + 7
    else:
        codes = np.round((groups - low) / (high - low).clip(1e-12) * 15)
    share = np.bincount(codes.astype(int).ravel(), minlength=16) / codes.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def distance(kinds: Mapping[str, Kind], rest: Rest) -> float:
    """The mean, over all 46 figures, of |ln(ours / SD3's)|; of the overlaps, which may be 0, of
    |ours - SD3's|. 0 is SD3; 0.1 is 10 % off (or 0.1) at each figure."""
    apart = [abs(np.log(a / b)) for a, b in zip(rest, REST, strict=True)]
    for kind, published in KINDS.items():
        ours = kinds[kind]
        apart += [abs(np.log(a / b)) for a, b in zip(ours[:3], published[:3], strict=True)]
        apart.append(abs(ours.overlap - published.overlap))
    return float(np.mean(apart))
