"""Sensitivity on models with a formula: expectations are exact, sums are those of numpy."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from taqdit.activations import Layout, Site
from taqdit.analysis.static import SHARES
from taqdit.backend import mx, nn
from taqdit.errors import ConfigError
from taqdit.quantizer import Quantizer
from taqdit.sensitivity.alike import first_alike, merged, merging
from taqdit.sensitivity.gradients import Projections, gradients
from taqdit.sensitivity.layout import (
    ENDS,
    HALF_STEPS,
    ZEROED,
    Linear,
    SensitivityLayout,
    half_steps,
    range_ends,
)
from taqdit.sensitivity.measured import FakeQuantized, fake_quantized
from taqdit.sensitivity.prediction import (
    noise_error,
    site_error,
    systematic_error,
    total_error,
    velocity_decibel,
    weight_error,
)
from taqdit.sensitivity.reader import SensitivityProbe, weight_sums
from taqdit.sensitivity.rounded import round_to_nearest
from taqdit.sensitivity.sums import StepSensitivity
from taqdit.sensitivity.tails import interpolated, masses, tails
from taqdit.tracer.taps import Taps

CFG, SIGMA, COUNT = 3.0, 0.5, 2
CHANNELS, HIDDEN, TOKENS = 2, 3, 2
SITES = (Site("mm_00_img.fc1_in", CHANNELS), Site("mm_00_img.post_gelu", HIDDEN))
LINEARS = (
    Linear("mm_00_img.fc1", SITES[0].name, "one", HIDDEN, CHANNELS),
    Linear("mm_00_img.fc2", SITES[1].name, "two", CHANNELS, HIDDEN),
)


class Net(nn.Module):
    """two(one(x)), or two(one(x)^2 / 2): its Jacobian is known. Latents are (N, 1, TOKENS, 2)."""

    def __init__(self, *, square):
        super().__init__()
        self.one, self.two = nn.Linear(CHANNELS, HIDDEN), nn.Linear(HIDDEN, CHANNELS)
        self.square = square
        rng = np.random.default_rng(0)
        for linear in (self.one, self.two):
            linear.weight = mx.array(rng.standard_normal(linear.weight.shape).astype(np.float32))

    def denoise(self, latent, step):
        """The guided clean latent; the negative half sees the latent halved."""
        rows = mx.concatenate([latent, latent / 2]).reshape(2 * COUNT, TOKENS, 1, CHANNELS)
        hidden = self.one(rows)
        out = self.two(mx.square(hidden) / 2 if self.square else hidden)
        positive, negative = out.reshape(2 * COUNT, 1, TOKENS, CHANNELS).split(2)
        return negative + CFG * (positive - negative)

    def taps(self):
        return Taps(self, {each.name: each.path for each in LINEARS})


def layout_of(ends=(-4.0, 4.0), folds=2):
    tabulated = (np.stack([of(*ends)] * 2) for of in (range_ends, half_steps))
    return SensitivityLayout(Layout(SITES, folds), (TOKENS, TOKENS), LINEARS, *tabulated)


@pytest.fixture(params=[False, True], ids=["linear", "quadratic"])
def net(request):
    return Net(square=request.param)


@pytest.fixture
def latent():
    shape = (COUNT, 1, TOKENS, CHANNELS)
    return mx.array(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def every_direction():
    """All signs: their mean is the expectation. The same for every trajectory."""
    for signs in itertools.product((-1.0, 1.0), repeat=COUNT * TOKENS * CHANNELS):
        yield mx.array(np.array(signs, np.float32).reshape(COUNT, 1, TOKENS, CHANNELS))


def of_direction(net, latent, direction):
    return gradients(
        net.denoise,
        net.taps(),
        layout_of(),
        latent=latent,
        step=0,
        sigma=SIGMA,
        direction=direction,
    )


def jacobian_times(net, latent, site, error):
    """J e (N, TOKENS, CHANNELS) float64 of an activation error (R, T, C), by the chain rule."""
    one, two = (np.array(linear.weight, np.float64) for linear in (net.one, net.two))
    bias = np.array(net.one.bias, np.float64)
    x = np.array(latent, np.float64).reshape(COUNT, TOKENS, CHANNELS)
    if site == SITES[0].name:
        hidden = np.concatenate([x, x / 2]) @ one.T + bias
        error = (error @ one.T) * (hidden if net.square else 1)
    positive, negative = np.split(error @ two.T, 2)
    return -(negative + CFG * (positive - negative)) / SIGMA


# --- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_the_mean_square_over_all_directions_is_the_velocity_error(net, latent, site):
    error = np.random.default_rng(2).standard_normal((2 * COUNT, TOKENS, site.width))
    squares = []
    for direction in every_direction():
        g = np.array(of_direction(net, latent, direction).at_inputs[site.name], np.float64)
        squares.append((g * error).sum() ** 2)
    exact = np.square(jacobian_times(net, latent, site.name, error)).sum()
    assert np.mean(squares) == pytest.approx(exact, rel=1e-5)


def test_the_mean_square_over_all_directions_is_that_of_a_weight_error(net, latent):
    """In a weight's case to first order, which is exact where the weight comes last."""
    error = np.random.default_rng(3).standard_normal((CHANNELS, HIDDEN))
    squares = np.zeros(2**8)
    for number, direction in enumerate(every_direction()):
        found = of_direction(net, latent, direction)
        out, entering = found.at_outputs[LINEARS[1].name], found.inputs[SITES[1].name]
        gradient = np.einsum("rto,rti->oi", np.array(out, np.float64), np.array(entering))
        squares[number] = (gradient * error).sum() ** 2
    scheme = FakeQuantized(weights={LINEARS[1].name: error})
    moved = scheme.around(net.taps(), layout_of())(net.denoise, latent, 0)
    exact = np.square(np.array(moved - net.denoise(latent, 0)) / SIGMA).sum()
    assert squares.mean() == pytest.approx(exact, rel=1e-4)


