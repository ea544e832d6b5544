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
            each.layer,
            each.weight_bits,
            each.activation_bits,
            each.weight_sqnr,
            each.activation_sqnr,
            *(each.clip or (None, None)),
            each.why,
        )
        for each in bits.layers
    ]
    return dict(COLUMNS), rows


def summary_lines(bits: BitWidths) -> list[str]:
    """At most three lines: how many layers get which width, for weights and for activations as
    far as they are known, and the layers that are hard or easy to quantize."""
    parts = {
        "weights": [(each.weight_bits, each.floored) for each in bits.layers],
        "activations": [(each.activation_bits, each.floored) for each in bits.layers],
    }
    lines = [
        f"{what}: {_shares(found)}"
        for what, pairs in parts.items()
        if (found := [(width, kept) for width, kept in pairs if width is not None])
    ]
    return [*lines, _extremes(bits)] if lines else []


def _shares(found: Sequence[tuple[int, bool]]) -> str:
    """Layers by width; of those with most bits, how many are merely protected."""
    texts = []
    for width in reversed(WIDTHS):
        of_width = [kept for each, kept in found if each == width]
        share = f"{len(of_width) / len(found):.0%}"
        if width == FLOOR and any(of_width):
            share += f", {sum(of_width)} as protected"
        texts += [f"{width}-bit: {_layers(len(of_width))} ({share})"] if of_width else []
    return ", ".join(texts)


def _extremes(bits: BitWidths) -> str:
    sensitive, missed = bits.sensitive, sum(not each.met for each in bits.layers)
    named = ", ".join(sensitive[:NAMED]) + (", .." if len(sensitive) > NAMED else "")
    texts = [f"sensitive: {_layers(len(sensitive))}" + (f" ({named})" if named else "")]
    texts.append(f"aggressive: {_layers(len(bits.aggressive))}")
    if missed:
        verb = "misses" if missed == 1 else "miss"
        texts.append(f"{_layers(missed)} {verb} {bits.target:g} dB at {WIDTHS[-1]} bits")
    return "; ".join(texts)


def _layers(count: int) -> str:
    return f"{count} layer" + ("" if count == 1 else "s")
