"""The solvers on ODEs with known solutions, in float64."""

import numpy as np
import pytest

from taqdit.errors import ConfigError
from taqdit.sampler import euler, euler_step, heun, heun_step


def gaussian_denoiser(sigmas, *, std):
    """The ideal denoiser of data N(0, std^2) under x = (1 - sigma) * data + sigma * noise."""

    def denoise(latent, step):
        s = sigmas[step]
        return latent * (1 - s) * std**2 / ((1 - s) ** 2 * std**2 + s**2)

    return denoise


def solve(step_rule, num_steps, *, std=0.5):
    sigmas = np.linspace(1.0, 0.0, num_steps + 1)
    denoise = gaussian_denoiser(sigmas, std=std)
    latent = np.array([1.0])
    for step in range(num_steps):
        latent = step_rule(denoise, latent, sigmas, step)
    return float(latent[0])


@pytest.mark.parametrize(("rule", "order"), [(euler_step, 1), (heun_step, 2)])
def test_convergence_order(rule, order):
    """The exact flow maps N(0, 1) to N(0, std^2): noise 1 ends at std."""
    coarse, fine = (abs(solve(rule, n) - 0.5) for n in (64, 128))
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("rule", [euler_step, heun_step])
def test_a_perfect_denoiser_ends_at_the_data(rule):
    sigmas = np.array([1.0, 0.4, 0.0])
    data, latent = np.array([0.3, -2.0]), np.array([1.5, 0.1])
    for step in range(2):
        latent = rule(lambda x, i: data, latent, sigmas, step)
    np.testing.assert_allclose(latent, data, atol=1e-15)


def test_euler_is_its_formula():
    sigmas, latent = np.array([0.8, 0.5, 0.0]), np.array([2.0])
    stepped = euler_step(lambda x, i: np.array([0.4]), latent, sigmas, 0)
    assert stepped[0] == 2.0 + (2.0 - 0.4) / 0.8 * (0.5 - 0.8)


@pytest.mark.parametrize(("option", "expected"), [(euler, 30), (heun, 59)])
def test_evaluations_are_what_the_solver_calls(option, expected):
    sampler, calls = option(), []
    sigmas = np.linspace(1, 0, 31)

    def denoise(latent, step):
        calls.append(step)
        return latent * 0.5

    latent = np.ones(1)
    for step in range(30):
        latent = sampler.advance(denoise, latent, sigmas, step)
    assert len(calls) == sampler.evaluations(30) == expected


def test_every_range_error_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        euler(cfg_scale=0.0, seed=-1, num_trajectories=0, batch_size=0)
    assert [text.split("=")[0] for text in caught.value.args] == [
        "cfg_scale",
        "seed",
        "num_trajectories",
        "batch_size",
    ]


@pytest.mark.parametrize(("count", "size", "batches"), [(16, 8, 2), (17, 8, 3), (1, 8, 1)])
def test_batches_cover_the_trajectories(count, size, batches):
    assert euler(num_trajectories=count, batch_size=size).num_batches == batches
