"""Sensitivity of the embedded model: finite differences, what is left behind, what it predicts."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_taps import Flux
from traced import Conditioned, Tracing

from taqdit.analysis.static import SHARES
from taqdit.backend import mx, tree_flatten
from taqdit.errors import ConfigError, NumericError
from taqdit.models.linears import linears
from taqdit.models.options import tiny
from taqdit.models.sites import site_paths
from taqdit.quantizer import Quantizer
from taqdit.sampler import euler
from taqdit.sensitivity.gradients import Projections, gradients
from taqdit.sensitivity.layout import SensitivityLayout
from taqdit.sensitivity.measured import ErrorProbe, FakeQuantized
from taqdit.sensitivity.prediction import site_error, weight_error
from taqdit.sensitivity.reader import SensitivityProbe
from taqdit.sensitivity.rounded import round_to_nearest
from taqdit.tracer.taps import Taps

STEPS, READ, SIZE = 6, (2, 5), 4
PROJECTIONS = Projections(probes=3)


class Reader:
    """Four trajectories of the embedded model, and what is read of them at two steps."""

    def __init__(self):
        self.model = tiny().load()
        sampler = euler(batch_size=SIZE, num_trajectories=2 * SIZE)
        self.tracing = Tracing(
            self.model, Conditioned(self.model), num_steps=STEPS, sampler=sampler
        )
        self.latents = [self.tracing.sample(number) for number in (0, 1)]
        self.values, self.extremes = {}, {}
        self._look()
        self.layout = SensitivityLayout.of(self.model, self.extremes, folds=2)
        self.weights = dict(linears(self.model.mmdit, self.model.spec))

    def _look(self):
        """The extremes at every site, and some of its values."""
        taps = Taps(self.model.mmdit, {p.site.name: p.path for p in site_paths(self.model.spec)})

        def read(name, x):
            low, high = self.extremes.get(name, (np.inf, -np.inf))
            self.extremes[name] = min(low, x.min().item()), max(high, x.max().item())
            self.values.setdefault(name, []).append(np.array(x).reshape(-1)[::37])

        for number, latents in enumerate(self.latents):
            with self.denoiser(number) as denoise:
                for step in READ:
                    with taps.reading(read):
                        denoise(mx.array(latents[step]), step)

    def denoiser(self, number=0):
        tokens, pooled = self.tracing.guided(self.tracing.batch(number).texts)
        sigmas = mx.array(self.tracing.sigmas)
        return self.model.denoiser(tokens=tokens, pooled=pooled, sigmas=sigmas, cfg_scale=2.0)

    def tokens(self):
        return self.tracing.guided(self.tracing.batch().texts)[0]

    def probe(self, *, layout=None, **options):
        """A probe of the first batch, and where it puts what it reads."""
        found, layout = {}, layout or self.layout
        indices = self.tracing.batch().indices
        places = dict(sigmas=self.tracing.sigmas, tokens=self.tokens())
        taps = layout.taps(self.model)
        return SensitivityProbe(
            taps, layout, indices, found.__setitem__, **places, **options
        ), found

    def read(self, *, steps=READ, **options):
        probe, found = self.probe(**options)
        assert self.tracing.replay(self.latents[0], steps, probe=probe) == list(steps)
        return found

    def measured(self, schemes, *, number=0, steps=READ):
        """Squared errors of each scheme by step, on the trajectories of a batch."""
        found = {}
        taps = self.layout.taps(self.model)
        probe = ErrorProbe(
            taps,
            self.layout,
            schemes,
            lambda step, power, errors: found.__setitem__(step, errors | {"power": power}),
            sigmas=self.tracing.sigmas,
        )
        self.tracing.replay(self.latents[number], steps, number, probe)
        return found

    def quantizer(self, site, bits):
        """Of the range of least squared error: shares of the extremes."""
        low, high = self.extremes[site]
        below, above = (each.reshape(-1) for each in np.meshgrid(SHARES[::3], SHARES[::3]))
        values = np.concatenate(self.values[site]).astype(np.float64)
        ranges = zip(low * below, high * above, strict=True)
        made = [Quantizer.of_range(*each, bits=bits) for each in ranges]
        return min(made, key=lambda each: np.square(values - each.rounded(values)).sum())

    def state(self):
        """What must not change: the modules, their classes, and every parameter's array."""
        mmdit = self.model.mmdit
        modules = [(name, id(each), type(each), set(each)) for name, each in mmdit.named_modules()]
        return modules, [(name, id(each)) for name, each in tree_flatten(mmdit.parameters())]


@pytest.fixture(scope="module")
def reader():
    return Reader()


@pytest.fixture(scope="module")
def sums(reader):
    return reader.read(projections=PROJECTIONS)


# --- gradients ------------------------------------------------------------------------------