def test_gradients_are_those_of_mlx_without_taps(net, latent):
    direction = next(every_direction())
    found = of_direction(net, latent, direction)

    def projected(one, two):
        net.one.weight, net.two.weight = one, two
        return (direction * (latent - net.denoise(latent, 0)) / SIGMA).sum()

    weights = net.one.weight, net.two.weight
    by_weight = mx.grad(projected, argnums=(0, 1))(*weights)
    net.one.weight, net.two.weight = weights
    for linear, gradient in zip(LINEARS, by_weight, strict=True):
        out, entering = found.at_outputs[linear.name], found.inputs[linear.site]
        ours = mx.einsum("rto,rti->oi", out, entering)
        np.testing.assert_allclose(ours, gradient, rtol=1e-5, atol=1e-5)
    by_latent = mx.grad(lambda x: (direction * (latent - net.denoise(x, 0)) / SIGMA).sum())(latent)
    positive, negative = found.at_inputs[SITES[0].name].split(2)
    ours = (positive + negative / 2).reshape(latent.shape)
    np.testing.assert_allclose(ours, by_latent, rtol=1e-5, atol=1e-5)


def test_velocity_and_clean_latent_are_those_of_the_forward(net, latent):
    found = of_direction(net, latent, next(every_direction()))
    clean = net.denoise(latent, 0)
    assert mx.array_equal(found.clean, clean)
    np.testing.assert_array_equal(found.velocity, (latent - clean) / SIGMA)


def test_directions_are_functions_of_their_numbers():
    draws = Projections(seed=5, probes=2)
    one = draws.of([3, 4], 7, 1, (2, 2, 16))
    assert set(np.unique(one)) == {-1.0, 1.0}
    np.testing.assert_array_equal(one[1], draws.of([4], 7, 1, (2, 2, 16))[0])
    others = [Projections(seed=6).of([3], 7, 1, (2, 2, 16)), draws.of([3], 8, 1, (2, 2, 16))]
    others += [draws.of([4], 7, 1, (2, 2, 16)), draws.of([3], 7, 0, (2, 2, 16))]
    assert not any(np.array_equal(one[:1], other) for other in others)
    normal = Projections(kind="normal").of(range(50), 0, 0, (8, 8, 16))
    assert normal.dtype == np.float32
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02


def test_projections_refuse_odd_values():
    with pytest.raises(ConfigError, match=r"seed=-1 .*; probes=0 .*; kind=uniform"):
        Projections(seed=-1, probes=0, kind="uniform")


# --- identical rows -------------------------------------------------------------------------


