"""Sizes, counts, lists and numbers as people and JSON read them."""

import math
from pathlib import Path

import numpy as np
import pytest

from taqdit.words import counted, listed, plain, size, spaced


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_550_000, "1.6 MB"),
        (5 * 10**14, "500.0 TB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes_are_told_in_powers_of_1000(count, text):
    assert size(count) == text


def test_counts_have_their_plural():
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert [counted(n, "trajectory") for n in (1, 2)] == ["1 trajectory", "2 trajectories"]


def test_long_lists_end_in_a_number():
    assert listed(["a", "b"], 2) == "a, b"
    assert listed([1, 2, 3, 4], 2, " at ") == "1 at 2 and 2 more"
    assert listed([], 2) == ""


def test_what_is_spaced_has_both_ends_and_each_once():
    for count in range(1, 40):
        for most in range(2, 12):
            places = spaced(range(count), most)
            assert len(places) == min(count, most)
            assert (places[0], places[-1]) == (0, count - 1)
            gaps = np.diff(places)
            assert count == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1), places


def test_numbers_become_those_of_json():
    value = {
        1: np.float32(0.5),
        "a": np.array([[1, 2]]),
        "p": Path("x/y"),
        "t": (np.bool_(1), None),
    }
    expected = {"1": 0.5, "a": [[1, 2]], "p": "x/y", "t": [True, None]}
    assert plain(value) == expected
    assert type(plain(value)["1"]) is float
    assert type(plain(value)["t"][0]) is bool
    strange = [math.nan, np.inf, np.float64(-math.inf)]
    assert plain(strange) == ["NaN", "Infinity", "-Infinity"]
    assert plain(strange, named={}) == [None, None, None]
