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
    return {each.layer: _entry(each) for each in bits.layers}


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
            "not_met": [each.layer for each in bits.layers if not each.met],
            "layers": {each.layer: _details(each) for each in bits.layers},
            "fields": _FIELDS,
        }
    }


def export_quantization_config(bits: BitWidths, folder: str | Path) -> None:
    """Publish quantization_config.json in `folder`, which exists."""
    publish_json(Path(folder) / CONFIG, quantization_config(bits))


def _entry(each: LayerBits) -> dict[str, Any]:
    weight = {"suggested_weight_bits": each.weight_bits}
    if each.activation_bits is None:
        return weight
    return weight | {
        "suggested_activation_bits": each.activation_bits,
        "use_percentile_clipping": each.clips,
        "clip_percentile": _pair(each.clip_percentile) if each.clips else None,
    }


def _protected(bits: BitWidths) -> list[str]:
    """The layers that the floor holds for: the seed rule has none."""
    return [each.layer for each in bits.layers if bits.rule == "sqnr" and protected(each.layer)]


def _details(each: LayerBits) -> dict[str, Any]:
    return {
        "site": each.site,
        "weight_sqnr_db": _plain(each.weight_sqnr),
        "activation_sqnr_db": _plain(each.activation_sqnr),
        "clip": _pair(each.clip),
        "met": each.met,
        "why": each.why,
    }


def _pair(ends: tuple[float, float] | None) -> list[float | None] | None:
    return None if ends is None else [_plain(end) for end in ends]


def _plain(number: float | None) -> float | None:
    """As JSON knows it: whole numbers without a point, NaN and infinity as null."""
    if number is None or not math.isfinite(number):
        return None
    return int(number) if number == int(number) else float(number)
