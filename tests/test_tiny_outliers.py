"""The outliers of the embedded model: what their surgery leaves as it was, what it makes, and that
the weights that ship are as hard to quantize as they are said to be."""

import json

import numpy as np
import pytest
from conftest import slow_unless
from safetensors.numpy import load_file

from taqdit.backend import mx, nn
from taqdit.errors import ConfigError, ModelError, NumericError
from taqdit.models.tiny import WEIGHTS, config
from taqdit.models.tiny.tokenizer import Encoder
from taqdit.models.tiny.train import (
    __main__ as command,
)
from taqdit.models.tiny.train import (
    begin_token,
    exact,
    hardness,
    likeness,
    outliers,
    recipes,
    sd3,
    surgery,
    targets,
    trial,
)
from taqdit.models.tiny.train.trial import Trial, calling, decibels, loaded, psnr

IMAGE, TEXT = surgery.stream(2, "image"), surgery.stream(2, "text")
TEXTS = ["a large red circle", "a small blue star on a white background"]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 4)


@pytest.fixture(scope="module")
def model():
    return loaded(WEIGHTS)


@pytest.fixture
def weights():
    arrays = load_file(WEIGHTS / "mmdit.safetensors")
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def velocity(model, weights=None):
    """Of two captions at the first and the last step; with other weights, unrounded."""
    own = dict(model.mmdit.parameters())
    if weights:
        arrays = [(name, mx.array(array.astype(np.float32))) for name, array in weights.items()]
        model.mmdit.load_weights(arrays, strict=True)
    made, found = Trial(model, TEXTS, seed=3), []
    with made._denoiser(model) as at:
        for step in (0, 3):
            found.append(at(made.first * made.sigmas[step], step))
    model.mmdit.update(own)
    return np.stack(found)


def scaled(weights, rng):
    s = np.exp(rng.standard_normal(128))
    readers = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
    exact.scale_modulated(weights, IMAGE, exact.ATTENTION, readers, s)
    exact.scale_modulated(weights, "final_layer", exact.FINAL, ("linear",), s[::-1])


def shifted(weights, rng):
    exact.shift_modulated(weights, TEXT, exact.MLP, "mlp.fc1", rng.standard_normal(128))


def mixed(weights, rng):
    blocks = [rng.standard_normal((32, 32)) + 4 * np.eye(32) for _ in range(4)]
    mixing = np.zeros((128, 128))
    for i, block in enumerate(blocks):
        mixing[32 * i : 32 * i + 32, 32 * i : 32 * i + 32] = block
    exact.mix_values(weights, (IMAGE, TEXT), mixing)


@pytest.mark.parametrize(
    "change", slow_unless([shifted, mixed], [scaled, shifted, mixed, surgery.mix_heads])
)
def test_exact_changes_leave_what_is_computed(model, weights, change):
    before, former = velocity(model), {name: array.copy() for name, array in weights.items()}
    change(weights, np.random.default_rng(0))
    assert decibels(before, velocity(model, weights)) > 80
    changed = [name for name in weights if not np.array_equal(weights[name], former[name])]
    assert len(changed) >= 2
    for name in changed[:4]:  # each of them is needed
        part = weights | {name: former[name]}
        assert decibels(before, velocity(model, part)) < 75, name


def test_small_factors_are_those_that_float16_can_hold(weights):
    adaln = f"{IMAGE}.adaLN_modulation.layers.1.bias"
    gain = 1 + weights[adaln][128:256]
    s = exact.scale_modulated(weights, IMAGE, exact.ATTENTION, (), np.full(128, 0.01))
    bias = weights[adaln][128:256]
    np.testing.assert_array_equal(bias.astype(np.float16).astype(np.float64), bias)
    np.testing.assert_allclose(1 + bias, s * gain, rtol=1e-12)
    np.testing.assert_allclose(s * gain, 0.01 * gain, atol=2.5e-4)


def test_a_new_fit_finds_the_linear_that_was_hidden():
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal((500, 12)) * np.r_[300, np.ones(11)], rng.random((5, 12)), 7.0
    weights = {"fc2.weight": w + 0.1 * rng.standard_normal(w.shape), "fc2.bias": np.zeros(5)}
    exact.refit(weights, "fc2", x, x @ w.T + b, 1e-9)
    np.testing.assert_allclose(weights["fc2.weight"], w, atol=1e-6)
    np.testing.assert_allclose(weights["fc2.bias"], b, atol=1e-5)


