"""The model interface against DiffusionKit itself."""

import logging
import random

import numpy as np
import pytest

from taqdit.backend import mx
from taqdit.errors import ConfigError, NumericError
from taqdit.models.diffusionkit import dk
from taqdit.models.options import tiny
from taqdit.schedule import flow

PROMPTS = ("a red circle on a white background", "two green stars", "blue ring")


@pytest.fixture(scope="module")
def model():
    return tiny().load()


def conditioning(model, texts):
    """Tokens (2N, n, 4096) and pooled (2N, d), positives first."""
    rows = [model.encode(text) for text in texts] + [model.encode("")] * len(texts)
    return tuple(mx.array(np.stack([row[part] for row in rows])) for part in (0, 1))


def euler(model, texts, seeds, *, num_steps, cfg_scale):
    """Final latents (N, h, w, 16) of an Euler loop over our interface."""
    tokens, pooled = conditioning(model, texts)
    sigmas = mx.array(flow(num_steps=num_steps).sigmas())
    with model.denoiser(tokens=tokens, pooled=pooled, sigmas=sigmas, cfg_scale=cfg_scale) as at:
        x = model.first_latent(seeds, sigmas[0])
        for step in range(num_steps):
            d = (x - at(x, step)) / sigmas[step]
            x = x + d * (sigmas[step + 1] - sigmas[step])
            mx.eval(x)
    return x


