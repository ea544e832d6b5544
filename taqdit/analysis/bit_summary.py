"""Suggested bit widths in words: lines for the console, rows for a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taqdit.analysis.bits import FLOOR, WIDTHS, BitWidths

COLUMNS = {  # title: what it is
    "W bits": "suggested bits of the weight",
    "A bits": "suggested bits of the input; none where it is not traced",
    "W SQNR": "of the weight quantized to that width, dB",
    "A SQNR": "of the input quantized to that width over all steps, dB",
    "Clip low": "where the range of the input that is quantized begins",
    "Clip high": "where it ends",
    "Why": "what decided",
}
NAMED = 3  # worst layers that the console names


def bit_rows(bits: BitWidths) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    """COLUMNS, and a row per layer: its name, then a cell per column (None: no value)."""
    rows = [
        (
            linear.layer,
            linear.weight_bits,
            linear.activation_bits,
            linear.weight_sqnr,
            linear.activation_sqnr,
            *(linear.clip or (None, None)),
            linear.why,
        )
        for linear in bits.layers
    ]
    return dict(COLUMNS), rows


def summary_lines(bits: BitWidths) -> list[str]:
    """At most three lines: how many layers get which width, for weights and for activations as
    far as they are known, and the layers that are hard or easy to quantize."""
    parts = {
        "weights": [(linear.weight_bits, linear.floored) for linear in bits.layers],
        "activations": [(linear.activation_bits, linear.floored) for linear in bits.layers],
    }
    lines = [
        f"{what}: {_shares(known)}"
        for what, pairs in parts.items()
        if (known := [(width, floored) for width, floored in pairs if width is not None])
    ]
    return [*lines, _extremes(bits)] if lines else []


def _shares(layers: Sequence[tuple[int, bool]]) -> str:
    """Layers by width; of those with most bits, how many are merely protected."""
    texts = []
    for width in reversed(WIDTHS):
        of_width = [floored for bits, floored in layers if bits == width]
        share = f"{len(of_width) / len(layers):.0%}"
        if width == FLOOR and any(of_width):
            share += f", {sum(of_width)} as protected"
        texts += [f"{width}-bit: {_layers(len(of_width))} ({share})"] if of_width else []
    return ", ".join(texts)


def _extremes(bits: BitWidths) -> str:
    sensitive, missed = bits.sensitive, sum(not linear.met for linear in bits.layers)
    named = ", ".join(sensitive[:NAMED]) + (", .." if len(sensitive) > NAMED else "")
    texts = [f"sensitive: {_layers(len(sensitive))}" + (f" ({named})" if named else "")]
    texts.append(f"aggressive: {_layers(len(bits.aggressive))}")
    if missed:
        verb = "misses" if missed == 1 else "miss"
        texts.append(f"{_layers(missed)} {verb} {bits.target:g} dB at {WIDTHS[-1]} bits")
    return "; ".join(texts)


def _layers(count: int) -> str:
    return f"{count} layer" + ("" if count == 1 else "s")
