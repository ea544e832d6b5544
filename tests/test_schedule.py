"""The sigma grid against DiffusionKit's own and against the formula in float64."""

import numpy as np
import pytest

from taqdit.errors import ConfigError
from taqdit.schedule import flow


def diffusionkit_sigmas(num_steps, shift):
    from taqdit.models.diffusionkit import dk

    pipeline = dk.DiffusionPipeline.__new__(dk.DiffusionPipeline)
    sampler = dk.ModelSamplingDiscreteFlow(shift=shift)
    return np.array(pipeline.get_sigmas(sampler, num_steps))


@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0, 6.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 20, 28, 30, 50, 100, 250, 1000])
def test_sigmas_are_diffusionkits_bit_for_bit(num_steps, shift):
    ours = flow(num_steps=num_steps, shift=shift).sigmas()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, diffusionkit_sigmas(num_steps, shift))


@pytest.mark.parametrize("num_steps", [2, 30, 100])
def test_sigmas_follow_the_formula(num_steps):
    ends = [3 * t / (1 + 2 * t) for t in (1.0, 0.001)]
    u = np.linspace(*ends, num_steps)
    expected = np.append(3 * u / (1 + 2 * u), 0)
    np.testing.assert_allclose(flow(num_steps=num_steps).sigmas(), expected, atol=2e-7)


def test_the_grid_falls_from_one_to_zero():
    sigmas = flow(num_steps=50).sigmas()
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1, 0, 51)
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[-2] == pytest.approx(0.00893, abs=1e-5)  # the shift acts twice at this end


@pytest.mark.parametrize(("name", "value"), [("num_steps", 0), ("num_steps", 1001), ("shift", 0.0)])
def test_ranges(name, value):
    with pytest.raises(ConfigError, match=f"^{name}={value} must lie in"):
        flow(**{name: value})
