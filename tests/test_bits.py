"""Bit widths: both rules by hand, branch by branch, and what is told of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taqdit.analysis.bit_summary import COLUMNS, bit_rows, summary_lines
from taqdit.analysis.bits import (
    ActivationNoise,
    BitWidths,
    LayerBits,
    protected,
    seed_bits,
    sqnr_bits,
)
from taqdit.analysis.weights import GRANULARITIES, WeightTable
from taqdit.errors import ConfigError, NumericError

TARGET = 20.0
EASY, MEDIUM, HARD = (25.0, 37.0, 49.0), (12.1, 22.0, 34.0), (2.0, 14.0, 26.0)
HOPELESS = (-9.0, 3.0, 15.0)
NOTHING = (math.nan,) * 3
decibels = st.floats(-20, 80) | st.sampled_from([TARGET, math.inf, math.nan])
ladders = st.tuples(decibels, decibels, decibels)


def entry(low, high, *, std=0.1, least=None, most=None):
    """An entry of layer_statistics.json; extremes that call for no clipping unless given."""
    least, most = low if least is None else least, high if most is None else most
    return {"min": least, "max": most, "std": std, "percentiles": {"p01": low, "p99": high}}


def seeded(**numbers):
    return seed_bits({"mm_00_img.fc1": entry(**numbers)}).layers[0]


def noise(sqnr, *, low=-1.0, high=2.0, below=0.0, above=0.0, minimum=-1.0, maximum=2.0):
    """Noise of a site from dB at 4, 6 and 8 bits; the same range at every width."""
    each = {"low": low, "high": high, "below": below, "above": above}
    return ActivationNoise(
        sqnr=dict(zip((4, 6, 8), sqnr, strict=True)),
        **{name: dict.fromkeys((4, 6, 8), value) for name, value in each.items()},
        minimum=minimum,
        maximum=maximum,
    )


def weights(**sqnr):
    """A table from layer -> dB at 4, 6 and 8 bits, the same at every granularity; names are
    written with __ for the point."""
    layers = tuple(name.replace("__", ".") for name in sqnr)
    table = np.array([ladder[::-1] for ladder in sqnr.values()], float).reshape(-1, 1, 3)
    table = np.repeat(table, len(GRANULARITIES), axis=1)
    shapes = np.ones((len(layers), 2), int)
    return WeightTable(layers, shapes, table, np.zeros_like(table), np.zeros_like(table))


def suggested(*, weight=None, activation=None, layer="mm_00_img.fc1", target=TARGET):
    """The one layer of a model of one linear."""
    table = None if weight is None else weights(**{layer.replace(".", "__"): weight})
    sites = {} if activation is None else {"site": noise(activation)}
    return sqnr_bits(sites, {layer: "site"}, table, target=target).layers[0]


# --- seed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [
        (-1.234, 2.456, 4),
        (-2.0, 3.0, 4),  # exactly 5 is not above 5
        (-2.0, 3.0001, 6),
        (-5.0, 5.0, 6),  # nor 10 above 10
        (-5.0, 5.0001, 8),
        (-300.0, 20.0, 8),
    ],
)
def test_seed_range_decides(low, high, bits):
    layer = seeded(low=low, high=high)
    assert (layer.weight_bits, layer.activation_bits) == (bits, bits)
    assert (layer.clips, layer.clip, layer.clip_percentile) == (False, (low, high), (0, 100))


@pytest.mark.parametrize(
    ("span", "std", "bits"),
    [
        (4.0, 2.0, 4),  # exactly a half is not above a half
        (4.0, 2.01, 6),
        (8.0, 4.0, 6),
        (8.0, 4.01, 8),
        (12.0, 6.01, 8),  # 8 is the most
    ],
)
def test_seed_gives_two_more_bits_to_a_wide_std(span, std, bits):
    assert seeded(low=-span / 2, high=span / 2, std=std).weight_bits == bits


@pytest.mark.parametrize(
    ("most", "clips"),
    [(10.0, False), (9.5, False), (10.01, True), (400.0, True)],
)
def test_seed_clips_long_tails(most, clips):
    layer = seeded(low=0.0, high=9.0, least=0.0, most=most)  # 9 of 10 is not below 0.9
    assert layer.clips is clips
    assert layer.clip == ((0.0, 9.0) if clips else (0.0, most))
    assert layer.clip_percentile == ((1, 99) if clips else (0, 100))


def test_seed_clips_the_statistics_that_the_older_example_prints():
    layer = seeded(low=-1.234, high=2.456, least=-2.456, most=3.123, std=0.891)
    assert (layer.weight_bits, layer.activation_bits, layer.clips) == (4, 4, True)


def test_seed_on_an_input_without_a_range():
    constant = seeded(low=3.0, high=3.0, std=0.0)
    assert (constant.weight_bits, constant.clips, constant.why) == (4, False, "one value")
    padded = seeded(low=0.0, high=0.0, std=0.3, least=-23.0, most=17.0)
    assert (padded.weight_bits, padded.clips, padded.clip) == (6, True, (0.0, 0.0))
    assert "leaves one value" in padded.why


def test_seed_says_why():
    assert seeded(low=-2.0, high=2.0).why == "range 4"
    assert seeded(low=-2.0, high=2.0, std=2.5).why == "range 4, std 0.62 of it"


def test_seed_protects_nothing_and_knows_no_target():
    bits = seed_bits({"final.linear": entry(-1.0, 1.0)}, readers={"final.linear": "here"})
    assert (bits.rule, bits.target, bits.granularity) == ("seed", None, None)
    (layer,) = bits.layers
    assert (layer.activation_bits, layer.met, layer.site) == (4, True, "here")
    assert layer.weight_sqnr is None
    assert layer.activation_sqnr is None


def test_seed_lists_are_8_and_4_bits_by_range():
    spans = {"a": 11.0, "b": 3.0, "c": 20.0, "d": 6.0, "e": 4.0}
    bits = seed_bits({name: entry(0.0, span) for name, span in spans.items()})
    assert [each.layer for each in bits.layers] == list("abcde")
    assert bits.sensitive == ["c", "a"]
    assert bits.aggressive == ["e", "b"]


@pytest.mark.parametrize("name", ["low", "high", "std", "least", "most"])
def test_seed_refuses_what_is_not_finite(name):
    numbers = {"low": -1.0, "high": 1.0, "std": 1.0, "least": -1.0, "most": 1.0}
    with pytest.raises(NumericError, match=r"mm_00_img\.fc1"):
        seeded(**numbers | {name: math.nan})


# --- sqnr -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ladder", "bits", "met", "why"),
    [
        (EASY, 4, True, "4 bits give 25.0 dB"),
        (MEDIUM, 6, True, "4 bits give 12.1 dB, 6 give 22.0 dB"),
        (HARD, 8, True, "6 bits give 14.0 dB, 8 give 26.0 dB"),
        (HOPELESS, 8, False, "8 bits give only 15.0 dB"),
        (NOTHING, 4, True, "4 bits lose nothing"),
        ((math.inf,) * 3, 4, True, "4 bits lose nothing"),
        ((12.0, math.inf, math.inf), 6, True, "6 bits lose nothing"),
        ((-math.inf,) * 3, 8, False, "8 bits give only -inf dB"),
        ((TARGET, 30.0, 40.0), 4, True, "4 bits give 20.0 dB"),  # met exactly
        ((19.9, TARGET, 40.0), 6, True, "4 bits give 19.9 dB, 6 give 20.0 dB"),
    ],
)
def test_fewest_bits_that_meet_the_target(ladder, bits, met, why):
    layer = suggested(activation=ladder)
    assert (layer.activation_bits, layer.met, layer.why) == (bits, met, f"activations: {why}")
    assert layer.activation_sqnr == pytest.approx(ladder[(4, 6, 8).index(bits)], nan_ok=True)
    layer = suggested(weight=ladder)
    assert (layer.weight_bits, layer.met, layer.why) == (bits, met, f"weights: {why}")
    assert layer.weight_sqnr == pytest.approx(ladder[(4, 6, 8).index(bits)], nan_ok=True)


@given(weight=ladders | st.none(), activation=ladders, layer=st.sampled_from(["mm_00_img.fc1"]))
def test_no_width_is_wider_than_it_must_be(weight, activation, layer):
    found = suggested(weight=weight, activation=activation, layer=layer)
    pairs = [(found.weight_bits, weight), (found.activation_bits, activation)]
    for bits, ladder in [pair for pair in pairs if pair[1] is not None]:
        place = (4, 6, 8).index(bits)
        assert all(value < TARGET for value in ladder[:place])
        assert bits == 8 or not ladder[place] < TARGET
    ladders = [ladder for _, ladder in pairs if ladder is not None]
    assert found.met == all(any(not v < TARGET for v in ladder) for ladder in ladders)


def test_weight_and_input_are_chosen_apart_and_the_worse_one_is_named():
    layer = suggested(weight=EASY, activation=HARD)
    assert (layer.weight_bits, layer.activation_bits) == (4, 8)
    assert (layer.weight_sqnr, layer.activation_sqnr) == (25.0, 26.0)
    assert layer.why.startswith("activations: 6 bits give 14.0")
    assert suggested(weight=MEDIUM, activation=(10.0, 21.0, 33.0)).why.startswith("activations")
    assert suggested(weight=(10.0, 21.0, 33.0), activation=MEDIUM).why.startswith("weights")
    assert not suggested(weight=HOPELESS, activation=EASY).met
    assert not suggested(weight=EASY, activation=HOPELESS).met


def test_q_k_v_share_the_width_of_their_input():
    readers = {f"mm_00_img.{name}": "mm_00_img.qkv_in" for name in ("q_proj", "k_proj", "v_proj")}
    table = weights(mm_00_img__q_proj=EASY, mm_00_img__k_proj=MEDIUM, mm_00_img__v_proj=HARD)
    bits = sqnr_bits({"mm_00_img.qkv_in": noise(MEDIUM)}, readers, table, target=TARGET)
    assert [each.activation_bits for each in bits.layers] == [6, 6, 6]
    assert [each.weight_bits for each in bits.layers] == [4, 6, 8]
    assert {each.site for each in bits.layers} == {"mm_00_img.qkv_in"}


def test_layers_keep_the_order_of_the_weights_and_none_is_lost():
    readers = {"mm_00_img.fc2": "b", "mm_00_img.fc1": "a", "late": "a", "mm_00_img.o_proj": "off"}
    table = weights(mm_00_img__adaln=EASY, mm_00_img__fc1=EASY, mm_00_img__o_proj=EASY)
    sites = {"a": noise(EASY), "b": noise(EASY)}
    bits = sqnr_bits(sites, readers, table, target=TARGET)
    found = {each.layer: (each.weight_bits, each.activation_bits) for each in bits.layers}
    assert list(found) == [*table.layers, "mm_00_img.fc2", "late"]
    assert found["mm_00_img.adaln"] == (8, None)
    assert found["mm_00_img.o_proj"] == (4, None)  # its site was not traced
    assert found["mm_00_img.fc1"] == (4, 4)
    assert found["mm_00_img.fc2"] == (None, 4)


def test_without_weights_or_input():
    layer = suggested(weight=MEDIUM)
    assert (layer.site, layer.activation_bits, layer.activation_sqnr) == (None, None, None)
    assert (layer.clip, layer.clip_percentile, layer.clips) == (None, None, False)
    layer = suggested(activation=MEDIUM)
    assert (layer.site, layer.weight_bits, layer.weight_sqnr) == ("site", None, None)
    bits = sqnr_bits({}, {"embed.x": None}, None, target=TARGET)
    assert bits.layers == ()
    assert bits.granularity is None


def test_the_granularity_is_the_one_asked_for():
    table = weights(mm_00_img__fc1=EASY)
    for place, ladder in enumerate([(1, 2, 3), (1, 2, 30), (1, 20, 30), (20, 30, 40)]):
        table.sqnr[0, place] = ladder[::-1]
    widths = [
        sqnr_bits({}, {}, table, target=TARGET, granularity=name).layers[0].weight_bits
        for name in ("channel", "group_128", "group_64", "group_32")
    ]
    assert widths == [8, 8, 6, 4]
    assert sqnr_bits({}, {}, table, target=TARGET).granularity == "channel"


def test_settings_out_of_range_are_named_together():
    with pytest.raises(ConfigError) as caught:
        sqnr_bits({}, {}, None, target=math.nan, granularity="row")
    assert [text.partition(" ")[0] for text in caught.value.args] == [
        "target=nan",
        "granularity=row",
    ]


@pytest.mark.parametrize(
    ("changes", "clips", "clip", "percentile"),
    [
        ({}, False, (-1.0, 2.0), (0.0, 100.0)),
        ({"low": -0.5, "below": 0.01}, True, (-0.5, 2.0), (1.0, 100.0)),
        ({"high": 1.5, "above": 0.02}, True, (-1.0, 1.5), (0.0, 98.0)),
        ({"low": 0.5, "minimum": 0.6}, False, (0.0, 2.0), (0.0, 100.0)),  # widened to zero
        ({"high": -0.5, "maximum": -0.5}, False, (-1.0, 0.0), (0.0, 100.0)),
        ({"low": -3.0}, False, (-3.0, 2.0), (0.0, 100.0)),  # wider than the values
    ],
)
def test_clipping(changes, clips, clip, percentile):
    sites = {"site": noise(EASY, **changes)}
    (layer,) = sqnr_bits(sites, {"mm_00_img.fc1": "site"}, None, target=TARGET).layers
    assert (layer.clips, layer.clip, layer.clip_percentile) == (clips, clip, percentile)


def test_the_range_is_that_of_the_chosen_width():
    site = ActivationNoise(
        sqnr={4: 12.0, 6: 22.0, 8: 34.0},
        low={4: -1.0, 6: -2.0, 8: -3.0},
        high={4: 1.0, 6: 2.0, 8: 3.0},
        below={4: 0.25, 6: 0.125, 8: 0.0},
        above={4: 0.25, 6: 0.0625, 8: 0.0},
        minimum=-3.0,
        maximum=3.0,
    )
    found = sqnr_bits({"s": site}, {"a": "s", "final.linear": "s"}, None, target=20).layers
    assert [each.clip for each in found] == [(-2.0, 2.0), (-3.0, 3.0)]
    assert [each.clip_percentile for each in found] == [(12.5, 93.75), (0.0, 100.0)]
    assert [each.clips for each in found] == [True, False]


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        ("mm_07_img.adaln", True),
        ("uni_03.adaln", True),
        ("final.adaln", True),
        ("final.linear", True),
        ("embed.x", True),
        ("embed.context", True),
        ("embed.t_2", True),
        ("mm_07_img.fc2", False),
        ("mm_23_txt.q_proj", False),
        ("uni_00.o_proj", False),
    ],
)
def test_protected_layers_never_go_below_8_bits(layer, kept):
    assert protected(layer) is kept
    found = suggested(weight=EASY, activation=MEDIUM, layer=layer)
    assert (found.weight_bits, found.activation_bits) == ((8, 8) if kept else (4, 6))
    assert found.floored is kept
    if kept:
        assert (found.weight_sqnr, found.activation_sqnr) == (49.0, 34.0)
        assert found.why == "kept at 8 bits; activations: 4 bits give 12.1 dB, 6 give 22.0 dB"


def test_protected_layers_that_need_8_bits_are_sensitive():
    table = weights(
        mm_00_img__adaln=EASY, final__adaln=HARD, embed__x=HOPELESS, mm_00_img__fc1=HARD
    )
    bits = sqnr_bits({}, {}, table, target=TARGET)
    assert [each.weight_bits for each in bits.layers] == [8, 8, 8, 8]
    assert bits.sensitive == ["embed.x", "final.adaln", "mm_00_img.fc1"]
    assert [each.floored for each in bits.layers] == [True, False, False, False]


def test_the_lists_are_worst_first_by_what_needs_most_bits():
    readers = {"a": "easy", "b": "hard", "c": "hopeless", "d": "medium", "e": "easy", "f": "zero"}
    sites = {
        "easy": noise(EASY),
        "medium": noise(MEDIUM),
        "hard": noise(HARD),
        "hopeless": noise(HOPELESS),
        "zero": noise(NOTHING),
    }
    # b: its weight at 4 bits is barely good enough, which is not why it is here
    table = weights(a=(30.0, 42.0, 54.0), b=(20.0, 32.0, 44.0), e=(21.0, 33.0, 45.0))
    bits = sqnr_bits(sites, readers, table, target=TARGET)
    assert bits.sensitive == ["c", "b"]
    assert bits.aggressive == ["e", "a", "f"]
    severity = {each.layer: each.severity for each in bits.layers}
    assert severity == {"a": -5, "b": -6, "c": 5, "d": -2, "e": -1, "f": -math.inf}


# --- words ------------------------------------------------------------------------------------


def layer_bits(layer, weight, activation, **changes):
    plain = {
        "site": "s",
        "weight_sqnr": 1.0,
        "activation_sqnr": 2.0,
        "clip": (-1.0, 2.0),
        "clip_percentile": (0.0, 100.0),
        "clips": False,
        "met": True,
        "why": "so",
    }
    return LayerBits(layer=layer, weight_bits=weight, activation_bits=activation, **plain | changes)


def widths(*layers):
    return BitWidths("sqnr", TARGET, "channel", layers)


def test_summary_in_the_older_style():
    eights = [layer_bits(f"e{i}", 8, 8, severity=float(i)) for i in range(12)]
    sixes = [layer_bits(f"s{i}", 6, None) for i in range(10)]
    fours = [layer_bits(f"f{i}", 4, 4) for i in range(6)]
    assert summary_lines(widths(*eights, *sixes, *fours)) == [
        "weights: 8-bit: 12 layers (43%), 6-bit: 10 layers (36%), 4-bit: 6 layers (21%)",
        "activations: 8-bit: 12 layers (67%), 4-bit: 6 layers (33%)",
        "sensitive: 12 layers (e11, e10, e9, ..); aggressive: 6 layers",
    ]


def test_summary_says_what_is_missed_and_leaves_out_what_is_not_known():
    bits = widths(layer_bits("a", None, 8, met=False), layer_bits("b", None, 6))
    assert summary_lines(bits) == [
        "activations: 8-bit: 1 layer (50%), 6-bit: 1 layer (50%)",
        "sensitive: 1 layer (a); aggressive: 0 layers; 1 layer misses 20 dB at 8 bits",
    ]
    assert summary_lines(widths()) == []


def test_summary_tells_who_is_protected_from_who_needs_it():
    bits = widths(layer_bits("a", 8, 8), layer_bits("b", 8, None, floored=True))
    assert summary_lines(bits)[:2] == [
        "weights: 8-bit: 2 layers (100%, 1 as protected)",
        "activations: 8-bit: 1 layer (100%)",
    ]


def test_rows_have_a_cell_for_every_column():
    bits = widths(
        layer_bits("a", 4, 6),
        layer_bits("b", 8, None, site=None, activation_sqnr=None, clip=None),
    )
    columns, rows = bit_rows(bits)
    assert columns == COLUMNS
    assert rows == [
        ("a", 4, 6, 1.0, 2.0, -1.0, 2.0, "so"),
        ("b", 8, None, 1.0, None, None, None, "so"),
    ]
    assert {len(row) for row in rows} == {1 + len(columns)}