def of_direction(reader, denoise, direction, step=2):
    return gradients(
        denoise,
        reader.layout.taps(reader.model),
        reader.layout,
        latent=mx.array(reader.latents[0][step]),
        step=step,
        sigma=float(reader.tracing.sigmas[step]),
        direction=direction,
    )


def test_gradients_are_finite_differences(reader):
    """Central ones along random errors of a site, and of single entries of them."""
    latent, sigma = mx.array(reader.latents[0][2]), float(reader.tracing.sigmas[2])
    taps, rng = reader.layout.taps(reader.model), np.random.default_rng(0)
    direction = mx.array(Projections().of(range(SIZE), 2, 0, latent.shape[1:]))
    site_of = {each.name: each.site for each in reader.layout.linears}
    with reader.denoiser() as denoise:
        found = of_direction(reader, denoise, direction)

        def moved(site, error):
            def shifted(name, linear, x):
                return linear(x + error.reshape(x.shape) if site_of[name] == site else x)

            with taps.around(shifted):
                velocity = (latent - denoise(latent, 2)) / sigma
            return float(np.vdot(np.array(direction, np.float64), np.array(velocity, np.float64)))

        for site in (
            "embed.context_in",
            "mm_01_txt.qkv_in",
            "mm_03_img.post_gelu",
            "final.linear_in",
        ):
            gradient = np.array(found.at_inputs[site])
            largest = np.zeros_like(gradient)
            largest.flat[np.abs(gradient).argmax()] = 1
            spread = rng.standard_normal(gradient.shape).astype(np.float32)
            for error, length in ((largest, 0.005), (spread, 0.5)):
                width = length / np.sqrt(np.square(error).sum())
                up, down = (moved(site, mx.array(sign * width * error)) for sign in (1, -1))
                exact = np.vdot(gradient.astype(np.float64), error)
                close = 0.003 * float(np.linalg.norm(gradient) * np.linalg.norm(error))
                assert (up - down) / (2 * width) == pytest.approx(exact, rel=0.03, abs=close), site


@pytest.mark.parametrize("layer", ["mm_00_txt.k_proj", "mm_02_img.fc1", "embed.context"])
def test_weight_gradients_are_those_of_mlx_without_taps(reader, layer):
    latent, sigma = mx.array(reader.latents[0][2]), float(reader.tracing.sigmas[2])
    direction = mx.array(Projections().of(range(SIZE), 2, 0, latent.shape[1:]))
    linear = next(each for each in reader.layout.linears if each.name == layer)
    module = dict(reader.model.mmdit.named_modules())[linear.path]
    weight = module.weight
    with reader.denoiser() as denoise:
        found = of_direction(reader, denoise, direction)

        def projected(changed):
            module.weight = changed
            return (direction * (latent - denoise(latent, 2)) / sigma).sum()

        try:
            theirs = mx.grad(projected)(weight)
            mx.eval(theirs)
        finally:
            module.weight = weight
    ours = mx.einsum("rto,rti->oi", found.at_outputs[layer], found.inputs[linear.site])
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(mx.abs(theirs).max()))


@pytest.mark.parametrize("parallel", [True, False])
def test_unified_blocks_have_gradients_of_their_own(parallel):
    """Where attention and MLP read the same array, each site has its own delta."""
    flux, rng = Flux(parallel=parallel), np.random.default_rng(0)
    extremes = {each.site.name: (-9, 9) for each in site_paths(flux.spec)}
    layout = SensitivityLayout.of(flux, extremes, folds=1)
    taps, latent = (
        layout.taps(flux),
        mx.array(rng.standard_normal((1, 4, 6, 16)).astype(np.float32)),
    )
    direction = mx.array(Projections().of([0], 0, 0, latent.shape[1:]))

    def denoise(latent, _step):
        flux.latent = mx.concatenate([latent, latent])
        positive, negative = flux.forward().split(2)
        return latent - (negative + 3 * (positive - negative))

    found = gradients(denoise, taps, layout, latent=latent, step=0, sigma=1.0, direction=direction)
    site_of = {each.name: each.site for each in layout.linears}
    for site in ("uni_00.qkv_in", "uni_00.fc1_in", "uni_01.post_gelu", "mm_01_txt.fc1_in"):
        gradient = np.array(found.at_inputs[site])
        error = rng.standard_normal(gradient.shape).astype(np.float32)

        def moved(width, site=site, error=error):
            def shifted(name, linear, x):
                return linear(
                    x + width * mx.array(error).reshape(x.shape) if site_of[name] == site else x
                )

            with taps.around(shifted):
                velocity = np.array(latent - denoise(latent, 0), np.float64)
            return np.vdot(np.array(direction), velocity)

        slope = (moved(0.01) - moved(-0.01)) / 0.02
        assert slope == pytest.approx(float(np.vdot(gradient, error)), rel=0.02, abs=0.02), site


# --- nothing is left behind -----------------------------------------------------------------