def test_rows_that_are_alike_are_summed_onto_the_first():
    tokens = np.zeros((2, 4, 3), np.float32)
    tokens[0, 0], tokens[0, 2], tokens[1, :] = 1, 1, np.arange(4)[:, None]
    first = first_alike(tokens)
    np.testing.assert_array_equal(first, [[0, 1, 0, 1], [0, 1, 2, 3]])
    g = np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32)
    joint = np.array(merged(mx.array(g), merging(first), stream="joint"))
    np.testing.assert_allclose(joint[0, :2], g[0, :2] + g[0, 2:4], rtol=1e-6)
    assert not joint[0, 2:4].any()
    np.testing.assert_array_equal(joint[0, 4:], g[0, 4:])  # image tokens
    np.testing.assert_array_equal(joint[1], g[1])
    text = merged(mx.array(g[:, :4]), merging(first), stream="txt")
    np.testing.assert_array_equal(text, joint[:, :4])
    image = mx.array(g)
    assert merged(image, merging(first), stream="img") is image
    assert merging(first[1:]) is None


def test_identical_rows_are_charged_as_one_error():
    """A linear over n equal tokens that are summed: the same error n times, n^2 its square."""
    count, rng = 5, np.random.default_rng(0)
    weight = rng.standard_normal(4)
    g = mx.array(np.tile(weight, (1, count, 1)).astype(np.float32))
    onto = merging(np.zeros((1, count), np.int64))
    noise = 0.1 * rng.standard_normal(4)
    charged = (np.square(np.array(merged(g, onto, stream="txt"))) * noise**2).sum()
    assert charged == pytest.approx(count**2 * (weight**2 * noise**2).sum(), rel=1e-5)


# --- sums -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def activation():
    """Values and gradients (R, T, C) float32 of two trajectories, their ends and half steps."""
    rng = np.random.default_rng(4)
    values = (rng.standard_normal((4, 200, 40)) ** 3).astype(np.float32)
    values[0, 0] = 0
    gradient = (0.5 + 0.5 * rng.standard_normal(values.shape)).astype(np.float32)
    extremes = values.min(), values.max()
    return values, gradient, range_ends(*extremes), half_steps(*extremes)


