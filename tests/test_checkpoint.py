"""Released checkpoints: loading through DiffusionKit's own key mapping, and every way to fail."""

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import huggingface_hub.constants
import numpy as np
import pytest
import sd3_files
from safetensors.numpy import load_file, save_file

from taqdit.backend import mx, tree_flatten
from taqdit.errors import ModelError
from taqdit.models.diffusionkit import model_io
from taqdit.models.options import sd3_medium, tiny
from taqdit.models.peak_memory import peak_bytes
from taqdit.models.sources import HubSource
from taqdit.models.tiny import config as tiny_config

REPO, FILE = "argmaxinc/mlx-stable-diffusion-3-medium", "sd3_medium.safetensors"
MMDIT = tiny_config()["mmdit"] | {"dtype": mx.float32}
VAE = {
    "block_out_channels": tuple(tiny_config()["vae"]["block_out_channels"]),
    "layers_per_block": tiny_config()["vae"]["layers_per_block"],
    "resnet_groups": tiny_config()["vae"]["resnet_groups"],
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache that the hub's client uses, offline."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def text_side(cache):
    sd3_files.write_text_side(cache)
    return sd3_files.repository(cache, "argmaxinc/stable-diffusion")


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "mine.safetensors"
    sd3_files.write_checkpoint(path)
    return path


def small(local=None, **changes):
    """`sd3_medium` with the tiny sizes: the same source, loaders and key mapping."""
    source = HubSource(
        repo=REPO,
        file=FILE,
        local=local,
        use_t5=changes.get("use_t5", False),
        mmdit=MMDIT,
        vae=VAE,
    )
    return dataclasses.replace(tiny(), name="sd3_medium", source=source, **changes)


def parameters(module):
    return dict(tree_flatten(module.parameters()))


def same_arrays(ours, theirs):
    a, b = parameters(ours), parameters(theirs)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def one_denoised(model, *, seed=0):
    rows = [model.encode("a red circle"), model.encode("")]
    tokens, pooled = (mx.array(np.stack([row[part] for row in rows])) for part in (0, 1))
    sigmas = mx.array([0.9, 0.0])
    with model.denoiser(tokens=tokens, pooled=pooled, sigmas=sigmas, cfg_scale=2.0) as denoise:
        return np.array(denoise(model.first_latent([seed], sigmas[0]), 0))


@pytest.fixture(scope="module")
def direct():
    """The embedded model, loaded from its own files."""
    return tiny().load()


def test_a_local_checkpoint_gives_the_same_model_bit_for_bit(text_side, checkpoint, direct):
    model = small(checkpoint).load()
    assert same_arrays(model.mmdit, direct.mmdit)
    assert np.array_equal(one_denoised(model), one_denoised(direct))
    latents = mx.random.normal((1, 8, 8, 16), key=mx.random.key(1))
    assert np.array_equal(model.decode(latents), direct.decode(latents))
    assert same_arrays(model.pipeline.clip_l, direct.pipeline.clip_l)
    assert same_arrays(model.pipeline.clip_g, direct.pipeline.clip_g)
    for text in ("a blue star", "🙂 红", ""):
        for ours, theirs in zip(model.encode(text), direct.encode(text), strict=True):
            assert np.array_equal(ours, theirs)


def test_a_cached_checkpoint_is_found_offline(cache, text_side, direct):
    sd3_files.write_checkpoint(sd3_files.repository(cache, REPO) / FILE)
    spec = small()
    assert spec.weights_present()
    assert np.array_equal(one_denoised(spec.load()), one_denoised(direct))


def test_half_precision_weights(text_side, checkpoint):
    model = small(checkpoint, w16=True, a16=True).load()
    model.encode("a star")
    model.decode(mx.zeros((1, 8, 8, 16)))
    for part in (model.mmdit, model.pipeline.clip_l, model.pipeline.decoder):
        assert {value.dtype for value in parameters(part).values()} == {mx.float16}


def library_globals():
    """Every module global that loading could touch, with the shared configuration objects."""
    held = {name: value for name, value in vars(model_io).items() if not name.startswith("__")}
    shared = {key: dict(vars(config)) for key, config in model_io._CONFIG.items()}
    return held, shared, json.dumps([model_io._MMDIT, model_io._PREFIX, model_io._MODELS])


def test_loading_leaves_no_trace_in_the_library(text_side, checkpoint):
    before = library_globals()
    small(checkpoint, w16=True).load().encode("a star")
    after = library_globals()
    assert all(after[0][name] is value for name, value in before[0].items())
    assert after[0].keys() == before[0].keys()
    assert after[1:] == before[1:]
    broken = sd3_files.checkpoint_tensors()
    broken.popitem()
    sd3_files.write_checkpoint(checkpoint, broken)
    with pytest.raises(ModelError):
        small(checkpoint).load().decode(mx.zeros((1, 8, 8, 16)))
    assert all(library_globals()[0][name] is value for name, value in before[0].items())


def test_two_models_do_not_influence_each_other(text_side, checkpoint, tmp_path, direct):
    other = tmp_path / "other.safetensors"
    tensors = sd3_files.checkpoint_tensors()
    for name in tensors:
        if "adaLN" in name:
            tensors[name] = tensors[name] * 2
    sd3_files.write_checkpoint(other, tensors)
    first = small(checkpoint, low_memory=True).load()
    second = small(other, low_memory=True, w16=True, a16=True).load()
    expected = one_denoised(direct)
    assert not np.allclose(one_denoised(second), expected, atol=1e-2)
    for _ in range(2):  # its adaLN weights come back from its own file, in its own precision
        assert np.array_equal(one_denoised(first), expected)
    assert same_arrays(first.mmdit, direct.mmdit)
    assert parameters(second.mmdit)["final_layer.linear.bias"].dtype == mx.float16


# Failures: one line that names the repository, the file and what to do.


def refused(spec, *words, use=lambda spec: spec.load()):
    with pytest.raises(ModelError) as caught:
        use(spec)
    message = str(caught.value)
    for word in ("hf auth login", *words):
        assert word in message, message
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_nothing_at_hand_and_offline(cache):
    spec = sd3_medium()
    assert not spec.weights_present()
    assert peak_bytes(spec, 8, num_steps=50) > 0
    for use in (lambda spec: spec.weights(), lambda spec: spec.load()):
        refused(spec, REPO, FILE, "HF_HUB_OFFLINE", "model.local_ckpt=PATH", use=use)


def test_text_encoders_missing(cache, checkpoint):
    message = refused(small(checkpoint), "argmaxinc/stable-diffusion", "clip_l/config.json")
    assert "local_ckpt" not in message
    assert not small(checkpoint).weights_present()


def test_a_local_checkpoint_that_does_not_exist(text_side, tmp_path):
    spec = small(tmp_path / "nothing.safetensors")
    refused(spec, "nothing.safetensors", "does not exist", REPO)
    assert not spec.weights_present()


def test_a_truncated_checkpoint(text_side, checkpoint):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[:-1000])
    refused(small(checkpoint), str(checkpoint), "is damaged", str(len(data)))
    checkpoint.write_bytes(data[:100])
    refused(small(checkpoint), "no safetensors file")


