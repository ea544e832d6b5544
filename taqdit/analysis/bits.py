"""How many bits each linear needs, in its weight and in its input: two rules.

`sqnr` (default) asks what quantization loses: the fewest bits that keep a target SQNR. `seed` is
the older rule of thumb: thresholds on the range of the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from taqdit.analysis.weights import GRANULARITIES, WeightTable
from taqdit.errors import NumericError, require
from taqdit.quantizer import BITS

WIDTHS = tuple(sorted(BITS))  # fewest first
FLOOR = 8  # of protected layers
SEED, SQNR = "seed", "sqnr"  # the rules
_NOBODY: Mapping[str, str | None] = MappingProxyType({})
_BASE = ((10.0, 8), (5.0, 6))  # ranges above which so many bits are suggested, else 4
_LEAST, _MOST, _EXTRA = 4, 8, 2
_WIDE_STD = 0.5  # of the range: more gets _EXTRA bits
_LONG_TAILS = 0.9  # (p99 - p01) / (max - min): less is clipped


@dataclass(frozen=True, eq=False)
class ActivationNoise:
    """What quantizing the values of a site costs, at each width of WIDTHS, over all steps.

    The range [low, high] is the one of least mean squared error at that width; `below` and
    `above` are the shares of values (0..1) that it cuts off. `sqnr` in dB: NaN where all values
    are zero. `minimum` and `maximum` are the exact extremes.
    """

    sqnr: Mapping[int, float]
    low: Mapping[int, float]
    high: Mapping[int, float]
    below: Mapping[int, float]
    above: Mapping[int, float]
    minimum: float
    maximum: float

    def clipping(self, bits: int) -> tuple[tuple[float, float], tuple[float, float], bool]:
        """The range at a width, widened to hold zero as a quantizer's always is; percent of the
        values below it and of those not above it; and whether it leaves out any value."""
        low, high = min(float(self.low[bits]), 0.0), max(float(self.high[bits]), 0.0)
        percentile = 100 * float(self.below[bits]), 100 * (1 - float(self.above[bits]))
        return (low, high), percentile, bool(low > self.minimum or high < self.maximum)


@dataclass(frozen=True, eq=False)
class LayerBits:
    """What is suggested for one linear.

    Without a traced input (`site` None) it has weight bits only; without an analysis of the
    weights activation bits only. SQNR in dB at the suggested widths. `clip` is the range of the
    input that is quantized, `clip_percentile` where it ends in the distribution, in percent,
    `clips` whether it cuts anything off. `met`: no SQNR is below the target (the seed rule has
    none). `floored`: 8 bits since the layer is protected, not since it needs them. `severity`
    orders the lists, worst largest: sqnr: target less the SQNR of what needs most bits, dB;
    seed: p99 - p01.
    """

    layer: str
    site: str | None
    weight_bits: int | None
    activation_bits: int | None
    weight_sqnr: float | None
    activation_sqnr: float | None
    clip: tuple[float, float] | None
    clip_percentile: tuple[float, float] | None
    clips: bool
    met: bool
    why: str
    floored: bool = False
    severity: float = 0.0

    @property
    def widest(self) -> int:
        """The larger of the suggested widths."""
        return max(self.weight_bits or 0, self.activation_bits or 0)


@dataclass(frozen=True, eq=False)
class BitWidths:
    """Suggested widths of all linears in the order of the data flow.

    `target` in dB and `granularity` of the weights are None where the rule uses none.
    """

    rule: str
    target: float | None
    granularity: str | None
    layers: tuple[LayerBits, ...]

    @property
    def sensitive(self) -> list[str]:
        """Layers whose weight or input needs 8 bits, worst first.

        A protected layer that would do with less is not among them: it would tell nothing.
        """
        return self._worst_first(linear for linear in self.layers if _is_sensitive(linear))

    @property
    def aggressive(self) -> list[str]:
        """Layers that need no more than 4 bits for anything, worst first."""
        return self._worst_first(linear for linear in self.layers if linear.widest <= _LEAST)

    def _worst_first(self, layers: Iterator[LayerBits]) -> list[str]:
        return [linear.layer for linear in sorted(layers, key=lambda linear: -linear.severity)]


def _is_sensitive(linear: LayerBits) -> bool:
    return linear.widest >= FLOOR and not linear.floored


def protected(layer: str) -> bool:
    """Layers that never go below 8 bits: adaLN, embedders (`embed.*`) and the final layer
    (`final.*`). They steer or frame all others and hold little of the computation."""
    return layer.endswith(".adaln") or layer.startswith(("embed.", "final."))


def seed_bits(
    layers: Mapping[str, Mapping[str, Any]], *, readers: Mapping[str, str | None] = _NOBODY
) -> BitWidths:
    """The older rule on the entries of `layer_statistics.json`.

    range = p99 - p01 of the input: 8 bits if > 10, 6 if > 5, else 4; 2 more, at most 8, if
    std / range > 0.5; percentile clipping (1, 99) if range / (max - min) < 0.9.

    The rule knows inputs alone and gives one width per layer, which is suggested for the weight
    and the activation alike. (The older example of the file shows 6 and 8 bits; it fixes the
    shape only: the statistics printed beside it give 4 by the rule.) Nothing is protected.

    Where p01 = p99, the quotient std / range is taken as infinite, so 6 bits, if the values
    differ at all, and as 0 if they do not; a constant input is not clipped. The rule does clip an
    input of which 98 % are one value, down to that value: `why` says so.

    `readers` (layer -> site) names the sites. Raises NumericError for a number that is not finite.
    """
    suggested = tuple(_by_range(name, entry, readers.get(name)) for name, entry in layers.items())
    return BitWidths(SEED, None, None, suggested)


def _by_range(layer: str, entry: Mapping[str, Any], site: str | None) -> LayerBits:
    low, high = (float(entry["percentiles"][name]) for name in ("p01", "p99"))
    least, most, std = (float(entry[name]) for name in ("min", "max", "std"))
    if not all(math.isfinite(number) for number in (low, high, least, most, std)):
        raise NumericError(f"{layer}: p01, p99, min, max and std must be finite numbers")
    span, ratio = high - low, _quotient(std, high - low)
    bits = next((bits for above, bits in _BASE if span > above), _LEAST)
    bits = min(bits + _EXTRA, _MOST) if ratio > _WIDE_STD else bits
    clips = most > least and span / (most - least) < _LONG_TAILS
    return LayerBits(
        layer=layer,
        site=site,
        weight_bits=bits,
        activation_bits=bits,
        weight_sqnr=None,
        activation_sqnr=None,
        clip=(low, high) if clips else (least, most),
        clip_percentile=(1, 99) if clips else (0, 100),
        clips=clips,
        met=True,
        why=_range_reason(span, ratio, clips=clips),
        severity=span,
    )


def _quotient(std: float, span: float) -> float:
    if span:
        return std / span
    return math.inf if std else 0.0


def _range_reason(span: float, ratio: float, *, clips: bool) -> str:
    if not span:
        return "p01 = p99: clipping leaves one value" if clips else "one value"
    return f"range {span:.3g}" + (f", std {ratio:.2f} of it" if ratio > _WIDE_STD else "")


def sqnr_bits(
    activations: Mapping[str, ActivationNoise],
    readers: Mapping[str, str | None],
    weights: WeightTable | None,
    *,
    target: float,
    granularity: str = GRANULARITIES[0],
) -> BitWidths:
    """Per linear the fewest bits of WIDTHS with an SQNR of at least `target` dB, else 8 with
    `met` false; protected layers get 8 or more.

    `activations`: site -> its noise, `readers`: layer -> the site it reads (q, k and v share one,
    so their input has one width), or None. A layer has activation bits if its site is among
    `activations`, weight bits if it is in `weights`, whose error is that of one scale per
    `granularity`; with neither it is left out. Weights or inputs without a signal (NaN)
    lose nothing. Raises ConfigError for a target that is not finite or an unknown
    granularity.
    """
    require(
        (math.isfinite(target), f"target={target} must be a finite number of dB"),
        (
            granularity in GRANULARITIES,
            f"granularity={granularity} must be one of {', '.join(GRANULARITIES)}",
        ),
    )
    noise = {} if weights is None else _weight_sqnr(weights, granularity)
    suggested = []
    for layer in dict.fromkeys([*noise, *readers]):
        site = readers.get(layer)
        activation = activations.get(site) if site else None
        if activation or layer in noise:
            suggested.append(_by_sqnr(layer, site, noise.get(layer), activation, target=target))
    return BitWidths(SQNR, target, granularity if noise else None, tuple(suggested))


def _weight_sqnr(weights: WeightTable, granularity: str) -> dict[str, dict[int, float]]:
    table = weights.sqnr[:, GRANULARITIES.index(granularity)].tolist()
    rows = (dict(zip(BITS, row, strict=True)) for row in table)
    return dict(zip(weights.layers, rows, strict=True))


def _by_sqnr(
    layer: str,
    site: str | None,
    weight: Mapping[int, float] | None,
    activation: ActivationNoise | None,
    *,
    target: float,
) -> LayerBits:
    floor = FLOOR if protected(layer) else 0
    w = None if weight is None else _Choice.of("weights", weight, target=target, floor=floor)
    a = None
    clip = percentile = None
    clips = False
    if activation is not None:
        a = _Choice.of("activations", activation.sqnr, target=target, floor=floor)
        clip, percentile, clips = activation.clipping(a.bits)
    parts = [part for part in (w, a) if part]
    decisive = max(parts, key=lambda part: (part.needed, part.severity))
    floored = decisive.needed < floor
    return LayerBits(
        layer=layer,
        site=site if activation else None,
        weight_bits=w.bits if w else None,
        activation_bits=a.bits if a else None,
        weight_sqnr=w.sqnr if w else None,
        activation_sqnr=a.sqnr if a else None,
        clip=clip,
        clip_percentile=percentile,
        clips=clips,
        met=all(part.met for part in parts),
        why=f"kept at {FLOOR} bits; {decisive.why}" if floored else decisive.why,
        floored=floored,
        severity=decisive.severity,
    )


@dataclass(frozen=True)
class _Choice:
    """One width: `needed` by the target, `bits` with the floor; `sqnr` at `bits`, in dB."""

    bits: int
    sqnr: float
    needed: int
    met: bool
    severity: float
    why: str

    @classmethod
    def of(cls, what: str, sqnr: Mapping[int, float], *, target: float, floor: int) -> _Choice:
        # NaN is not below the target: without a signal nothing is lost.
        enough = [width for width in WIDTHS if not sqnr[width] < target]
        needed = enough[0] if enough else WIDTHS[-1]
        bits = max(needed, floor)
        missing = target - float(sqnr[needed])
        return cls(
            bits=bits,
            sqnr=float(sqnr[bits]),
            needed=needed,
            met=bool(enough),
            severity=-math.inf if math.isnan(missing) else missing,
            why=f"{what}: {_reason(sqnr, needed, met=bool(enough))}",
        )


def _reason(sqnr: Mapping[int, float], needed: int, *, met: bool) -> str:
    if not met:
        return f"{needed} bits give only {sqnr[needed]:.1f} dB"
    if not math.isfinite(sqnr[needed]):
        return f"{needed} bits lose nothing"
    place = WIDTHS.index(needed)
    first, *more = WIDTHS[max(place - 1, 0) : place + 1]
    texts = [f"{first} bits give {sqnr[first]:.1f} dB"]
    return ", ".join(texts + [f"{width} give {sqnr[width]:.1f} dB" for width in more])
