"""Latent statistics against float64 numpy on everything at once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from taqdit.trajectories.latents import latent_statistics


class Stored:
    def __init__(self, latents):
        self._latents = latents

    def __len__(self):
        return len(self._latents)

    def latents(self, index):
        return self._latents[index]


@given(count=st.integers(1, 9), offset=st.floats(-1000, 1000), seed=st.integers(0, 99))
def test_statistics_are_those_of_the_pool(count, offset, seed):
    rng = np.random.default_rng(seed)
    latents = (rng.standard_normal((count, 4, 2, 2, 3)) + offset).astype(np.float32)
    found = latent_statistics(Stored(latents))
    pool = latents.astype(np.float64).swapaxes(0, 1).reshape(4, -1)
    np.testing.assert_allclose(found.mean, pool.mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.std, pool.std(1), rtol=1e-9)
    np.testing.assert_array_equal(found.low, pool.min(1))
    np.testing.assert_array_equal(found.high, pool.max(1))