def test_the_model_is_as_it_was(reader):
    before = reader.state()
    reader.read(steps=[2])
    scheme = FakeQuantized({"final.linear_in": reader.quantizer("final.linear_in", 8)})
    reader.measured({"one": scheme}, steps=[2])
    assert reader.state() == before
    np.testing.assert_array_equal(reader.tracing.sample(0), reader.latents[0])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_model_is_as_it_was_after_an_exception(reader, error, monkeypatch):
    before, (probe, found) = reader.state(), reader.probe()
    attention = type(reader.model.mmdit.final_layer)

    def fails(*_):
        raise error("stop here")

    monkeypatch.setattr(attention, "__call__", fails)
    with pytest.raises(error, match="stop here"):
        reader.tracing.replay(reader.latents[0], [2], probe=probe)
    monkeypatch.undo()
    assert reader.state() == before
    assert not found
    assert list(reader.read(steps=[2])) == [2]


def test_a_gradient_that_is_not_finite_is_refused(reader):
    probe, _ = reader.probe()
    latents = reader.latents[0].copy()
    latents[2, 0, 0, 0, 0] = np.nan
    with pytest.raises(NumericError, match=r"gradient at .* is NaN or Inf at step 2"):
        reader.tracing.replay(latents, [2], probe=probe)


# --- what is read ---------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(reader):
    one, again, other = (
        reader.read(steps=[2], projections=Projections(seed=seed))[2] for seed in (0, 0, 1)
    )
    for name, array in one.tensors().items():
        np.testing.assert_array_equal(array, again.tensors()[name])
    assert not np.array_equal(one.channels, other.channels)


def test_some_sites_are_read_alone(reader, sums):
    """What several passes over a few sites each give is what one over all gives."""
    some = ["mm_02_txt.post_gelu", "final.linear_in"]
    layout = SensitivityLayout.of(reader.model, reader.extremes, folds=2, sites=some)
    found = reader.read(layout=layout, steps=[2], projections=PROJECTIONS)[2]
    for number, name in enumerate(some):
        whole = reader.layout.layout.index(name)
        np.testing.assert_allclose(
            found.squares(layout)[number], sums[2].squares(reader.layout)[whole], rtol=1e-4
        )
    assert [each.name for each in layout.linears] == ["mm_02_txt.fc2", "final.linear"]


def test_layouts_refuse_unknown_names(reader):
    with pytest.raises(ConfigError, match=r"sites=\['mm_77_img.o_in'\]: the model has none"):
        SensitivityLayout.of(reader.model, {}, folds=0, sites=["mm_77_img.o_in"])


# --- what is predicted ----------------------------------------------------------------------


def compared(reader, sums, sites, bits):
    """Predicted and measured squared velocity errors of single sites, over the steps."""
    picked = {site: reader.quantizer(site, bits) for site in sites}
    schemes = {site: FakeQuantized({site: picked[site]}) for site in sites}
    found = reader.measured(schemes)
    measured = [sum(found[step][site].sum() for step in READ) for site in sites]
    predicted = [
        sum(site_error(sums[step], reader.layout, site, picked[site]).sum() for step in READ)
        for site in sites
    ]
    return np.array(predicted), np.array(measured)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "which", [slice(1, None, 4), pytest.param(slice(None), marks=pytest.mark.slow)]
)
def test_damages_of_single_sites_are_ranked(reader, sums, bits, which):
    sites = [site.name for site in reader.layout.sites][which]
    predicted, measured = compared(reader, sums, sites, bits)
    rank = spearmanr(predicted, measured).statistic
    off = 10 * np.log10(predicted / measured)
    print(f"{bits} bits, {len(sites)} sites: Spearman {rank:.3f}, median {np.median(off):+.2f} dB")
    assert rank > 0.9
    assert abs(np.median(off)) < 2


@pytest.mark.parametrize(
    "which", [slice(1, None, 5), pytest.param(slice(None), marks=pytest.mark.slow)]
)
def test_damages_of_single_weights_are_ranked(reader, sums, which):
    linears_of = [each.name for each in reader.layout.linears]
    names = [name for name in linears_of if name != "mm_05_txt.q_proj"][which]  # of no effect
    weights = {name: reader.weights[name] for name in names}
    errors = {name: round_to_nearest(w, bits=4) - w for name, w in weights.items()}
    found = reader.measured({name: FakeQuantized({}, {name: errors[name]}) for name in names})
    measured = np.array([sum(found[step][name].sum() for step in READ) for name in names])
    predicted = np.array(
        [
            sum(weight_error(sums[step], reader.layout, name, errors[name]).sum() for step in READ)
            for name in names
        ]
    )
    rank = spearmanr(predicted, measured).statistic
    off = 10 * np.log10(predicted / measured)
    print(f"{len(names)} weights: Spearman {rank:.3f}, median {np.median(off):+.2f} dB")
    assert rank > 0.9
    assert abs(np.median(off)) < 2