@pytest.mark.parametrize(
    "junk",
    [b"", b"PK\x03\x04" + bytes(100), bytes(100), b"\x02" + bytes(7) + b"[]", b"\xff" * 64],
)
def test_a_file_of_another_format(text_side, checkpoint, junk):
    checkpoint.write_bytes(junk)
    refused(small(checkpoint), "no safetensors file", str(checkpoint), REPO)


def without(name):
    return lambda tensors: tensors.pop(name)


def enlarged(name):
    return lambda tensors: tensors.update({name: np.zeros((3, 5), np.float32)})


BLOCK = "model.diffusion_model.joint_blocks.2.x_block"
SPOILED = [
    (without(f"{BLOCK}.mlp.fc1.weight"), "image_transformer_block.mlp.fc1.weight"),
    (without("model.diffusion_model.x_embedder.proj.weight"), "x_embedder.proj.weight"),
    (without(f"{BLOCK}.attn.qkv.weight"), "Missing 3 parameters"),
    (enlarged(f"{BLOCK}.mlp.fc2.weight"), "shape"),
    (enlarged("model.diffusion_model.joint_blocks.9.x_block.mlp.fc2.weight"), "not in model"),
    (enlarged("text_encoders.clip_l.embedding"), "not in model"),
]


@pytest.mark.parametrize(("spoil", "word"), SPOILED)
def test_a_transformer_with_wrong_tensors(text_side, checkpoint, spoil, word):
    tensors = sd3_files.checkpoint_tensors()
    spoil(tensors)
    sd3_files.write_checkpoint(checkpoint, tensors)
    refused(small(checkpoint), word, str(checkpoint), "cannot be loaded")


def test_a_checkpoint_of_another_size(text_side, checkpoint):
    """The released sizes, a file with tiny ones: nothing of 2 B parameters is ever allocated."""
    source = dataclasses.replace(sd3_medium(use_t5=False).source, local=checkpoint)
    before = library_globals()
    refused(dataclasses.replace(small(), source=source), "cannot be loaded", str(checkpoint))
    assert library_globals()[1:] == before[1:]  # the shared configuration objects too