def by_trajectory(rows):
    """(2N, T, C) -> (N, ...)."""
    return np.stack(np.split(rows, 2), axis=1).reshape(len(rows) // 2, -1).astype(np.float64)


def test_ends_hold_the_extremes_and_every_share(activation):
    values, _, ends, steps = activation
    assert len(ends) == ENDS
    assert (np.diff(ends) >= 0).all()
    assert ends[0] <= values.min()
    assert ends[-1] >= values.max()
    assert (ends[ENDS // 2 - 1], ends[ENDS // 2]) == (0, 0)
    np.testing.assert_allclose(ends[ENDS // 2 + 1 :], np.sort(SHARES) * values.max(), rtol=2**-7)
    largest = HALF_STEPS * np.abs(values).max()
    np.testing.assert_allclose(steps, [*-largest[::-1], *largest], rtol=2**-7)
    assert not (np.concatenate([ends, steps]).view(np.uint32) & 0xFFFF).any()


def test_tails_are_those_of_numpy(activation):
    values, gradient, ends, steps = activation
    cut, zeroed = tails(values, gradient, ends=ends, half_steps=steps)
    x, g = by_trajectory(values), by_trajectory(gradient)
    for number, end in enumerate(ends.astype(np.float64)):
        error = np.minimum(end - x, 0) if number >= ENDS // 2 else np.maximum(end - x, 0)
        np.testing.assert_allclose(cut[:, number], (g * error).sum(axis=1), rtol=1e-5, atol=1e-4)
    assert zeroed.shape == (2, ZEROED)
    for number, step in enumerate(steps.astype(np.float64)):
        within = (np.abs(x) < abs(step)) & (np.sign(x) == np.sign(step))
        exact = (g * np.where(within, -x, 0)).sum(axis=1)
        np.testing.assert_allclose(zeroed[:, number], exact, rtol=1e-5, atol=1e-4)


def test_tails_between_two_ends_are_interpolated():
    ends, at = np.array([-4.0, -2, 0]), np.array([-9.0, -4, -3, -0.5, 3])
    found = interpolated(np.array([[0.0, 2, 6]]), ends, at)
    np.testing.assert_allclose(found, [[0, 0, 1, 5, 6]])
    same = interpolated(np.array([[3.0, 3]]), np.zeros(2), at)
    np.testing.assert_allclose(same, [[3] * 5])


def test_masses_are_squared_gradients_by_value_and_fold(activation):
    values, gradient, *_ = activation
    codes, sums = masses(values, np.square(gradient), np.array([0, 2, 0, 2]), count=3)
    squares = np.square(gradient, dtype=np.float64)
    np.testing.assert_allclose(sums.sum(axis=1), [squares[::2].sum(), 0, squares[1::2].sum()])
    code = codes[len(codes) // 2]
    of_code = values.view(np.uint32) >> 19 == code
    place = list(codes).index(code)
    np.testing.assert_allclose(sums[0, place], squares[::2][of_code[::2]].sum())


def test_weight_sums_are_squared_gradients_by_output_and_by_input():
    rng = np.random.default_rng(5)
    out, entering = rng.standard_normal((4, 3, 2)), rng.standard_normal((4, 3, 7))
    outputs, inputs = weight_sums(*(mx.array(a.astype(np.float32)) for a in (out, entering)))
    by_row = np.einsum("rto,rti->roi", out, entering)
    squares = np.square(by_row[:2] + by_row[2:])
    np.testing.assert_allclose(outputs, squares.sum(axis=2), rtol=1e-5)
    np.testing.assert_allclose(inputs, squares.sum(axis=1), rtol=1e-5)


# --- prediction -----------------------------------------------------------------------------


def sums_of(activation, *, trajectories=(0, 3)):
    """The record of one site and one linear, made of the activation alone, in 2 folds."""
    values, gradient, ends, steps = activation
    folds = np.tile(np.array(trajectories) % 2, 2)
    codes, sums = masses(values, np.square(gradient), folds, count=2)
    cut, zeroed = tails(values, gradient, ends=ends, half_steps=steps)
    record = StepSensitivity(
        trajectories=np.array(trajectories),
        power=np.ones(2, np.float32),
        channels=np.zeros((2, 2, 40), np.float32),
        codes=codes,
        bin_ends=np.array([0, len(codes)]),
        masses=sums.astype(np.float32),
        tails=cut[:, None, None],
        zeroed=zeroed[:, None, None],
        outputs=np.array([[20, 60], [40, 0]], np.float32),
        inputs=np.array([[2] * 40, [1] * 40], np.float32),
    )
    linear = Linear("mm_00_img.fc1", "mm_00_img.fc1_in", "one", 2, 40)
    layout = Layout((Site("mm_00_img.fc1_in", 40),), 2)
    return record, SensitivityLayout(layout, (6,), (linear,), ends[None], steps[None])


def with_own_ends(activation, quantizer):
    """The activation with the quantizer's own ends and half step among those tabulated."""
    values, gradient, ends, steps = activation
    below, above = (part.copy() for part in np.split(ends, 2))
    below[3], above[3] = quantizer.low[0], quantizer.high[0]
    lower, upper = (part.copy() for part in np.split(steps, 2))
    lower[3], upper[3] = -quantizer.scale[0] / 2, quantizer.scale[0] / 2
    ordered = [np.sort(part) for part in (below, above, lower, upper)]
    return values, gradient, np.concatenate(ordered[:2]), np.concatenate(ordered[2:])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("scale", [0.0625, 0.5, 4.0])
def test_noise_and_what_is_systematic_are_those_of_the_values(activation, bits, share, scale):
    zero_point = np.rint(share * (2**bits - 1))
    quantizer = Quantizer(np.array([scale]), np.array([zero_point]), bits)
    activation = with_own_ends(activation, quantizer)
    record, layout = sums_of(activation)
    x, g = (by_trajectory(rows) for rows in activation[:2])
    error = quantizer.rounded(x) - x
    cut = np.clip(x, quantizer.low, quantizer.high) - x
    systematic = np.where(quantizer.rounded(x) == 0, error, cut)
    exact = np.square(g * (error - systematic)).sum(axis=1)
    noise = noise_error(record, 0, quantizer)[0]
    np.testing.assert_allclose(noise, exact, rtol=0.1)
    exact = np.square((g * systematic).sum(axis=1))
    charged = systematic_error(record, layout, 0, quantizer)[0]
    np.testing.assert_allclose(charged, exact, rtol=1e-3)
    whole = site_error(record, layout, "mm_00_img.fc1_in", quantizer)
    np.testing.assert_allclose(whole[0], noise + charged)


@pytest.mark.parametrize("bits", [8, 4])
def test_between_what_is_tabulated_the_error_is_near(activation, bits):
    """Ranges at random, of values that all pull one way."""
    values, gradient, *tabulated = activation
    record, layout = sums_of((values, np.sign(values) * np.abs(gradient), *tabulated))
    x, g = by_trajectory(values), np.sign(by_trajectory(values)) * np.abs(by_trajectory(gradient))
    shares = np.random.default_rng(9).uniform(0.02, 1, (20, 2))
    many = Quantizer.of_range(shares[:, 0] * x.min(), shares[:, 1] * x.max(), bits=bits)
    charged = systematic_error(record, layout, 0, many)
    for number in range(20):
        one = Quantizer(many.scale[number], many.zero_point[number], bits)
        rounded = one.rounded(x)
        cut = np.clip(x, one.low, one.high) - x
        exact = np.square((g * np.where(rounded == 0, -x, cut)).sum(axis=1))
        np.testing.assert_allclose(charged[number], exact, rtol=0.1)


def test_many_quantizers_are_charged_at_once(activation):
    record, layout = sums_of(activation)
    low, high = np.array([-1.0, -2, -0.5]), np.array([1.0, 0.5, 3])
    many = site_error(record, layout, layout.sites[0].name, Quantizer.of_range(low, high, bits=6))
    assert many.shape == (3, 2)
    for number in range(3):
        one = Quantizer.of_range(low[number], high[number], bits=6)
        np.testing.assert_allclose(
            site_error(record, layout, layout.sites[0].name, one)[0], many[number]
        )


def test_weight_errors_are_charged_by_output_and_input(activation):
    record, layout = sums_of(activation)
    error = np.zeros((2, 40))
    error[1, 30:] = 3.0
    charged = weight_error(record, layout, "mm_00_img.fc1", error)
    np.testing.assert_allclose(charged, [60 * 2 * 10 * 9 / 80, 0])
    with pytest.raises(KeyError):
        weight_error(record, layout, "mm_01_img.fc1", error)
    quantizer = Quantizer.of_range(np.float64(-1), np.float64(1), bits=4)
    found = total_error(
        record,
        layout,
        activations={"mm_00_img.fc1_in": quantizer},
        weights={"mm_00_img.fc1": error},
    )
    site = site_error(record, layout, "mm_00_img.fc1_in", quantizer)[0]
    np.testing.assert_allclose(found, charged + site)


def test_weights_without_an_effect_are_charged_nothing(activation):
    record, layout = sums_of(activation)
    nothing = replace(record, outputs=0 * record.outputs, inputs=0 * record.inputs)
    assert not weight_error(nothing, layout, "mm_00_img.fc1", np.ones((2, 40))).any()


def test_velocity_error_in_decibel():
    errors, powers = np.array([1.0, 3]), np.array([100.0, 100])
    assert velocity_decibel(errors, powers, np.array([1.0, 0])) == pytest.approx(-20)
    assert velocity_decibel(errors, powers, np.ones(2)) == pytest.approx(10 * np.log10(4 / 200))


# --- records --------------------------------------------------------------------------------


def test_records_are_merged_and_read_back(activation):
    values, gradient, *tabulated = activation
    one, layout = sums_of(activation)
    other, _ = sums_of((values[::-1] * 2, gradient, *tabulated), trajectories=(4, 7))
    both = one.merged(other)
    np.testing.assert_array_equal(both.trajectories, [0, 3, 4, 7])
    np.testing.assert_allclose(both.masses.sum(), one.masses.sum() + other.masses.sum(), rtol=1e-5)
    quantizer = Quantizer.of_range(np.float64(-1), np.float64(2), bits=4)
    name = layout.sites[0].name
    parts = [site_error(each, layout, name, quantizer) for each in (one, other)]
    np.testing.assert_allclose(site_error(both, layout, name, quantizer), sum(parts), rtol=1e-5)
    again = StepSensitivity.of_tensors(layout, both.tensors())
    for name, array in both.tensors().items():
        assert getattr(again, name) is array
    with pytest.raises(ValueError, match="in both"):
        both.merged(one)
    with pytest.raises(ValueError, match=r"'inputs' is no float32 of shape \(2, 40\)"):
        StepSensitivity.of_tensors(layout, both.tensors() | {"inputs": both.inputs[1:]})
    with pytest.raises(ValueError, match="missing"):
        StepSensitivity.of_tensors(layout, {})


# --- rounding to nearest, and the quantized forward -----------------------------------------


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 16), (3, 7)])
def test_round_to_nearest_is_within_half_a_step(bits, group):
    weight = np.random.default_rng(6).standard_normal((5, 40)).astype(np.float32)
    rounded = round_to_nearest(weight, bits=bits, group_size=group)
    for row, start in itertools.product(range(5), range(0, 40, group or 40)):
        part = slice(start, start + (group or 40))
        low, high = min(weight[row, part].min(), 0), max(weight[row, part].max(), 0)
        step = (high - low) / (2**bits - 1)
        assert np.abs(rounded[row, part] - weight[row, part]).max() <= step * 1.001
        assert len(np.unique(rounded[row, part])) <= 2**bits


def test_round_to_nearest_refuses_odd_values():
    with pytest.raises(ConfigError, match=r"bits=1 .*; group_size=9"):
        round_to_nearest(np.ones((2, 8)), bits=1, group_size=9)


def test_fake_quantized_is_the_quantizer():
    x = np.random.default_rng(7).standard_normal((3, 50)).astype(np.float32)
    quantizer = Quantizer.of_range(np.float64(-1.2), np.float64(2), bits=5)
    np.testing.assert_allclose(
        fake_quantized(mx.array(x), quantizer), quantizer.rounded(x), atol=1e-6
    )


def test_a_quantized_forward_is_that_of_a_quantized_model(net, latent):
    quantizer = Quantizer.of_range(np.float64(-1.5), np.float64(1.5), bits=4)
    error = round_to_nearest(np.array(net.two.weight), bits=3) - np.array(net.two.weight)
    scheme = FakeQuantized({SITES[0].name: quantizer}, {"mm_00_img.fc2": error})
    run = scheme.around(net.taps(), layout_of())
    ours = run(net.denoise, latent, 0)
    weight, call = net.two.weight, net.one
    net.two.weight = weight + mx.array(error)

    class Rounding(nn.Module):
        def __call__(self, x):
            return call(fake_quantized(x, quantizer))

    net.one = Rounding()
    np.testing.assert_allclose(ours, net.denoise(latent, 0), rtol=1e-4, atol=1e-4)


def test_unknown_names_are_refused(net):
    with pytest.raises(ConfigError, match=r"quantized=\['mm_09_img.o_in', 'nothing'\]"):
        FakeQuantized(
            {"mm_09_img.o_in": Quantizer.of_range(np.float64(0), np.float64(1), bits=4)},
            {"nothing": np.zeros((1, 1))},
        ).around(net.taps(), layout_of())


# --- the probe ------------------------------------------------------------------------------


def test_a_probe_keeps_means_over_its_probes(net, latent):
    found, layout = {}, layout_of()
    probe = SensitivityProbe(
        net.taps(),
        layout,
        [0, 1],
        found.__setitem__,
        sigmas=np.array([1.0, SIGMA, 0]),
        tokens=np.arange(4.0).reshape(4, 1, 1),
        projections=Projections(probes=300),
    )
    clean = probe.watch(net.denoise)(latent, 1)
    assert mx.array_equal(clean, net.denoise(latent, 1))
    probe.collect()
    sums = found[1]
    assert sums.tails.shape == (2, 300, 2, ENDS)
    velocity = np.array(latent - clean) / SIGMA
    np.testing.assert_allclose(sums.power, np.square(velocity).sum(axis=(1, 2, 3)), rtol=1e-5)
    for number, site in enumerate(SITES):
        exact = np.zeros((2, 2))  # half, fold: |J e|^2 over unit errors e at every entry
        for place in np.ndindex(2 * COUNT, TOKENS, site.width):
            unit = np.zeros((2 * COUNT, TOKENS, site.width))
            unit[place] = 1
            error = np.square(jacobian_times(net, latent, site.name, unit)).sum()
            exact[place[0] // COUNT, place[0] % COUNT] += error
        np.testing.assert_allclose(sums.squares(layout)[number], exact, rtol=0.2)
    with pytest.raises(RuntimeError, match="no forward"):
        probe.collect()