def library_euler(model, text, seed, *, num_steps, cfg_scale, monkeypatch):
    """The same through DiffusionKit's encode_text, get_noise, get_sigmas and sample_euler."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    pipeline = model.pipeline
    pipeline.load_text_encoders()
    tokens, pooled = pipeline.encode_text(text, cfg_scale, "")
    empty = pipeline.get_empty_latent(*model.latent_shape[:2])
    noise = pipeline.get_noise(seed, empty)
    sigmas = pipeline.get_sigmas(pipeline.sampler, num_steps)
    first = pipeline.sampler.noise_scaling(sigmas[0], noise, empty, pipeline.max_denoise(sigmas))
    given = {
        "conditioning": tokens.astype(pipeline.activation_dtype),
        "pooled_conditioning": pooled.astype(pipeline.activation_dtype),
        "cfg_weight": cfg_scale,
    }
    final, _ = dk.sample_euler(dk.CFGDenoiser(pipeline), first, sigmas, extra_args=given)
    pipeline.mmdit.pop("to_offload", None)
    return final


@pytest.mark.parametrize(
    ("prompt", "seed", "num_steps", "cfg_scale"),
    [(0, 0, 1, 2.0), (1, 7, 2, 1.0), (2, 2**32 - 1, 4, 7.5), (0, 42, 6, 0.3)],
)
def test_euler_equals_the_librarys_sampler_bit_for_bit(
    model, monkeypatch, prompt, seed, num_steps, cfg_scale
):
    text, settings = PROMPTS[prompt], {"num_steps": num_steps, "cfg_scale": cfg_scale}
    ours = euler(model, [text], [seed], **settings)
    assert mx.array_equal(
        ours, library_euler(model, text, seed, **settings, monkeypatch=monkeypatch)
    )
    assert ours.dtype == mx.float32


@pytest.mark.slow
def test_half_precision_equals_the_librarys_sampler_bit_for_bit(monkeypatch):
    half = tiny(w16=True, a16=True).load()
    assert half.timesteps(mx.array([0.5])).dtype == mx.float16
    settings = {"num_steps": 2, "cfg_scale": 2.0}
    ours = euler(half, [PROMPTS[0]], [1], **settings)
    assert mx.array_equal(
        ours, library_euler(half, PROMPTS[0], 1, **settings, monkeypatch=monkeypatch)
    )
    assert half.encode("a star")[0].dtype == np.float16


def test_a_batch_agrees_with_single_trajectories(model):
    settings = {"num_steps": 3, "cfg_scale": 2.0}
    together = euler(model, PROMPTS, [5, 6, 7], **settings)
    alone = [
        euler(model, [text], [seed], **settings)
        for text, seed in zip(PROMPTS, (5, 6, 7), strict=True)
    ]
    difference = mx.abs(together - mx.concatenate(alone)).max().item()
    assert difference < 1e-5
    assert mx.abs(alone[0] - alone[1]).max().item() > 0.1


def test_first_latent_is_the_librarys_and_leaves_every_generator_alone(model):
    model.encode(
        PROMPTS[0]
    )  # the encoders' modules draw weights when they are made, to be replaced
    np.random.seed(123)  # noqa: NPY002
    mx.random.seed(5)
    random.seed(9)
    expected = np.random.rand(), mx.random.uniform().item(), random.random()  # noqa: NPY002
    np.random.seed(123)  # noqa: NPY002
    mx.random.seed(5)
    random.seed(9)
    ours = model.first_latent([3, 2**32 - 1, 3], mx.array(0.8))
    euler(model, [PROMPTS[0]], [3], num_steps=1, cfg_scale=1.0)
    after = np.random.rand(), mx.random.uniform().item(), random.random()  # noqa: NPY002
    assert after == expected
    pipeline = model.pipeline
    empty = pipeline.get_empty_latent(8, 8)
    for row, seed in enumerate((3, 2**32 - 1, 3)):
        noise = pipeline.get_noise(seed, empty)
        theirs = pipeline.sampler.noise_scaling(mx.array(0.8), noise, empty)
        assert mx.array_equal(ours[row], theirs[0])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(model, seed):
    with pytest.raises(ConfigError, match=f"seed={seed}"):
        model.first_latent([seed], 1.0)


@pytest.mark.parametrize("cfg_scale", [0, -1.0, float("nan"), float("inf")])
def test_a_useless_cfg_scale_is_refused(model, cfg_scale):
    tokens, pooled = conditioning(model, ["a star"])
    grid = mx.array([1.0, 0.0])
    with (
        pytest.raises(ConfigError, match="1 samples without guidance"),
        model.denoiser(tokens=tokens, pooled=pooled, sigmas=grid, cfg_scale=cfg_scale),
    ):
        pass


def test_cfg_scale_one_is_the_prompt_alone(model):
    """At 1 the guided result is the positive prediction, whatever the negative is."""
    tokens, pooled = conditioning(model, ["a red star"])
    same = mx.concatenate([tokens[:1]] * 2), mx.concatenate([pooled[:1]] * 2)
    grid, latent = mx.array([0.7, 0.0]), model.first_latent([0], 0.7)
    results = []
    for t, p in ((tokens, pooled), same):
        with model.denoiser(tokens=t, pooled=p, sigmas=grid, cfg_scale=1) as denoise:
            results.append(np.array(denoise(latent, 0)))
    assert np.abs(results[0] - results[1]).max() < 1e-5


def test_encode_gives_the_librarys_rows(model):
    for text in PROMPTS:
        tokens, pooled = model.encode(text)
        theirs = model.pipeline.encode_text(text, 7.5, "")
        assert np.array_equal(tokens, theirs[0][0])
        assert np.array_equal(pooled, theirs[1][0])
        negative = model.encode("")
        assert np.array_equal(negative[0], theirs[0][1])
        assert np.array_equal(negative[1], theirs[1][1])
    assert tokens.shape == (model.spec.num_text_tokens, model.spec.token_width)
    assert pooled.shape == (model.spec.pooled_width,)
    assert tokens.dtype == np.float32


ODD = [
    "",
    " ",
    "\t\n",
    "🙂",
    "红色的圆",
    "a" * 200,
    "a red " * 200,
    "<|endoftext|>",
    "İ ſ ﬁ",
    "a\x00b",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_prompts_are_encoded(model, text):
    tokens, pooled = model.encode(text)
    assert np.isfinite(tokens).all()
    assert np.isfinite(pooled).all()
    assert np.array_equal(tokens, model.encode(text)[0])


def test_an_unknown_character_reads_as_a_question_mark_and_is_named(model, caplog):
    with caplog.at_level(logging.WARNING):
        tokens, _ = model.encode("ж")
    assert "ж" in caplog.text
    assert np.array_equal(tokens, model.encode("?")[0])


def test_decode_equals_the_librarys_picture(model):
    latents = mx.random.normal((2, 8, 8, 16), key=mx.random.key(0))
    pictures = model.decode(latents)
    assert pictures.shape == (2, *model.spec.image_shape)
    assert pictures.dtype == np.uint8
    for row in (0, 1):
        out = model.pipeline.latent_format.process_out(latents[row : row + 1])
        decoded = np.array(model.pipeline.decode_latents_to_image(out))
        assert np.array_equal(pictures[row], (decoded[0] * 255).astype(np.uint8))


def test_a_picture_of_nan_is_refused(model):
    latent = mx.full((1, 8, 8, 16), 3e38)
    with pytest.raises(NumericError, match="VAE decoder gave NaN or Inf"):
        model.decode(latent)


def test_released_encoders_come_back(model):
    before = model.encode("a star")
    model.release_text_encoders()
    assert not hasattr(model.pipeline, "clip_g")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.encode("a star"), strict=True))
