"""`quantization_config.json`: suggested bit widths per linear, in the shape of the older tools."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from taqdit.analysis.bits import FLOOR, WIDTHS, BitWidths, LayerBits, protected
from taqdit.store import publish_json

CONFIG = "quantization_config.json"
_MEANING = {
    "seed": "thresholds on p99 - p01 of the input, one width for weight and input",
    "sqnr": "the fewest bits whose SQNR meets the target, for weight and input each",
}
_FIELDS = {
    "clip": "range of the input that is quantized",
    "weight_sqnr_db, activation_sqnr_db": "at the suggested widths; null: not known, or no signal",
    "met": "no SQNR is below the target",
}


def quantization_config(bits: BitWidths) -> dict[str, dict[str, Any]]:
    """Layer -> suggested_weight_bits, suggested_activation_bits, use_percentile_clipping and
    clip_percentile ([1, 99]; null where it is not used).

    A layer without a traced input has `suggested_weight_bits` only. That field is null where
    the weights were not analysed.
    """
    return {linear.layer: _entry(linear) for linear in bits.layers}


def quantization_settings(bits: BitWidths) -> dict[str, Any]:
    """What the configuration does not say, for `collection_metadata.json`: one entry,
    `quantization`, of the rule, its settings, the lists and the numbers of each layer."""
    return {
        "quantization": {
            "rule": bits.rule,
            "rule_meaning": _MEANING[bits.rule],
            "target_db": bits.target,
            "weight_granularity": bits.granularity,
            "bits": list(WIDTHS),
            "never_below": {"bits": FLOOR, "layers": _protected(bits)},
            "sensitive": bits.sensitive,
            "aggressive": bits.aggressive,
            "not_met": [linear.layer for linear in bits.layers if not linear.met],
            "layers": {linear.layer: _details(linear) for linear in bits.layers},
            "fields": _FIELDS,
        }
    }


def export_quantization_config(bits: BitWidths, folder: str | Path) -> None:
    """Publish quantization_config.json in `folder`, which exists."""
    publish_json(Path(folder) / CONFIG, quantization_config(bits))


def _entry(linear: LayerBits) -> dict[str, Any]:
    weight = {"suggested_weight_bits": linear.weight_bits}
    if linear.activation_bits is None:
        return weight
    return weight | {
        "suggested_activation_bits": linear.activation_bits,
        "use_percentile_clipping": linear.clips,
        "clip_percentile": _pair(linear.clip_percentile) if linear.clips else None,
    }


def _protected(bits: BitWidths) -> list[str]:
    """The layers that the floor holds for: the seed rule has none."""
    return [
        linear.layer for linear in bits.layers if bits.rule == "sqnr" and protected(linear.layer)
    ]


def _details(linear: LayerBits) -> dict[str, Any]:
    return {
        "site": linear.site,
        "weight_sqnr_db": _plain(linear.weight_sqnr),
        "activation_sqnr_db": _plain(linear.activation_sqnr),
        "clip": _pair(linear.clip),
        "met": linear.met,
        "why": linear.why,
    }


def _pair(ends: tuple[float, float] | None) -> list[float | None] | None:
    return None if ends is None else [_plain(end) for end in ends]


def _plain(number: float | None) -> float | None:
    """As JSON knows it: whole numbers without a point, NaN and infinity as null."""
    if number is None or not math.isfinite(number):
        return None
    return int(number) if number == int(number) else float(number)
