"""quantization_config.json: the older shape and nothing else; what stands beside it."""

import json
import math

import numpy as np
import pytest

from taqdit.analysis.bits import ActivationNoise, BitWidths, LayerBits, seed_bits, sqnr_bits
from taqdit.analysis.quantization_config import (
    export_quantization_config,
    quantization_config,
    quantization_settings,
)
from taqdit.analysis.weights import GRANULARITIES, WeightTable

KEYS = {
    "suggested_weight_bits",
    "suggested_activation_bits",
    "use_percentile_clipping",
    "clip_percentile",
}


def statistics(low, high, most):
    return {"min": low, "max": most, "std": 0.5, "percentiles": {"p01": low, "p99": high}}


def sites():
    """One site that is cut off and one that is not, in numpy's own floats."""
    each = {4: np.float64(-1), 6: np.float64(-2), 8: np.float64(-4)}
    share = {4: np.float64(0.25), 6: np.float64(0.125), 8: np.float64(0)}
    sqnr = {4: np.float64(10), 6: np.float64(22), 8: np.float64(34)}
    high = {bits: -value for bits, value in each.items()}
    cut = ActivationNoise(sqnr, each, high, share, share, np.float64(-4), np.float64(4))
    nothing = dict.fromkeys((4, 6, 8), 0.0)
    no_signal = dict.fromkeys((4, 6, 8), math.nan)
    return {"cut": cut, "zero": ActivationNoise(no_signal, *[nothing] * 4, 0.0, 0.0)}


def table(*layers):
    sqnr = np.tile([math.inf, 30.0, 10.0], (len(layers), len(GRANULARITIES), 1))
    zeros = np.zeros_like(sqnr)
    return WeightTable(layers, np.ones((len(layers), 2), int), sqnr, zeros, zeros)


@pytest.fixture
def bits():
    readers = {"mm_00_img.fc1": "cut", "mm_00_img.fc2": "zero", "mm_00_img.adaln": None}
    layers = table("mm_00_img.adaln", "mm_00_img.fc1", "mm_00_img.fc2")
    return sqnr_bits(sites(), readers, layers, target=20.0)


def test_the_older_shape_under_the_seed_rule():
    layers = {"a": statistics(0.0, 6.0, 60.0), "b": statistics(0.0, 3.0, 3.0)}
    assert quantization_config(seed_bits(layers)) == {
        "a": {
            "suggested_weight_bits": 6,
            "suggested_activation_bits": 6,
            "use_percentile_clipping": True,
            "clip_percentile": [1, 99],
        },
        "b": {
            "suggested_weight_bits": 4,
            "suggested_activation_bits": 4,
            "use_percentile_clipping": False,
            "clip_percentile": None,
        },
    }


def test_the_older_shape_under_the_sqnr_rule(bits):
    found = quantization_config(bits)
    assert found["mm_00_img.adaln"] == {"suggested_weight_bits": 8}
    assert found["mm_00_img.fc1"] == {
        "suggested_weight_bits": 6,
        "suggested_activation_bits": 6,
        "use_percentile_clipping": True,
        "clip_percentile": [12.5, 87.5],
    }
    assert set(found["mm_00_img.fc2"]) == KEYS
    assert found["mm_00_img.fc2"]["clip_percentile"] is None


def test_weights_that_were_not_analysed_are_null():
    found = quantization_config(sqnr_bits(sites(), {"a": "cut"}, None, target=20.0))
    assert set(found["a"]) == KEYS
    assert found["a"]["suggested_weight_bits"] is None


def test_the_file_is_what_was_computed(bits, tmp_path):
    export_quantization_config(bits, tmp_path)
    text = (tmp_path / "quantization_config.json").read_text(encoding="utf-8")
    assert json.loads(text) == quantization_config(bits)
    assert text.count("12.5") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["quantization_config.json"]


def test_whole_percentiles_are_written_as_the_older_tools_did(tmp_path):
    export_quantization_config(seed_bits({"a": statistics(0.0, 6.0, 60.0)}), tmp_path)
    text = (tmp_path / "quantization_config.json").read_text(encoding="utf-8")
    assert "".join(text.split()).count('"clip_percentile":[1,99]') == 1


def test_settings_say_what_the_config_does_not(bits):
    (found,) = quantization_settings(bits).values()
    assert (found["rule"], found["target_db"]) == ("sqnr", 20.0)
    assert found["weight_granularity"] == "channel"
    assert found["bits"] == [4, 6, 8]
    assert found["never_below"] == {"bits": 8, "layers": ["mm_00_img.adaln"]}
    assert found["not_met"] == []
    assert found["layers"]["mm_00_img.fc1"] == {
        "site": "cut",
        "weight_sqnr_db": 30,
        "activation_sqnr_db": 22,
        "clip": [-2, 2],
        "met": True,
        "why": "activations: 4 bits give 10.0 dB, 6 give 22.0 dB",
    }
    assert set(found["layers"]) == set(quantization_config(bits))


def test_settings_of_the_seed_rule():
    (found,) = quantization_settings(
        seed_bits({"final.linear": statistics(0.0, 6.0, 60.0)})
    ).values()
    assert (found["rule"], found["target_db"], found["weight_granularity"]) == ("seed", None, None)
    assert found["never_below"]["layers"] == []  # the rule protects nothing


def test_numbers_that_json_does_not_know_are_null(bits):
    found = quantization_settings(bits)
    json.dumps(found, allow_nan=False)
    layers = found["quantization"]["layers"]
    assert layers["mm_00_img.fc2"]["activation_sqnr_db"] is None  # NaN: no signal
    assert layers["mm_00_img.adaln"]["weight_sqnr_db"] is None  # Inf at 8 bits
    odd = LayerBits("a", "s", 4, 4, 1.0, 1.0, (-math.inf, 1.5), (math.nan, 99.5), True, True, "")
    odd = BitWidths("sqnr", 20.0, None, (odd,))
    assert quantization_config(odd)["a"]["clip_percentile"] == [None, 99.5]
    assert quantization_settings(odd)["quantization"]["layers"]["a"]["clip"] == [None, 1.5]


def test_layers_that_miss_the_target_are_listed():
    high = sqnr_bits(sites(), {"a": "cut", "b": "zero"}, None, target=50.0)
    (found,) = quantization_settings(high).values()
    assert (found["not_met"], found["sensitive"], found["aggressive"]) == (["a"], ["a"], ["b"])