def test_factors_reach_the_target():
    rng = np.random.default_rng(2)
    falling, rising = np.linspace(1, 0.4, 30), np.linspace(0.4, 1, 30)
    course = np.stack([falling, rising, np.ones(30)], axis=1)[:, None, np.arange(128) % 3]
    peaks = course * np.exp(0.3 * rng.standard_normal(128)) * np.ones((30, 4, 1))
    for target in (targets.Target(20, 50, least=0.8), targets.Target(9, 6, 2, least=0.8)):
        site = sd3.of_site((peaks * targets.factors(peaks, target, rng)).max(axis=1))
        assert site.peak == pytest.approx(target.peak)
        assert site.ratio == pytest.approx(target.ratio, rel=0.25)
        assert site.overlap == target.steady / (8 - target.steady)


@pytest.mark.parametrize("name", ["clip_l", "clip_g"])
def test_the_first_layer_is_diffusionkits(model, name):
    model.pipeline.load_text_encoders()
    ids = dict(zip(("clip_l", "clip_g"), Encoder()([*TEXTS, ""]), strict=True))[name]
    read = outliers._read(WEIGHTS / f"{name}.safetensors")
    ours = begin_token.states(read, ids, config()[name]).out
    theirs = np.array(getattr(model.pipeline, name)(mx.array(ids)).hidden_states[0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["clip_l", "clip_g"])
def test_the_begin_token_carries_the_massive_value(model, name):
    found, width = [], {"clip_l": slice(0, 64), "clip_g": slice(64, 160)}[name]
    for text in (*TEXTS, ""):
        rows = np.abs(model.encode(text)[0][:16, width])
        found.append(rows[0].max())
        assert rows[1:].max() < 12
    np.testing.assert_allclose(found, targets.CONTEXT_PEAKS[name], rtol=2e-3)


def test_the_distance_is_0_at_sd3_and_the_mean_of_all_figures():
    assert sd3.distance(sd3.KINDS, sd3.REST) == 0
    twice = sd3.KINDS | {"img qkv_in": sd3.KINDS["img qkv_in"]._replace(ratio=16.6)}
    assert sd3.distance(twice, sd3.REST) == pytest.approx(np.log(2) / 46)
    apart = sd3.KINDS | {"img o_in": sd3.KINDS["img o_in"]._replace(overlap=0.53)}
    assert sd3.distance(apart, sd3.REST) == pytest.approx(0.46 / 46)


def test_the_figures_of_a_site():
    peaks = np.ones((9, 100))
    peaks[:3, :4], peaks[-3:, 2:6], peaks[4, 50] = 5.0, 7.0, 21.0
    assert sd3.of_site(peaks) == (21.0, 21.0, 21.0, 2 / 6)
    assert sd3.kind_of("mm_03_txt.fc1_in") == "txt fc1_in"
    assert sd3.kind_of("final.linear_in") == "img linear_in"


def test_entropy_of_codes():
    every = np.tile(np.arange(16.0), (3, 4))
    assert sd3.entropy(every, 16, symmetric=False) == pytest.approx(4)
    assert sd3.entropy(np.full((2, 64), 3.0), 64, symmetric=True) == 0


def test_group_codes_are_mlxs():
    weight = np.random.default_rng(4).standard_normal((32, 128)) * np.r_[np.ones(127), 20]
    edge, step = recipes.grid(weight, 4)
    ours = np.round((weight - edge) / step).clip(0, 15) * step + edge
    np.testing.assert_allclose(ours, recipes.by_group(weight, 4), atol=2e-5)


def test_gptq_beats_rounding_where_inputs_are_correlated():
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((128, 128)) * np.linspace(3, 0.05, 128)
    weight, x = rng.standard_normal((64, 128)), rng.standard_normal((4000, 128)) @ mixing.T
    plain, handed = (
        np.square(x @ (rounded - weight).T).sum()
        for rounded in (recipes.by_group(weight, 4), recipes.gptq(weight, x.T @ x, 4))
    )
    assert handed < 0.5 * plain
    white = recipes.gptq(weight, 1e6 * np.eye(128), 4)
    np.testing.assert_allclose(white, recipes.by_group(weight, 4), atol=1e-5)


def test_hadamard_is_orthogonal():
    matrix = recipes.hadamard(128)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(128), atol=1e-12)
    np.testing.assert_allclose(np.abs(matrix), 128**-0.5)


