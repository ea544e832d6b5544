"""What is known of a model without loading it: sizes, files, digests, memory, refusals."""

import inspect
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from taqdit import config
from taqdit.backend import mx, peak_memory, reset_peak_memory, tree_flatten
from taqdit.errors import ConfigError, ModelError
from taqdit.models import options
from taqdit.models.diffusionkit import MMDiT, VAEDecoder, dk, model_io
from taqdit.models.options import sd3_medium, sd35_large, tiny
from taqdit.models.peak_memory import peak_bytes

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"


@pytest.fixture(scope="module")
def model():
    return tiny().load()


def forward(model, count=1):
    """One guided forward of `count` trajectories, and its pictures."""
    rows = [model.encode("a star")] * count + [model.encode("")] * count
    tokens, pooled = (mx.array(np.stack([row[part] for row in rows])) for part in (0, 1))
    sigmas = mx.array([1.0, 0.0])
    with model.denoiser(tokens=tokens, pooled=pooled, sigmas=sigmas, cfg_scale=2.0) as denoise:
        return model.decode(denoise(model.first_latent(range(count), 1.0), 0))


def test_describing_a_model_imports_nothing_heavy():
    code = (
        "import sys, taqdit.models.options as o; o.tiny().weights();"
        "from taqdit.models.peak_memory import peak_bytes;"
        "peak_bytes(o.sd3_medium(), 8, num_steps=50);"
        "heavy = {'mlx', 'diffusionkit', 'transformers', 'torch', 'matplotlib', 'wandb'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["tiny", "sd3_medium", "sd35_large"])
def test_the_option_file_states_the_functions_own_defaults(name):
    written = OmegaConf.to_container(config.compose_config([f"model={name}"]).model)
    function = getattr(options, name)
    assert written.pop("_target_") == f"taqdit.models.options.{name}"
    defaults = {k: p.default for k, p in inspect.signature(function).parameters.items()}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in written.items()} == defaults


def count(module, part=""):
    """Parameters of a module; none of its lazy random arrays is computed."""
    return sum(value.size for name, value in tree_flatten(module.parameters()) if part in name)


@pytest.mark.parametrize("option", [sd3_medium, sd35_large])
def test_the_stated_sizes_are_those_of_the_librarys_modules(option):
    spec = option()
    config = model_io._CONFIG[spec.source.repo]
    mmdit = MMDiT(config)
    assert spec.parameters["mmdit"] == count(mmdit)
    assert spec.parameters["adaln"] == count(mmdit, "adaLN")
    assert spec.parameters["vae"] == count(VAEDecoder())
    assert spec.hidden == config.hidden_size
    assert model_io._MMDIT[spec.source.repo][spec.source.repo] == spec.source.file
    assert spec.num_text_tokens == 77 + dk.T5_MAX_LENGTH[spec.source.repo]
    assert option(use_t5=False).num_text_tokens == 77 + 77


def test_the_tiny_sizes_are_those_of_the_loaded_model(model):
    spec = model.spec
    assert spec.parameters["mmdit"] == count(model.mmdit)
    assert spec.parameters["adaln"] == count(model.mmdit, "adaLN")
    model.decode(mx.zeros((1, 8, 8, 16)))
    assert spec.parameters["vae"] == count(model.pipeline.decoder)


BAD_SIZES = [(7, 8), (8, 18), (0, 8), (8, 8, 8), (8,), (8.0, 8), (-2, 8)]


@pytest.mark.parametrize("size", BAD_SIZES)
def test_a_bad_latent_size_is_refused(size):
    with pytest.raises(ConfigError, match="two even numbers"):
        tiny(latent_size=size)


def test_all_problems_of_an_option_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        tiny(latent_size=(3, 3), use_t5=True)
    assert len(caught.value.args) == 2


@pytest.mark.slow
def test_an_untrained_size_works_and_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        spec = tiny(latent_size=[4, 6])
    assert "trained on (8, 8)" in caplog.text
    model = spec.load()
    assert forward(model).shape == (1, 32, 48, 3)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tiny(latent_size=[8, 8])
    assert caplog.text == ""


def test_only_what_changes_numbers_is_in_the_options():
    assert tiny().options == {"use_t5": False, "w16": False, "a16": False}
    assert tiny(w16=True).options != tiny().options
    assert tiny(low_memory=True).options == tiny().options


def test_weights_are_named_and_hashed_without_a_path(tmp_path):
    weights = tiny().weights()
    expected = {"mmdit", "vae", "clip_l", "clip_g"}
    assert {f"{part}.safetensors" for part in expected} < weights.keys()
    assert "classifier.safetensors" not in weights
    assert all(len(digest) == 64 for digest in weights.values())
    copy = tmp_path / "any name.safetensors"
    copy.write_bytes((options.TinySource().folder / "mmdit.safetensors").read_bytes())
    same = tiny(local_ckpt=str(copy))
    assert same.weights() == weights
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x01")
    assert same.weights()["mmdit.safetensors"] != weights["mmdit.safetensors"]
    assert {k: v for k, v in same.weights().items() if k[0] != "m"} == {
        k: v for k, v in weights.items() if k[0] != "m"
    }


def test_a_missing_or_foreign_tiny_checkpoint_is_one_clear_line(tmp_path):
    missing = tiny(local_ckpt=str(tmp_path / "none.safetensors"))
    assert not missing.weights_present()
    assert tiny().weights_present()
    sizes = {path.name: path.stat().st_size for path in tiny().source.fetch().values()}
    assert tiny().weight_bytes() == sum(sizes.values())
    assert missing.weight_bytes() == sum(sizes.values()) - sizes["mmdit.safetensors"]
    with pytest.raises(ModelError, match=r"none\.safetensors of the tiny model does not exist"):
        missing.weights()
    foreign = options.TinySource().folder / "vae.safetensors"
    with pytest.raises(ModelError, match="does not fit") as caught:
        tiny(local_ckpt=str(foreign)).load()
    assert "\n" not in str(caught.value)


def test_memory_grows_with_the_batch_and_shrinks_with_low_memory():
    spec = sd3_medium(latent_size=(64, 64))
    assert (
        peak_bytes(spec, 16, num_steps=50)
        > peak_bytes(spec, 4, num_steps=50)
        > 2 * spec.parameters["mmdit"]
    )
    without_t5 = sd3_medium(latent_size=(64, 64), use_t5=False)
    lean = sd3_medium(latent_size=(64, 64), use_t5=False, low_memory=True)
    assert (
        peak_bytes(lean, 4, num_steps=50)
        < peak_bytes(without_t5, 4, num_steps=50)
        < peak_bytes(spec, 4, num_steps=50)
    )
    assert peak_bytes(sd35_large(), 4, num_steps=50) > peak_bytes(spec, 4, num_steps=50)
    dropped = spec.parameters["adaln"] + lean.parameters["text"]  # 2 bytes each
    assert (
        peak_bytes(without_t5, 512, num_steps=50) - peak_bytes(lean, 512, num_steps=50)
        == 2 * dropped
    )


def test_the_memory_estimate_is_of_the_measured_size(model):
    reset_peak_memory()
    forward(model, 4)
    ratio = peak_bytes(model.spec, 4, num_steps=1) / peak_memory()
    assert 0.5 < ratio < 3, ratio