def test_a_checkpoint_without_its_vae(text_side, checkpoint):
    tensors = sd3_files.checkpoint_tensors()
    kept = {name: value for name, value in tensors.items() if not name.startswith("first_stage")}
    sd3_files.write_checkpoint(checkpoint, kept)
    model = small(checkpoint).load()
    refused(model, "conv_in.weight", use=lambda model: model.decode(mx.zeros((1, 8, 8, 16))))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (without("text_model.final_layer_norm.weight"), "Missing 1 parameters"),
        (enlarged("text_model.embeddings.position_embedding.weight"), "shape"),
        (enlarged("text_model.unknown.weight"), "not in model"),
    ],
)
def test_a_text_encoder_with_wrong_tensors(text_side, checkpoint, spoil, word):
    path = text_side / "clip_g" / "model.fp16.safetensors"
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path)
    model = small(checkpoint).load()
    refused(
        model,
        word,
        "argmaxinc/stable-diffusion",
        "clip_g/model.fp16.safetensors",
        use=lambda model: model.encode("a star"),
    )


def test_a_damaged_tokenizer(text_side, checkpoint):
    (text_side / "tokenizer_l" / "vocab.json").write_text("{")
    model = small(checkpoint).load()
    refused(model, "tokenizer_l/vocab.json", use=lambda model: model.encode("a star"))


class Answer(BaseHTTPRequestHandler):
    """A hub that answers every question in the same way."""

    status, code = 403, "GatedRepo"
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.asked.append(self.path)
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.code)
        self.send_header("X-Error-Message", "as the test wants it")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def hub(cache, monkeypatch):
    """Online, with a hub on this machine; returns a function that sets its answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def answer(status, code):
        monkeypatch.setattr(Answer, "status", status)
        monkeypatch.setattr(Answer, "code", code)

    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (403, "GatedRepo", "licence that you have not accepted"),
        (401, "GatedRepo", "licence that you have not accepted"),
        (401, "", "401"),
        (404, "RepoNotFound", "cannot see"),
        (404, "EntryNotFound", "not in the repository"),
        (403, "", "403"),
        (400, "", "cannot be downloaded"),
    ],
)
def test_a_hub_that_refuses(hub, status, code, word):
    hub(status, code)
    spec = sd3_medium()
    assert not spec.weights_present()
    for use in (lambda spec: spec.weights(), lambda spec: spec.load()):
        message = refused(spec, REPO, FILE, "model.local_ckpt=PATH", word, use=use)
        assert f"https://huggingface.co/{REPO}" in message


def test_what_is_cached_is_used_without_asking_the_hub(hub, cache, text_side, direct):
    hub(500, "")
    Answer.asked.clear()
    sd3_files.write_checkpoint(sd3_files.repository(cache, REPO) / FILE)
    spec = small()
    assert spec.weights_present()
    assert len(spec.weights()) == 9
    assert np.array_equal(one_denoised(spec.load()), one_denoised(direct))
    assert Answer.asked == []


# T5


def test_t5_runs_here_and_equals_the_librarys_layers(cache, text_side, checkpoint, monkeypatch):
    sd3_files.write_t5(cache)
    model = small(checkpoint, use_t5=True).load()
    assert "t5/t5xxl.safetensors" in model.spec.weights()
    tokens, pooled = model.encode("a red circle")
    assert tokens.shape == (16 + 512, 4096)
    without_t5 = small(checkpoint).load().encode("a red circle")
    assert np.array_equal(tokens[:16], without_t5[0][:16])
    assert np.array_equal(pooled, without_t5[1])
    again, _ = model.encode("a red circle")
    assert np.array_equal(tokens, again)  # the library's low-memory encoder would have lost layers

    monkeypatch.setattr(mx.metal, "set_memory_limit", lambda _: None)
    monkeypatch.setattr(mx.metal, "device_info", lambda: {"memory_size": 0})
    library = model_io.SD3T5Encoder(model_io.T5Config(**sd3_files.T5), low_memory_mode=False)
    library.load_weights(list(parameters(model.pipeline.t5_encoder).items()))
    ids = model.pipeline._tokenize(model.pipeline.t5_tokenizer, "a red circle")
    assert np.array_equal(tokens[16:], library(ids)[0])


def test_a_t5_file_that_lacks_a_tensor(cache, text_side, checkpoint):
    sd3_files.write_t5(cache)
    path = text_side / "t5" / "t5xxl.safetensors"
    tensors = load_file(path)
    del tensors["encoder.block.0.layer.1.layer_norm.weight"]
    save_file(tensors, path)
    model = small(checkpoint, use_t5=True).load()
    refused(model, "t5/t5xxl.safetensors", "Missing", use=lambda model: model.encode("a star"))
