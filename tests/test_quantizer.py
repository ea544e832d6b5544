"""The affine quantizer, and the error it makes of a histogram, against plain numpy."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.integrate import quad

from taqdit.analysis.noise import bin_errors
from taqdit.quantizer import BITS, Quantizer, decibel

numbers = st.floats(-1e4, 1e4, width=32)  # as activations are kept


@given(one=numbers, other=numbers, bits=st.sampled_from(BITS))
def test_zero_is_exact_and_the_range_is_held_within_a_step(one, other, bits):
    low, high = sorted((one, other))
    assume(min(low, 0) < max(high, 0))
    made = Quantizer.of_range(low, high, bits=bits)
    assert made.rounded(np.array(0.0)) == 0
    assert made.low <= 0 <= made.high
    assert abs(made.low - min(low, 0)) <= made.scale * (0.5 + 1e-9)
    assert abs(made.high - max(high, 0)) <= made.scale * (0.5 + 1e-9)
    assert made.zero_point == np.rint(made.zero_point)


def test_codes_and_values_by_hand():
    made = Quantizer.of_range(-1.0, 2.0, bits=4)  # scale 0.2, zero point 5
    assert made.scale == pytest.approx(0.2)
    assert made.zero_point == 5
    x = np.array([-9, -1, -0.11, -0.09, 0, 0.31, 2, 9])
    assert made.codes(x).tolist() == [0, 0, 4, 5, 5, 7, 15, 15]
    assert made.rounded(x) == pytest.approx([-1, -1, -0.2, 0, 0, 0.4, 2, 2])


def test_an_empty_range_and_bad_arguments():
    assert Quantizer.of_range(0.0, 0.0, bits=8).rounded(np.array([0.0])).tolist() == [0.0]
    assert Quantizer.of_range(3.0, 3.0, bits=8).low == 0  # widened to zero
    with pytest.raises(ValueError, match="bits=17"):
        Quantizer.of_range(0.0, 1.0, bits=17)
    with pytest.raises(ValueError, match="low must not"):
        Quantizer.of_range(1.0, 0.0, bits=8)


def test_decibel():
    assert decibel(100.0, 1.0) == pytest.approx(20)
    assert decibel(1.0, 0.0) == np.inf
    assert np.isnan(decibel(0.0, 0.0))


@pytest.mark.parametrize("bits", BITS)
def test_the_error_of_a_bin_is_its_integral(bits):
    left = np.array([-7.0, -3.2, -0.5, -1e-3, 0.3, 2.0, 2.0, 11.0])
    right = np.array([-5.0, -3.0, -0.1, 1e-3, 1.7, 2.0, 2.1, 13.0])
    made = Quantizer.of_range(np.array([-4.0, -0.2, 0.0]), np.array([2.0, 9.0, 5.0]), bits=bits)
    found = bin_errors(left, right, made)
    for row in range(3):
        one = Quantizer(made.scale[row], made.zero_point[row], bits)
        for k, (a, b) in enumerate(zip(left, right, strict=True)):
            if a == b:
                truth = (a - one.rounded(np.array(a))) ** 2
            else:
                borders = [x for x in _borders(one) if a < x < b]
                parts = [a, *borders, b]
                truth = sum(
                    quad(lambda x, q=one: float((x - q.rounded(np.array(x))) ** 2), u, v)[0]
                    for u, v in pairwise(parts)
                ) / (b - a)
            assert found[row, k] == pytest.approx(truth, rel=1e-6, abs=1e-12)


def _borders(made):
    """Where the nearest code changes."""
    codes = np.arange(-made.zero_point, 2**made.bits - made.zero_point)
    return ((codes[1:] - 0.5) * made.scale).tolist()


def test_uniform_noise_is_a_twelfth_of_a_step_squared():
    made = Quantizer.of_range(np.array([-1.0]), np.array([1.0]), bits=8)
    edges = np.linspace(-0.9, 0.9, 181)
    error = bin_errors(edges[:-1], edges[1:], made).mean()
    assert error == pytest.approx(float(made.scale[0]) ** 2 / 12, rel=0.01)
