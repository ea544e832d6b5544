"""Matrix products in tiles against numpy's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taqdit.analysis.products import _ALONE, _ROWS, _parts, product


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3))
def test_any_small_shape(rows, columns, inner):
    rng = np.random.default_rng([rows, columns, inner])
    one, other = rng.normal(size=(rows, inner)), rng.normal(size=(inner, columns))
    np.testing.assert_allclose(product(one, other), one @ other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(441, 640, 100), (33, 640, 801), (17, 9000, 3), (2, 3, 10**6)])
def test_shapes_of_several_tiles(shape):
    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(rows, inner)), rng.normal(size=(columns, inner)).T
    np.testing.assert_allclose(product(one, other), one @ other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(0, 3, 4), (4, 3, 0), (4, 0, 5)])
def test_nothing(shape):
    rows, inner, columns = shape
    found = product(np.ones((rows, inner)), np.ones((inner, columns)))
    assert found.shape == (rows, columns)
    assert not found.any()


@given(st.integers(2, 5000), st.integers(2, 200))
def test_parts_are_whole_even_and_never_single(length, most):
    sizes = [part.stop - part.start for part in _parts(length, most)]
    assert sum(sizes) == length
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 1 or most == 2


def test_a_tile_is_small_enough_for_one_thread():
    inner = 640
    assert _ROWS * inner * max(2, _ALONE // (_ROWS * inner)) <= _ALONE