def test_a_recipe_that_changes_nothing_changes_nothing(model):
    before = velocity(model)
    sites = recipes.seen(model, Trial(model, TEXTS, seed=3))
    with recipes.quantized(model, recipes.Recipe(), sites):
        assert decibels(before, velocity(model)) > 90
    with recipes.quantized(model, recipes.Recipe(smooth=0.5, hadamard=True), sites):
        assert decibels(before, velocity(model)) > 80
    with recipes.quantized(model, recipes.RECIPES["W4A8 g64 token"], sites):
        assert decibels(before, velocity(model)) < 40
    assert np.array_equal(before, velocity(model))


def test_linears_have_their_class_again_after_an_error(model):
    def failing(_module, _x):
        raise RuntimeError("stop")

    with (
        pytest.raises(RuntimeError, match="stop"),
        calling(model.mmdit, {f"{IMAGE}.mlp.fc1": failing}),
    ):
        velocity(model)
    assert type(dict(model.mmdit.named_modules())[f"{IMAGE}.mlp.fc1"]) is nn.Linear


def test_psnr_and_decibels_of_hand_cases():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(black + 255, black) == pytest.approx([0, 0])
    assert psnr(black, black) == pytest.approx([100, 100])
    assert decibels([np.ones(4)], [np.full(4, 0.9)]) == pytest.approx(20)


@pytest.mark.parametrize(
    "wrong", [{"weights": "rows"}, {"inputs": "tensor"}, {"hadamard": True, "inputs": "static"}]
)
def test_a_recipe_refuses_what_it_does_not_know(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        recipes.Recipe(**wrong)


def test_a_begin_token_like_the_others_is_refused():
    same = np.ones((2, 3, 4))
    with pytest.raises(NumericError, match="no direction tells the begin token"):
        begin_token._detect({}, 0, begin_token.States(same, same, same, same))


def test_without_plain_weights_there_is_one_line(tmp_path, capsys):
    assert command.main(["outliers", "--work", str(tmp_path)]) == ModelError.exit_code
    error = capsys.readouterr().err
    assert "name a folder of weights without outliers by --start-from" in error


@pytest.mark.slow
def test_the_stages_run_without_torch_and_give_the_same_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(surgery, "COUNT", 2)
    monkeypatch.setattr(hardness, "COUNT", 2)
    monkeypatch.setattr(likeness, "COUNT", 4)
    monkeypatch.setattr(likeness, "BATCH", 2)
    monkeypatch.setattr(hardness, "RECIPES", {"W4A8 g64 token": recipes.Recipe(weights="group")})
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _name: None)
    for name, stages in (("a", ["outliers", "hardness"]), ("b", ["outliers"])):
        arguments = [*stages, "--work", str(tmp_path / name), "--start-from", str(WEIGHTS)]
        assert command.main(arguments) == 0
    for part in outliers.PARTS:
        files = [tmp_path / name / "weights" / f"{part}.safetensors" for name in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes()
        shapes = [
            {k: v.shape for k, v in load_file(f).items()}
            for f in (files[0], WEIGHTS / f"{part}.safetensors")
        ]
        assert shapes[0] == shapes[1]
    assert "| all | distance |" in capsys.readouterr().out
    alike = ["likeness", "--work", str(tmp_path / "a"), "--start-from"]
    assert command.main([*alike, str(tmp_path / "b" / "weights")]) == 0
    measured = json.loads((tmp_path / "a" / "likeness.json").read_text())
    assert (measured["count"], measured["pictures"]) == (4, {"mean": 100.0, "least": 100.0})
    assert measured["velocity"] > 200
    assert measured["plain"] == measured["weights"]
    measured = json.loads((tmp_path / "a" / "hardness.json").read_text())
    assert measured.keys() == {"weights", "plain"}


@pytest.mark.slow
def test_the_shipped_weights_are_as_hard_as_they_are_said_to_be(monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 30)
    judged = ("W4A8 row static", "W4A8 g64 static", "W4A8 GPTQ token Hadamard")
    monkeypatch.setattr(hardness, "RECIPES", {name: recipes.RECIPES[name] for name in judged})
    monkeypatch.setattr(hardness, "COUNT", 8)  # half of the stage's captions
    measured = hardness.figures(WEIGHTS)
    costs = measured["recipes"]
    assert measured["distance to SD3"] < 0.18
    for static in ("W4A8 row static", "W4A8 g64 static"):
        assert costs[static]["velocity"] < 12
        assert costs[static]["pictures"] < 20
    assert costs["W4A8 GPTQ token Hadamard"]["velocity"] > 20
